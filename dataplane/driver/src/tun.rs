//! The TUN device of the host: multi-queue, every packet behind a virtio-net header, with
//! segmentation and checksum offloads, so that super-packets pass in one read or write.
//!
//! Address, MTU and link state are set by whoever knows the node's key, not here.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::driver::TUN_HEADER_LEN;

/// [`TUN_HEADER_LEN`] as `TUNSETVNETHDRSZ` wants it.
const HEADER_LEN: libc::c_int = 10;
const _: () = assert!(TUN_HEADER_LEN == 10);
const CLONE_DEVICE: &str = "/dev/net/tun";
/// Queues of one device, the kernel's limit.
const QUEUES_MAX: u16 = 256;
/// Bits of `TUNSETOFFLOAD`; the last two are younger (6.2) than the others.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const OFFLOADS_UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// An open device.
#[derive(Debug)]
pub struct Tun {
    /// Name of the interface.
    pub name: String,
    /// One descriptor per queue, not blocking.
    pub queues: Vec<OwnedFd>,
    /// Whether UDP super-packets may be read and written, not only TCP ones.
    pub uso: bool,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN driver, or this container no device node.
    #[error(
        "open {CLONE_DEVICE}: {source}: load the driver with `modprobe tun`; in a container, pass \
         the device in (`--device {CLONE_DEVICE}`)"
    )]
    NoDriver {
        /// What `open` said.
        source: io::Error,
    },
    /// The file has a mode or an owner that keeps this process out. No capability that a node asks for helps.
    #[error(
        "open {CLONE_DEVICE}: {source}: that is the file's own permission, not a missing capability: everybody \
         may read and write it where udev made it (`ls -l {CLONE_DEVICE}`, `chmod 666 {CLONE_DEVICE}`; in a file \
         system mounted `nodev` no mode helps); or run without a TUN device as a pure relay"
    )]
    FileClosed {
        /// What `open` said.
        source: io::Error,
    },
    /// The file may be opened, but whoever runs this process lets it use no such device.
    #[error(
        "open {CLONE_DEVICE}: {source}: this process may not use the device, whatever the file's mode: in a \
         container, pass it in (`--device {CLONE_DEVICE}`); in a unit, `DeviceAllow={CLONE_DEVICE} rw`; or run \
         without a TUN device as a pure relay"
    )]
    DeviceClosed {
        /// What `open` said.
        source: io::Error,
    },
    /// Not privileged.
    #[error(
        "TUN device {name}: {source}: creating it needs CAP_NET_ADMIN; run as root or give the \
         capability, or run without a TUN device as a pure relay"
    )]
    NotPermitted {
        /// The interface asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is such an interface.
    #[error(
        "TUN device {name}: EBUSY: an interface of this name exists, of another hyphae or made \
         beforehand; stop the one, `ip link delete {name}` the other, or choose another name"
    )]
    Busy {
        /// The interface asked for.
        name: String,
    },
    /// Not a name for an interface.
    #[error("TUN device {name:?}: a name has 1 to 15 characters, no `/`, no spaces")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// Too many or no queues.
    #[error("TUN device: {queues} queues asked for, 1 to {QUEUES_MAX} are possible")]
    Queues {
        /// The number asked for.
        queues: u16,
    },
    /// Anything else that the kernel says.
    #[error("TUN device {name}: {call}: {source}")]
    Other {
        /// The interface asked for.
        name: String,
        /// What failed.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

/// The queues of a device beside the drivers that read and write them: makes the interface again after it was
/// deleted.
#[derive(Debug)]
pub struct Interface {
    name: String,
    /// Duplicates: attaching one attaches the driver's.
    queues: Vec<OwnedFd>,
    offloads: u32,
}

impl Tun {
    /// The device's interface, to be kept while drivers own the queues.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn interface(&self) -> io::Result<Interface> {
        let queues = self.queues.iter().map(OwnedFd::try_clone);
        Ok(Interface {
            name: self.name.clone(),
            queues: queues.collect::<io::Result<_>>()?,
            offloads: offloads(self.uso),
        })
    }
}

impl Interface {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches every queue that has lost its interface to one of the same name, which is made if needed: new, down and
    /// without addresses. True when there was such a queue. Reads and writes of a queue fail with `EBADFD` until then.
    ///
    /// # Errors
    /// [`TunError`], worded for the operator. Queues that were attached before the error stay so.
    pub fn restore(&self) -> Result<bool, TunError> {
        let mut exists = self.queues.iter().any(is_attached);
        let mut restored = false;
        for fd in self.queues.iter().filter(|fd| !is_attached(fd)) {
            attach_queue(fd, &self.name, !exists)?;
            if !exists {
                control(&self.name, "TUNSETOFFLOAD", set_offloads(fd, self.offloads))?;
            }
            (exists, restored) = (true, true);
        }
        Ok(restored)
    }
}

/// Creates the device `name` (`%d` in it becomes the first free number) with `queues` queues. It
/// lives as long as one of its descriptors.
///
/// # Errors
/// [`TunError`], worded for the operator.
pub fn open(name: &str, queues: u16) -> Result<Tun, TunError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !valid {
        return Err(TunError::Name { name: name.into() });
    }
    if !(1..=QUEUES_MAX).contains(&queues) {
        return Err(TunError::Queues { queues });
    }
    let mut tun = Tun {
        name: name.into(),
        queues: Vec::new(),
        uso: true,
    };
    for queue in 0..queues {
        let fd = clone_device()?;
        // A second process would be given further queues of the same device and with them a
        // share of its packets; asking for a new device on the first queue rules that out.
        let first = queue == 0;
        tun.name = attach_queue(&fd, &tun.name, first)?;
        if first {
            tun.uso = set_offloads(&fd, offloads(true)).is_ok();
            if !tun.uso {
                let set = set_offloads(&fd, offloads(false));
                control(&tun.name, "TUNSETOFFLOAD", set)?;
            }
        }
        tun.queues.push(fd);
    }
    Ok(tun)
}

fn clone_device() -> Result<OwnedFd, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map_err(not_opened)?;
    Ok(file.into())
}

/// Two numbers that the standard library takes for one: EACCES is the file's mode, EPERM a control group or a
/// security module.
fn not_opened(source: io::Error) -> TunError {
    match source.raw_os_error() {
        Some(libc::EACCES) => TunError::FileClosed { source },
        Some(libc::EPERM) => TunError::DeviceClosed { source },
        Some(_) | None => TunError::NoDriver { source },
    }
}

fn offloads(uso: bool) -> u32 {
    if uso {
        OFFLOADS | OFFLOADS_UDP
    } else {
        OFFLOADS
    }
}

/// Makes `fd` a queue of `name`, with the header that drivers expect; returns the interface's name.
fn attach_queue(fd: &OwnedFd, name: &str, first: bool) -> Result<String, TunError> {
    let name = attach(fd, name, first)?;
    control(&name, "TUNSETVNETHDRSZ", set_header_len(fd))?;
    Ok(name)
}

/// Whether `fd` is a queue of an interface.
fn is_attached(fd: &OwnedFd) -> bool {
    // SAFETY: `ifreq` is a C struct of a character array and a union of plain data; all zero is
    // valid for every member.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which lives on this stack frame.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) == 0 }
}

/// Makes `fd` a queue of `name`; returns the interface's name.
fn attach(fd: &OwnedFd, name: &str, first: bool) -> Result<String, TunError> {
    set_interface(fd, name, first).map_err(|source| {
        let name = name.into();
        if source.kind() == io::ErrorKind::ResourceBusy {
            TunError::Busy { name }
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            TunError::NotPermitted { name, source }
        } else {
            let call = "TUNSETIFF";
            TunError::Other { name, call, source }
        }
    })
}

fn control(name: &str, call: &'static str, result: io::Result<()>) -> Result<(), TunError> {
    result.map_err(|source| TunError::Other {
        name: name.into(),
        call,
        source,
    })
}

fn set_interface(fd: &OwnedFd, name: &str, exclusive: bool) -> io::Result<String> {
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    if exclusive {
        flags |= libc::IFF_TUN_EXCL;
    }
    // SAFETY: `ifreq` is a C struct of a character array and a union of plain data; all zero is
    // valid for every member.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // The flags are the lower half; IFF_TUN_EXCL is what would be the sign.
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = libc::c_short::from_le_bytes([low, high]);
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame. The name is
    // zero-terminated: `open` has checked that it is shorter than the array, which was zeroed.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request
        .ifr_name
        .iter()
        .map(|c| c.to_ne_bytes()[0])
        .take_while(|&c| c != 0)
        .collect();
    String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn set_header_len(fd: &OwnedFd) -> io::Result<()> {
    let len = HEADER_LEN;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which lives on this stack frame.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn set_offloads(fd: &OwnedFd, offloads: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its bits by value and touches no memory of this process.
    let result = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offloads),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes sure that reads and writes of `fd` do not wait: the drivers rely on it.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(
        fd,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_requests_are_refused_before_the_kernel_sees_them() {
        for name in ["", "a/b", "with space", "sixteen-letters-"] {
            assert!(
                matches!(open(name, 1), Err(TunError::Name { .. })),
                "{name:?}"
            );
        }
        for queues in [0, 257] {
            assert!(matches!(
                open("hyphae-test", queues),
                Err(TunError::Queues { .. })
            ));
        }
    }

    #[test]
    fn a_file_that_is_closed_a_device_that_is_closed_and_no_driver_are_told_apart() {
        for (number, way_out) in [
            (libc::EACCES, "chmod 666"),
            (libc::EPERM, "DeviceAllow="),
            (libc::ENOENT, "modprobe tun"),
            (libc::ENODEV, "modprobe tun"),
        ] {
            let said = not_opened(io::Error::from_raw_os_error(number)).to_string();
            assert!(said.contains(way_out), "{number}: {said}");
            assert!(!said.contains("CAP_NET_ADMIN"), "{number}: {said}");
        }
    }
}

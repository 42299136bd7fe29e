//! TUN devices with one queue per worker and segmentation offload both ways.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::TUN_HEADER_LEN;

/// A TUN device. It vanishes, with its addresses and routes, when the last queue is closed.
#[derive(Debug)]
pub struct Tun {
    /// Name as the kernel gave it.
    pub name: String,
    /// One descriptor per queue, not blocking.
    pub queues: Vec<OwnedFd>,
    /// Whether UDP super-packets are possible (Linux 6.2).
    pub udp_segmentation: bool,
}

/// A TUN device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// No driver.
    #[error(
        "/dev/net/tun: {0}: load the tun module (modprobe tun) or give the container the device, or \
         start with --no-tun"
    )]
    Device(io::Error),
    /// Not allowed.
    #[error("TUN device '{0}': not permitted: needs CAP_NET_ADMIN (run as root), or --no-tun")]
    Forbidden(String),
    /// Taken.
    #[error("TUN device '{0}' is in use by another program; choose another with --tun-name")]
    InUse(String),
    /// Bad name.
    #[error("TUN device name '{0}' is not valid: 1 to 15 characters, no '/' and no spaces")]
    Name(String),
    /// An older device of that name is of another shape.
    #[error(
        "TUN device '{0}' exists with other settings (ip link delete {0} removes it); or choose \
         another with --tun-name"
    )]
    Shape(String),
    /// Another failure.
    #[error("TUN device '{name}': {call}: {source}")]
    System {
        /// Device.
        name: String,
        /// Which call.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

const TUN_F_CSUM: libc::c_uint = 1;
const TUN_F_TSO4: libc::c_uint = 2;
const TUN_F_TSO6: libc::c_uint = 4;
const TUN_F_TSO_ECN: libc::c_uint = 8;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// Opens a TUN device with `queues` queues.
///
/// # Errors
/// When it cannot be had; the error names the likely cause.
pub fn open(name: &str, queues: u16) -> Result<Tun, TunError> {
    let bad = name.is_empty()
        || name.len() >= libc::IFNAMSIZ
        || name.bytes().any(|b| b == b'/' || b.is_ascii_whitespace() || b == 0);
    if bad {
        return Err(TunError::Name(name.to_owned()));
    }
    let mut tun = Tun { name: name.to_owned(), queues: Vec::new(), udp_segmentation: true };
    for _ in 0..queues.max(1) {
        let (queue, actual) = open_queue(&tun.name)?;
        tun.name = actual;
        tun.udp_segmentation &= offload(&tun.name, &queue)?;
        tun.queues.push(queue);
    }
    Ok(tun)
}

fn open_queue(name: &str) -> Result<(OwnedFd, String), TunError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let queue = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|error| TunError::Device(error.into()))?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives here.
    if unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        let source = io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TunError::Forbidden(name.to_owned()),
            Some(libc::EBUSY) => TunError::InUse(name.to_owned()),
            Some(libc::EINVAL) => TunError::Shape(name.to_owned()),
            _ => TunError::System { name: name.to_owned(), call: "TUNSETIFF", source },
        });
    }
    // SAFETY: the kernel ended the name with a zero byte (it is at most IFNAMSIZ - 1 long).
    let actual = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok((queue, actual.to_string_lossy().into_owned()))
}

/// Switches offloads on; returns whether UDP segmentation is among them.
fn offload(name: &str, queue: &OwnedFd) -> Result<bool, TunError> {
    let fd = queue.as_raw_fd();
    let system = |call| {
        let source = io::Error::last_os_error();
        TunError::System { name: name.to_owned(), call, source }
    };
    let len = TUN_HEADER_LEN as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives here.
    if unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const len) } < 0 {
        return Err(system("TUNSETVNETHDRSZ"));
    }
    let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    // SAFETY: TUNSETOFFLOAD takes its bits by value.
    let set = |bits| unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) } == 0;
    if set(tcp | TUN_F_USO4 | TUN_F_USO6) {
        return Ok(true);
    }
    if set(tcp) { Ok(false) } else { Err(system("TUNSETOFFLOAD")) }
}

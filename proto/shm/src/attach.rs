//! How a control plane gets hold of a dataplane's segment: one message with descriptors over a Unix
//! stream socket. The connection stays open as the lease; either side sees the other's death as its
//! end. The dataplane checks who connects with [`check_peer`] before it offers anything.
//!
//! Descriptors, in order: the segment, the control plane's doorbell, one doorbell per worker.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use hyphae_wire::index::WORKERS_MAX;
use rustix::io::retry_on_intr;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::segment::ABI_VERSION;

/// Descriptors of the largest attach message.
const FDS_MAX: usize = WORKERS_MAX as usize + 2;
const COOKIE: [u8; 8] = *b"hyattach";

/// [`Hello::verdict`]: welcome.
pub const WELCOME: u32 = 0;
/// Another control plane holds the lease.
pub const BUSY: u32 = 1;
/// The peer of the socket is another user.
pub const FORBIDDEN: u32 = 2;

/// What a dataplane says about itself.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    cookie: [u8; 8],
    abi_version: U64,
    /// [`WELCOME`], [`BUSY`] or [`FORBIDDEN`].
    pub verdict: U32,
    /// Process number of the dataplane.
    pub pid: U32,
    /// Number of this attach.
    pub generation: U64,
    /// When the dataplane started, nanoseconds of the monotonic clock.
    pub started: U64,
    /// Workers.
    pub workers: U16,
    /// 1 when the processor has AES instructions.
    pub aes_hardware: u8,
    /// Bytes used of `tun_name`; 0 for no TUN device.
    pub tun_name_len: u8,
    /// Bytes used of `driver`.
    pub driver_len: u8,
    /// Bytes used of `driver_reason`.
    pub driver_reason_len: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// UDP port of each worker.
    pub ports: [U16; WORKERS_MAX as usize],
    /// Core of each worker; 0xffff for one that is not pinned.
    pub cores: [U16; WORKERS_MAX as usize],
    /// Receive buffer of the sockets as the kernel granted it, bytes.
    pub socket_receive_bytes: U32,
    /// Mark of the underlay packets (`SO_MARK`); 0 for none.
    pub underlay_mark: U32,
    /// Name of the TUN device.
    pub tun_name: [u8; 16],
    /// Name of the driver in use.
    pub driver: [u8; 16],
    /// Why this driver, in one line.
    pub driver_reason: [u8; 240],
}

impl Hello {
    /// A hello with everything but cookie and version blank.
    pub fn blank(verdict: u32) -> Self {
        Self {
            cookie: COOKIE,
            abi_version: U64::new(ABI_VERSION),
            verdict: U32::new(verdict),
            ..Self::new_zeroed()
        }
    }

    /// Name of the TUN device, if there is one.
    pub fn tun_name(&self) -> Option<&str> {
        text(&self.tun_name, self.tun_name_len).filter(|name| !name.is_empty())
    }

    /// Name of the driver.
    pub fn driver(&self) -> &str {
        text(&self.driver, self.driver_len).unwrap_or_default()
    }

    /// Why this driver.
    pub fn driver_reason(&self) -> &str {
        text(&self.driver_reason, self.driver_reason_len).unwrap_or_default()
    }
}

fn text(bytes: &[u8], len: u8) -> Option<&str> {
    std::str::from_utf8(bytes.get(..usize::from(len))?).ok()
}

/// Stores as much of `text` as fits; returns the bytes used.
pub fn store_text(place: &mut [u8], text: &str) -> u8 {
    let mut len = text.len().min(place.len()).min(usize::from(u8::MAX));
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    place[..len].copy_from_slice(&text.as_bytes()[..len]);
    u8::try_from(len).unwrap_or(0)
}

/// Why attaching failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The socket failed.
    #[error("attach socket: {0}")]
    Socket(#[from] rustix::io::Errno),
    /// The other side closed or sent something else.
    #[error("attach socket: the other side is not a Hyphae dataplane of this version")]
    Protocol,
    /// Another version.
    #[error(
        "the dataplane has ABI version {found}, this control plane needs {ABI_VERSION}: restart the \
         older of the two"
    )]
    Version {
        /// What it says.
        found: u64,
    },
    /// There can be only one.
    #[error("another control plane is attached to this dataplane; stop it first")]
    Busy,
    /// SO_PEERCRED says another user.
    #[error("the dataplane runs as another user and refuses this control plane")]
    Forbidden,
}

/// Checks that the process at the other end of a Unix socket may attach: it runs as root or as the
/// same user as this one. Returns its process number.
///
/// # Errors
/// [`AttachError::Forbidden`] for other users; socket errors.
pub fn check_peer(stream: BorrowedFd<'_>) -> Result<i32, AttachError> {
    let peer = socket_peercred(stream)?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        Ok(peer.pid.as_raw_pid())
    } else {
        Err(AttachError::Forbidden)
    }
}

/// Sends `hello` and descriptors.
///
/// # Errors
/// When the socket fails.
///
/// # Panics
/// When there are more descriptors than a message takes.
pub fn offer(
    stream: BorrowedFd<'_>,
    hello: &Hello,
    fds: &[BorrowedFd<'_>],
) -> Result<(), AttachError> {
    assert!(
        fds.len() <= FDS_MAX,
        "descriptors of at most {WORKERS_MAX} workers"
    );
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let bytes = [IoSlice::new(hello.as_bytes())];
    let sent = retry_on_intr(|| sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL))?;
    if sent == size_of::<Hello>() {
        Ok(())
    } else {
        Err(AttachError::Protocol)
    }
}

/// Receives what [`offer`] sent.
///
/// # Errors
/// When the socket fails, the other side is of another version, or it refuses.
pub fn accept(stream: BorrowedFd<'_>) -> Result<(Hello, Vec<OwnedFd>), AttachError> {
    let mut hello = [0; size_of::<Hello>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = retry_on_intr(|| {
        recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut hello)],
            &mut control,
            flags,
        )
    })?;
    let fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| {
            let RecvAncillaryMessage::ScmRights(fds) = message else {
                return Vec::new();
            };
            fds.collect()
        })
        .collect();
    let hello: Hello = zerocopy::transmute!(hello);
    if received.bytes != size_of::<Hello>() || hello.cookie != COOKIE {
        return Err(AttachError::Protocol);
    }
    if hello.abi_version.get() != ABI_VERSION {
        return Err(AttachError::Version {
            found: hello.abi_version.get(),
        });
    }
    match hello.verdict.get() {
        WELCOME => {}
        BUSY => return Err(AttachError::Busy),
        FORBIDDEN => return Err(AttachError::Forbidden),
        _ => return Err(AttachError::Protocol),
    }
    let workers = usize::from(hello.workers.get());
    if workers == 0 || workers > usize::from(WORKERS_MAX) || fds.len() != workers + 2 {
        return Err(AttachError::Protocol);
    }
    Ok((hello, fds))
}

#[cfg(test)]
mod tests;

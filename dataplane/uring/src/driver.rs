//! The contract between a worker and what talks to the kernel for it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hyphae_wire::Endpoint;

use crate::iouring::{ProbeError, probe};

/// Bytes of a buffer: the largest train or TUN super-packet.
pub const BUFFER_BYTES: u32 = 65_536;
/// Bytes of the virtio-net header in front of every TUN packet.
pub const TUN_HEADER_LEN: usize = 10;
/// Spans of one send or TUN write.
pub const SPANS_MAX: usize = 64;
/// Segments of one train: the kernel's limit before 6.9.
pub const SEGMENTS_MAX: usize = 64;
/// Bytes of one train: the largest UDP payload over IPv4.
pub const TRAIN_BYTES_MAX: u32 = 65_507;

/// A buffer of one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u16);

/// Bytes inside a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which buffer.
    pub buffer: BufferId,
    /// Where they begin.
    pub offset: u32,
    /// How many.
    pub len: u32,
}

/// Something arrived. The receiver owns one reference of the buffer.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// One receive from the underlay: a train of `segment`-byte datagrams, the last may be shorter.
    Datagrams {
        /// Where the bytes are.
        span: Span,
        /// Bytes of each datagram; equal to the span's when it is a single one.
        segment: u32,
        /// Who sent it.
        from: Endpoint,
    },
    /// One packet or super-packet of the host, virtio-net header first.
    Tun {
        /// Where the bytes are.
        span: Span,
    },
}

/// A send or write was not taken. Nothing was queued; the caller keeps its references.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too many operations in flight.
    #[error("too many operations in flight")]
    Full,
    /// Spans that one operation cannot carry, or no device to write to.
    #[error("spans do not fit one operation")]
    Shape,
}

/// What a driver counts. Plain totals, single writer.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriverStats {
    /// Receives that found no buffer and were armed again.
    pub buffer_exhausted: u64,
    /// Datagrams that the kernel dropped at the socket.
    pub socket_overruns: u64,
    /// Receives that were cut short; their content is discarded.
    pub rx_truncated: u64,
    /// Receives that failed.
    pub rx_errors: u64,
    /// Trains that the kernel refused.
    pub tx_errors: u64,
    /// Trains refused because the socket buffer was full.
    pub tx_backpressure: u64,
    /// TUN reads and writes that failed.
    pub tun_errors: u64,
    /// Sleeps that ended.
    pub wakeups: u64,
}

/// One worker's access to the kernel.
pub trait Driver {
    /// Name in logs and status.
    fn name(&self) -> &'static str;

    /// Submits what is queued and waits until something happened, the doorbell rang, or `timeout`
    /// passed. `Duration::ZERO` only looks.
    ///
    /// # Errors
    /// When the kernel refuses to wait: nothing that waiting again would mend.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// Submits what is queued, without waiting.
    ///
    /// # Errors
    /// As [`Self::wait`].
    fn submit(&mut self) -> io::Result<()>;

    /// The next thing that arrived, until the driver's budget for this turn is used up.
    fn next(&mut self) -> Option<Event>;

    /// The bytes of a span.
    ///
    /// # Panics
    /// When the span is not inside its buffer.
    fn bytes(&mut self, span: Span) -> &mut [u8];

    /// The bytes of two spans in different buffers, the first to read and the second to write.
    ///
    /// # Panics
    /// When a span is not inside its buffer, or both are in one.
    fn pair(&mut self, read: Span, write: Span) -> (&[u8], &mut [u8]);

    /// A free buffer to build frames in, with one reference for the caller.
    fn allocate(&mut self) -> Option<BufferId>;

    /// Gives up one reference.
    fn release(&mut self, buffer: BufferId);

    /// Queues one train: the spans one after the other, cut into `segment`-byte datagrams. Every span
    /// holds whole datagrams. Trains leave in the order of the calls.
    ///
    /// # Errors
    /// When it cannot be queued.
    fn send(&mut self, to: &Endpoint, segment: u32, spans: &[Span]) -> Result<(), SendError>;

    /// Queues one TUN write: virtio-net header, then the spans.
    ///
    /// # Errors
    /// When it cannot be queued.
    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError>;

    /// Totals since start.
    fn stats(&self) -> &DriverStats;
}

/// Which driver is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring when the probe succeeds, else epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll with recvmmsg and sendmmsg.
    Epoll,
}

/// A name that is no driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown driver '{0}': use auto, uring or epoll")]
pub struct UnknownDriver(pub String);

impl std::str::FromStr for DriverKind {
    type Err = UnknownDriver;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(UnknownDriver(s.to_owned())),
        }
    }
}

impl std::fmt::Display for DriverKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// Bound UDP socket of [`crate::udp::bind`].
    pub socket: OwnedFd,
    /// TUN queue of [`crate::tun::open`].
    pub tun: Option<OwnedFd>,
    /// Eventfd that ends a wait.
    pub doorbell: OwnedFd,
    /// Buffers lent to the kernel for receiving, a power of two.
    pub receive_buffers: u16,
    /// Buffers for frames built here and for TUN reads.
    pub transmit_buffers: u16,
}

/// A driver could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// io_uring is wanted and cannot be had.
    #[error("{0}")]
    Probe(#[from] ProbeError),
    /// Another system call failed.
    #[error("{call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// How.
        source: io::Error,
    },
    /// Buffer counts out of range.
    #[error("receive_buffers is {0}; it must be a power of two from 2 to 4096")]
    Buffers(u16),
}

/// Chooses a driver: which, and why, in one line for log and status.
///
/// # Errors
/// When `kind` is [`DriverKind::Uring`] and the probe fails.
pub fn choose(kind: DriverKind) -> Result<(DriverKind, String), ProbeError> {
    match kind {
        DriverKind::Epoll => Ok((DriverKind::Epoll, "asked for".to_owned())),
        DriverKind::Uring => {
            probe().map(|()| (DriverKind::Uring, "asked for, probe succeeded".to_owned()))
        }
        DriverKind::Auto => Ok(match probe() {
            Ok(()) => (DriverKind::Uring, "probe succeeded".to_owned()),
            Err(error) => (DriverKind::Epoll, error.to_string()),
        }),
    }
}

//! Why a dataplane did not start, or ended.

use std::io;

use hyphae_driver::{OpenError, ProbeError, tun, udp};
use hyphae_shm::SegmentError;

use crate::attach::SocketError;
use crate::cores::CoresError;

/// Why a dataplane could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Core list.
    #[error("--cores: {0}")]
    Cores(#[from] CoresError),
    /// Driver.
    #[error("--driver: {0}")]
    Probe(#[from] ProbeError),
    /// Underlay socket.
    #[error(transparent)]
    Bind(#[from] udp::BindError),
    /// Port numbers ran out.
    #[error("--listen: port {0} leaves no room for one port per worker below 65536")]
    Ports(u16),
    /// TUN device.
    #[error(transparent)]
    Tun(#[from] tun::TunError),
    /// Segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Attach socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A worker's driver.
    #[error("worker {worker}: {source}")]
    Driver {
        /// Which worker.
        worker: u16,
        /// Why.
        source: OpenError,
    },
    /// A worker ended.
    #[error("worker {worker} ended: {source}")]
    Worker {
        /// Which worker.
        worker: u16,
        /// Why.
        source: io::Error,
    },
    /// The thread of stream links ended.
    #[error("stream links: {0}")]
    Stream(io::Error),
    /// Another system call.
    #[error("{call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

pub(crate) fn system(call: &'static str) -> impl Fn(rustix::io::Errno) -> RunError {
    move |error| RunError::System {
        call,
        source: error.into(),
    }
}

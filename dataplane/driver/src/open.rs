//! Which driver a worker gets, and what keeps it from getting one.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::Duration;

use hyphae_wire::AddressPair;

use crate::driver::{BufferId, Driver, DriverStats, Event, SendError, Span, TUN_HEADER_LEN};
use crate::epoll::EpollDriver;
use crate::uring::{ProbeError, UringDriver, probe};

/// The drivers to choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring where [`probe`] finds it, else epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// `recvmmsg` and `sendmmsg`.
    Epoll,
}

impl DriverKind {
    /// What `Auto` means on this host, and why it is not io_uring if it is not. Asks the kernel
    /// only for `Auto`.
    pub fn resolve(self) -> (Self, Option<ProbeError>) {
        match self {
            Self::Auto => match probe() {
                Ok(()) => (Self::Uring, None),
                Err(error) => (Self::Epoll, Some(error)),
            },
            Self::Uring | Self::Epoll => (self, None),
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

impl FromStr for DriverKind {
    type Err = UnknownDriver;

    fn from_str(name: &str) -> Result<Self, UnknownDriver> {
        match name {
            "auto" => Ok(Self::Auto),
            "io_uring" | "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(UnknownDriver { name: name.into() }),
        }
    }
}

/// Not the name of a driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no driver {name:?}: there are auto, io_uring and epoll")]
pub struct UnknownDriver {
    name: String,
}

/// What a driver works on. It owns the descriptors from `open` on.
#[derive(Debug)]
pub struct DriverParts {
    /// The underlay socket, from [`crate::udp::bind`].
    pub socket: OwnedFd,
    /// A queue of the TUN device, from [`crate::tun::open`].
    pub tun: Option<OwnedFd>,
    /// An eventfd that ends a wait.
    pub doorbell: OwnedFd,
    /// Slots for receives.
    pub receive_buffers: u16,
    /// Slots for what the worker builds itself.
    pub transmit_buffers: u16,
}

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// io_uring is not to be had.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Fewer than one buffer, or more than can be numbered.
    #[error(
        "{receive} receive and {transmit} transmit buffers: at least 1 each and at most 32,768 \
         of either are possible"
    )]
    Count {
        /// Receive buffers asked for.
        receive: u16,
        /// Transmit buffers asked for.
        transmit: u16,
    },
    /// The buffers could not be mapped.
    #[error(
        "packet buffers of {bytes} bytes: {source}: the memory limit of the process or its \
         container is too small; ask for fewer buffers or raise it"
    )]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else that the kernel says.
    #[error("{call}: {source}")]
    Call {
        /// What failed.
        call: &'static str,
        /// How.
        source: io::Error,
    },
}

/// Opens a driver. Called on the thread of the worker, which alone may use it.
///
/// # Errors
/// [`OpenError`], worded for the operator.
pub fn open(kind: DriverKind, parts: DriverParts) -> Result<AnyDriver, OpenError> {
    match kind.resolve().0 {
        DriverKind::Epoll => Ok(AnyDriver::Epoll(Box::new(EpollDriver::open(parts)?))),
        DriverKind::Auto | DriverKind::Uring => {
            Ok(AnyDriver::Uring(Box::new(UringDriver::open(parts)?)))
        }
    }
}

/// One of the drivers. A worker that is generic over [`Driver`] matches once and runs on what is
/// inside; everybody else may use it as a driver itself.
pub enum AnyDriver {
    /// io_uring.
    Uring(Box<UringDriver>),
    /// epoll.
    Epoll(Box<EpollDriver>),
}

/// Calls the driver inside.
macro_rules! inside {
    ($self:ident, $driver:ident => $call:expr) => {
        match $self {
            AnyDriver::Uring($driver) => $call,
            AnyDriver::Epoll($driver) => $call,
        }
    };
}

impl Driver for AnyDriver {
    fn name(&self) -> &'static str {
        inside!(self, driver => driver.name())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        inside!(self, driver => driver.wait(timeout))
    }

    fn next(&mut self) -> Option<Event> {
        inside!(self, driver => driver.next())
    }

    fn bytes(&mut self, buffer: BufferId) -> &mut [u8] {
        inside!(self, driver => driver.bytes(buffer))
    }

    fn pair(&mut self, read: BufferId, write: BufferId) -> (&[u8], &mut [u8]) {
        inside!(self, driver => driver.pair(read, write))
    }

    fn allocate(&mut self) -> Option<BufferId> {
        inside!(self, driver => driver.allocate())
    }

    fn release(&mut self, buffer: BufferId) {
        inside!(self, driver => driver.release(buffer));
    }

    fn send(
        &mut self,
        to: impl Into<AddressPair>,
        segment: u16,
        spans: &[Span],
    ) -> Result<(), SendError> {
        inside!(self, driver => driver.send(to, segment, spans))
    }

    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        inside!(self, driver => driver.write_tun(header, spans))
    }

    fn resume_tun(&mut self) {
        inside!(self, driver => driver.resume_tun());
    }

    fn submit(&mut self) -> io::Result<()> {
        inside!(self, driver => driver.submit())
    }

    fn buffers(&self) -> (u16, u16) {
        inside!(self, driver => driver.buffers())
    }

    fn stats(&self) -> &DriverStats {
        inside!(self, driver => driver.stats())
    }
}

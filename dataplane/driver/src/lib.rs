//! UDP and TUN drivers over io_uring and epoll: everything of the dataplane that talks to the kernel.
//!
//! A worker owns one [`Driver`]: it waits on it, takes [`Event`]s from it, works on the bytes where
//! the kernel put them, and sends from the same memory. Three implementations share one contract
//! and one set of tests: [`uring::UringDriver`], [`epoll::EpollDriver`] for hosts where io_uring is
//! forbidden, and [`memory::MemoryDriver`] for tests of a worker without a kernel.
//!
//! ```text
//!  socket ──recvmsg──▶ receive slots ──Event::Datagrams──▶ worker ──send──▶ sendmsg + UDP_SEGMENT
//!  TUN    ──read─────▶ TUN slots     ──Event::Tun────────▶ worker ──write_tun──▶ writev
//!                      transmit slots ◀──allocate────────── worker
//! ```
//!
//! Nothing here allocates after `open`. `unsafe` of the dataplane lives in this crate only.

mod address;
mod device;
mod driver;
mod message;
mod open;
mod pool;
mod train;

pub mod clock;
pub mod epoll;
pub mod memory;
pub mod tun;
pub mod udp;
pub mod uring;

#[cfg(test)]
mod tests;

pub use driver::{
    BufferId, Driver, DriverStats, Event, RECEIVE_BUFFERS, SEGMENTS_MAX, SPANS_MAX, SendError,
    Span, TRAIN_BYTES_MAX, TRANSMIT_BUFFERS, TUN_HEADER_LEN,
};
pub use open::{AnyDriver, DriverKind, DriverParts, OpenError, UnknownDriver, open};
pub use pool::SLOT_BYTES;
pub use uring::{ProbeError, probe};

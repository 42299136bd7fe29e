//! Everything that talks to the kernel for a worker: UDP and TUN over io_uring, or over epoll where
//! io_uring is forbidden, behind one [`Driver`] trait.
//!
//! ```text
//!  socket ──recvmsg──▶ receive slots ──Event::Datagrams──▶ worker ──send──▶ sendmsg + UDP_SEGMENT
//!  TUN    ──read─────▶ transmit slots ──Event::Tun───────▶ worker ──write_tun──▶ writev
//!                      transmit slots ◀──allocate────────── worker
//! ```
//!
//! A driver belongs to one thread. It lends 64 KiB buffers to the kernel, hands received trains to
//! the worker as [`Event`]s, and sends spans of those same buffers. A buffer counts its users: the
//! caller of [`Driver::next`] or [`Driver::allocate`] holds one reference, every send and TUN write in
//! flight holds another; the last one to go returns it. Nothing allocates after `open`.

mod cmsg;
mod driver;
pub mod epoll;
pub mod iouring;
pub mod memory;
mod ops;
mod pool;
pub mod tun;
pub mod udp;

pub use driver::{
    BUFFER_BYTES, BufferId, Driver, DriverKind, DriverStats, Event, OpenError, Parts, SEGMENTS_MAX,
    SPANS_MAX, SendError, Span, TRAIN_BYTES_MAX, TUN_HEADER_LEN, UnknownDriver, choose,
};
pub use epoll::Epoll;
pub use iouring::{ProbeError, Uring, probe};

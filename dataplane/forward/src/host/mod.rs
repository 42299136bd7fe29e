//! Packets of the host: what the TUN device gives and takes.
//!
//! Linux hands over super-packets with a virtio-net header that says how to cut them
//! ([`Splitter`]), and takes super-packets in return ([`Coalescer`]). Transport checksums that the
//! host left to its device stay partial between two Hyphae nodes.

mod checksum;
mod coalesce;
mod header;
mod inner;
mod split;

pub use coalesce::{Buffers, Coalescer, Part};
pub use header::{
    GSO_ECN, GSO_NONE, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, TUN_HEADER_LEN, TunHeader,
};
pub use inner::{Inner, inspect};
pub use split::Splitter;

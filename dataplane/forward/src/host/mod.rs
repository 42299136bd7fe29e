//! The host side: packets as the TUN device hands them over and takes them.
//!
//! ```text
//!  TUN read:   TunHeader | packet or super-packet  --inspect-->  addresses, flow hash
//!                                                  --Splitter--> packets of at most the path's MTU
//!  delivery:   packets opened in receive buffers   --Coalescer-> TunHeader | super-packet by parts
//! ```
//!
//! A transport checksum that the host left partial travels partial: the AEAD guards the bytes, and
//! the receiver's TUN device takes partial checksums as well. Only packets whose checksum the
//! receiver can find again travel so: TCP, UDP or ICMPv6 directly after the IPv6 header. The
//! [`Splitter`] completes any other before it leaves; the [`Coalescer`] refuses any other as
//! malformed.
//!
//! Pure code on byte slices: no system calls, no clock, no allocation per packet. Input is not
//! trusted; no bytes can cause a panic. Called by the engine and by the worker loop.

mod checksum;
mod coalesce;
mod group;
mod header;
mod icmp;
mod inspect;
mod packet;
mod split;
#[cfg(test)]
mod testing;

pub use coalesce::{Coalescer, Part, TunSink};
pub use header::{TUN_HEADER_LEN, TunHeader};
pub use icmp::{addresses, icmp_error, is_icmp_error};
pub use inspect::{Inner, NotIpv6, inspect};
pub use split::Splitter;

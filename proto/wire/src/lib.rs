//! Identity, addresses and every header that Hyphae puts on a wire.
//!
//! Nothing here performs I/O or keeps state. Every layout is a `zerocopy` struct with its size
//! asserted at compile time; parsing is a checked cast, so no input can cause a panic. Integers are
//! little-endian except inside the IPv6 packets that the overlay carries.

#![forbid(unsafe_code)]

pub mod address;
pub mod babel;
pub mod beacon;
pub mod control;
pub mod endpoint;
pub mod frame;
pub mod guard;
pub mod handshake;
pub mod identity;
pub mod index;
pub mod message;
pub mod network;
pub mod report;
pub mod signature;
mod stack;
pub mod suite;

pub use address::{OverlayAddress, Prefix};
pub use endpoint::{AddressPair, Endpoint, LocalAddress};
pub use frame::{FrameKind, LinkHeader, RoutingHeader, Service, SessionHeader};
pub use identity::{PublicKey, SecretKey};
pub use index::{Lane, SessionIndex, WorkerId};
pub use network::{Network, NetworkId};
pub use signature::{Signature, SignatureError};
pub use stack::on_wiped_stack;
pub use suite::{Suite, SuiteSet};

#[cfg(test)]
mod tests;

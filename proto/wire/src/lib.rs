//! Identity, addresses and all wire formats of Hyphae.
//!
//! No I/O and no state. Every layout is a `zerocopy` struct whose size is asserted at compile time; parsing is
//! a checked cast, so no input causes a panic. Integers are little-endian, except in the inner IPv6 packets and
//! in routing packets (RFC 8966).

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

//! Engines against each other, over workers and a network that are modelled at the level of
//! records and frames: who holds which keys, which lane sends, what arrives. Real workers are
//! tested in dataplane/forward, both together in tests/netns.

mod abuse;
mod adoption;
mod crowded;
mod guard;
mod link;
mod mtu;
mod network;
mod peering;
mod session;
mod transport;
mod worker;

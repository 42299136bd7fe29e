//! Peering, handshakes and the life of sessions, sans-I/O.
//!
//! An [`Overlay`] is a state machine. Time and randomness come in as arguments; what it wants done
//! comes out as program records for the workers and as events. One mutation, then drain:
//!
//! ```text
//! punt records, time ──▶ handle_punt, handle_timeout ──▶ poll_program (push to the worker's ring)
//! operator           ──▶ add_peer, remove_peer, ping ──▶ poll_event   (after the programs)
//!                                                    ──▶ poll_timeout (call handle_timeout then)
//! ```
//!
//! After attaching to a dataplane call [`Overlay::begin_attach`]; nothing else is sent until the
//! engine has taken over what the workers have.

#![forbid(unsafe_code)]

mod adoption;
mod association;
mod config;
mod crowd;
mod duplicate;
mod engine;
mod event;
mod guard;
mod handshake;
mod index;
mod initiate;
mod install;
mod keys;
mod limit;
mod liveness;
mod neighbour;
mod noise;
mod paths;
mod pmtu;
mod policy;
mod program;
mod remote;
mod respond;
mod rng;
mod session;
mod source;
mod status;
mod target;
mod traffic;
mod transport;

pub use config::{Config, ConfiguredPeer, Ephemerals, Live, PeerConfig};
pub use engine::Overlay;
pub use event::{
    Direction, DownReason, Duplicate, Event, Handshakes, Origin, PeerState, PeerStatus, Refusal,
    SessionStatus,
};
pub use policy::Policy;
pub use program::OwnedProgram;
pub use traffic::PeerTraffic;

#[cfg(test)]
mod tests;

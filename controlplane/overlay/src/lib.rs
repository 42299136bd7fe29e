//! Peering, handshakes and session life cycle, sans-I/O.
//!
//! An [`Overlay`] is a state machine. Time and randomness are arguments; effects are program records for the
//! workers and events. One mutation, then drain:
//!
//! ```text
//! punt records, time ──▶ handle_punt, handle_timeout ──▶ poll_program (push to the worker's ring)
//! operator           ──▶ add_peer, remove_peer, ping ──▶ poll_event   (after the programs)
//!                                                    ──▶ poll_timeout (call handle_timeout then)
//! ```
//!
//! After attaching to a dataplane call [`Overlay::begin_attach`]; the engine sends nothing else before it has
//! adopted the workers' sessions.

#![forbid(unsafe_code)]

mod adoption;
mod association;
mod attach_phase;
mod config;
mod cookie_secrets;
mod crowd;
mod duplicate;
mod engine;
mod event;
mod guard;
mod handshake;
mod ids;
mod index;
mod initiate;
mod install;
mod keys;
mod lifecycle;
mod link_mtu;
mod liveness;
mod mtu;
mod neighbour;
mod noise;
mod offer;
mod path;
mod path_mtu;
mod paths;
mod policy;
mod probes;
mod program;
mod remote;
mod respond;
mod session;
mod source;
mod status;
mod target;
mod target_state;
mod trace;
mod traffic;
mod transport;

pub use config::{Config, Ephemerals, Live, PeerConfig};
pub use engine::Overlay;
pub use event::{
    Direction, DownReason, Duplicate, Event, HandshakeSource, Handshakes, PeerState, PeerStatus,
    Refusal, SessionStatus,
};
pub use ids::ConfiguredPeer;
pub use policy::Policy;
pub use program::OwnedProgram;
pub use traffic::PeerTraffic;

#[cfg(test)]
mod tests;

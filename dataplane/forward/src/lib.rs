//! The forwarding engine of one worker: sessions, FIB, verdicts.
//!
//! No system calls, no clock, no locks; nothing allocates for a packet. A train comes in as bytes,
//! is worked on in place in passes over up to [`TRAIN_MAX`] segments, and leaves as one
//! [`Verdict`] per segment. The worker (dataplane/daemon) carries verdicts out.
//!
//! The way of a packet, one step a file:
//!
//! ```text
//! guard            what strangers may cost: rates, cookies, stateless resets
//! receive/open     classify, open the link header, replay        ┐
//! receive/route    local or next hop, hop limit                  │ receive.rs drives them
//! receive/forward  seal the link header for the next hop         │
//! receive/local    open the payload, check addresses, dispatch   ┘
//! originate        packets of the host: split, seal, seal
//! inject           packets of the control plane
//! icmp, reports    errors for the host, and for senders of frames that could not be passed on
//! fragment         frames that a link does not carry whole
//! ```

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "slots have 16 bits, peers are bounded by PEERS_MAX, lengths by a datagram; every cast \
              stands beside what bounds it"
)]

mod apply;
mod counters;
mod egress;
mod engine;
mod event;
mod fib;
mod fragment;
mod guard;
pub mod host;
mod icmp;
mod inject;
mod limit;
mod map;
mod originate;
mod peer;
mod pending;
mod rate;
mod receive;
mod reports;
mod session;
mod snapshot;
mod verdict;

pub use apply::ApplyError;
pub use counters::Counters;
pub use egress::Egress;
pub use engine::{Engine, EngineConfig};
pub use event::EngineEvent;
pub use fragment::cut;
pub use hyphae_aead::{Aead, AuthError, aes_in_hardware};
pub use icmp::HostError;
pub use originate::{Departure, HostVerdict, Train};
pub use pending::PendingPacket;
pub use snapshot::SnapshotCursor;
pub use verdict::{LinkSlot, Verdict};

/// Tables of the engine, for benchmarks that measure one of them alone. A worker has the [`Engine`].
pub mod parts {
    pub use crate::fib::{Fib, InvalidEntry, NextHops, Target};
    pub use crate::session::Replay;
}

/// Segments worked on in one pass.
pub const TRAIN_MAX: usize = 64;

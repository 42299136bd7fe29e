//! Limits and times of the engine.

use std::time::Duration;

use hyphae_wire::PublicKey;
use hyphae_wire::frame::MTU_DEFAULT;

use crate::Pool;

/// How long a message is tried when its caller does not say (DEFAULT_MESSAGE_TRY_DURATION).
pub const TRY_DURATION_DEFAULT: Duration = Duration::from_secs(300);
/// The longest time that a message is tried. Finished messages are remembered for as long, so that
/// a late copy of one is never taken for a new one.
pub const TRY_DURATION_MAX: Duration = Duration::from_secs(3600);
/// First retransmission while no round-trip time is known (RETRANSMISSION_DELAY).
pub const RETRANSMISSION_DELAY: Duration = Duration::from_millis(100);
/// How long after its deadline a wait for a reply is forgotten (REPLY_SUBSCRIBER_CLEAR_DELAY).
pub const REPLY_CLEAR_DELAY: Duration = Duration::from_secs(60);

/// Settings of an engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's key.
    pub key: PublicKey,
    /// Bytes of the largest payload of a frame to any node; ways may carry less ([`Bus::session_up`],
    /// [`Bus::path_mtu`]).
    ///
    /// [`Bus::session_up`]: crate::Bus::session_up
    /// [`Bus::path_mtu`]: crate::Bus::path_mtu
    pub mtu: usize,
    /// Outgoing messages that are not finished.
    pub outgoing_max: usize,
    /// Their bytes.
    pub outgoing_bytes_max: usize,
    /// Incoming messages that are not complete or not decided, of all peers.
    pub incoming_max: usize,
    /// Their bytes, counted as announced; memory is used as bytes arrive. That of a long one may come from [`Pool`],
    /// in use already and up to an eighth longer.
    pub incoming_bytes_max: usize,
    /// The same of one peer.
    pub incoming_per_peer_max: usize,
    /// The same of one peer.
    pub incoming_per_peer_bytes_max: usize,
    /// An incoming message without progress for this long is dropped.
    pub incoming_idle: Duration,
    /// Ids of finished incoming messages that are remembered, of all peers.
    pub completed_max: usize,
    /// Finished outgoing messages whose state is remembered.
    pub finished_max: usize,
    /// How long it is remembered.
    pub finished_hold: Duration,
    /// Bytes on the way to one peer at most.
    pub window_max: usize,
    /// Packets that answer others and wait to be sent.
    pub answers_max: usize,
    /// Memory for long payloads.
    pub pool: Pool,
}

impl Config {
    /// Defaults for a node.
    pub fn new(key: PublicKey) -> Self {
        Self {
            key,
            mtu: MTU_DEFAULT.into(),
            outgoing_max: 65_536,
            outgoing_bytes_max: 512 << 20,
            incoming_max: 65_536,
            incoming_bytes_max: 512 << 20,
            // As many as a window has room for, even of short ones: a slow disk is no reason to refuse.
            incoming_per_peer_max: 16_384,
            incoming_per_peer_bytes_max: 160 << 20,
            incoming_idle: Duration::from_secs(30),
            completed_max: 262_144,
            finished_max: 65_536,
            finished_hold: Duration::from_secs(600),
            window_max: 1 << 20,
            answers_max: 8192,
            pool: Pool::default(),
        }
    }
}

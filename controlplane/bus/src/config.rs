//! Limits and times of the engine.

use std::time::Duration;

use hyphae_wire::PublicKey;
use hyphae_wire::frame::MTU_DEFAULT;

use crate::Pool;

/// Default deadline of a message (DEFAULT_MESSAGE_TRY_DURATION).
pub const TRY_DURATION_DEFAULT: Duration = Duration::from_secs(300);
/// Maximum deadline of a message. Ids of finished messages are remembered for as long, so that a late duplicate is
/// never delivered.
pub const TRY_DURATION_MAX: Duration = Duration::from_secs(3600);
/// Probe timeout before the first round-trip sample (RETRANSMISSION_DELAY).
pub const RETRANSMISSION_DELAY: Duration = Duration::from_millis(100);
/// Time after its deadline until a pending reply is forgotten (REPLY_SUBSCRIBER_CLEAR_DELAY).
pub const REPLY_CLEAR_DELAY: Duration = Duration::from_secs(60);

/// Configuration of the engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's key.
    pub key: PublicKey,
    /// Largest payload of a frame to any node, bytes; a path MTU may be less ([`Bus::session_up`],
    /// [`Bus::path_mtu`]).
    ///
    /// [`Bus::session_up`]: crate::Bus::session_up
    /// [`Bus::path_mtu`]: crate::Bus::path_mtu
    pub mtu: usize,
    /// Unfinished outgoing messages.
    pub outgoing_max: usize,
    /// Their bytes.
    pub outgoing_bytes_max: usize,
    /// Incomplete or undecided incoming messages of all peers.
    pub incoming_max: usize,
    /// Their announced bytes. Memory is allocated as bytes are received; a long payload may use a mapping of [`Pool`]
    /// that is up to an eighth longer.
    pub incoming_bytes_max: usize,
    /// Incomplete or undecided incoming messages of one peer.
    pub incoming_per_peer_max: usize,
    /// Their announced bytes.
    pub incoming_per_peer_bytes_max: usize,
    /// Idle timeout of a partial incoming message.
    pub incoming_idle: Duration,
    /// Remembered ids of finished incoming messages, of all peers.
    pub completed_max: usize,
    /// Remembered finished outgoing messages.
    pub finished_max: usize,
    /// How long they are remembered.
    pub finished_hold: Duration,
    /// Maximum congestion window, bytes.
    pub window_max: usize,
    /// Queued control packets.
    pub control_max: usize,
    /// Buffers for long payloads.
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
            // More than a sender has unfinished: a slow disk causes no refusals.
            incoming_per_peer_max: 16_384,
            incoming_per_peer_bytes_max: 160 << 20,
            incoming_idle: Duration::from_secs(30),
            completed_max: 262_144,
            finished_max: 65_536,
            finished_hold: Duration::from_secs(600),
            window_max: 1 << 20,
            control_max: 8192,
            pool: Pool::default(),
        }
    }
}

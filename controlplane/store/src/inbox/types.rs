//! Names, limits and counts of an inbox.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};

use hyphae_bus::{DeliveryKey, Room, Topic};
use hyphae_config::InboxConfig;
use hyphae_files::Directory;
use hyphae_wire::OverlayAddress;

/// File name in the state directory.
pub const INBOX_FILE: &str = "inbox.redb";

/// Path of the file, for errors.
pub(super) fn path_in(directory: &Directory) -> PathBuf {
    directory.path_of(INBOX_FILE)
}

/// Limit for one message of any length.
pub const ONE: Room = Room {
    messages: 1,
    bytes: 0,
};

/// Limits of an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages.
    pub messages_max: usize,
    /// Bytes of their payloads.
    pub bytes_max: u64,
    /// Ids of received messages that are remembered, so that none is received twice.
    pub completed_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages_max: 65_536,
            bytes_max: 512 << 20,
            completed_max: 262_144,
        }
    }
}

impl From<InboxConfig> for Limits {
    fn from(config: InboxConfig) -> Self {
        Self {
            messages_max: config.messages_max,
            bytes_max: config.bytes_max as u64,
            ..Self::default()
        }
    }
}

/// Result of putting a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    Stored(MessageNumber),
    /// It was received before: only the acknowledgement is repeated.
    Duplicate,
}

/// Number of a message, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageNumber(pub u64);

/// Messages of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Number of messages.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Messages that are hidden, because they were delivered and not confirmed.
    pub handed_out: u64,
    /// Requested messages, oldest first.
    pub entries: Vec<Listed>,
}

/// A message of an inbox, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub number: MessageNumber,
    /// Its sender and id.
    pub key: DeliveryKey,
    /// Overlay address of its sender.
    pub source_address: OverlayAddress,
    /// Its topic.
    pub topic: Topic,
    /// Bytes of its payload.
    pub len: u64,
    /// Its deliveries.
    pub deliveries: u32,
    /// It is hidden, because it was delivered and not confirmed.
    pub handed_out: bool,
}

/// Result of opening an inbox.
#[derive(Debug, Default)]
pub struct Found {
    /// Ids of messages received before, oldest first.
    pub completed: Vec<DeliveryKey>,
    /// Path that a damaged file was moved to.
    pub moved_aside: Option<PathBuf>,
}

/// Content of an inbox, for metrics and back-pressure.
#[derive(Debug, Default)]
pub(super) struct Depth {
    pub(super) messages: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// The last write failed.
    pub(super) failing: AtomicBool,
    pub(super) commits: AtomicU64,
    /// Calls that wait for a message.
    pub(super) waiting: AtomicU64,
}

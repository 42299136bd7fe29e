//! Lanes of links and of end-to-end sessions: keys, counters, replay windows, limits.
//!
//! A lane belongs to one worker, which alone counts its packets: no counter is ever used twice and
//! no window is raced. A lane is found by its receiver index; the salt in the index tells the
//! present holder of a slot from the previous one.

mod lane_set;
mod replay;

pub(crate) use lane_set::LaneSet;
pub use replay::Replay;

use std::time::Duration;

use hyphae_aead::{Aead, LinkAead};
use hyphae_shm::record::{
    FLAG_INITIATOR, LaneKeys, LinkInstall, MTU_UNKNOWN, ROLE_ACTIVE, ROLE_RECEIVE_ONLY,
    ROLE_STANDBY, SessionInstall,
};
use hyphae_time::Nanos;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::guard::Token;
use hyphae_wire::index::SLOTS_MAX;
use hyphae_wire::report::FRAME_MIN_MAX;

use hyphae_wire::{AddressPair, OverlayAddress, PublicKey, SessionIndex, Suite};

use crate::fragment::Halves;

/// Packets after which a lane reports that it is due.
const REKEY_AFTER_PACKETS: u64 = 1 << 32;
/// Packets after which a lane refuses: far below what either suite allows per key.
const REJECT_AFTER_PACKETS: u64 = 1 << 60;

/// Whether a lane sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Active,
    Standby,
    ReceiveOnly,
}

impl Role {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            ROLE_ACTIVE => Self::Active,
            ROLE_STANDBY => Self::Standby,
            ROLE_RECEIVE_ONLY => Self::ReceiveOnly,
            _ => return None,
        })
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Active => ROLE_ACTIVE,
            Self::Standby => ROLE_STANDBY,
            Self::ReceiveOnly => ROLE_RECEIVE_ONLY,
        }
    }
}

/// What both kinds of lane have; `K` is a key of one direction.
pub(crate) struct Lane<K> {
    pub(crate) receive_index: SessionIndex,
    pub(crate) send_index: SessionIndex,
    pub(crate) number: u16,
    pub(crate) suite: Suite,
    pub(crate) role: Role,
    pub(crate) epoch: u32,
    pub(crate) flags: u8,
    pub(crate) created: Nanos,
    pub(crate) rekey_after_ms: u32,
    pub(crate) reject_after_ms: u32,
    pub(crate) open: K,
    pub(crate) seal: K,
    pub(crate) replay: Replay,
    rekey_at: Nanos,
    reject_at: Nanos,
    counter: u64,
    rekey_told: bool,
    /// What proves that the other end lost the lane; zero for none.
    pub(crate) reset: Token,
    /// Not before this time is a reset told again, nanoseconds.
    pub(crate) reset_told: u64,
    /// Generation of the resync that named it last.
    pub(crate) mark: u64,
}

/// Counters to seal with, from one on, and whether the lane has just become due.
pub(crate) struct Counter {
    pub(crate) value: u64,
    pub(crate) rekey_due: bool,
}

impl<K> Lane<K> {
    /// Whether the lane is past its limits.
    pub(crate) fn expired(&self, now: Nanos) -> bool {
        now >= self.reject_at || self.counter >= REJECT_AFTER_PACKETS
    }

    /// Whether the other end began the session. It has chosen this host's address then, and may be
    /// reachable from no other; where this end began, the kernel chooses by its routes.
    pub(crate) fn answers(&self) -> bool {
        self.flags & FLAG_INITIATOR == 0
    }

    /// Counters used so far.
    pub(crate) fn sent(&self) -> u64 {
        self.counter
    }

    /// The next counter; `None` when the lane is past its limits.
    pub(crate) fn next_counter(&mut self, now: Nanos) -> Option<Counter> {
        self.next_counters(now, 1)
    }

    /// The next `count` counters, which is how many frames a train may have; `None` likewise.
    pub(crate) fn next_counters(&mut self, now: Nanos, count: u64) -> Option<Counter> {
        if self.expired(now) {
            return None;
        }
        let value = self.counter;
        self.counter += count;
        let due = !self.rekey_told && (now >= self.rekey_at || value >= REKEY_AFTER_PACKETS);
        self.rekey_told |= due;
        Some(Counter {
            value,
            rekey_due: due,
        })
    }
}

/// The fields that both install records share.
struct Common<'a> {
    receive_index: u32,
    send_index: u32,
    lane: u16,
    suite: u8,
    role: u8,
    epoch: u32,
    flags: u8,
    created: u64,
    rekey_after_ms: u32,
    reject_after_ms: u32,
    reset: Token,
    keys: &'a LaneKeys,
}

impl Common<'_> {
    fn lane<K>(&self, mark: u64, expand: fn(Suite, &[u8; 32]) -> K) -> Option<Lane<K>> {
        let suite = Suite::from_code(self.suite)?;
        let created = Nanos(self.created);
        let after = |ms: u32| created + Duration::from_millis(ms.into());
        Some(Lane {
            receive_index: SessionIndex(self.receive_index),
            send_index: SessionIndex(self.send_index),
            number: self.lane,
            suite,
            role: Role::from_code(self.role)?,
            epoch: self.epoch,
            flags: self.flags,
            created,
            rekey_after_ms: self.rekey_after_ms,
            reject_after_ms: self.reject_after_ms,
            open: expand(suite, &self.keys.receive),
            seal: expand(suite, &self.keys.send),
            replay: Replay::new(),
            rekey_at: after(self.rekey_after_ms),
            reject_at: after(self.reject_after_ms),
            counter: 0,
            rekey_told: false,
            reset: self.reset,
            reset_told: 0,
            mark,
        })
    }
}

/// A lane to a neighbour.
pub(crate) struct LinkLane {
    pub(crate) lane: Lane<LinkAead>,
    pub(crate) peer: u32,
    /// Where to send, and from where.
    pub(crate) addresses: AddressPair,
    /// What a datagram may hold, as far as known.
    pub(crate) mtu: u16,
    /// Frames of which one part has come.
    pub(crate) halves: Option<Box<Halves>>,
}

impl LinkLane {
    /// Makes a lane of a record; `None` for codes that do not exist.
    pub(crate) fn install(record: &LinkInstall, mark: u64) -> Option<Self> {
        let common = Common {
            receive_index: record.receive_index.get(),
            send_index: record.send_index.get(),
            lane: record.lane.get(),
            suite: record.suite,
            role: record.role,
            epoch: record.epoch.get(),
            flags: record.flags,
            created: record.created.get(),
            rekey_after_ms: record.rekey_after_ms.get(),
            reject_after_ms: record.reject_after_ms.get(),
            reset: record.reset,
            keys: &record.keys,
        };
        let lane = common.lane(mark, LinkAead::new)?;
        Some(Self {
            lane,
            peer: record.peer.get(),
            addresses: AddressPair {
                remote: record.endpoint,
                local: record.local,
            },
            mtu: MTU_UNKNOWN,
            halves: None,
        })
    }

    /// Whether frames with these addresses say that the lane is to use others.
    pub(crate) fn has_moved(&self, from: &AddressPair) -> bool {
        self.addresses.remote != from.remote
            || (self.lane.answers() && self.addresses.local != from.local)
    }

    /// Largest frame that goes out on it, in two parts if need be.
    pub(crate) fn frame_max(&self) -> usize {
        usize::from(self.mtu.max(FRAME_MIN_MAX))
    }

    /// Largest packet of the host that goes out on it.
    pub(crate) fn inner_max(&self) -> u16 {
        inner_max(self.mtu)
    }
}

/// Largest packet of the host on a link of this MTU.
pub(crate) fn inner_max(mtu: u16) -> u16 {
    // Both are well below the limit: an overhead of 104, a frame of at least 1384.
    mtu.max(FRAME_MIN_MAX) - OVERHEAD as u16
}

// Its keys are wiped when it ends.
const _: () = assert!(size_of::<LinkLane>() <= hyphae_shm::WIPED_MAX);
const _: () = assert!(size_of::<SessionLane>() <= hyphae_shm::WIPED_MAX);

/// A lane to the other end of a session.
pub(crate) struct SessionLane {
    pub(crate) lane: Lane<Aead>,
    pub(crate) address: OverlayAddress,
    pub(crate) key: PublicKey,
    pub(crate) mtu: u16,
}

impl SessionLane {
    /// Makes a lane of a record; `None` for codes that do not exist.
    pub(crate) fn install(record: &SessionInstall, mark: u64) -> Option<Self> {
        let common = Common {
            receive_index: record.receive_index.get(),
            send_index: record.send_index.get(),
            lane: record.lane.get(),
            suite: record.suite,
            role: record.role,
            epoch: record.epoch.get(),
            flags: record.flags,
            created: record.created.get(),
            rekey_after_ms: record.rekey_after_ms.get(),
            reject_after_ms: record.reject_after_ms.get(),
            reset: record.reset,
            keys: &record.keys,
        };
        let lane = common.lane(mark, Aead::new)?;
        Some(Self {
            lane,
            address: record.address,
            key: record.key,
            mtu: record.mtu.get(),
        })
    }
}

/// Something found by a receiver index.
pub(crate) trait Indexed {
    fn index(&self) -> SessionIndex;
    fn mark(&self) -> u64;
}

impl Indexed for LinkLane {
    fn index(&self) -> SessionIndex {
        self.lane.receive_index
    }

    fn mark(&self) -> u64 {
        self.lane.mark
    }
}

impl Indexed for SessionLane {
    fn index(&self) -> SessionIndex {
        self.lane.receive_index
    }

    fn mark(&self) -> u64 {
        self.lane.mark
    }
}

/// Lanes by slot. Grows with the slots that are in use, up to [`SLOTS_MAX`].
pub(crate) struct Slots<T> {
    slots: Vec<Option<Box<T>>>,
}

impl<T: Indexed> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// The lane that holds exactly this index.
    pub(crate) fn find(&self, index: SessionIndex) -> Option<usize> {
        let slot = index.slot();
        let held = self.slots.get(slot)?.as_ref()?;
        (held.index() == index).then_some(slot)
    }

    /// Slots, held or not.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&T> {
        self.slots.get(slot)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    /// Puts a lane into its slot; false when the slot is held.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        let slot = value.index().slot();
        debug_assert!(slot < SLOTS_MAX as usize, "the index has 16 bits of slot");
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let place = &mut self.slots[slot];
        let free = place.is_none();
        if free {
            *place = Some(Box::new(value));
        }
        free
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<Box<T>> {
        self.slots.get_mut(slot)?.take()
    }

    /// Slots from `from` on that are held.
    pub(crate) fn held(&self, from: usize) -> impl Iterator<Item = (usize, &T)> {
        let rest = self.slots.iter().enumerate().skip(from);
        rest.filter_map(|(slot, held)| Some((slot, held.as_deref()?)))
    }
}

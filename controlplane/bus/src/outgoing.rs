//! An outgoing message.
//!
//! Each of its chunks is not sent yet (`next` and beyond), on its way (`flights`), lost (`lost`), or
//! else acknowledged. When the last is acknowledged, the verdict of the receiver is waited for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hyphae_wire::message::Cut;
use hyphae_wire::{Nanos, PublicKey};

use crate::{Destination, MessageId, MessageInfo, MessageState, Topic};

/// Names an outgoing message: its id, whether it is a reply, the /64 that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SendKey {
    pub(crate) id: MessageId,
    pub(crate) reply: bool,
    pub(crate) subnet: u64,
}

impl SendKey {
    /// All with this id, to whichever node.
    pub(crate) fn any(id: MessageId, reply: bool) -> std::ops::RangeInclusive<Self> {
        let key = |subnet| Self { id, reply, subnet };
        key(0)..=key(u64::MAX)
    }
}

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// For its chunks to be sent and acknowledged.
    Transfer,
    /// For the receiver's verdict, after all chunks; ask for it at this time.
    Verdict(Nanos),
    /// For room at the receiver; try again at this time.
    Held(Nanos),
}

pub(crate) struct Send {
    pub(crate) destination: Destination,
    /// Key that the destination must have: given, or learnt with the session.
    pub(crate) key: Option<PublicKey>,
    pub(crate) topic: Topic,
    pub(crate) payload: Bytes,
    pub(crate) digest: [u8; 32],
    pub(crate) cut: Cut,
    pub(crate) created: Nanos,
    pub(crate) deadline: Nanos,
    pub(crate) phase: Phase,
    /// Verdicts asked for, or refusals for want of room, in a row.
    pub(crate) attempts: u32,
    pub(crate) next: u32,
    /// Chunks on their way, and the numbers of their packets.
    pub(crate) flights: BTreeMap<u32, u64>,
    pub(crate) lost: BTreeSet<u32>,
    /// Number of the packet that opened it last.
    pub(crate) opened_by: u64,
    /// The receiver has acknowledged the opening.
    pub(crate) opened: bool,
    /// Something of it has been sent.
    pub(crate) begun: bool,
    /// Its place among the ready ones of its path.
    pub(crate) place: Option<u64>,
}

impl Send {
    /// Whether a chunk waits to be sent.
    pub(crate) fn has_more(&self) -> bool {
        self.phase == Phase::Transfer && (!self.lost.is_empty() || self.next < self.cut.count())
    }

    /// The next chunk to send, and whether it goes again.
    pub(crate) fn take_chunk(&mut self) -> Option<(u32, bool)> {
        if self.phase != Phase::Transfer {
            return None;
        }
        if let Some(chunk) = self.lost.pop_first() {
            return Some((chunk, true));
        }
        let chunk = self.next;
        (chunk < self.cut.count()).then(|| {
            self.next += 1;
            (chunk, false)
        })
    }

    /// Chunks `first..end` are there; gives the numbers of packets that are not on their way any
    /// more.
    pub(crate) fn acknowledge(&mut self, first: u32, end: u32) -> Vec<u64> {
        if first >= end {
            return Vec::new();
        }
        let flying: Vec<u32> = self.flights.range(first..end).map(|(c, _)| *c).collect();
        let late: Vec<u32> = self.lost.range(first..end).copied().collect();
        for chunk in late {
            self.lost.remove(&chunk);
        }
        let numbers = flying.iter().filter_map(|chunk| self.flights.remove(chunk));
        numbers.collect()
    }

    /// Every chunk is acknowledged.
    pub(crate) fn is_through(&self) -> bool {
        self.next >= self.cut.count() && self.lost.is_empty() && self.flights.is_empty()
    }

    /// Back to the beginning; gives the numbers of packets on their way.
    pub(crate) fn restart(&mut self) -> Vec<u64> {
        self.next = 0;
        self.lost.clear();
        self.opened = false;
        self.phase = Phase::Transfer;
        std::mem::take(&mut self.flights).into_values().collect()
    }

    /// When it wants attention.
    pub(crate) fn due(&self) -> Nanos {
        match self.phase {
            Phase::Transfer => self.deadline,
            Phase::Verdict(at) | Phase::Held(at) => at.min(self.deadline),
        }
    }

    pub(crate) fn info(&self, state: MessageState) -> MessageInfo {
        MessageInfo {
            state,
            destination: self.destination,
            created: self.created,
            deadline: self.deadline,
            len: self.payload.len(),
            reason: None,
        }
    }
}

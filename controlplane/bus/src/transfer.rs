//! Transfer of an outgoing message.
//!
//! Each chunk is acknowledged (all before `first`, and some of `flights`), in flight (the rest of `flights`), lost
//! (`lost`), or unsent (`next` and beyond). Once the last is acknowledged, the transfer awaits the receiver's final
//! status.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use hyphae_time::Nanos;
use hyphae_wire::message::{ChunkLayout, MESSAGE_HEADER_LEN, OPEN_HEADER_LEN, ReplyFailure};

use hyphae_wire::PublicKey;

use crate::config::{TRY_DURATION_DEFAULT, TRY_DURATION_MAX};
use crate::{Destination, MessageId, MessageInfo, MessageState, Outgoing, Progress, Topic};

/// Name of an outgoing message: id, whether it is a reply, /64 of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TransferKey {
    pub(crate) id: MessageId,
    pub(crate) reply: bool,
    pub(crate) subnet: u64,
}

/// Phase of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Chunks are sent and acknowledged.
    Sending,
    /// All chunks are acknowledged; at this time the receiver is queried for the final status.
    AwaitStatus(Nanos),
    /// Back-pressure of the receiver; retry at this time.
    Deferred(Nanos),
}

/// Packet number of a chunk that is not in flight.
const NOT_IN_FLIGHT: u64 = 0;
/// `opened_by` before the first opening: later than any ack.
const NEVER_OPENED: u64 = u64::MAX;

pub(crate) struct Transfer {
    pub(crate) name: TransferKey,
    pub(crate) destination: Destination,
    /// Key that the destination must have: given by the caller, or learnt from the session.
    pub(crate) key: Option<PublicKey>,
    pub(crate) topic: Topic,
    pub(crate) payload: Bytes,
    pub(crate) digest: [u8; 32],
    pub(crate) failure: Option<ReplyFailure>,
    pub(crate) layout: ChunkLayout,
    pub(crate) created: Nanos,
    pub(crate) deadline: Nanos,
    pub(crate) phase: Phase,
    /// Consecutive queries, or back-pressured attempts.
    pub(crate) attempts: u32,
    /// First chunk that is not acknowledged.
    first: u32,
    /// First chunk that has never been sent.
    pub(crate) next: u32,
    /// Packet numbers of the chunks `first..next`, [`NOT_IN_FLIGHT`] for acknowledged and lost ones.
    flights: VecDeque<u64>,
    lost: BTreeSet<u32>,
    /// Number of its last opening packet.
    pub(crate) opened_by: u64,
    /// The receiver has acknowledged that opening.
    pub(crate) open_acked: bool,
    /// The chunk layout has changed. Until the opening is acknowledged, the receiver would take chunks for those of
    /// the earlier layout.
    layout_changed: bool,
    /// A packet has been sent.
    pub(crate) started: bool,
    /// It is in the ready queue of its path.
    pub(crate) queued: bool,
    /// Earliest time in the deadline queue of [`crate::transfers::Transfers`].
    pub(crate) wake_at: Nanos,
}

/// Chunk layout for packets of this size.
fn layout(len: usize, topic: &Topic, packet: usize) -> ChunkLayout {
    let first = packet - OPEN_HEADER_LEN - topic.as_bytes().len();
    ChunkLayout {
        len,
        first: first.min(len),
        chunk: packet - MESSAGE_HEADER_LEN,
    }
}

/// A chunk to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) number: u32,
    pub(crate) retransmit: bool,
}

impl Transfer {
    /// A transfer in packets of this size.
    pub(crate) fn new(now: Nanos, name: TransferKey, message: Outgoing, packet: usize) -> Self {
        let try_for = message.try_for.unwrap_or(TRY_DURATION_DEFAULT);
        Self {
            name,
            destination: message.destination,
            key: match message.destination {
                Destination::Key(key) => Some(key),
                Destination::Address(_) => None,
            },
            digest: message
                .digest
                .unwrap_or_else(|| *blake3::hash(&message.payload).as_bytes()),
            layout: layout(message.payload.len(), &message.topic, packet),
            topic: message.topic,
            failure: message.failure,
            payload: message.payload,
            created: now,
            deadline: now + try_for.min(TRY_DURATION_MAX),
            phase: Phase::Sending,
            attempts: 0,
            first: 0,
            next: 0,
            flights: VecDeque::new(),
            lost: BTreeSet::new(),
            opened_by: NEVER_OPENED,
            open_acked: false,
            layout_changed: false,
            started: false,
            queued: false,
            wake_at: Nanos::NEVER,
        }
    }

    /// Whether a chunk can be sent.
    pub(crate) fn has_more(&self) -> bool {
        self.phase == Phase::Sending
            && (!self.lost.is_empty() || self.next < self.layout.count() && !self.awaits_open_ack())
    }

    /// Whether only the opening may be sent.
    pub(crate) fn awaits_open_ack(&self) -> bool {
        self.layout_changed && !self.open_acked && self.next > 0
    }

    /// The next chunk to send.
    pub(crate) fn take_chunk(&mut self) -> Option<Chunk> {
        if self.phase != Phase::Sending {
            return None;
        }
        let lost = self.lost.pop_first();
        let number = lost.unwrap_or(self.next);
        let may = number < self.layout.count() && (lost.is_some() || !self.awaits_open_ack());
        may.then_some(Chunk {
            number,
            retransmit: lost.is_some(),
        })
    }

    /// A chunk of [`Self::take_chunk`] was sent in this packet.
    pub(crate) fn on_sent(&mut self, chunk: u32, sequence: u64) {
        if chunk == self.next {
            self.next += 1;
            self.flights.push_back(sequence);
        } else if let Some(flight) = self.flight(chunk) {
            *flight = sequence;
        }
    }

    fn flight(&mut self, chunk: u32) -> Option<&mut u64> {
        let place = usize::try_from(chunk.checked_sub(self.first)?).ok()?;
        self.flights.get_mut(place)
    }

    /// The packet of a chunk was lost: queues the chunk for retransmission.
    pub(crate) fn mark_lost(&mut self, chunk: u32, sequence: u64) {
        if let Some(flight) = self.flight(chunk)
            && *flight == sequence
        {
            *flight = NOT_IN_FLIGHT;
            self.lost.insert(chunk);
        }
    }

    /// Chunks `first..end` are acknowledged; `acked` gets the numbers of their packets in flight.
    pub(crate) fn acknowledge(&mut self, first: u32, end: u32, mut acked: impl FnMut(u64)) {
        for chunk in first.max(self.first)..end.min(self.next) {
            let Some(flight) = self.flight(chunk) else {
                break;
            };
            match std::mem::replace(flight, NOT_IN_FLIGHT) {
                NOT_IN_FLIGHT => {
                    self.lost.remove(&chunk);
                }
                sequence => acked(sequence),
            }
        }
        while self.flights.front() == Some(&NOT_IN_FLIGHT) && !self.lost.contains(&self.first) {
            self.flights.pop_front();
            self.first += 1;
        }
    }

    /// Whether it is one packet long.
    pub(crate) fn is_single(&self) -> bool {
        self.layout.first == self.layout.len
    }

    /// Whether it awaits its final status.
    pub(crate) fn awaits_status(&self) -> bool {
        matches!(self.phase, Phase::AwaitStatus(_))
    }

    /// Whether every chunk is acknowledged.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.next >= self.layout.count() && self.flights.is_empty()
    }

    /// Numbers of its packets in flight.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = u64> {
        let flying = self.flights.iter().copied();
        flying.filter(|sequence| *sequence != NOT_IN_FLIGHT)
    }

    /// Whether its packets are no larger than this.
    pub(crate) fn fits(&self, packet: usize) -> bool {
        let first = OPEN_HEADER_LEN + self.topic.as_bytes().len() + self.layout.first;
        first <= packet && (self.is_single() || MESSAGE_HEADER_LEN + self.layout.chunk <= packet)
    }

    /// Restarts it in packets of this size.
    pub(crate) fn restart(&mut self, packet: usize) {
        let before = self.layout;
        self.layout = layout(self.payload.len(), &self.topic, packet);
        self.layout_changed |= self.layout != before;
        (self.first, self.next) = (0, 0);
        self.flights.clear();
        self.lost.clear();
        (self.open_acked, self.opened_by) = (false, NEVER_OPENED);
        self.phase = Phase::Sending;
    }

    /// Counts of pending, sent and acknowledged chunks.
    fn progress(&self) -> Progress {
        let count = |chunks: usize| u32::try_from(chunks).unwrap_or(u32::MAX);
        let sent = count(self.in_flight().count());
        let pending = self.layout.count() - self.next + count(self.lost.len());
        Progress {
            pending,
            sent,
            acknowledged: self.layout.count().saturating_sub(pending + sent),
        }
    }

    /// Its next deadline.
    pub(crate) fn due(&self) -> Nanos {
        match self.phase {
            Phase::Sending => self.deadline,
            Phase::AwaitStatus(at) | Phase::Deferred(at) => at.min(self.deadline),
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
            progress: self.progress(),
        }
    }
}

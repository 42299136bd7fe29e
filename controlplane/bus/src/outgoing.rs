//! An outgoing message.
//!
//! Each of its chunks is acknowledged (all before `first`, and some of `flights`), on its way (the rest of
//! `flights`), lost (`lost`), or not sent yet (`next` and beyond). When the last is acknowledged, the
//! verdict of the receiver is waited for.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use hyphae_time::Nanos;
use hyphae_wire::message::{Cut, MESSAGE_HEADER_LEN, OPEN_HEADER_LEN, ReplyFailure};

use hyphae_wire::PublicKey;

use crate::config::{TRY_DURATION_DEFAULT, TRY_DURATION_MAX};
use crate::{Destination, MessageId, MessageInfo, MessageState, Outgoing, Progress, Topic};

/// Names an outgoing message: its id, whether it is a reply, the /64 that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SendKey {
    pub(crate) id: MessageId,
    pub(crate) reply: bool,
    pub(crate) subnet: u64,
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

/// The number of the packet of a chunk that is not on its way.
const GROUNDED: u64 = 0;
/// The number of the packet that opened a message when none has: no answer is to that one or a later one.
const UNOPENED: u64 = u64::MAX;

pub(crate) struct Send {
    pub(crate) name: SendKey,
    pub(crate) destination: Destination,
    /// Key that the destination must have: given, or learnt with the session.
    pub(crate) key: Option<PublicKey>,
    pub(crate) topic: Topic,
    pub(crate) payload: Bytes,
    pub(crate) digest: [u8; 32],
    pub(crate) failure: Option<ReplyFailure>,
    pub(crate) cut: Cut,
    pub(crate) created: Nanos,
    pub(crate) deadline: Nanos,
    pub(crate) phase: Phase,
    /// Verdicts asked for, or refusals for want of room, in a row.
    pub(crate) attempts: u32,
    /// The first chunk that is not acknowledged.
    first: u32,
    pub(crate) next: u32,
    /// From there to `next`: numbers of the packets that they are on their way in.
    flights: VecDeque<u64>,
    lost: BTreeSet<u32>,
    /// Number of the packet that opened it last.
    pub(crate) opened_by: u64,
    /// The receiver has acknowledged the opening.
    pub(crate) opened: bool,
    /// It had been cut otherwise before: until the receiver has acknowledged the opening it would take other chunks for
    /// those of before.
    recut: bool,
    /// Something of it has been sent.
    pub(crate) begun: bool,
    /// It is among the ready ones of its path.
    pub(crate) queued: bool,
    /// When it is looked at, at the latest.
    pub(crate) alarm: Nanos,
}

/// How a message is cut into packets of this size.
fn cut(len: usize, topic: &Topic, packet: usize) -> Cut {
    let first = packet - OPEN_HEADER_LEN - topic.as_bytes().len();
    Cut {
        len,
        first: first.min(len),
        chunk: packet - MESSAGE_HEADER_LEN,
    }
}

/// A chunk that may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) number: u32,
    pub(crate) again: bool,
}

impl Send {
    /// One that is sent in packets of this size.
    pub(crate) fn new(now: Nanos, name: SendKey, message: Outgoing, packet: usize) -> Self {
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
            cut: cut(message.payload.len(), &message.topic, packet),
            topic: message.topic,
            failure: message.failure,
            payload: message.payload,
            created: now,
            deadline: now + try_for.min(TRY_DURATION_MAX),
            phase: Phase::Transfer,
            attempts: 0,
            first: 0,
            next: 0,
            flights: VecDeque::new(),
            lost: BTreeSet::new(),
            opened_by: UNOPENED,
            opened: false,
            recut: false,
            begun: false,
            queued: false,
            alarm: Nanos::NEVER,
        }
    }

    /// Whether a chunk waits to be sent.
    pub(crate) fn has_more(&self) -> bool {
        self.phase == Phase::Transfer
            && (!self.lost.is_empty() || self.next < self.cut.count() && !self.waits())
    }

    /// Only its opening may go.
    pub(crate) fn waits(&self) -> bool {
        self.recut && !self.opened && self.next > 0
    }

    /// The next chunk to send.
    pub(crate) fn take_chunk(&mut self) -> Option<Chunk> {
        if self.phase != Phase::Transfer {
            return None;
        }
        let again = self.lost.pop_first();
        let number = again.unwrap_or(self.next);
        let may = number < self.cut.count() && (again.is_some() || !self.waits());
        may.then_some(Chunk {
            number,
            again: again.is_some(),
        })
    }

    /// A chunk that was taken is on its way.
    pub(crate) fn sent(&mut self, chunk: u32, sequence: u64) {
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

    /// The packet of a chunk did not arrive: the chunk is to be sent again.
    pub(crate) fn lose(&mut self, chunk: u32, sequence: u64) {
        if let Some(flight) = self.flight(chunk)
            && *flight == sequence
        {
            *flight = GROUNDED;
            self.lost.insert(chunk);
        }
    }

    /// Chunks `first..end` are there; `landed` is told the numbers of packets that are not on their way
    /// any more.
    pub(crate) fn acknowledge(&mut self, first: u32, end: u32, mut landed: impl FnMut(u64)) {
        for chunk in first.max(self.first)..end.min(self.next) {
            let Some(flight) = self.flight(chunk) else {
                break;
            };
            match std::mem::replace(flight, GROUNDED) {
                GROUNDED => {
                    self.lost.remove(&chunk);
                }
                sequence => landed(sequence),
            }
        }
        while self.flights.front() == Some(&GROUNDED) && !self.lost.contains(&self.first) {
            self.flights.pop_front();
            self.first += 1;
        }
    }

    /// Whether it is one packet long.
    pub(crate) fn is_single(&self) -> bool {
        self.cut.first == self.cut.len
    }

    /// Whether it waits for its verdict.
    pub(crate) fn is_undecided(&self) -> bool {
        matches!(self.phase, Phase::Verdict(_))
    }

    /// Every chunk is acknowledged.
    pub(crate) fn is_through(&self) -> bool {
        self.next >= self.cut.count() && self.flights.is_empty()
    }

    /// Numbers of its packets on their way.
    pub(crate) fn on_the_way(&self) -> impl Iterator<Item = u64> {
        let flying = self.flights.iter().copied();
        flying.filter(|sequence| *sequence != GROUNDED)
    }

    /// Whether it is cut for packets that are no larger than this.
    pub(crate) fn fits(&self, packet: usize) -> bool {
        let first = OPEN_HEADER_LEN + self.topic.as_bytes().len() + self.cut.first;
        first <= packet && (self.is_single() || MESSAGE_HEADER_LEN + self.cut.chunk <= packet)
    }

    /// Back to the beginning, in packets of this size.
    pub(crate) fn restart(&mut self, packet: usize) {
        let before = self.cut;
        self.cut = cut(self.payload.len(), &self.topic, packet);
        self.recut |= self.cut != before;
        (self.first, self.next) = (0, 0);
        self.flights.clear();
        self.lost.clear();
        (self.opened, self.opened_by) = (false, UNOPENED);
        self.phase = Phase::Transfer;
    }

    /// Chunks that wait to be sent, are on their way, and are acknowledged.
    fn progress(&self) -> Progress {
        let count = |chunks: usize| u32::try_from(chunks).unwrap_or(u32::MAX);
        let sent = count(self.on_the_way().count());
        let pending = self.cut.count() - self.next + count(self.lost.len());
        Progress {
            pending,
            sent,
            acknowledged: self.cut.count().saturating_sub(pending + sent),
        }
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
            progress: self.progress(),
        }
    }
}

//! The outgoing messages of a node: unfinished, finished and remembered, and their deadlines.
//!
//! Every ack looks a message up, so lookups do not search: a message lies in a slab, others refer to it by slot and
//! generation, and one hash table finds it by name. Deadlines are entries of a queue and a heap; an entry that has
//! become obsolete is skipped when it comes up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use ahash::RandomState;
use hashbrown::HashTable;
use hyphae_time::Nanos;

use hyphae_wire::PublicKey;

use crate::transfer::{Transfer, TransferKey};
use crate::{MessageId, MessageInfo};

/// Obsolete deadlines allowed, beyond as many as there are messages.
const STALE_MIN: usize = 1024;
/// Slots that stay allocated without messages.
const IDLE_SLOTS_MAX: usize = 1024;

/// Reference to an unfinished message; dangling, without effect, once that is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TransferRef {
    slot: u32,
    generation: u32,
}

/// A finished outgoing message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) name: TransferKey,
    pub(crate) info: MessageInfo,
    pub(crate) key: Option<PublicKey>,
    at: Nanos,
}

/// Place of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Live(u32),
    /// Sequence number among all finished messages.
    Done(u64),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    transfer: Option<Box<Transfer>>,
}

#[derive(Default)]
pub(crate) struct Transfers {
    storage: Storage,
    /// Hashed by id alone: names of the same id are rare.
    table: HashTable<Place>,
    hasher: RandomState,
    free: Vec<u32>,
    live: usize,
    generation: u32,
    /// Deadlines in ascending order. Most new ones are the latest, and a queue is cheaper than a heap.
    queue: VecDeque<(Nanos, TransferRef)>,
    /// Other deadlines.
    due: BinaryHeap<Reverse<(Nanos, TransferRef)>>,
}

/// Storage that places refer to.
#[derive(Default)]
struct Storage {
    slots: Vec<Slot>,
    done: VecDeque<Finished>,
    /// Sequence number of the first of `done`.
    first_done: u64,
}

impl Storage {
    fn done(&self, number: u64) -> Option<&Finished> {
        let place = usize::try_from(number.checked_sub(self.first_done)?).ok()?;
        self.done.get(place)
    }

    fn name(&self, place: Place) -> Option<TransferKey> {
        match place {
            Place::Live(slot) => {
                let slot = self.slots.get(index(slot))?;
                slot.transfer.as_ref().map(|transfer| transfer.name)
            }
            Place::Done(number) => self.done(number).map(|done| done.name),
        }
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

impl Transfers {
    /// Unfinished messages.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn get(&self, of: TransferRef) -> Option<&Transfer> {
        let slot = self.storage.slots.get(index(of.slot))?;
        let transfer = slot.transfer.as_deref();
        transfer.filter(|_| slot.generation == of.generation)
    }

    pub(crate) fn get_mut(&mut self, of: TransferRef) -> Option<&mut Transfer> {
        let slot = self.storage.slots.get_mut(index(of.slot))?;
        let transfer = slot.transfer.as_deref_mut();
        transfer.filter(|_| slot.generation == of.generation)
    }

    fn find(&self, id: MessageId, is: impl Fn(TransferKey) -> bool) -> Option<Place> {
        let hash = self.hasher.hash_one(id);
        let same = |place: &Place| self.storage.name(*place).is_some_and(&is);
        self.table.find(hash, same).copied()
    }

    /// The unfinished message of this name.
    pub(crate) fn live(&self, name: TransferKey) -> Option<TransferRef> {
        match self.find(name.id, |other| other == name)? {
            Place::Live(slot) => self.refer(slot),
            Place::Done(_) => None,
        }
    }

    fn refer(&self, slot: u32) -> Option<TransferRef> {
        let generation = self.storage.slots.get(index(slot))?.generation;
        Some(TransferRef { slot, generation })
    }

    /// The finished message of this name.
    pub(crate) fn done_mut(&mut self, name: TransferKey) -> Option<&mut Finished> {
        let Place::Done(number) = self.find(name.id, |other| other == name)? else {
            return None;
        };
        let place = usize::try_from(number.checked_sub(self.storage.first_done)?).ok()?;
        self.storage.done.get_mut(place)
    }

    /// Whether a message of this node has this id; replies use the ids of other nodes.
    pub(crate) fn has_own(&self, id: MessageId) -> bool {
        let own = |name: TransferKey| name.id == id && !name.reply;
        self.find(id, own).is_some()
    }

    /// An unfinished message by id alone, a reply or not.
    pub(crate) fn live_any(&self, id: MessageId, reply: bool) -> Option<TransferRef> {
        match self.find(id, |name| name.id == id && name.reply == reply)? {
            Place::Live(slot) => self.refer(slot),
            Place::Done(_) => None,
        }
    }

    /// A finished message by id alone, a reply or not.
    pub(crate) fn done_any(&self, id: MessageId, reply: bool) -> Option<&Finished> {
        match self.find(id, |name| name.id == id && name.reply == reply)? {
            Place::Live(_) => None,
            Place::Done(number) => self.storage.done(number),
        }
    }

    /// Inserts an unfinished message; it replaces a finished one of the same name.
    pub(crate) fn insert(&mut self, transfer: Transfer) -> TransferRef {
        let name = transfer.name;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let filled = Slot {
            generation,
            transfer: Some(Box::new(transfer)),
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.storage.slots.push(Slot::default());
                u32::try_from(self.storage.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(place) = self.storage.slots.get_mut(index(slot)) {
            *place = filled;
        }
        self.live += 1;
        self.put(name, Place::Live(slot));
        TransferRef { slot, generation }
    }

    /// Maps a name to a place.
    fn put(&mut self, name: TransferKey, place: Place) {
        let (storage, hasher) = (&self.storage, &self.hasher);
        let hash = hasher.hash_one(name.id);
        let same = |other: &Place| *other != place && storage.name(*other) == Some(name);
        // Ids of messages are new, those of replies may exist.
        if name.reply
            && let Some(found) = self.table.find_mut(hash, same)
        {
            *found = place;
            return;
        }
        self.table.insert_unique(hash, place, |place| {
            let id = storage.name(*place).map(|name| name.id);
            hasher.hash_one(id.unwrap_or(MessageId([0; 8])))
        });
    }

    /// Marks a message as finished, and remembers `info`.
    pub(crate) fn finish(
        &mut self,
        now: Nanos,
        of: TransferRef,
        info: impl FnOnce(&Transfer) -> MessageInfo,
    ) -> Option<Box<Transfer>> {
        let slot = self.storage.slots.get_mut(index(of.slot))?;
        let transfer = if slot.generation == of.generation {
            slot.transfer.take()?
        } else {
            return None;
        };
        let storage = &mut self.storage;
        let number = storage.first_done + u64::try_from(storage.done.len()).unwrap_or(u64::MAX);
        storage.done.push_back(Finished {
            name: transfer.name,
            info: info(&transfer),
            key: transfer.key,
            at: now,
        });
        let hash = self.hasher.hash_one(transfer.name.id);
        let here = |place: &Place| *place == Place::Live(of.slot);
        if let Some(place) = self.table.find_mut(hash, here) {
            *place = Place::Done(number);
        }
        self.live -= 1;
        self.free.push(of.slot);
        if self.live == 0 {
            self.due.clear();
            self.queue.clear();
            if self.storage.slots.len() > IDLE_SLOTS_MAX {
                self.storage.slots = Vec::new();
                self.free = Vec::new();
                self.due = BinaryHeap::new();
                self.queue = VecDeque::new();
            }
        }
        Some(transfer)
    }

    /// Forgets the oldest finished messages: more than `max`, or those that are `old`.
    pub(crate) fn forget(&mut self, max: usize, old: impl Fn(Nanos) -> bool) {
        while let Some(done) = self.storage.done.front()
            && (self.storage.done.len() > max || old(done.at))
        {
            let here = Place::Done(self.storage.first_done);
            let hash = self.hasher.hash_one(done.name.id);
            // Its name may map to a later message.
            if let Ok(entry) = self.table.find_entry(hash, |place| *place == here) {
                entry.remove();
            }
            self.storage.done.pop_front();
            self.storage.first_done += 1;
        }
    }

    /// Schedules the next deadline of a message.
    pub(crate) fn schedule(&mut self, of: TransferRef) {
        let Some(transfer) = self.get_mut(of) else {
            return;
        };
        let at = transfer.due();
        // [`Self::take_due`] reschedules a message that it finds too early.
        if at >= transfer.wake_at {
            return;
        }
        transfer.wake_at = at;
        if self.queue.back().is_none_or(|(last, _)| *last <= at) {
            self.queue.push_back((at, of));
        } else {
            self.due.push(Reverse((at, of)));
        }
        if self.queue.len() + self.due.len() > 2 * self.live + STALE_MIN {
            let (mut queue, mut due) = (Vec::from(std::mem::take(&mut self.queue)), Vec::new());
            due.extend(
                std::mem::take(&mut self.due)
                    .into_iter()
                    .map(|Reverse(it)| it),
            );
            for list in [&mut queue, &mut due] {
                list.retain(|(at, of)| {
                    self.get(*of)
                        .is_some_and(|transfer| transfer.wake_at == *at)
                });
                // A message that was deferred and resumed has its deadline twice.
                list.sort_unstable();
                list.dedup();
            }
            self.queue = queue.into();
            self.due = due.into_iter().map(Reverse).collect();
        }
    }

    /// The earliest deadline.
    pub(crate) fn next_due(&self) -> Option<Nanos> {
        self.first_due().map(|(at, _)| at)
    }

    fn first_due(&self) -> Option<(Nanos, TransferRef)> {
        let heap = self.due.peek().map(|Reverse(first)| *first);
        [heap, self.queue.front().copied()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes the messages that are due, each once.
    pub(crate) fn take_due(&mut self, now: Nanos) -> Vec<TransferRef> {
        let mut taken = Vec::new();
        while let Some((at, of)) = self.first_due()
            && at <= now
        {
            if self.queue.front() == Some(&(at, of)) {
                self.queue.pop_front();
            } else {
                self.due.pop();
            }
            let Some(transfer) = self.get_mut(of).filter(|transfer| transfer.wake_at == at) else {
                continue;
            };
            transfer.wake_at = Nanos::NEVER;
            if transfer.due() <= now {
                taken.push(of);
            } else {
                self.schedule(of);
            }
        }
        taken
    }
}

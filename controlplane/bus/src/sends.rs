//! The outgoing messages of a node: those on their way, those that are finished and remembered, and when
//! each wants attention.
//!
//! Every packet that is answered leads here, so a message has a place in a slab that others refer to, one
//! table finds it by name, and its deadline is an entry of a heap that is passed over when it does not
//! hold any more. Nothing is kept in order that nobody asks for in order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use ahash::RandomState;
use hashbrown::HashTable;
use hyphae_time::Nanos;

use hyphae_wire::PublicKey;

use crate::outgoing::{Send, SendKey};
use crate::{MessageId, MessageInfo};

/// Entries of the heap that may not hold, beside as many as there are messages.
const STALE_MIN: usize = 1024;
/// Slots that are kept when there is no message.
const SLOTS_KEPT: usize = 1024;

/// Refers to a message on its way; to none once that is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SendRef {
    slot: u32,
    generation: u32,
}

/// An outgoing message that is finished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) name: SendKey,
    pub(crate) info: MessageInfo,
    pub(crate) key: Option<PublicKey>,
    at: Nanos,
}

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Live(u32),
    /// Its number among all that were finished.
    Done(u64),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    send: Option<Box<Send>>,
}

#[derive(Default)]
pub(crate) struct Sends {
    rooms: Rooms,
    /// By id alone: a name is an id, and what little makes two of the same id different.
    table: HashTable<Place>,
    hasher: RandomState,
    free: Vec<u32>,
    live: usize,
    generation: u32,
    /// Those that come after what is in here: deadlines mostly do, and a queue costs less than a heap.
    queue: VecDeque<(Nanos, SendRef)>,
    due: BinaryHeap<Reverse<(Nanos, SendRef)>>,
}

/// What places lead to.
#[derive(Default)]
struct Rooms {
    slots: Vec<Slot>,
    done: VecDeque<Finished>,
    /// Number of the first of `done`.
    first_done: u64,
}

impl Rooms {
    fn done(&self, number: u64) -> Option<&Finished> {
        let place = usize::try_from(number.checked_sub(self.first_done)?).ok()?;
        self.done.get(place)
    }

    fn name(&self, place: Place) -> Option<SendKey> {
        match place {
            Place::Live(slot) => {
                let slot = self.slots.get(index(slot))?;
                slot.send.as_ref().map(|send| send.name)
            }
            Place::Done(number) => self.done(number).map(|done| done.name),
        }
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

impl Sends {
    /// Messages on their way.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn get(&self, of: SendRef) -> Option<&Send> {
        let slot = self.rooms.slots.get(index(of.slot))?;
        let send = slot.send.as_deref();
        send.filter(|_| slot.generation == of.generation)
    }

    pub(crate) fn get_mut(&mut self, of: SendRef) -> Option<&mut Send> {
        let slot = self.rooms.slots.get_mut(index(of.slot))?;
        let send = slot.send.as_deref_mut();
        send.filter(|_| slot.generation == of.generation)
    }

    fn find(&self, id: MessageId, is: impl Fn(SendKey) -> bool) -> Option<Place> {
        let hash = self.hasher.hash_one(id);
        let same = |place: &Place| self.rooms.name(*place).is_some_and(&is);
        self.table.find(hash, same).copied()
    }

    /// The message of this name, while it is on its way.
    pub(crate) fn live(&self, name: SendKey) -> Option<SendRef> {
        match self.find(name.id, |other| other == name)? {
            Place::Live(slot) => self.refer(slot),
            Place::Done(_) => None,
        }
    }

    fn refer(&self, slot: u32) -> Option<SendRef> {
        let generation = self.rooms.slots.get(index(slot))?.generation;
        Some(SendRef { slot, generation })
    }

    /// The message of this name, once it is finished.
    pub(crate) fn done_mut(&mut self, name: SendKey) -> Option<&mut Finished> {
        let Place::Done(number) = self.find(name.id, |other| other == name)? else {
            return None;
        };
        let place = usize::try_from(number.checked_sub(self.rooms.first_done)?).ok()?;
        self.rooms.done.get_mut(place)
    }

    /// Whether any message has this id; replies have the ids of others.
    pub(crate) fn has_own(&self, id: MessageId) -> bool {
        let own = |name: SendKey| name.id == id && !name.reply;
        self.find(id, own).is_some()
    }

    /// A message on its way by id alone, a reply or not.
    pub(crate) fn live_any(&self, id: MessageId, reply: bool) -> Option<SendRef> {
        match self.find(id, |name| name.id == id && name.reply == reply)? {
            Place::Live(slot) => self.refer(slot),
            Place::Done(_) => None,
        }
    }

    /// A finished message by id alone, a reply or not.
    pub(crate) fn done_any(&self, id: MessageId, reply: bool) -> Option<&Finished> {
        match self.find(id, |name| name.id == id && name.reply == reply)? {
            Place::Live(_) => None,
            Place::Done(number) => self.rooms.done(number),
        }
    }

    /// Puts a message on its way; it takes the name of one that is finished.
    pub(crate) fn insert(&mut self, send: Send) -> SendRef {
        let name = send.name;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let filled = Slot {
            generation,
            send: Some(Box::new(send)),
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.rooms.slots.push(Slot::default());
                u32::try_from(self.rooms.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        if let Some(place) = self.rooms.slots.get_mut(index(slot)) {
            *place = filled;
        }
        self.live += 1;
        self.put(name, Place::Live(slot));
        SendRef { slot, generation }
    }

    /// Leads a name to a place.
    fn put(&mut self, name: SendKey, place: Place) {
        let (rooms, hasher) = (&self.rooms, &self.hasher);
        let hash = hasher.hash_one(name.id);
        let same = |other: &Place| *other != place && rooms.name(*other) == Some(name);
        // The id of a message of this node is new, that of a reply may have been used.
        if name.reply
            && let Some(found) = self.table.find_mut(hash, same)
        {
            *found = place;
            return;
        }
        self.table.insert_unique(hash, place, |place| {
            let id = rooms.name(*place).map(|name| name.id);
            hasher.hash_one(id.unwrap_or(MessageId([0; 8])))
        });
    }

    /// A message is not on its way any more, and remembered.
    pub(crate) fn finish(
        &mut self,
        now: Nanos,
        of: SendRef,
        info: impl FnOnce(&Send) -> MessageInfo,
    ) -> Option<Box<Send>> {
        let slot = self.rooms.slots.get_mut(index(of.slot))?;
        let send = if slot.generation == of.generation {
            slot.send.take()?
        } else {
            return None;
        };
        let rooms = &mut self.rooms;
        let number = rooms.first_done + u64::try_from(rooms.done.len()).unwrap_or(u64::MAX);
        rooms.done.push_back(Finished {
            name: send.name,
            info: info(&send),
            key: send.key,
            at: now,
        });
        let hash = self.hasher.hash_one(send.name.id);
        let here = |place: &Place| *place == Place::Live(of.slot);
        if let Some(place) = self.table.find_mut(hash, here) {
            *place = Place::Done(number);
        }
        self.live -= 1;
        self.free.push(of.slot);
        if self.live == 0 {
            self.due.clear();
            self.queue.clear();
            if self.rooms.slots.len() > SLOTS_KEPT {
                self.rooms.slots = Vec::new();
                self.free = Vec::new();
                self.due = BinaryHeap::new();
                self.queue = VecDeque::new();
            }
        }
        Some(send)
    }

    /// Forgets what was finished longest ago: more than `max`, or before `since`.
    pub(crate) fn forget(&mut self, max: usize, old: impl Fn(Nanos) -> bool) {
        while let Some(done) = self.rooms.done.front()
            && (self.rooms.done.len() > max || old(done.at))
        {
            let here = Place::Done(self.rooms.first_done);
            let hash = self.hasher.hash_one(done.name.id);
            // Its name may lead to a later message.
            if let Ok(entry) = self.table.find_entry(hash, |place| *place == here) {
                entry.remove();
            }
            self.rooms.done.pop_front();
            self.rooms.first_done += 1;
        }
    }

    /// Sees to it that a message is looked at when it is due.
    pub(crate) fn schedule(&mut self, of: SendRef) {
        let Some(send) = self.get_mut(of) else {
            return;
        };
        let at = send.due();
        // One that is looked at too early is scheduled again.
        if at >= send.alarm {
            return;
        }
        send.alarm = at;
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
                list.retain(|(at, of)| self.get(*of).is_some_and(|send| send.alarm == *at));
                // One that was held and goes on has its deadline in here once more.
                list.sort_unstable();
                list.dedup();
            }
            self.queue = queue.into();
            self.due = due.into_iter().map(Reverse).collect();
        }
    }

    /// When a message is due at the earliest.
    pub(crate) fn next_due(&self) -> Option<Nanos> {
        self.first_due().map(|(at, _)| at)
    }

    fn first_due(&self) -> Option<(Nanos, SendRef)> {
        let heap = self.due.peek().map(|Reverse(first)| *first);
        [heap, self.queue.front().copied()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is due, each once.
    pub(crate) fn take_due(&mut self, now: Nanos) -> Vec<SendRef> {
        let mut taken = Vec::new();
        while let Some((at, of)) = self.first_due()
            && at <= now
        {
            if self.queue.front() == Some(&(at, of)) {
                self.queue.pop_front();
            } else {
                self.due.pop();
            }
            let Some(send) = self.get_mut(of).filter(|send| send.alarm == at) else {
                continue;
            };
            send.alarm = Nanos::NEVER;
            if send.due() <= now {
                taken.push(of);
            } else {
                self.schedule(of);
            }
        }
        taken
    }
}

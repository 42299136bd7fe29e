//! What is known without asking the disk: which messages there are, of which topics, and which are visible.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use ahash::RandomState;
use hyphae_bus::{DeliveryKey, Topic};

use super::record::{Head, Place};
use super::{Listed, Listing, MessageNumber};

/// Places in a line of those that are not in it any more, beside as many as are.
const GONE_MIN: usize = 64;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) head: Head,
    pub(super) place: Place,
    visible: bool,
    /// Times that it was handed out.
    pub(super) deliveries: u32,
    /// The store has a row of that.
    pub(super) recorded: bool,
}

type Entries = HashMap<MessageNumber, Entry, RandomState>;

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: Entries,
    visible: Line,
    by_topic: BTreeMap<Topic, Line>,
    bytes: u64,
    /// Ids of messages that came, as hashes under a key of this process: a quarter of a million of them stay
    /// in the caches of a processor, and two have one hash as seldom as two random ids are the same.
    completed: HashSet<u64, BuildHasherDefault<Hashed>>,
    /// The same by age.
    ages: VecDeque<u64>,
    hasher: RandomState,
}

/// Passes on what is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 << 8 | u64::from(*byte));
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Visible messages, oldest first. Mostly they come at one end and leave at the other.
#[derive(Debug, Default)]
struct Line {
    queue: VecDeque<MessageNumber>,
    /// Of `queue`: not visible any more.
    gone: usize,
    /// Visible again, and older than what was in the queue then.
    returned: BTreeSet<MessageNumber>,
}

impl Line {
    fn show(&mut self, number: MessageNumber) {
        if self.queue.back().is_none_or(|last| *last < number) {
            self.queue.push_back(number);
        } else if self.queue.binary_search(&number).is_ok() {
            self.gone -= 1;
        } else {
            self.returned.insert(number);
        }
    }

    /// One of them is not visible any more, as `entries` says already.
    fn hide(&mut self, number: MessageNumber, entries: &Entries) {
        if self.returned.remove(&number) {
            return;
        }
        self.gone += 1;
        let gone = |number: &MessageNumber| entries.get(number).is_none_or(|entry| !entry.visible);
        while let Some(true) = self.queue.front().map(gone) {
            self.queue.pop_front();
            self.gone -= 1;
        }
        if self.gone > self.queue.len() / 2 + GONE_MIN {
            self.queue.retain(|number| !gone(number));
            self.gone = 0;
        }
    }

    /// The oldest. The first of the queue is visible.
    fn first(&self) -> Option<MessageNumber> {
        let firsts = [self.queue.front(), self.returned.first()];
        firsts.into_iter().flatten().min().copied()
    }
}

impl Index {
    pub(super) fn insert(
        &mut self,
        number: MessageNumber,
        head: Head,
        place: Place,
        visible: bool,
    ) {
        self.bytes += head.len;
        let entry = Entry {
            head,
            place,
            visible: false,
            deliveries: 0,
            recorded: false,
        };
        self.entries.insert(number, entry);
        if visible {
            self.show(number);
        }
    }

    pub(super) fn get(&self, number: MessageNumber) -> Option<&Entry> {
        self.entries.get(&number)
    }

    /// A message lies somewhere else now.
    pub(super) fn relocate(&mut self, number: MessageNumber, place: Place) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.place = place;
        }
    }

    /// A message was handed out so often, as the store says.
    pub(super) fn recall(&mut self, number: MessageNumber, deliveries: u32) {
        if let Some(entry) = self.entries.get_mut(&number) {
            (entry.deliveries, entry.recorded) = (deliveries, true);
        }
    }

    /// Hides a message and counts that it is handed out.
    pub(super) fn hand_out(&mut self, number: MessageNumber) -> u32 {
        self.hide(number);
        let Some(entry) = self.entries.get_mut(&number) else {
            return 0;
        };
        entry.deliveries = entry.deliveries.saturating_add(1);
        entry.deliveries
    }

    /// How many there are, and up to `count` of them after `after`, oldest first, without their payloads.
    pub(super) fn list(
        &self,
        topic: Option<&Topic>,
        after: MessageNumber,
        count: usize,
    ) -> Listing {
        let mut listing = Listing::default();
        let of = |entry: &Entry| topic.is_none_or(|topic| entry.head.topic == *topic);
        let mut numbers = Vec::new();
        for (number, entry) in self.entries.iter().filter(|(_, entry)| of(entry)) {
            listing.messages += 1;
            listing.bytes += entry.head.len;
            listing.handed_out += u64::from(!entry.visible);
            if *number > after {
                numbers.push(*number);
            }
        }
        if count < numbers.len() {
            numbers.select_nth_unstable(count);
            numbers.truncate(count);
        }
        numbers.sort_unstable();
        let shown = numbers.into_iter().filter_map(|number| {
            let entry = self.entries.get(&number)?;
            Some(Listed {
                number,
                key: entry.head.key,
                source_address: entry.head.source_address,
                topic: entry.head.topic.clone(),
                len: entry.head.len,
                deliveries: entry.deliveries,
                handed_out: !entry.visible,
            })
        });
        listing.entries = shown.collect();
        listing
    }

    /// Makes a message visible; false when there is none, or it is already.
    pub(super) fn show(&mut self, number: MessageNumber) -> bool {
        let Some(entry) = self.entries.get_mut(&number).filter(|entry| !entry.visible) else {
            return false;
        };
        entry.visible = true;
        self.visible.show(number);
        match self.by_topic.get_mut(&entry.head.topic) {
            Some(line) => line.show(number),
            None => {
                let mut line = Line::default();
                line.show(number);
                self.by_topic.insert(entry.head.topic.clone(), line);
            }
        }
        true
    }

    pub(super) fn hide(&mut self, number: MessageNumber) {
        let Some(entry) = self.entries.get_mut(&number).filter(|entry| entry.visible) else {
            return;
        };
        entry.visible = false;
        let topic = entry.head.topic.clone();
        self.visible.hide(number, &self.entries);
        if let Some(line) = self.by_topic.get_mut(&topic) {
            line.hide(number, &self.entries);
            if line.first().is_none() {
                self.by_topic.remove(&topic);
            }
        }
    }

    pub(super) fn remove(&mut self, number: MessageNumber) {
        // Whoever removes it has mostly hidden it before.
        self.hide(number);
        if let Some(entry) = self.entries.remove(&number) {
            self.bytes -= entry.head.len;
        }
    }

    /// The oldest visible message.
    pub(super) fn first(&self, topic: Option<&Topic>) -> Option<(MessageNumber, &Entry)> {
        let line = match topic {
            None => &self.visible,
            Some(topic) => self.by_topic.get(topic)?,
        };
        let number = line.first()?;
        Some((number, self.entries.get(&number)?))
    }

    pub(super) fn hidden(&self) -> BTreeSet<MessageNumber> {
        let hidden = self.entries.iter().filter(|(_, entry)| !entry.visible);
        hidden.map(|(number, _)| *number).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_completed(&self, key: &DeliveryKey) -> bool {
        self.completed.contains(&self.hasher.hash_one(key))
    }

    /// Remembers an id; false when it is known.
    pub(super) fn complete(&mut self, key: &DeliveryKey) -> bool {
        let hash = self.hasher.hash_one(key);
        let new = self.completed.insert(hash);
        if new {
            self.ages.push_back(hash);
        }
        new
    }

    /// The last ids did not come to be written.
    pub(super) fn undo(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(hash) = self.ages.pop_back() {
                self.completed.remove(&hash);
            }
        }
    }

    /// Ids beyond those that are remembered.
    pub(super) fn surplus(&self, max: usize) -> usize {
        self.ages.len().saturating_sub(max)
    }

    /// Forgets the oldest ids.
    pub(super) fn forget(&mut self, count: usize) {
        for hash in self.ages.drain(..count.min(self.ages.len())) {
            self.completed.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use hyphae_bus::MessageId;
    use hyphae_wire::{OverlayAddress, PublicKey};
    use proptest::prelude::*;

    use super::*;

    fn head(topic: u8) -> Head {
        Head {
            key: DeliveryKey {
                peer: PublicKey([1; 32]),
                id: MessageId([topic; 8]),
                reply: false,
            },
            source_address: OverlayAddress::default(),
            digest: [0; 32],
            len: 1,
            topic: Topic::new(vec![topic]).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn the_oldest_visible_one_is_first(
            steps in prop::collection::vec((0u8..4, 0u64..400, 0u8..3), 0..3000),
        ) {
            let (mut index, mut next) = (Index::default(), 0);
            let mut oracle = BTreeMap::<u64, (u8, bool)>::new();
            for (what, number, topic) in steps {
                let at = MessageNumber(number);
                match what {
                    0 => {
                        index.insert(MessageNumber(next), head(topic), Place::default(), topic != 2);
                        oracle.insert(next, (topic, topic != 2));
                        next += 1;
                    }
                    1 => {
                        index.hide(at);
                        oracle.entry(number).and_modify(|entry| entry.1 = false);
                    }
                    2 => {
                        let shown = index.show(at);
                        let hidden = oracle.get(&number).is_some_and(|entry| !entry.1);
                        prop_assert_eq!(shown, hidden);
                        oracle.entry(number).and_modify(|entry| entry.1 = true);
                    }
                    _ => {
                        index.remove(at);
                        oracle.remove(&number);
                    }
                }
                let first = |topic: Option<u8>| {
                    let found = oracle.iter().find(|(_, (of, visible))| {
                        *visible && topic.is_none_or(|topic| *of == topic)
                    });
                    found.map(|(number, _)| MessageNumber(*number))
                };
                prop_assert_eq!(index.first(None).map(|(number, _)| number), first(None));
                for topic in 0..3 {
                    let name = Topic::new(vec![topic]).unwrap();
                    let found = index.first(Some(&name)).map(|(number, _)| number);
                    prop_assert_eq!(found, first(Some(topic)));
                }
                prop_assert_eq!(index.len(), oracle.len());
                prop_assert!(index.visible.queue.len() <= 2 * oracle.len() + 2 * GONE_MIN);
            }
        }
    }
}

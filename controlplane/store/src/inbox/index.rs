//! Index in memory: the messages, their topics, and which are visible.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use ahash::RandomState;
use hyphae_bus::{DeliveryKey, Topic};
use hyphae_wire::PublicKey;

use super::record::{Head, Place};
use super::types::{Listed, Listing, MessageNumber};

/// Stale entries of a queue, beyond half of its length, that cause a cleanup.
const STALE_MIN: usize = 64;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) head: Head,
    pub(super) place: Place,
    visible: bool,
    /// Its deliveries.
    pub(super) deliveries: u32,
    /// The store has a row of its deliveries.
    pub(super) recorded: bool,
}

type Entries = HashMap<MessageNumber, Entry, RandomState>;

/// The index.
#[derive(Debug)]
pub(super) struct Index {
    entries: Entries,
    visible: VisibleQueue,
    by_topic: BTreeMap<Topic, VisibleQueue>,
    bytes: u64,
    /// Ids of received messages, as hashes under a key of this process: a quarter of a million of them fit the caches
    /// of a processor, and collide as rarely as random ids of 64 bits.
    completed: HashSet<u64, BuildHasherDefault<Hashed>>,
    /// The same hashes by sender, oldest first.
    senders: BTreeMap<PublicKey, VecDeque<u64>>,
    /// The sender whose id was evicted last.
    evicted: PublicKey,
    hasher: RandomState,
}

/// Identity: the keys are hashes.
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

/// Visible messages, oldest first. Most are added at the back and removed at the front.
#[derive(Debug, Default)]
struct VisibleQueue {
    queue: VecDeque<MessageNumber>,
    /// Entries of `queue` that are hidden or removed.
    stale: usize,
    /// Messages that are visible again, older than the entries of the queue at that time.
    returned: BTreeSet<MessageNumber>,
}

impl VisibleQueue {
    fn show(&mut self, number: MessageNumber) {
        if self.queue.back().is_none_or(|last| *last < number) {
            self.queue.push_back(number);
        } else if self.queue.binary_search(&number).is_ok() {
            self.stale -= 1;
        } else {
            self.returned.insert(number);
        }
    }

    /// Removes a message that `entries` has as hidden or not at all.
    fn hide(&mut self, number: MessageNumber, entries: &Entries) {
        if self.returned.remove(&number) {
            return;
        }
        self.stale += 1;
        let stale = |number: &MessageNumber| entries.get(number).is_none_or(|entry| !entry.visible);
        while let Some(true) = self.queue.front().map(stale) {
            self.queue.pop_front();
            self.stale -= 1;
        }
        if self.stale > self.queue.len() / 2 + STALE_MIN {
            self.queue.retain(|number| !stale(number));
            self.stale = 0;
        }
    }

    /// The oldest. The first of the queue is visible.
    fn first(&self) -> Option<MessageNumber> {
        let firsts = [self.queue.front(), self.returned.first()];
        firsts.into_iter().flatten().min().copied()
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            entries: Entries::default(),
            visible: VisibleQueue::default(),
            by_topic: BTreeMap::new(),
            bytes: 0,
            completed: HashSet::default(),
            senders: BTreeMap::new(),
            evicted: PublicKey([0; 32]),
            hasher: RandomState::default(),
        }
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

    /// Updates the place of a message.
    pub(super) fn relocate(&mut self, number: MessageNumber, place: Place) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.place = place;
        }
    }

    /// Sets the deliveries of a message, which the store has a row of.
    pub(super) fn recall(&mut self, number: MessageNumber, deliveries: u32) {
        if let Some(entry) = self.entries.get_mut(&number) {
            (entry.deliveries, entry.recorded) = (deliveries, true);
        }
    }

    /// Hides a message and counts its delivery.
    pub(super) fn deliver(&mut self, number: MessageNumber) -> u32 {
        self.hide(number);
        let Some(entry) = self.entries.get_mut(&number) else {
            return 0;
        };
        entry.deliveries = entry.deliveries.saturating_add(1);
        entry.deliveries
    }

    /// Number of messages, and up to `count` of them after `after`, oldest first, without their payloads.
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

    /// Makes a message visible; false when it is visible or unknown.
    pub(super) fn show(&mut self, number: MessageNumber) -> bool {
        let Some(entry) = self.entries.get_mut(&number).filter(|entry| !entry.visible) else {
            return false;
        };
        entry.visible = true;
        self.visible.show(number);
        match self.by_topic.get_mut(&entry.head.topic) {
            Some(queue) => queue.show(number),
            None => {
                let mut queue = VisibleQueue::default();
                queue.show(number);
                self.by_topic.insert(entry.head.topic.clone(), queue);
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
        if let Some(queue) = self.by_topic.get_mut(&topic) {
            queue.hide(number, &self.entries);
            if queue.first().is_none() {
                self.by_topic.remove(&topic);
            }
        }
    }

    pub(super) fn remove(&mut self, number: MessageNumber) {
        self.hide(number);
        if let Some(entry) = self.entries.remove(&number) {
            self.bytes -= entry.head.len;
        }
    }

    /// The oldest visible message.
    pub(super) fn first(&self, topic: Option<&Topic>) -> Option<(MessageNumber, &Entry)> {
        let queue = match topic {
            None => &self.visible,
            Some(topic) => self.by_topic.get(topic)?,
        };
        let number = queue.first()?;
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
            self.senders.entry(key.peer).or_default().push_back(hash);
        }
        new
    }

    /// Forgets the latest ids of these senders, latest first: they were not written.
    pub(super) fn undo(&mut self, last: impl Iterator<Item = PublicKey>) {
        for sender in last {
            if let Some(ages) = self.senders.get_mut(&sender)
                && let Some(hash) = ages.pop_back()
            {
                self.completed.remove(&hash);
                if ages.is_empty() {
                    self.senders.remove(&sender);
                }
            }
        }
    }

    /// Ids beyond `max`: how many of the oldest of which senders. Each is of a sender with at least an even share, so
    /// that a flood of one sender evicts its own ids. A sender that is skipped has less than its share, so the search
    /// takes amortised one step per id.
    pub(super) fn surplus(&mut self, max: usize) -> Vec<(PublicKey, usize)> {
        let mut surplus = BTreeMap::<PublicKey, usize>::new();
        for left in (max..self.completed.len()).rev() {
            let share = ((left + 1) / self.senders.len().max(1)).max(1);
            let behind = self.senders.range(self.evicted..);
            let mut all = behind.chain(self.senders.range(..self.evicted));
            let found = all.find(|(sender, ages)| {
                ages.len() >= share + surplus.get(*sender).copied().unwrap_or(0)
            });
            let Some((sender, _)) = found else { break };
            self.evicted = *sender;
            *surplus.entry(self.evicted).or_default() += 1;
        }
        surplus.into_iter().collect()
    }

    /// Forgets the oldest ids of some senders.
    pub(super) fn forget(&mut self, surplus: Vec<(PublicKey, usize)>) {
        for (sender, count) in surplus {
            let Some(ages) = self.senders.get_mut(&sender) else {
                continue;
            };
            for hash in ages.drain(..count.min(ages.len())) {
                self.completed.remove(&hash);
            }
            if ages.is_empty() {
                self.senders.remove(&sender);
            }
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

    #[test]
    fn a_sender_without_end_makes_the_node_forget_its_own_ids() {
        let mut index = Index::default();
        let key = |sender: u8, id: u64| DeliveryKey {
            peer: PublicKey([sender; 32]),
            id: MessageId(id.to_be_bytes()),
            reply: false,
        };
        (0..10).for_each(|id| assert!(index.complete(&key(1, id))));
        for round in 0..100 {
            for id in 50 * round..50 * (round + 1) {
                assert!(index.complete(&key(2, id)));
                assert!(!index.complete(&key(2, id)));
            }
            let surplus = index.surplus(100);
            assert!(
                surplus
                    .iter()
                    .all(|(sender, _)| *sender == PublicKey([2; 32]))
            );
            index.forget(surplus);
            assert!(index.completed.len() <= 100);
        }
        assert!((0..10).all(|id| index.is_completed(&key(1, id))));
        assert!(index.is_completed(&key(2, 4999)) && !index.is_completed(&key(2, 0)));
        // A sender below an even share loses no id; a new sender gets its own.
        for id in 0..80 {
            index.complete(&key(3, id));
            let surplus = index.surplus(100);
            index.forget(surplus);
        }
        let known = |sender| {
            (0..5000)
                .filter(|id| index.is_completed(&key(sender, *id)))
                .count()
        };
        assert_eq!((known(1), known(2) + known(3)), (10, 90));
        assert!(
            known(2) >= 32 && known(3) >= 32,
            "an even share, less the one that is forgotten next"
        );
        // What did not come to be written is new again.
        index.undo([PublicKey([3; 32])].into_iter());
        assert!(!index.is_completed(&key(3, 79)) && index.is_completed(&key(3, 78)));
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
                prop_assert!(index.visible.queue.len() <= 2 * oracle.len() + 2 * STALE_MIN);
            }
        }
    }
}

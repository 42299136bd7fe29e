//! What is known without asking the disk: which messages there are, of which topics, and which are visible.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use ahash::RandomState;
use hyphae_bus::{DeliveryKey, Topic};
use hyphae_wire::PublicKey;

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
#[derive(Debug)]
pub(super) struct Index {
    entries: Entries,
    visible: Line,
    by_topic: BTreeMap<Topic, Line>,
    bytes: u64,
    /// Ids of messages that came, as hashes under a key of this process: a quarter of a million of them stay
    /// in the caches of a processor, and two have one hash as seldom as two random ids are the same.
    completed: HashSet<u64, BuildHasherDefault<Hashed>>,
    /// The same by sender and age.
    senders: BTreeMap<PublicKey, VecDeque<u64>>,
    /// Who was to forget one last in favour of another.
    loser: PublicKey,
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

impl Default for Index {
    fn default() -> Self {
        Self {
            entries: Entries::default(),
            visible: Line::default(),
            by_topic: BTreeMap::new(),
            bytes: 0,
            completed: HashSet::default(),
            senders: BTreeMap::new(),
            loser: PublicKey([0; 32]),
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
            self.senders.entry(key.peer).or_default().push_back(hash);
        }
        new
    }

    /// The last ids, these from the last on, did not come to be written.
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

    /// Ids beyond those that are remembered: how many, the oldest, of which senders. Always one that has an even share
    /// or more, so a sender without end makes the node forget its own. Whoever is passed over has less than a share,
    /// which others have more for, so what this costs is a step for each.
    pub(super) fn surplus(&mut self, max: usize) -> Vec<(PublicKey, usize)> {
        let mut surplus = BTreeMap::<PublicKey, usize>::new();
        for left in (max..self.completed.len()).rev() {
            let share = ((left + 1) / self.senders.len().max(1)).max(1);
            let behind = self.senders.range(self.loser..);
            let mut all = behind.chain(self.senders.range(..self.loser));
            let found = all.find(|(sender, ages)| {
                ages.len() >= share + surplus.get(*sender).copied().unwrap_or(0)
            });
            let Some((sender, _)) = found else { break };
            self.loser = *sender;
            *surplus.entry(self.loser).or_default() += 1;
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
        // Nobody with less than an even share loses any; a newcomer gets its own.
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
                prop_assert!(index.visible.queue.len() <= 2 * oracle.len() + 2 * GONE_MIN);
            }
        }
    }
}

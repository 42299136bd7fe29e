//! What is known without asking the disk: which messages there are, of which topics, and which are visible.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use ahash::RandomState;
use hyphae_bus::{DeliveryKey, Topic};

use super::MessageNumber;
use super::record::Head;

#[derive(Debug)]
struct Entry {
    head: Head,
    visible: bool,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<MessageNumber, Entry>,
    visible: BTreeSet<MessageNumber>,
    by_topic: BTreeMap<Topic, BTreeSet<MessageNumber>>,
    bytes: u64,
    completed: HashSet<DeliveryKey, RandomState>,
    /// By age, with their numbers in the store.
    ages: VecDeque<(u64, DeliveryKey)>,
}

impl Index {
    pub(super) fn insert(&mut self, number: MessageNumber, head: Head, visible: bool) {
        self.bytes += head.len;
        let entry = Entry {
            head,
            visible: false,
        };
        self.entries.insert(number, entry);
        if visible {
            self.show(number);
        }
    }

    /// Makes a message visible; false when there is none, or it is already.
    pub(super) fn show(&mut self, number: MessageNumber) -> bool {
        let Some(entry) = self.entries.get_mut(&number).filter(|entry| !entry.visible) else {
            return false;
        };
        entry.visible = true;
        self.visible.insert(number);
        let topic = entry.head.topic.clone();
        self.by_topic.entry(topic).or_default().insert(number);
        true
    }

    pub(super) fn hide(&mut self, number: MessageNumber) {
        let Some(entry) = self.entries.get_mut(&number) else {
            return;
        };
        entry.visible = false;
        self.visible.remove(&number);
        if let Some(numbers) = self.by_topic.get_mut(&entry.head.topic) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_topic.remove(&entry.head.topic);
            }
        }
    }

    pub(super) fn remove(&mut self, number: MessageNumber) {
        // Whoever removes it has mostly hidden it before.
        if self.entries.get(&number).is_some_and(|entry| entry.visible) {
            self.hide(number);
        }
        if let Some(entry) = self.entries.remove(&number) {
            self.bytes -= entry.head.len;
        }
    }

    /// The oldest visible message.
    pub(super) fn first(&self, topic: Option<&Topic>) -> Option<(MessageNumber, Head)> {
        let number = match topic {
            None => self.visible.first(),
            Some(topic) => self.by_topic.get(topic).and_then(BTreeSet::first),
        }?;
        let entry = self.entries.get(number)?;
        Some((*number, entry.head.clone()))
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
        self.completed.contains(key)
    }

    pub(super) fn complete(&mut self, age: u64, key: DeliveryKey) {
        if self.completed.insert(key) {
            self.ages.push_back((age, key));
        }
    }

    /// Ages of the ids that are too many once `more` have been added.
    pub(super) fn surplus(&self, more: usize, max: usize) -> Vec<u64> {
        let surplus = (self.ages.len() + more).saturating_sub(max);
        self.ages
            .iter()
            .take(surplus)
            .map(|(age, _)| *age)
            .collect()
    }

    pub(super) fn forget(&mut self, ages: &[u64]) {
        for _ in ages {
            if let Some((_, key)) = self.ages.pop_front() {
                self.completed.remove(&key);
            }
        }
    }

    pub(super) fn completed(&self) -> Vec<DeliveryKey> {
        self.ages.iter().map(|(_, key)| *key).collect()
    }
}

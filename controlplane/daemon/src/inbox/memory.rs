//! An inbox in memory: gone with the process.

use std::collections::{BTreeMap, BTreeSet};

use hyphae_bus::{DeliveryKey, Inbound, Room, Topic};

use super::{Inbox, Put, Taken};

/// Messages in the order in which they came.
pub(crate) struct MemoryInbox {
    limits: Room,
    messages: BTreeMap<i64, Inbound>,
    by_topic: BTreeMap<Topic, BTreeSet<i64>>,
    bytes: usize,
}

impl MemoryInbox {
    pub(crate) fn new(limits: Room) -> Self {
        Self {
            limits,
            messages: BTreeMap::new(),
            by_topic: BTreeMap::new(),
            bytes: 0,
        }
    }

    fn insert(&mut self, number: i64, inbound: Inbound) {
        self.bytes += inbound.payload.len();
        let topic = self.by_topic.entry(inbound.topic.clone()).or_default();
        topic.insert(number);
        self.messages.insert(number, inbound);
    }

    fn first(&self, topic: Option<&Topic>) -> Option<i64> {
        match topic {
            None => self.messages.first_key_value().map(|(number, _)| *number),
            Some(topic) => self.by_topic.get(topic)?.first().copied(),
        }
    }
}

impl Inbox for MemoryInbox {
    fn put(&mut self, inbound: Inbound) -> Put {
        let room = self.room();
        if room.messages == 0 || room.bytes < inbound.payload.len() {
            return Put::Full;
        }
        let last = self
            .messages
            .last_key_value()
            .map_or(0, |(number, _)| *number);
        self.insert(last + 1, inbound);
        Put::Kept
    }

    fn committed(&mut self, _key: &DeliveryKey, _kept: bool) {}

    fn take(&mut self, topic: Option<&Topic>) -> Option<Taken> {
        let number = self.first(topic)?;
        let inbound = self.messages.remove(&number)?;
        self.bytes -= inbound.payload.len();
        if let Some(topic) = self.by_topic.get_mut(&inbound.topic) {
            topic.remove(&number);
            if topic.is_empty() {
                self.by_topic.remove(&inbound.topic);
            }
        }
        Some(Taken {
            inbound,
            durable: None,
        })
    }

    fn peek(&self, topic: Option<&Topic>) -> Option<Inbound> {
        self.messages.get(&self.first(topic)?).cloned()
    }

    fn restore(&mut self, inbound: Inbound) {
        let first = self
            .messages
            .first_key_value()
            .map_or(0, |(number, _)| *number);
        self.insert(first - 1, inbound);
    }

    fn len(&self) -> usize {
        self.messages.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn room(&self) -> Room {
        Room {
            messages: self.limits.messages.saturating_sub(self.messages.len()),
            bytes: self.limits.bytes.saturating_sub(self.bytes),
        }
    }

    fn completed(&mut self) -> Vec<DeliveryKey> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyphae_bus::MessageId;
    use hyphae_wire::PublicKey;

    fn inbound(id: u8, topic: &'static str, len: usize) -> Inbound {
        let source_key = PublicKey([1; 32]);
        Inbound {
            id: MessageId([id; 8]),
            reply: false,
            source_key,
            source_address: source_key.address(),
            topic: topic.parse().unwrap(),
            payload: vec![id; len].into(),
        }
    }

    #[test]
    fn item_05_the_inbox_holds_no_more_than_its_limits() {
        let mut inbox = MemoryInbox::new(Room {
            messages: 3,
            bytes: 100,
        });
        assert!(matches!(inbox.put(inbound(1, "a", 60)), Put::Kept));
        assert!(matches!(inbox.put(inbound(2, "b", 41)), Put::Full));
        assert!(matches!(inbox.put(inbound(2, "b", 40)), Put::Kept));
        assert!(matches!(inbox.put(inbound(3, "b", 0)), Put::Kept));
        assert!(matches!(inbox.put(inbound(4, "b", 0)), Put::Full));
        let topic = "b".parse().unwrap();
        assert_eq!(inbox.peek(Some(&topic)).unwrap().id, MessageId([2; 8]));
        let taken = inbox.take(Some(&topic)).unwrap().inbound;
        assert_eq!(taken.id, MessageId([2; 8]));
        assert_eq!((inbox.len(), inbox.bytes()), (2, 60));
        assert_eq!(inbox.take(None).unwrap().inbound.id, MessageId([1; 8]));
        inbox.restore(taken);
        assert_eq!(inbox.take(None).unwrap().inbound.id, MessageId([2; 8]));
        assert_eq!(inbox.take(None).unwrap().inbound.id, MessageId([3; 8]));
        assert!(inbox.take(None).is_none() && inbox.by_topic.is_empty());
    }
}

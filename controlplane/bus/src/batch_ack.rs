//! Batched acknowledgement of the messages of one peer that are one packet long, by packet number. Ranges of stored
//! messages are repeated in later acks, so a lost ack costs nothing.

use std::collections::VecDeque;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::{ACK_RANGES_MAX, AckRange};

use hyphae_wire::OverlayAddress;

use crate::DeliveryKey;

/// Longest delay of an ack while the message awaits its final status. Less than the allowance of senders,
/// [`crate::path::ACK_DELAY_MAX`].
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(5);
/// Messages with a delayed ack: the window of their sender may have no room for many more.
const DELAYED_MAX: usize = 16;
/// Bound of reordering, messages.
const REORDER_MAX: usize = 256;
/// Packets before the newest whose acks are repeated: more than a window holds.
const REPEAT_WINDOW: u64 = 65_536;

pub(crate) struct AckBatcher {
    pub(crate) address: OverlayAddress,
    /// A batch ack is in the control queue.
    pub(crate) queued: bool,
    /// Its timer is set.
    pub(crate) timer_set: bool,
    /// Packets of stored messages, sorted and disjoint: first, end.
    stored: VecDeque<(u64, u64)>,
    /// When the newest of them was received.
    newest_at: Nanos,
    /// Unacknowledged messages by packet number, sorted: number, when received, name.
    unacked: VecDeque<(u64, Nanos, DeliveryKey)>,
}

/// Content of a batch ack.
pub(crate) struct BatchAck {
    /// Packet number that the ranges are relative to.
    pub(crate) first: u64,
    /// Ack delay of the newest packet, microseconds.
    pub(crate) delay_us: u32,
    pub(crate) stored: Vec<AckRange>,
    pub(crate) received: Vec<AckRange>,
}

impl AckBatcher {
    pub(crate) fn new(address: OverlayAddress) -> Self {
        Self {
            address,
            queued: false,
            timer_set: false,
            stored: VecDeque::new(),
            newest_at: Nanos(0),
            unacked: VecDeque::new(),
        }
    }

    /// Registers a received message for a delayed ack. False when it is so far out of order that an ack now costs less
    /// than the insertion.
    pub(crate) fn insert(&mut self, now: Nanos, sequence: u64, key: DeliveryKey) -> bool {
        let place = self
            .unacked
            .partition_point(|(other, ..)| *other < sequence);
        let moved = place.min(self.unacked.len() - place);
        if moved <= REORDER_MAX {
            self.unacked.insert(place, (sequence, now, key));
        }
        moved <= REORDER_MAX
    }

    /// When the next ack is due.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.unacked.front().map(|(_, at, _)| *at + ACK_DELAY)
    }

    /// Whether the ack of this packet may wait for [`Self::due`].
    pub(crate) fn can_delay(&self, sequence: u64) -> bool {
        let place = self.unacked.binary_search_by_key(&sequence, |(it, ..)| *it);
        place.is_ok() && self.unacked.len() < DELAYED_MAX
    }

    /// Whether the final status of the first unacknowledged message is known.
    pub(crate) fn has_decided(&self, undecided: impl Fn(&DeliveryKey) -> bool) -> bool {
        self.unacked
            .front()
            .is_some_and(|(.., key)| !undecided(key))
    }

    /// Whether an earlier packet is unacknowledged, which an ack of this packet would make its sender declare lost.
    pub(crate) fn must_precede(&self, sequence: u64) -> bool {
        self.unacked
            .front()
            .is_some_and(|(first, ..)| *first < sequence)
    }

    /// The message in this packet is stored.
    pub(crate) fn on_stored(&mut self, sequence: u64, newest_at: Nanos) {
        let known = self.stored.back().map_or(0, |(_, end)| *end);
        if sequence < known.saturating_sub(REPEAT_WINDOW) {
            // The sender has restarted, and numbers its packets from a lower base.
            self.stored.clear();
        }
        let place = self.stored.partition_point(|(first, _)| *first <= sequence);
        let before = place.checked_sub(1).and_then(|at| self.stored.get_mut(at));
        match before {
            Some((_, end)) if *end > sequence => return,
            Some((_, end)) if *end == sequence => *end += 1,
            Some(_) | None => self.stored.insert(place, (sequence, sequence + 1)),
        }
        let at = self.stored.partition_point(|(first, _)| *first <= sequence) - 1;
        if let (Some(own), Some(next)) = (self.stored.get(at), self.stored.get(at + 1))
            && own.1 == next.0
        {
            let end = next.1;
            self.stored.remove(at + 1);
            if let Some(own) = self.stored.get_mut(at) {
                own.1 = end;
            }
        }
        let last = self.stored.back().map_or(0, |(_, end)| *end);
        if last == sequence + 1 {
            self.newest_at = newest_at;
        }
        let oldest = last.saturating_sub(REPEAT_WINDOW);
        while self.stored.len() > ACK_RANGES_MAX
            || self.stored.front().is_some_and(|(_, end)| *end <= oldest)
        {
            self.stored.pop_front();
        }
        if let Some((first, _)) = self.stored.front_mut() {
            *first = oldest.max(*first);
        }
    }

    /// The next ack: all stored messages, and the unacknowledged ones that are undecided according to `undecided`.
    pub(crate) fn take_ack(
        &mut self,
        now: Nanos,
        undecided: impl Fn(&DeliveryKey) -> bool,
    ) -> BatchAck {
        let (mut received, mut newest_at) = (Vec::<(u64, u64)>::new(), self.newest_at);
        let mut last = self.stored.back().map_or(0, |(_, end)| *end);
        while let Some((sequence, at, key)) = self.unacked.front() {
            if undecided(key) {
                let full = received.len() == ACK_RANGES_MAX;
                match received.last_mut() {
                    Some((_, end)) if *end == *sequence => *end += 1,
                    Some(_) if full => break,
                    Some(_) | None => received.push((*sequence, sequence + 1)),
                }
                if *sequence >= last {
                    last = sequence + 1;
                    newest_at = *at;
                }
            }
            self.unacked.pop_front();
        }
        let firsts = [self.stored.front(), received.first()];
        let first = firsts.into_iter().flatten().map(|(first, _)| *first).min();
        let first = first.unwrap_or(0);
        let offset = |number: u64| u32::try_from(number - first).ok();
        // Packets from before a restart of the sender may be out of range.
        let range = |(from, end): &(u64, u64)| {
            Some(AckRange {
                first: offset(*from)?.into(),
                end: offset(*end)?.into(),
            })
        };
        BatchAck {
            first,
            delay_us: u32::try_from(now.since(newest_at).as_micros()).unwrap_or(u32::MAX),
            stored: self.stored.iter().filter_map(range).collect(),
            received: received.iter().filter_map(range).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyphae_wire::PublicKey;

    use super::*;
    use crate::MessageId;
    use hyphae_random::Rng;

    fn numbers(first: u64, ranges: &[AckRange]) -> Vec<u64> {
        let offsets = ranges
            .iter()
            .flat_map(|range| u64::from(range.first.get())..range.end.get().into());
        offsets.map(|offset| first + offset).collect()
    }

    #[test]
    fn repeats_the_newest_ranges() {
        let mut rng = Rng::new([7; 32]);
        let mut batcher = AckBatcher::new(OverlayAddress::default());
        let (start, mut all) = (1 << 40, BTreeSet::new());
        let now = Nanos(start + 10_000_000);
        for step in 0..3000 {
            let [near, ..] = rng.array::<1>();
            let sequence = start + step + u64::from(near % 40);
            batcher.on_stored(sequence, Nanos(sequence));
            all.insert(sequence);
            let ack = batcher.take_ack(now, |_| true);
            assert!(ack.stored.len() <= ACK_RANGES_MAX && ack.received.is_empty());
            let acked = numbers(ack.first, &ack.stored);
            let expected: Vec<_> = all.range(acked[0]..).copied().collect();
            assert_eq!(acked, expected);
            let last = Nanos(*all.last().unwrap());
            assert_eq!(u128::from(ack.delay_us), now.since(last).as_micros());
        }
        // Outside of the repeat window.
        batcher.on_stored(start + 1_000_000, Nanos(0));
        assert_eq!(batcher.take_ack(Nanos(0), |_| true).stored.len(), 1);
        // A restarted sender numbers from any base.
        for sequence in [7, 8, 1 << 62] {
            batcher.on_stored(sequence, Nanos(0));
            let ack = batcher.take_ack(Nanos(0), |_| true);
            assert_eq!(numbers(ack.first, &ack.stored).last(), Some(&sequence));
        }
    }

    #[test]
    fn undecided_messages_are_acknowledged_once_and_decided_ones_are_omitted() {
        let mut batcher = AckBatcher::new(OverlayAddress::default());
        let key = |n: u64| DeliveryKey {
            peer: PublicKey([1; 32]),
            id: MessageId(n.to_be_bytes()),
            reply: false,
        };
        let now = Nanos(1_000_000_000);
        // Reordered.
        for n in [3, 1, 2, 5, 4, 9, 7] {
            assert!(batcher.insert(now, 100 + n, key(n)));
        }
        assert_eq!(batcher.due(), Some(now + ACK_DELAY));
        assert!(batcher.must_precede(102) && !batcher.must_precede(101));
        let ack = batcher.take_ack(now + ACK_DELAY, |other| *other != key(2));
        assert_eq!(
            numbers(ack.first, &ack.received),
            [101, 103, 104, 105, 107, 109]
        );
        assert_eq!((ack.stored.len(), ack.delay_us), (0, 5000));
        assert_eq!(
            (batcher.due(), batcher.must_precede(u64::MAX)),
            (None, false)
        );
        // More ranges than one packet holds.
        (0..100).for_each(|n| assert!(batcher.insert(now, 1000 + 2 * n, key(n))));
        let (first, second) = (
            batcher.take_ack(now, |_| true),
            batcher.take_ack(now, |_| true),
        );
        assert_eq!((first.received.len(), second.received.len()), (64, 36));
    }
}

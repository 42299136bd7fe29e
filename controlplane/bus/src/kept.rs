//! What a peer is told of its messages that are one packet long: many at once, by the numbers of their
//! packets. What is kept is told again with the next ones, so that a packet that is lost on the way costs
//! nothing.

use std::collections::VecDeque;
use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::{ACK_RANGES_MAX, AckRange};

use hyphae_wire::OverlayAddress;

use crate::DeliveryKey;

/// How long a message that is there waits for its verdict before its sender is told that it is there.
/// Less than what a sender allows for it, [`crate::path::ANSWER_SLACK`].
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(5);
/// Messages that a sender is told of late at most: its window may have no room for many more.
const LATE_MAX: usize = 16;
/// Messages that one may have been overtaken by.
const OVERTAKEN_MAX: usize = 256;
/// Packets back from the last one that are told again: more than a window holds.
const AGAIN: u64 = 65_536;

pub(crate) struct Kept {
    pub(crate) address: OverlayAddress,
    /// Word of it waits to be sent.
    pub(crate) queued: bool,
    /// It is looked at when something may be due.
    pub(crate) alarmed: bool,
    /// Numbers of packets, in order and apart: the first and the one after the last.
    ranges: VecDeque<(u64, u64)>,
    /// When the last of them came.
    came: Nanos,
    /// Messages whose sender has not been told of them: packet, when it came, name. In order.
    late: VecDeque<(u64, Nanos, DeliveryKey)>,
}

/// What a sender is told.
pub(crate) struct Word {
    /// The packet that the others are counted from.
    pub(crate) first: u64,
    /// Microseconds that the last of them has waited.
    pub(crate) waited: u32,
    pub(crate) kept: Vec<AckRange>,
    pub(crate) there: Vec<AckRange>,
}

impl Kept {
    pub(crate) fn new(address: OverlayAddress) -> Self {
        Self {
            address,
            queued: false,
            alarmed: false,
            ranges: VecDeque::new(),
            came: Nanos(0),
            late: VecDeque::new(),
        }
    }

    /// A message that waits for its verdict has come. False when it came so far out of order that making room for it
    /// would cost more than telling its sender now.
    pub(crate) fn wait(&mut self, now: Nanos, sequence: u64, key: DeliveryKey) -> bool {
        let place = self.late.partition_point(|(other, ..)| *other < sequence);
        let moved = place.min(self.late.len() - place);
        if moved <= OVERTAKEN_MAX {
            self.late.insert(place, (sequence, now, key));
        }
        moved <= OVERTAKEN_MAX
    }

    /// When its sender has to be told of a message.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.late.front().map(|(_, at, _)| *at + ACK_DELAY)
    }

    /// Whether its sender has not heard of the message in this packet, and will within [`ACK_DELAY`], or not much
    /// more: then nothing else has to be said of it now.
    pub(crate) fn is_late(&self, sequence: u64) -> bool {
        let place = self.late.binary_search_by_key(&sequence, |(it, ..)| *it);
        place.is_ok() && self.late.len() < LATE_MAX
    }

    /// Whether its sender has not heard yet that the first of them is kept.
    pub(crate) fn owes_verdict(&self, waits: impl Fn(&DeliveryKey) -> bool) -> bool {
        self.late.front().is_some_and(|(.., key)| !waits(key))
    }

    /// Whether a sender that hears of this packet would take one before it, of which it has not heard, for
    /// lost.
    pub(crate) fn owes_before(&self, sequence: u64) -> bool {
        self.late
            .front()
            .is_some_and(|(first, ..)| *first < sequence)
    }

    /// The message in this packet, which came at this time, is kept.
    pub(crate) fn keep(&mut self, sequence: u64, came: Nanos) {
        let known = self.ranges.back().map_or(0, |(_, end)| *end);
        if sequence < known.saturating_sub(AGAIN) {
            // Its sender has begun to count anew, somewhere lower.
            self.ranges.clear();
        }
        let place = self.ranges.partition_point(|(first, _)| *first <= sequence);
        let before = place.checked_sub(1).and_then(|at| self.ranges.get_mut(at));
        match before {
            Some((_, end)) if *end > sequence => return,
            Some((_, end)) if *end == sequence => *end += 1,
            Some(_) | None => self.ranges.insert(place, (sequence, sequence + 1)),
        }
        let at = self.ranges.partition_point(|(first, _)| *first <= sequence) - 1;
        if let (Some(own), Some(next)) = (self.ranges.get(at), self.ranges.get(at + 1))
            && own.1 == next.0
        {
            let end = next.1;
            self.ranges.remove(at + 1);
            if let Some(own) = self.ranges.get_mut(at) {
                own.1 = end;
            }
        }
        let last = self.ranges.back().map_or(0, |(_, end)| *end);
        if last == sequence + 1 {
            self.came = came;
        }
        let oldest = last.saturating_sub(AGAIN);
        while self.ranges.len() > ACK_RANGES_MAX
            || self.ranges.front().is_some_and(|(_, end)| *end <= oldest)
        {
            self.ranges.pop_front();
        }
        if let Some((first, _)) = self.ranges.front_mut() {
            *first = oldest.max(*first);
        }
    }

    /// What the sender is told now: all that is kept, and what else it has not heard of and `waits`.
    pub(crate) fn word(&mut self, now: Nanos, waits: impl Fn(&DeliveryKey) -> bool) -> Word {
        let (mut there, mut came) = (Vec::<(u64, u64)>::new(), self.came);
        let mut last = self.ranges.back().map_or(0, |(_, end)| *end);
        while let Some((sequence, at, key)) = self.late.front() {
            if waits(key) {
                let full = there.len() == ACK_RANGES_MAX;
                match there.last_mut() {
                    Some((_, end)) if *end == *sequence => *end += 1,
                    Some(_) if full => break,
                    Some(_) | None => there.push((*sequence, sequence + 1)),
                }
                if *sequence >= last {
                    last = sequence + 1;
                    came = *at;
                }
            }
            self.late.pop_front();
        }
        let firsts = [self.ranges.front(), there.first()];
        let first = firsts.into_iter().flatten().map(|(first, _)| *first).min();
        let first = first.unwrap_or(0);
        let offset = |number: u64| u32::try_from(number - first).ok();
        // Those of another life of the sender may be too far away to be told of together.
        let range = |(from, end): &(u64, u64)| {
            Some(AckRange {
                first: offset(*from)?.into(),
                end: offset(*end)?.into(),
            })
        };
        Word {
            first,
            waited: u32::try_from(now.since(came).as_micros()).unwrap_or(u32::MAX),
            kept: self.ranges.iter().filter_map(range).collect(),
            there: there.iter().filter_map(range).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyphae_wire::PublicKey;

    use super::*;
    use crate::MessageId;
    use crate::rng::Rng;

    fn numbers(first: u64, ranges: &[AckRange]) -> Vec<u64> {
        let offsets = ranges
            .iter()
            .flat_map(|range| u64::from(range.first.get())..range.end.get().into());
        offsets.map(|offset| first + offset).collect()
    }

    #[test]
    fn ranges_are_what_was_kept_last() {
        let mut rng = Rng::new([7; 32]);
        let mut kept = Kept::new(OverlayAddress::default());
        let (start, mut all) = (1 << 40, BTreeSet::new());
        let now = Nanos(start + 10_000_000);
        for step in 0..3000 {
            let [near, ..] = rng.array::<1>();
            let sequence = start + step + u64::from(near % 40);
            kept.keep(sequence, Nanos(sequence));
            all.insert(sequence);
            let word = kept.word(now, |_| true);
            assert!(word.kept.len() <= ACK_RANGES_MAX && word.there.is_empty());
            let told = numbers(word.first, &word.kept);
            let expected: Vec<_> = all.range(told[0]..).copied().collect();
            assert_eq!(told, expected);
            let last = Nanos(*all.last().unwrap());
            assert_eq!(u128::from(word.waited), now.since(last).as_micros());
        }
        // The far future leaves nothing of the past.
        kept.keep(start + 1_000_000, Nanos(0));
        assert_eq!(kept.word(Nanos(0), |_| true).kept.len(), 1);
        // A sender that was restarted counts from anywhere.
        for sequence in [7, 8, 1 << 62] {
            kept.keep(sequence, Nanos(0));
            let word = kept.word(Nanos(0), |_| true);
            assert_eq!(numbers(word.first, &word.kept).last(), Some(&sequence));
        }
    }

    #[test]
    fn what_waits_is_told_of_once_and_what_was_decided_not_at_all() {
        let mut kept = Kept::new(OverlayAddress::default());
        let key = |n: u64| DeliveryKey {
            peer: PublicKey([1; 32]),
            id: MessageId(n.to_be_bytes()),
            reply: false,
        };
        let now = Nanos(1_000_000_000);
        // They overtake each other on their way.
        for n in [3, 1, 2, 5, 4, 9, 7] {
            assert!(kept.wait(now, 100 + n, key(n)));
        }
        assert_eq!(kept.due(), Some(now + ACK_DELAY));
        assert!(kept.owes_before(102) && !kept.owes_before(101));
        let word = kept.word(now + ACK_DELAY, |other| *other != key(2));
        assert_eq!(
            numbers(word.first, &word.there),
            [101, 103, 104, 105, 107, 109]
        );
        assert_eq!((word.kept.len(), word.waited), (0, 5000));
        assert_eq!((kept.due(), kept.owes_before(u64::MAX)), (None, false));
        // More ranges than a packet holds take several.
        (0..100).for_each(|n| assert!(kept.wait(now, 1000 + 2 * n, key(n))));
        let (first, second) = (kept.word(now, |_| true), kept.word(now, |_| true));
        assert_eq!((first.there.len(), second.there.len()), (64, 36));
    }
}

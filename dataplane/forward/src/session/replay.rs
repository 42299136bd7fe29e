//! Sliding window of counters seen (RFC 4303, section 3.4.3; ring of words as in RFC 6479).

const WORDS: u64 = 32;
/// Counters that may arrive late: one word of the ring is always being reused.
pub(crate) const WINDOW: u64 = (WORDS - 1) * 64;

/// Counters seen on one receiving lane.
pub struct Replay {
    /// One more than the highest counter seen.
    next: u64,
    bits: [u64; WORDS as usize],
}

impl Replay {
    /// A window that has seen nothing.
    #[allow(clippy::new_without_default, reason = "it is made where a lane is")]
    pub fn new() -> Self {
        Self {
            next: 0,
            bits: [0; WORDS as usize],
        }
    }

    /// Whether a counter has not been seen and is not older than the window. To be asked before the
    /// tag is verified, which costs more.
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        let (word, bit) = Self::place(counter);
        self.next - counter <= WINDOW && self.bits[word] & bit == 0
    }

    /// Notes a counter whose frame was authentic and which was fresh. True when it is the highest
    /// so far.
    pub fn note(&mut self, counter: u64) -> bool {
        let newest = counter >= self.next;
        if newest {
            // Words between the old and the new highest counter are empty again.
            let from = self.next.div_ceil(64);
            let to = counter / 64;
            for word in from..=to.min(from.saturating_add(WORDS)) {
                self.bits[(word % WORDS) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.bits[word] |= bit;
        newest
    }

    fn place(counter: u64) -> (usize, u64) {
        ((counter / 64 % WORDS) as usize, 1 << (counter % 64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn accepts_what_a_set_with_a_window_accepts(
            steps in prop::collection::vec((any::<bool>(), 0u64..6000), 1..600)
        ) {
            let mut replay = Replay::new();
            let mut seen = BTreeSet::new();
            let mut base = 0u64;
            for (jump, offset) in steps {
                // Mostly near the highest counter, now and then far ahead.
                let counter = if jump { base + offset } else { base.saturating_sub(offset / 2) };
                let highest = seen.last().copied();
                let old = highest.is_some_and(|h: u64| h + 1 > counter && h + 1 - counter > WINDOW);
                let fresh = !old && !seen.contains(&counter);
                prop_assert_eq!(replay.is_fresh(counter), fresh, "counter {}", counter);
                if fresh {
                    prop_assert_eq!(replay.note(counter), highest.is_none_or(|h| counter > h));
                    seen.insert(counter);
                    base = base.max(counter);
                }
            }
        }
    }

    #[test]
    fn extremes_are_refused_without_overflow() {
        let mut replay = Replay::new();
        assert!(!replay.is_fresh(u64::MAX));
        assert!(replay.is_fresh(u64::MAX - 1));
        assert!(replay.note(u64::MAX - 1));
        assert!(!replay.is_fresh(u64::MAX - 1));
        assert!(!replay.is_fresh(0));
    }
}

//! MTU of a path beyond this node's own links.
//!
//! A relay reports a frame that its next link does not carry; the worker that sent the frame lowers its MTU for
//! the destination and notifies the engine. A report is not authenticated end to end, so it is tested: a padded
//! probe of full size goes to the other end, sealed, and an answer refutes the limit. The test is repeated every
//! ten minutes, which also detects a path that has recovered. A limit that returns soon after it was refuted
//! stays for that time: flows then take different paths.

use std::time::Duration;

use hyphae_time::Nanos;

/// Probes of full size in a row.
const TRIES: u32 = 3;
/// Time between tests of a limit.
const TEST_INTERVAL: Duration = Duration::from_secs(600);
/// A limit that returns within this time after it was refuted is not tested at once.
const REFUTED_RECENTLY: Duration = Duration::from_secs(60);

/// A limit on the path to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathLimit {
    /// Largest packet of the host; `None` without a limit.
    mtu: Option<u16>,
    tries: u32,
    ids: [u64; TRIES as usize],
    due: Nanos,
    refuted_at: Nanos,
}

impl Default for PathLimit {
    fn default() -> Self {
        Self {
            mtu: None,
            tries: 0,
            ids: [0; TRIES as usize],
            due: Nanos::NEVER,
            refuted_at: Nanos(0),
        }
    }
}

impl PathLimit {
    /// When to call [`Self::poll`] next.
    pub(crate) fn due(&self) -> Nanos {
        self.due
    }

    /// Largest packet.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(u16::MAX)
    }

    /// Takes a limit that a worker reports; false when it is not below the known one.
    pub(crate) fn lower(&mut self, now: Nanos, mtu: u16) -> bool {
        if self.mtu() <= mtu {
            return false;
        }
        let refuted = self.refuted_at > Nanos(0) && now.since(self.refuted_at) < REFUTED_RECENTLY;
        self.mtu = Some(mtu);
        self.tries = 0;
        self.due = if refuted { now + TEST_INTERVAL } else { now };
        true
    }

    /// Whether a probe of `size` bytes is to be sent now; [`Self::sent`] takes its number. `timeout` is the time
    /// that an answer may take, `size` 0 when nothing can be sent.
    pub(crate) fn poll(&mut self, now: Nanos, timeout: Duration, size: u16) -> bool {
        if self.due > now {
            return false;
        }
        if self.mtu() < size && self.tries < TRIES {
            self.due = now + timeout;
            return true;
        }
        self.tries = 0;
        self.due = match self.mtu {
            Some(_) => now + TEST_INTERVAL,
            None => Nanos::NEVER,
        };
        false
    }

    /// Records the number of a probe that was sent.
    pub(crate) fn sent(&mut self, id: u64) {
        if let Some(place) = self.ids.get_mut(self.tries as usize) {
            *place = id;
            self.tries += 1;
        }
    }

    /// Tests the limit at once; false without one.
    pub(crate) fn retest(&mut self, now: Nanos) -> bool {
        if self.mtu.is_some() {
            (self.tries, self.due) = (0, now);
        }
        self.mtu.is_some()
    }

    /// Whether the answer to probe `id` refutes the limit. The caller clears it.
    pub(crate) fn refuted(&mut self, now: Nanos, id: u64) -> bool {
        let refuted = self.mtu.is_some() && self.ids.contains(&id);
        if refuted {
            self.refuted_at = now;
        }
        refuted
    }

    /// Ends the limit; false without one.
    pub(crate) fn clear(&mut self) -> bool {
        let limited = self.mtu.is_some();
        *self = Self {
            refuted_at: self.refuted_at,
            ..Self::default()
        };
        limited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = Nanos(1_000_000_000);
    const TIMEOUT: Duration = Duration::from_millis(300);

    #[test]
    fn a_limit_is_tested_three_times_and_again_after_ten_minutes() {
        let mut limit = PathLimit::default();
        assert!(limit.lower(SECOND, 1400) && !limit.lower(SECOND, 1400));
        let mut now = SECOND;
        for id in 1..=3 {
            assert!(limit.poll(now, TIMEOUT, 1500));
            limit.sent(id);
            assert!(!limit.poll(now, TIMEOUT, 1500), "not before the timeout");
            now = now + TIMEOUT;
        }
        assert!(!limit.poll(now, TIMEOUT, 1500));
        assert_eq!(limit.due(), now + TEST_INTERVAL);
        assert_eq!(limit.mtu(), 1400);
    }

    #[test]
    fn an_answer_refutes_a_limit_and_one_that_returns_at_once_stays() {
        let mut limit = PathLimit::default();
        limit.lower(SECOND, 1400);
        assert!(limit.poll(SECOND, TIMEOUT, 1500));
        limit.sent(7);
        assert!(!limit.refuted(SECOND, 8));
        assert!(limit.refuted(SECOND, 7) && limit.clear() && !limit.clear());
        assert_eq!((limit.mtu(), limit.due()), (u16::MAX, Nanos::NEVER));
        limit.lower(SECOND, 1400);
        assert_eq!(limit.due(), SECOND + TEST_INTERVAL);
        assert!(limit.retest(SECOND) && limit.poll(SECOND, TIMEOUT, 1500));
    }
}

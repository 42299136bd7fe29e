//! Rate limit of repairs.

use std::time::Duration;

use crate::Nanos;

/// Attempts without delay.
const BURST: usize = 3;
/// Attempts within this time count as one burst.
const WINDOW: Duration = Duration::from_secs(60);
/// First and longest pause after a burst; each pause doubles the previous one.
const PAUSE_MIN: Duration = Duration::from_secs(20);
const PAUSE_MAX: Duration = Duration::from_secs(320);

/// Attempts at a repair: three a minute, then exponential back-off, 20 s to 320 s. Twice the last pause without an
/// attempt ends the back-off.
///
/// ```
/// use std::time::Duration;
/// use hyphae_time::{Nanos, RepairBackoff};
///
/// let (mut backoff, now) = (RepairBackoff::default(), Nanos(1_000_000_000));
/// for _ in 0..3 {
///     assert_eq!(backoff.next(now), now);
///     backoff.record(now);
/// }
/// assert_eq!(backoff.next(now), now + Duration::from_secs(20));
/// ```
#[derive(Clone, Debug, Default)]
pub struct RepairBackoff {
    /// The last attempts, oldest first.
    recent: [Option<Nanos>; BURST],
    pause: Duration,
}

impl RepairBackoff {
    /// Earliest time of the next attempt; at most `now` when it is due.
    pub fn next(&self, now: Nanos) -> Nanos {
        let [oldest, .., last] = self.recent;
        match (oldest, last) {
            (Some(oldest), Some(last)) if now < oldest + WINDOW || !self.pause.is_zero() => {
                last + self.pause.max(PAUSE_MIN)
            }
            _ => now,
        }
    }

    /// Records an attempt.
    pub fn record(&mut self, now: Nanos) {
        let [oldest, .., last] = self.recent;
        let burst = oldest.is_some_and(|at| now < at + WINDOW);
        let quiet = last.is_none_or(|at| now >= at + (2 * self.pause).max(WINDOW));
        self.pause = match (quiet, burst || !self.pause.is_zero()) {
            (true, _) | (false, false) => Duration::ZERO,
            (false, true) => (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX),
        };
        self.recent.rotate_left(1);
        self.recent[BURST - 1] = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000_000);

    /// Seconds of the attempts at a repair that never lasts, within ten minutes.
    fn attempts() -> Vec<u64> {
        let (mut pace, mut now, mut made) = (RepairBackoff::default(), START, Vec::new());
        while now.since(START) < Duration::from_secs(600) {
            let at = pace.next(now).max(now);
            now = at + Duration::from_secs(1);
            pace.record(at);
            made.push(at.since(START).as_secs());
        }
        made
    }

    #[test]
    fn three_repairs_are_immediate_and_then_back_off() {
        assert_eq!(attempts(), [0, 1, 2, 22, 42, 82, 162, 322, 642]);
    }

    #[test]
    fn a_quiet_period_ends_the_back_off() {
        let mut pace = RepairBackoff::default();
        for second in [0, 1, 2, 22, 62] {
            pace.record(START + Duration::from_secs(second));
        }
        let later = START + Duration::from_secs(62 + 200);
        assert!(pace.next(later) <= later);
        pace.record(later);
        let again = later + Duration::from_secs(1);
        assert!(pace.next(again) <= again);
    }
}

//! Looking for work for a while before sleeping.
//!
//! Waking a thread takes longer than relaying a packet, on a virtual machine by far. A worker that may
//! poll looks again and again instead, as long as that has paid off lately and the core has nothing
//! else to do: it offers the core to others after every look, and one that was taken up ends the
//! polling for a while.

use std::time::Duration;

use hyphae_time::Nanos;

/// A look that found nothing shortens the time for the next ones down to this share.
const LEAST_SHARE: u32 = 16;
/// Giving way takes less than this when nobody wants the core.
const SHARED: Duration = Duration::from_micros(10);
/// How long a core that others want is left to them.
const BARRED: Duration = Duration::from_millis(10);

/// When to look, and for how long.
pub(crate) struct Polling {
    most: Duration,
    budget: Duration,
    barred: Nanos,
}

impl Polling {
    /// Never longer than `most`; zero is not at all.
    pub(crate) fn new(most: Duration) -> Self {
        Self {
            most,
            budget: most,
            barred: Nanos(0),
        }
    }

    /// Whether there is never anything to look for.
    pub(crate) fn is_off(&self) -> bool {
        self.most.is_zero()
    }

    /// How long to look now.
    pub(crate) fn budget(&self, now: Nanos) -> Duration {
        if now < self.barred {
            Duration::ZERO
        } else {
            self.budget
        }
    }

    /// Whether giving way took so long that somebody else ran; then there is no polling for a while.
    pub(crate) fn gave_way(&mut self, now: Nanos, took: Duration) -> bool {
        let shared = took >= SHARED;
        if shared {
            self.barred = now + BARRED;
        }
        shared
    }

    /// A time of looking is over.
    pub(crate) fn note(&mut self, found: bool) {
        self.budget = if found {
            self.most
        } else {
            (self.budget / 2).max(self.most / LEAST_SHARE)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(160);
    const NOW: Nanos = Nanos(1_000_000_000);

    #[test]
    fn looking_in_vain_gets_shorter_until_it_pays_off() {
        let mut polling = Polling::new(MOST);
        let mut budgets = Vec::new();
        for _ in 0..6 {
            budgets.push(polling.budget(NOW).as_micros());
            polling.note(false);
        }
        assert_eq!(budgets, [160, 80, 40, 20, 10, 10]);
        polling.note(true);
        assert_eq!(polling.budget(NOW), MOST);
    }

    #[test]
    fn a_core_that_others_want_is_left_to_them_for_a_while() {
        let mut polling = Polling::new(MOST);
        assert!(!polling.gave_way(NOW, Duration::from_micros(2)));
        assert_eq!(polling.budget(NOW), MOST);
        assert!(polling.gave_way(NOW, SHARED));
        assert_eq!(polling.budget(NOW), Duration::ZERO);
        assert_eq!(polling.budget(NOW + BARRED), MOST);
    }

    #[test]
    fn none_is_none() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.note(true);
        assert_eq!(polling.budget(NOW), Duration::ZERO);
    }
}

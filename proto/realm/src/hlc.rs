//! Hybrid logical clock: wall-clock time that never goes back, so that versions of one writer ascend and those of
//! several are ordered as their clocks are ("Logical Physical Clocks", Kulkarni et al., 2014).
//!
//! ```text
//! Hlc = Unix time in milliseconds (48 bits) ‖ counter (16 bits)
//! ```
//!
//! A value more than [`AHEAD_MAX`] in the future is refused, so that a wrong clock cannot make its entries win for
//! ever. A node whose own last value is that far ahead starts again from its wall clock: nobody has accepted a later
//! one.

use std::fmt;
use std::time::Duration;

/// How far a received value may be ahead of the wall clock.
pub const AHEAD_MAX: Duration = Duration::from_secs(60);

/// Wall-clock time: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Later than any time.
    pub const NEVER: Self = Self(u64::MAX);

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The time before it by `duration`.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }
}

impl std::ops::Add<Duration> for UnixMillis {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(millis(rhs)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A value of the clock. Zero is before all others.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Before all others: none.
    pub const ZERO: Self = Self(0);

    /// The first value of a millisecond.
    pub fn at(time: UnixMillis) -> Self {
        Self(time.0.min((1 << 48) - 1) << 16)
    }

    /// Its wall-clock part.
    pub fn time(self) -> UnixMillis {
        UnixMillis(self.0 >> 16)
    }

    /// Whether it is more than [`AHEAD_MAX`] in the future.
    pub fn is_ahead(self, now: UnixMillis) -> bool {
        self.time() > now + AHEAD_MAX
    }

    /// The next value.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// The clock of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct HlcClock {
    last: Hlc,
}

impl HlcClock {
    /// A new value, later than all before it.
    pub fn tick(&mut self, now: UnixMillis) -> Hlc {
        let after = if self.last.is_ahead(now) {
            Hlc::ZERO
        } else {
            self.last.next()
        };
        self.last = Hlc::at(now).max(after);
        self.last
    }

    /// Takes a received value into account; `false`, and no effect, when it is too far ahead.
    pub fn observe(&mut self, now: UnixMillis, value: Hlc) -> bool {
        if value.is_ahead(now) {
            return false;
        }
        self.last = self.last.max(value);
        true
    }

    /// Takes a stored value of this node into account, wherever its clock was.
    pub fn restore(&mut self, value: Hlc) {
        self.last = self.last.max(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    #[test]
    fn values_ascend_while_the_wall_clock_stands_or_goes_back() {
        let mut clock = HlcClock::default();
        let first = clock.tick(NOW);
        assert_eq!(first.time(), NOW);
        let second = clock.tick(NOW);
        assert!(second > first);
        assert!(clock.tick(NOW.before(Duration::from_secs(59))) > second);
    }

    #[test]
    fn received_values_move_the_clock_up_to_a_minute() {
        let mut clock = HlcClock::default();
        let ahead = Hlc::at(NOW + AHEAD_MAX);
        assert!(clock.observe(NOW, ahead));
        assert!(clock.tick(NOW) > ahead);
        assert!(!clock.observe(NOW, Hlc::at(NOW + AHEAD_MAX + Duration::from_millis(1))));
        assert!(!clock.observe(NOW, Hlc(u64::MAX)));
        assert!(!clock.tick(NOW).is_ahead(NOW));
    }

    #[test]
    fn a_clock_that_was_far_ahead_starts_again_from_the_wall_clock() {
        let mut clock = HlcClock::default();
        clock.restore(Hlc::at(NOW + Duration::from_secs(86_400)));
        assert_eq!(clock.tick(NOW), Hlc::at(NOW));
    }
}

//! Rates: token buckets, one alone and many by name.
//!
//! A bucket is one time (when its debt is paid), so it needs neither a timer nor a refill. Buckets by
//! name lie in a table of fixed size, set-associative with a hash that is seeded at random: nobody
//! can aim for one set. What owes least gives way, so a flood of forged names pushes out others of
//! its kind first and never grows anything.

use ahash::RandomState;
use hyphae_time::Nanos;

const WAYS: usize = 4;

/// Events per second in the long run, and how many at once.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    interval_ns: u64,
    tolerance_ns: u64,
}

impl Rate {
    pub(crate) const fn new(per_second: u32, burst: u32) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second };
        let interval_ns = 1_000_000_000 / per_second as u64;
        let extra = burst.saturating_sub(1) as u64;
        Self {
            interval_ns,
            tolerance_ns: interval_ns * extra,
        }
    }

    /// Takes one from a bucket whose debt is paid at `paid`; false when there is none.
    pub(crate) fn take(self, paid: &mut u64, now: Nanos) -> bool {
        if *paid > now.0.saturating_add(self.tolerance_ns) {
            return false;
        }
        *paid = (*paid).max(now.0).saturating_add(self.interval_ns);
        true
    }
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    name: u64,
    paid: u64,
}

/// Buckets by name.
pub(crate) struct Buckets {
    sets: Box<[[Bucket; WAYS]]>,
    hasher: RandomState,
}

impl Buckets {
    pub(crate) fn new(sets: usize) -> Self {
        Self {
            sets: vec![[Bucket::default(); WAYS]; sets].into_boxed_slice(),
            // Keys from the kernel's randomness, others for every table.
            hasher: RandomState::new(),
        }
    }

    /// Takes one from the bucket of a name.
    pub(crate) fn take(&mut self, now: Nanos, rate: Rate, name: impl std::hash::Hash) -> bool {
        // 0 names nobody.
        let name = self.hasher.hash_one(name).max(1);
        let count = self.sets.len();
        let set = &mut self.sets[name as usize % count];
        if let Some(known) = set.iter_mut().find(|known| known.name == name) {
            return rate.take(&mut known.paid, now);
        }
        let Some(least) = set.iter_mut().min_by_key(|known| known.paid) else {
            return false;
        };
        *least = Bucket { name, paid: 0 };
        rate.take(&mut least.paid, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_its_rate_for_ever() {
        let rate = Rate::new(10, 5);
        let mut paid = 0;
        let at_once = (0..100)
            .filter(|_| rate.take(&mut paid, Nanos(SECOND)))
            .count();
        assert_eq!(at_once, 5);
        let later = (1..=10_000u64)
            .filter(|ms| rate.take(&mut paid, Nanos(SECOND + ms * 1_000_000)))
            .count();
        assert_eq!(later, 100);
    }

    #[test]
    fn forged_names_do_not_wash_a_debtor_out() {
        let mut buckets = Buckets::new(2048);
        let rate = Rate::new(100, 200);
        let now = Nanos(SECOND);
        let debtor = u128::MAX;
        while buckets.take(now, rate, debtor) {}
        for n in 0..200_000u128 {
            buckets.take(now, rate, n << 1);
        }
        assert!(
            !buckets.take(now, rate, debtor),
            "its debt is the greatest of its set"
        );
    }
}

//! Medians and percentiles.

use std::time::Duration;

/// The median; 0 of an empty list.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Sorted durations.
#[derive(Clone, Debug)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The `per_mille` percentile in microseconds; 0 of an empty list.
    pub(crate) fn micros(&self, per_mille: usize) -> f64 {
        let place = (self.0.len() * per_mille / 1000).min(self.0.len().saturating_sub(1));
        let time = self.0.get(place);
        time.map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([]), 0.0);
        let times = Times::new((1..=1000).rev().map(Duration::from_micros).collect());
        assert_eq!(times.len(), 1000);
        for (per_mille, micros) in [(0, 1.0), (500, 501.0), (990, 991.0), (1000, 1000.0)] {
            assert!((times.micros(per_mille) - micros).abs() < 1e-6);
        }
        assert_eq!(Times::new(Vec::new()).micros(500), 0.0);
    }
}

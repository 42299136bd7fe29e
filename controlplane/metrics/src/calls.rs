//! Durations of calls by method and outcome.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{Histogram, describe_histogram, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusRecorder};

use super::family::{Head, Kind};

/// The family.
pub(super) const FAMILY: Head = Head {
    name: "hyphae_rpc_duration_seconds",
    kind: Kind::Histogram,
    labels: &["method", "code"],
    help: "Time that RPC calls took, by method and error code",
};
/// Upper bounds of the buckets, seconds. Waits take minutes, other calls well below a second.
const BUCKETS: [f64; 10] = [
    0.000_25, 0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 30.0, 300.0,
];

/// A histogram of durations per method and code.
#[allow(missing_debug_implementations, reason = "a recorder has none")]
pub struct CallLatency(Mutex<Histograms>);

struct Histograms {
    recorder: PrometheusRecorder,
    /// Those in use: creating one costs far more than recording.
    known: BTreeMap<(&'static str, Option<i64>), Histogram>,
}

impl CallLatency {
    /// An empty histogram.
    ///
    /// # Errors
    /// When the bounds of the buckets are refused.
    pub fn new() -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS)?;
        let recorder = builder.build_recorder();
        with_local_recorder(&recorder, || {
            describe_histogram!(FAMILY.name, FAMILY.help);
        });
        let known = BTreeMap::new();
        Ok(Self(Mutex::new(Histograms { recorder, known })))
    }

    /// Counts calls with the same result. Code 0: a code that is not listed.
    pub fn note(&self, method: &'static str, error: Option<i64>, took: Duration, calls: usize) {
        let mut histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Histograms { recorder, known } = &mut *histograms;
        let histogram = known.entry((method, error)).or_insert_with(|| {
            let code = match error {
                None => "ok".to_owned(),
                Some(0) => "other".to_owned(),
                Some(code) => code.to_string(),
            };
            with_local_recorder(
                recorder,
                || histogram!(FAMILY.name, "method" => method, "code" => code),
            )
        });
        histogram.record_many(took, calls);
    }

    /// Prometheus text.
    pub fn render(&self) -> String {
        let histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = histograms.recorder.handle();
        handle.run_upkeep();
        handle.render()
    }
}

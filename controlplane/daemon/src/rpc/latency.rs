//! How long calls take, by method and outcome. Kept between scrapes, unlike what the workers count.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyphae_rpc::message::{Error, code};
use metrics::{Histogram, describe_histogram, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusRecorder};

/// The family.
const FAMILY: &str = crate::metrics::RPC[0].name;
/// Upper bounds of the buckets, seconds. Waits are minutes, everything else is well below a second.
const BUCKETS: [f64; 10] = [
    0.000_25, 0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 30.0, 300.0,
];

/// A histogram per method and code.
pub(crate) struct Latency(Mutex<Kept>);

struct Kept {
    recorder: PrometheusRecorder,
    /// Those that there are: making one is far more work than adding to it.
    known: BTreeMap<(&'static str, Option<i64>), Histogram>,
}

impl Latency {
    pub(crate) fn new() -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS)?;
        let recorder = builder.build_recorder();
        with_local_recorder(&recorder, || {
            describe_histogram!(FAMILY, crate::metrics::RPC[0].help);
        });
        let known = BTreeMap::new();
        Ok(Self(Mutex::new(Kept { recorder, known })))
    }

    /// A call was answered. Names that are not methods share one label: they are the caller's choice.
    pub(crate) fn note<T>(&self, method: &str, result: &Result<T, Error>, took: Duration) {
        let code = result.as_ref().err().map(|error| error.code);
        self.note_many(method, code, took, 1);
    }

    /// Several calls were answered alike, together.
    pub(crate) fn note_many(&self, method: &str, error: Option<i64>, took: Duration, calls: usize) {
        let method = hyphae_rpc::find(method).map_or("unknown", |method| method.name);
        let error = error.map(|code| {
            if code::gloss(code).is_empty() {
                0
            } else {
                code
            }
        });
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { recorder, known } = &mut *kept;
        let histogram = known.entry((method, error)).or_insert_with(|| {
            let code = match error {
                None => "ok".to_owned(),
                Some(0) => "other".to_owned(),
                Some(code) => code.to_string(),
            };
            with_local_recorder(
                recorder,
                || histogram!(FAMILY, "method" => method, "code" => code),
            )
        });
        histogram.record_many(took, calls);
    }

    /// Prometheus text.
    pub(crate) fn render(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = kept.recorder.handle();
        handle.run_upkeep();
        handle.render()
    }
}

//! How long calls take, by method and outcome. Kept between scrapes, unlike what the workers count.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyphae_rpc::message::{Error, code};
use metrics::{describe_histogram, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusRecorder};

/// The family.
const FAMILY: &str = crate::metrics::RPC[0].name;
/// Upper bounds of the buckets, seconds. Waits are minutes, everything else is well below a second.
const BUCKETS: [f64; 10] = [
    0.000_25, 0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 30.0, 300.0,
];

/// A histogram per method and code.
pub(crate) struct Latency(Mutex<PrometheusRecorder>);

impl Latency {
    pub(crate) fn new() -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS)?;
        let recorder = builder.build_recorder();
        with_local_recorder(&recorder, || {
            describe_histogram!(FAMILY, crate::metrics::RPC[0].help);
        });
        Ok(Self(Mutex::new(recorder)))
    }

    /// A call was answered. Names that are not methods share one label: they are the caller's choice.
    pub(crate) fn note<T>(&self, method: &str, result: &Result<T, Error>, took: Duration) {
        let method = hyphae_rpc::find(method).map_or("unknown", |method| method.name);
        let code = match result {
            Ok(_) => "ok".to_owned(),
            Err(error) if code::gloss(error.code).is_empty() => "other".to_owned(),
            Err(error) => error.code.to_string(),
        };
        let recorder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        with_local_recorder(&*recorder, || {
            histogram!(FAMILY, "method" => method, "code" => code).record(took);
        });
    }

    /// Prometheus text.
    pub(crate) fn render(&self) -> String {
        let recorder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = recorder.handle();
        handle.run_upkeep();
        handle.render()
    }
}

//! What was measured, as a table or JSON.

use std::time::Duration;

use serde::Serialize;

/// Messages in a row.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rate {
    pub(super) messages: usize,
    pub(super) per_second: f64,
    /// CPU time per message: control plane and dataplane of the sender, then of the receiver.
    pub(super) cpu_micros: [f64; 4],
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Latency {
    pub(super) p50_micros: f64,
    pub(super) p99_micros: f64,
}

impl Latency {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |percent: usize| {
            let place = times.len() * percent / 100;
            let time = times.get(place.min(times.len().saturating_sub(1)));
            time.map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        Self {
            p50_micros: at(50),
            p99_micros: at(99),
        }
    }
}

/// One thing measured.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// What.
    pub(super) what: String,
    /// Of which inbox, or of what it is compared with.
    pub(super) of: &'static str,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    /// The same without Hyphae, in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) baseline: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

#[allow(clippy::print_stdout, reason = "this is what standard output is for")]
pub(super) fn show(rows: &[Row], json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(rows)?);
        return Ok(());
    }
    println!(
        "{:<36} {:<8} {:>12} {:<8} {:>12}  note",
        "what", "inbox", "value", "unit", "baseline"
    );
    for row in rows {
        let baseline = row.baseline.map_or(String::new(), |b| format!("{b:.1}"));
        println!(
            "{:<36} {:<8} {:>12.1} {:<8} {:>12}  {}",
            row.what,
            row.of,
            row.value,
            row.unit,
            baseline,
            row.note.as_deref().unwrap_or_default()
        );
    }
    Ok(())
}

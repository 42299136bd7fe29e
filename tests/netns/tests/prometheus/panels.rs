//! The panels of the dashboard, and which of them have not moved yet.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::server::Prometheus;
use super::{TIMEOUT, list, text};
use crate::common::eventually;

/// Full rings cannot be had at will from outside: that their series are there is enough. One of them moves in
/// `records_that_are_none_are_refused_and_counted` (`ring.rs`).
const QUIET: &str = "Ring overflows";

/// What is still to be seen: every query of every panel has an answer, and of each panel one has been
/// above zero.
pub(crate) struct Panels<'a> {
    pub(crate) prometheus: &'a Prometheus<'a>,
    titles: BTreeSet<&'a str>,
    unanswered: Vec<(&'a str, String)>,
    still: Vec<(&'a str, String)>,
}

/// A query as the dashboard would send it for all nodes and workers.
fn query(target: &Value) -> String {
    text(target, "expr")
        .replace("$__rate_interval", "30s")
        .replace("$instance", ".*")
        .replace("$worker", ".*")
}

impl<'a> Panels<'a> {
    pub(crate) fn new(dashboard: &'a Value, prometheus: &'a Prometheus<'a>) -> Self {
        let panels = list(dashboard, "panels").iter();
        let panels = panels.filter(|panel| panel["type"] != "row");
        let all: Vec<_> = panels
            .flat_map(|panel| {
                let queries = list(panel, "targets").iter().map(query);
                queries.map(move |query| (text(panel, "title"), query))
            })
            .collect();
        Self {
            prometheus,
            titles: all.iter().map(|(title, _)| *title).collect(),
            unanswered: all.clone(),
            still: all
                .into_iter()
                .filter(|(title, _)| *title != QUIET)
                .collect(),
        }
    }

    /// Looks at all that is still to be seen.
    pub(crate) fn look(&mut self) {
        let prometheus = self.prometheus;
        self.unanswered.retain(|(_, query)| {
            let values = prometheus.values(query).unwrap_or_default();
            !values.iter().any(|value| value.is_finite())
        });
        let mut moved = BTreeSet::new();
        for (title, query) in &self.still {
            let values = prometheus.values(query).unwrap_or_default();
            if values.iter().any(|value| value.is_finite() && *value > 0.0) {
                moved.insert(*title);
            }
        }
        self.still.retain(|(title, _)| !moved.contains(title));
    }

    /// Whether something of a panel is still to be seen.
    pub(crate) fn waits_for(&self, title: &str) -> bool {
        assert!(self.titles.contains(title), "there is no panel {title}");
        let mut all = self.unanswered.iter().chain(&self.still);
        all.any(|(waiting, _)| *waiting == title)
    }

    /// Waits until a panel has been seen, for as long as its cause lasts.
    pub(crate) fn see(&mut self, title: &str) {
        eventually(title, TIMEOUT, || {
            self.look();
            !self.waits_for(title)
        });
    }

    pub(crate) fn done(&self) -> bool {
        self.unanswered.is_empty() && self.still.is_empty()
    }

    /// What is still to be seen, in words.
    pub(crate) fn missing(&self) -> String {
        let (no, zero, log) = (&self.unanswered, &self.still, self.prometheus.log());
        format!("no answer: {no:#?}, nothing but zero: {zero:#?}\n{log}")
    }

    /// Leaves what the panels have shown in the file that `HYPHAE_DASHBOARD_DATA` names, to draw it.
    pub(crate) fn keep(&self, dashboard: &Value) {
        let Some(file) = std::env::var_os("HYPHAE_DASHBOARD_DATA") else {
            return;
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap().as_secs();
        let panels = list(dashboard, "panels").iter().map(|panel| {
            let targets = list(panel, "targets").iter().map(|target| {
                let result = self.prometheus.history(&query(target), now - 180, now);
                json!({ "legend": target["legendFormat"], "result": result })
            });
            json!({ "panel": panel, "targets": targets.collect::<Vec<_>>() })
        });
        let panels = json!({ "now": now, "panels": panels.collect::<Vec<_>>() });
        std::fs::write(file, panels.to_string()).unwrap();
    }
}

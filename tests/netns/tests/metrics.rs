//! Covers: what nodes under traffic show at `/metrics`, held against the reference page.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use common::mesh::Mesh;
use common::{TIMEOUT, eventually, privileged, scrape, transfer};

const PAGE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/metrics.md"
));

/// Labels of each family by its name, as documented.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let rows = PAGE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let labels = cells.nth(1)?.split(", ");
        let labels = labels.map(|label| label.trim().trim_matches('`').to_owned());
        Some((name, labels.filter(|label| !label.is_empty()).collect()))
    });
    rows.collect()
}

/// Name, labels and value of each line that is a sample.
fn samples(text: &str) -> Vec<(String, BTreeMap<String, String>, f64)> {
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split("\",");
        let labels = labels.filter_map(|label| {
            let (label, value) = label.split_once("=\"")?;
            Some((label.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        (name.to_owned(), labels.collect(), value.parse().unwrap())
    };
    let lines = text.lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(sample)
        .collect()
}

/// The family of a series: histograms have three.
fn family(name: &str) -> &str {
    ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name)
}

#[test]
fn what_is_shown_is_what_is_documented_and_moves() {
    if !privileged() {
        return;
    }
    let began = Instant::now();
    let mut mesh = Mesh::new(3, &[(0, 1), (1, 2)]);
    (0..3).for_each(|n| mesh.start_with(n, "metrics_peers_max = 1\n"));
    eventually("all reach all", TIMEOUT, || mesh.is_connected());
    let far = mesh.node(2).address();
    let documented = documented();
    let mut shown = BTreeSet::new();
    // What only some event brings.
    let rare = [
        "hyphae_handshakes_refused_total",
        "hyphae_messages_rejected_total",
        "hyphae_proxy_requests_total",
    ];
    let mut left = String::new();
    let deadline = began + 2 * TIMEOUT;
    // Some is shown from the first probe, reading or train on; each look is whole in itself.
    while Instant::now() < deadline {
        let before = relay_trains(&mesh);
        transfer(&mesh.namespaces[0], &mesh.namespaces[2], far, 8 << 20);
        let texts: Vec<_> = mesh.namespaces.iter().map(scrape).collect();
        for (name, labels, value) in texts.iter().flat_map(|text| samples(text)) {
            let known = documented.get(family(&name));
            let known = known.unwrap_or_else(|| panic!("{name} is not documented"));
            let labels: BTreeSet<_> = labels.into_keys().filter(|label| label != "le").collect();
            assert_eq!(&labels, known, "labels of {name}");
            assert!(value >= 0.0 && value.is_finite(), "{name} {value}");
            shown.insert(family(&name).to_owned());
        }
        for text in &texts {
            for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
                let name = name.split(' ').next().unwrap();
                assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            }
        }
        let busy_max = began.elapsed().as_secs_f64();
        let missing = documented.keys().filter(|name| !shown.contains(*name));
        let missing: Vec<_> = missing
            .filter(|name| !rare.contains(&name.as_str()))
            .collect();
        left = match missing.is_empty() {
            true => relay_says_otherwise(&Sums(samples(&texts[1])), before, busy_max),
            false => format!("documented and never shown: {missing:?}"),
        };
        if left.is_empty() {
            return;
        }
    }
    panic!("{left}");
}

/// The samples of a scrape.
struct Sums(Vec<(String, BTreeMap<String, String>, f64)>);

impl Sums {
    /// The sum of a family, of all series or of those with a label of this value.
    fn of(&self, name: &str, label: &str, value: &str) -> f64 {
        let of = |labels: &BTreeMap<String, String>| {
            label.is_empty() || labels.get(label).is_some_and(|found| found == value)
        };
        let found = self
            .0
            .iter()
            .filter(|(n, labels, _)| n == name && of(labels));
        found.map(|(_, _, value)| value).sum()
    }

    fn all(&self, name: &str) -> f64 {
        self.of(name, "", "")
    }

    /// Trains that were received, their frames, and those of more than four.
    fn trains(&self) -> [f64; 3] {
        let trains = self.all("hyphae_dataplane_rx_train_frames_count");
        let short = self.of("hyphae_dataplane_rx_train_frames_bucket", "le", "4");
        let frames = self.all("hyphae_dataplane_rx_train_frames_sum");
        [trains, frames, trains - short]
    }
}

fn relay_trains(mesh: &Mesh) -> [f64; 3] {
    Sums(samples(&scrape(&mesh.namespaces[1]))).trains()
}

/// The relay carried the transfer in trains, on one worker that was busy for it. What of this its metrics do not say,
/// if anything; `before` are the trains before the last transfer.
fn relay_says_otherwise(relay: &Sums, before: [f64; 3], busy_max: f64) -> String {
    let bytes = f64::from(8 << 20);
    let now = relay.trains();
    let [trains, frames, long] = [0, 1, 2].map(|n| now[n] - before[n]);
    let last = relay.of("hyphae_dataplane_rx_train_frames_bucket", "le", "+Inf");
    let busy = relay.all("hyphae_dataplane_busy_seconds_total");
    let opened = relay.of(
        "hyphae_dataplane_aead_operations_total",
        "operation",
        "open",
    );
    let used = relay.all("hyphae_dataplane_buffers_used");
    // Whichever end it is: one way it had the data, the other way the acknowledgements.
    let received = relay.all("hyphae_peer_receive_bytes_total");
    let sent = relay.all("hyphae_peer_transmit_bytes_total");
    let facts = [
        (
            "transit",
            relay.all("hyphae_dataplane_transit_bytes_total") > bytes,
        ),
        ("trains", long > 10.0 && frames > 3.0 * trains),
        ("all trains", last == now[0]),
        ("busy", busy > 0.0 && busy < busy_max),
        (
            "opened",
            opened >= relay.all("hyphae_dataplane_transit_packets_total"),
        ),
        ("buffers", used < relay.all("hyphae_dataplane_buffers")),
        (
            "links",
            relay.of("hyphae_routing_links", "state", "heard") == 2.0,
        ),
        ("peers", relay.of("hyphae_peers", "state", "alive") == 2.0),
        (
            "signatures",
            relay.all("hyphae_routing_signatures_checked_total") >= 2.0,
        ),
        ("one peer", relay.all("hyphae_peer_alive") == 1.0),
        ("left out", relay.all("hyphae_peers_left_out") == 1.0),
        ("its bytes", received + sent > bytes),
    ];
    let wrong = facts.iter().filter(|(_, right)| !right);
    let wrong: Vec<_> = wrong.map(|(fact, _)| *fact).collect();
    match wrong.is_empty() {
        true => String::new(),
        false => format!("{wrong:?}: {trains} trains, {frames} frames, {long} long, {busy} s busy"),
    }
}

/// Lets the worker of a node run before everything else. It does not poll on a core that others want, and on a busy
/// machine there is no other.
fn prefer_worker(mesh: &Mesh, n: usize) {
    let pid = mesh.node(n).status().unwrap().dataplane.unwrap().pid;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let is_worker = |task: &PathBuf| {
        let name = std::fs::read_to_string(task.join("comm"));
        name.is_ok_and(|name| name.trim() == "worker-0")
    };
    let worker = tasks.map(|task| task.unwrap().path()).find(is_worker);
    let mut chrt = Command::new("chrt");
    chrt.args(["--fifo", "--pid", "1"]);
    let done = chrt.arg(worker.unwrap().file_name().unwrap()).status();
    if !done.is_ok_and(|status| status.success()) {
        // Some containers may not. Then a core has to be free now and then.
        eprintln!("the worker has to share its core");
    }
}

#[test]
fn a_worker_that_may_poll_finds_work_without_sleeping() {
    if !privileged() {
        return;
    }
    let mut mesh = Mesh::new(2, &[(0, 1)]);
    mesh.start_with(0, "poll_max_microseconds = 500\n");
    mesh.start_with(1, "");
    eventually("all reach all", TIMEOUT, || mesh.is_connected());
    let counts = |n: usize| {
        let found = samples(&scrape(&mesh.namespaces[n]));
        let count = |name: &str| {
            let of = found.iter().filter(|(n, ..)| n == name);
            of.map(|(_, _, value)| value).sum::<f64>()
        };
        ["polls", "polls_found"].map(|name| count(&format!("hyphae_dataplane_{name}_total")))
    };
    prefer_worker(&mesh, 0);
    let far = mesh.node(1).address();
    eventually("a look finds work", TIMEOUT, || {
        transfer(&mesh.namespaces[0], &mesh.namespaces[1], far, 1 << 20);
        counts(0)[1] > 0.0
    });
    let [polls, hits] = counts(0);
    assert!(polls >= hits, "{polls} {hits}");
    assert_eq!(counts(1), [0.0, 0.0], "polling is off by default");
}

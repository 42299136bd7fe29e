//! Covers: what nodes under traffic show at `/metrics`, held against the reference page.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::mesh::Mesh;
use common::{eventually, privileged, scrape, transfer};

const CONNECT: Duration = Duration::from_secs(20);
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
    if !privileged("what_is_shown_is_what_is_documented_and_moves") {
        return;
    }
    let mut mesh = Mesh::new(3, &[(0, 1), (1, 2)]);
    (0..3).for_each(|n| mesh.start_with(n, "metrics_peers_max = 1\n"));
    eventually("all reach all", CONNECT, || mesh.is_connected());
    let far = mesh.node(2).address();
    transfer(&mesh.namespaces[0], &mesh.namespaces[2], far, 8 << 20);
    eventually("the first probe is answered", CONNECT, || {
        scrape(&mesh.namespaces[1]).contains("hyphae_peer_loss_ratio{")
    });
    let documented = documented();
    let mut shown = BTreeSet::new();
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
    // What only some event brings.
    let rare = [
        "hyphae_handshakes_refused_total",
        "hyphae_messages_rejected_total",
        "hyphae_proxy_requests_total",
    ];
    let missing = documented.keys().filter(|name| !shown.contains(*name));
    let missing: Vec<_> = missing
        .filter(|name| !rare.contains(&name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "documented and never shown: {missing:?}"
    );

    // The relay carried the transfer in trains, on one worker that was busy for it.
    let relay = samples(&texts[1]);
    let sum = |name: &str, label: &str, value: &str| -> f64 {
        let of = |labels: &BTreeMap<String, String>| {
            label.is_empty() || labels.get(label).is_some_and(|found| found == value)
        };
        let found = relay
            .iter()
            .filter(|(n, labels, _)| n == name && of(labels));
        found.map(|(_, _, value)| value).sum()
    };
    let bytes = f64::from(8 << 20);
    assert!(sum("hyphae_dataplane_transit_bytes_total", "", "") > bytes);
    let trains = sum("hyphae_dataplane_rx_train_frames_count", "", "");
    assert!(trains > 100.0, "{trains}");
    let frames = sum("hyphae_dataplane_rx_train_frames_sum", "", "");
    let long = trains - sum("hyphae_dataplane_rx_train_frames_bucket", "le", "4");
    assert!(
        long > 10.0 && frames > 3.0 * trains,
        "{long} {frames} {trains}"
    );
    assert_eq!(
        sum("hyphae_dataplane_rx_train_frames_bucket", "le", "+Inf"),
        trains
    );
    let busy = sum("hyphae_dataplane_busy_seconds_total", "", "");
    assert!(busy > 0.0 && busy < 60.0, "{busy}");
    let opened = sum(
        "hyphae_dataplane_aead_operations_total",
        "operation",
        "open",
    );
    assert!(opened >= sum("hyphae_dataplane_transit_packets_total", "", ""));
    let buffers = sum("hyphae_dataplane_buffers", "", "");
    assert!(sum("hyphae_dataplane_buffers_used", "", "") < buffers);
    assert_eq!(sum("hyphae_routing_links", "state", "heard"), 2.0);
    assert_eq!(sum("hyphae_peers", "state", "alive"), 2.0);
    assert!(sum("hyphae_routing_signatures_checked_total", "", "") >= 2.0);
    assert_eq!(sum("hyphae_peer_alive", "", ""), 1.0);
    assert_eq!(sum("hyphae_peers_left_out", "", ""), 1.0);
    // Whichever end it is: one way it had the data, the other way the acknowledgements.
    let received = sum("hyphae_peer_receive_bytes_total", "", "");
    assert!(received + sum("hyphae_peer_transmit_bytes_total", "", "") > bytes);
}

#[test]
fn a_worker_that_may_poll_finds_work_without_sleeping() {
    if !privileged("a_worker_that_may_poll_finds_work_without_sleeping") {
        return;
    }
    let mut mesh = Mesh::new(2, &[(0, 1)]);
    mesh.start_with(0, "poll_max_microseconds = 500\n");
    mesh.start_with(1, "");
    eventually("all reach all", CONNECT, || mesh.is_connected());
    let counts = |n: usize| {
        let found = samples(&scrape(&mesh.namespaces[n]));
        let count = |name: &str| {
            let of = found.iter().filter(|(n, ..)| n == name);
            of.map(|(_, _, value)| value).sum::<f64>()
        };
        ["polls", "polls_found"].map(|name| count(&format!("hyphae_dataplane_{name}_total")))
    };
    let far = mesh.node(1).address();
    eventually("a look finds work", CONNECT, || {
        transfer(&mesh.namespaces[0], &mesh.namespaces[1], far, 1 << 20);
        counts(0)[1] > 0.0
    });
    let [polls, hits] = counts(0);
    assert!(polls >= hits, "{polls} {hits}");
    assert_eq!(counts(1), [0.0, 0.0], "polling is off by default");
}

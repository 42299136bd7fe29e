//! Covers the reference page and its names. Values of real nodes are tested in tests/netns.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyphae_wire::PublicKey;

use super::families::sections;
use super::family::{Head, Kind};
use super::per_peer::{self, render};
use hyphae_node::snapshot::{PeerLocation, PeerSnapshot};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");

fn page() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         All that `/metrics` shows, in the order of its sections. This page is generated from the declarations in\n\
         `controlplane/metrics/src/families`: `HYPHAE_WRITE_METRICS=1 cargo test -p hyphae-metrics`.\n\n\
         Counters restart with their process: those of the workers with the dataplane, all others with the control\n\
         plane. `worker` is the number of a worker, from 0.\n",
    );
    for (title, families) in sections() {
        let _ = write!(
            text,
            "\n## {title}\n\n| Name | Type | Labels | Meaning |\n|---|---|---|---|\n"
        );
        for Head {
            name,
            kind,
            labels,
            help,
        } in families
        {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            let (kind, labels) = (kind.name(), labels.join(", "));
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
        }
    }
    text
}

#[test]
fn the_reference_page_is_what_is_declared() {
    if std::env::var_os("HYPHAE_WRITE_METRICS").is_some() {
        std::fs::write(PAGE, page()).unwrap();
    }
    let found = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert_eq!(
        found,
        page(),
        "run this with HYPHAE_WRITE_METRICS=1 and commit the page"
    );
}

/// <https://prometheus.io/docs/practices/naming/>
#[test]
fn names_follow_the_rules() {
    let families: Vec<_> = sections()
        .into_iter()
        .flat_map(|(_, families)| families)
        .collect();
    let names: BTreeSet<_> = families.iter().map(|family| &family.name).collect();
    assert_eq!(names.len(), families.len(), "each name once");
    for Head {
        name,
        kind,
        labels,
        help,
    } in &families
    {
        let letters = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        assert!(name.starts_with("hyphae_") && letters(name), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(
            !name.contains("milli") && !name.contains("nano"),
            "{name}: base units"
        );
        assert!(
            labels.iter().all(|label| letters(label) && *label != "le"),
            "{name}"
        );
        assert!(!help.is_empty() && !help.ends_with('.'), "{name}: {help}");
    }
}

/// Dashboards and alerts use existing families, with the suffixes of their types.
#[test]
fn the_dashboard_and_the_alerts_ask_for_what_is_declared() {
    let known: BTreeSet<String> = sections()
        .into_iter()
        .flat_map(|(_, families)| families)
        .flat_map(|family| match family.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"]
                .map(|part| format!("{}{part}", family.name))
                .to_vec(),
            Kind::Counter | Kind::Gauge => vec![family.name],
        })
        .collect();
    for file in [
        "grafana/hyphae.json",
        "prometheus/hyphae.rules.yml",
        "prometheus/hyphae.rules.test.yml",
    ] {
        let path = format!("{}/../../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let names: BTreeSet<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("hyphae_"))
            .collect();
        assert!(names.len() > 20, "{file}: {}", names.len());
        for name in names {
            assert!(
                known.contains(name),
                "{file}: {name} is no series of a node"
            );
        }
    }
}

fn peer(n: u32) -> PeerSnapshot {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    PeerSnapshot {
        key: PublicKey(key),
        number: Some(n),
        name: (n == 1).then(|| "a \"quoted\\name\"\n".into()),
        location: PeerLocation::Endpoint(
            SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9670)).into(),
        ),
        kind: "inbound",
        alive: n > 2,
        rtt: Some(Duration::from_micros(1500)),
        loss_permille: Some(25),
    }
}

/// Each series once, under its family, in the text format. Prints the duration (`--nocapture`).
#[test]
fn ten_thousand_peers_have_families_of_their_own() {
    const PEERS: usize = 10_000;
    let mut peers: Vec<_> = (0..10_003).map(peer).collect();
    let start = std::time::Instant::now();
    let mut text = Vec::new();
    render(&mut peers, PEERS, |n| [u64::from(n), 7], &mut text);
    eprintln!("{} bytes in {:?}", text.len(), start.elapsed());
    let text = String::from_utf8(text).unwrap();
    let mut family = "";
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap();
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(family), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name), "{line}");
        }
    }
    assert_eq!(series.len(), PEERS * per_peer::FAMILIES.len() + 1);
    for line in [
        "hyphae_peer_alive{peer=\"0300000000000000\"} 1\n",
        "hyphae_peer_rtt_seconds{peer=\"0300000000000000\"} 0.0015\n",
        "hyphae_peer_loss_ratio{peer=\"0300000000000000\"} 0.025\n",
        "hyphae_peer_receive_bytes_total{peer=\"0f27000000000000\"} 9999\n",
        "hyphae_peer_transmit_bytes_total{peer=\"0f27000000000000\"} 7\n",
        "endpoint=\"[2001:db8::1]:9670\",type=\"inbound\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}");
    }
    assert!(text.ends_with("hyphae_peers_left_out 3\n"));
    assert!(!series.contains("hyphae_peer_alive{peer=\"0000000000000000\"}"));
}

#[test]
fn names_are_escaped_and_those_that_are_down_are_left_out_first() {
    let alive = |peers_max| {
        let mut peers: Vec<_> = [1, 4, 1].map(peer).into();
        peers[0].location = PeerLocation::Name("relay.example:9670".into());
        for n in [0, 2] {
            peers[n].number = None;
        }
        let mut text = Vec::new();
        render(&mut peers, peers_max, |_| [0; 2], &mut text);
        let text = String::from_utf8(text).unwrap();
        let lines = text.lines().map(str::to_owned);
        let alive: Vec<_> = lines
            .filter(|line| line.starts_with("hyphae_peer_alive"))
            .collect();
        (alive, text)
    };
    let (one, four) = (
        "hyphae_peer_alive{peer=\"0100000000000000\"} 0",
        "hyphae_peer_alive{peer=\"0400000000000000\"} 1",
    );
    let (lines, text) = alive(10);
    assert_eq!(lines, [one, four], "two entries of one key are one peer");
    assert!(text.contains(r#"name="a \"quoted\\name\"\n",endpoint="relay.example:9670""#));
    assert!(text.ends_with("hyphae_peers_left_out 0\n"));
    let (lines, text) = alive(1);
    assert_eq!(lines, [four]);
    assert!(text.ends_with("hyphae_peers_left_out 1\n"));
}

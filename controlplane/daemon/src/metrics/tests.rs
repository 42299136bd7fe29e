//! The reference page, and the names in it. That real nodes move the numbers is tested in
//! tests/netns.

use std::collections::BTreeSet;
use std::fmt::Write;

use hyphae_rpc::method::{Peer, PeerEndpoint};

use super::families::{self, Family, Kind, all};
use super::record::render_peers;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");

fn page() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         All that `/metrics` shows, in the order of its sections. This page is generated from the declarations in\n\
         `controlplane/daemon/src/metrics/families.rs`: `HYPHAE_WRITE_METRICS=1 cargo test -p hyphae-controlplane metrics`.\n\n\
         Counters start over when the process that counts starts anew: those of the workers with the dataplane, all\n\
         others with the control plane. `worker` is the number of a worker, from 0.\n",
    );
    for (title, families) in all() {
        let _ = write!(
            text,
            "\n## {title}\n\n| Name | Type | Labels | Meaning |\n|---|---|---|---|\n"
        );
        for Family {
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
    let families: Vec<_> = all()
        .into_iter()
        .flat_map(|(_, families)| families)
        .collect();
    let names: BTreeSet<_> = families.iter().map(|family| &family.name).collect();
    assert_eq!(names.len(), families.len(), "each name once");
    for Family {
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

/// What is installed around a node asks for families that there are, by the names that their kind has.
#[test]
fn the_dashboard_and_the_alerts_ask_for_what_is_declared() {
    let known: BTreeSet<String> = all()
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

fn peer(n: usize) -> Peer {
    Peer {
        endpoint: PeerEndpoint {
            proto: "udp".into(),
            socket_addr: format!("[2001:db8::{n:x}]:9670"),
        },
        kind: "inbound".into(),
        connection_state: "alive".into(),
        tx_bytes: 7,
        rx_bytes: 9,
        discovered: 0,
        last_connected: None,
        pubkey: Some(format!("{n:064x}").chars().rev().collect()),
        address: None,
        suite: None,
        lanes: 1,
        lanes_active: 1,
        rtt_micros: Some(1500),
        loss_permille: Some(25),
        name: (n == 1).then(|| "a \"quoted\\name\"\n".into()),
        handshakes: 1,
        refusal: None,
    }
}

/// Each series once, under its family, in the text format; and how long it takes, for whoever wants to
/// know (`--nocapture`).
#[test]
fn ten_thousand_peers_have_families_of_their_own() {
    const PEERS: usize = 10_000;
    let peers = (0..PEERS).map(peer).collect();
    let start = std::time::Instant::now();
    let text = render_peers(&(peers, 3));
    eprintln!("{} bytes in {:?}", text.len(), start.elapsed());
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
    assert_eq!(series.len(), PEERS * (families::PEERS.len() - 1) + 1);
    assert!(series.contains("hyphae_peer_rtt_seconds{peer=\"0000000000000000\"}"));
    assert!(text.contains(r#"name="a \"quoted\\name\"\n","#), "escaped");
    assert!(text.ends_with("hyphae_peers_left_out 3\n"));
}

//! The reference page, and the names in it. That real nodes move the numbers is tested in
//! tests/netns.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::families::{Family, Kind, all};

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

//! Covers: `deploy/prometheus` and `deploy/grafana` against a real Prometheus that scrapes real nodes
//! under traffic: every panel has data, every alert is evaluated. The rules' own cases are in
//! `deploy/prometheus/hyphae.rules.test.yml`, run here by promtool; the names in both files are held
//! against the declared families in `controlplane/daemon`.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "prometheus/causes.rs"]
mod causes;
mod common;
#[path = "prometheus/panels.rs"]
mod panels;
#[path = "prometheus/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{TIMEOUT, eventually, privileged};
use hyphae::lab::Namespace;
use panels::Panels;
use serde_json::Value;
use server::Prometheus;

fn deploy(path: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    all.canonicalize().unwrap().join(path)
}

/// Whether Prometheus and its tool are there.
fn installed() -> bool {
    let there = |program| {
        let run = Command::new(program).arg("--version").output();
        run.is_ok_and(|output| output.status.success())
    };
    if there("prometheus") && there("promtool") {
        return true;
    }
    hyphae_test_skip::lacks("the package `prometheus`");
    false
}

fn promtool(line: &[&str], file: &str) {
    let output = Command::new("promtool")
        .args(line)
        .arg(deploy(file))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{file}: {said}");
}

fn dashboard() -> Value {
    let text = std::fs::read_to_string(deploy("grafana/hyphae.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[test]
fn the_dashboard_explains_itself_and_its_panels_do_not_overlap() {
    let dashboard = dashboard();
    let (mut ids, mut titles, mut places) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard, "panels") {
        let title = text(panel, "title");
        assert!(titles.insert(title), "{title} twice");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: id");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && places.insert((x, y)), "{title} at {x} {y}");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(panel, "description").len() > 20, "{title}: says why");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(!list(panel, "targets").is_empty(), "{title}: asks nothing");
    }
    assert!(ids.len() > 40);
}

#[test]
fn the_alerts_do_what_their_cases_say() {
    if !installed() {
        return;
    }
    promtool(&["check", "config"], "prometheus/prometheus.yml");
    promtool(&["test", "rules"], "prometheus/hyphae.rules.test.yml");
}

#[test]
fn every_alert_has_a_case_and_a_way_out() {
    let read = |path: &str| std::fs::read_to_string(deploy(path)).unwrap();
    let rules = read("prometheus/hyphae.rules.yml");
    let cases = read("prometheus/hyphae.rules.test.yml");
    let page = read("../docs/operations.md");
    let names: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() > 20, "{}", names.len());
    for name in names {
        assert!(cases.contains(&format!("name: {name}\n")), "{name}: a case");
        let anchor = name.to_lowercase();
        let runbook = format!("runbook: docs/operations.md#{anchor}\n");
        assert!(rules.contains(&runbook), "{name}: {runbook}");
        assert!(
            page.contains(&format!("\n### {name}\n")),
            "{name}: what to do"
        );
    }
}

#[test]
fn every_panel_moves_and_every_alert_is_evaluated() {
    if !privileged() || !installed() {
        return;
    }
    let mut mesh = causes::start();
    causes::connect(&mesh);
    let directory = tempfile::tempdir().unwrap();
    let outside = Namespace::new().unwrap();
    for (n, node) in (0..3).zip(&mesh.namespaces) {
        let place = |host| (IpAddr::V4(Ipv4Addr::new(198, 18, 20 + n, host)), 24);
        let name = format!("node{n}");
        node.join("watch", place(1), &outside, &name, place(2))
            .unwrap();
    }
    let targets = ["198.18.20.1:9469", "198.18.21.1:9469", "198.18.22.1:9469"];
    let prometheus = Prometheus::start(&outside, directory.path(), &targets);
    eventually("Prometheus scrapes three nodes", TIMEOUT, || {
        prometheus.values("up == 1").is_some_and(|up| up.len() == 3)
    });
    let dashboard = dashboard();
    let mut panels = Panels::new(&dashboard, &prometheus);
    let began = Instant::now();
    causes::usual(&mut mesh, &mut panels);
    while !panels.done() {
        // Each cause has a minute and more of its own.
        assert!(began.elapsed() < 10 * TIMEOUT, "{}", panels.missing());
        for (titles, cause) in causes::SPECIAL {
            if titles.iter().any(|title| panels.waits_for(title)) {
                cause(&mut mesh, &mut panels);
            }
        }
        causes::usual(&mut mesh, &mut panels);
        panels.look();
    }
    panels.keep(&dashboard);
    alerts(&prometheus);
}

/// Every rule is evaluated without an error, and none of those about broken planes has a reason.
fn alerts(prometheus: &Prometheus<'_>) {
    let quiet = [
        "HyphaeNodeDown",
        "HyphaePlaneDetached",
        "HyphaeRingDetached",
        "HyphaeNoPeers",
    ];
    let mut rules = Vec::new();
    eventually("every rule is evaluated", TIMEOUT, || {
        let answer = prometheus.ask("/api/v1/rules?type=alert".to_owned());
        let groups = list(&answer["data"], "groups").iter();
        rules = groups
            .flat_map(|group| list(group, "rules").to_vec())
            .collect();
        let settled = |rule: &Value| {
            let name = text(rule, "name");
            rule["health"] != "unknown" && (!quiet.contains(&name) || rule["state"] == "inactive")
        };
        rules.len() > 20 && rules.iter().all(settled)
    });
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

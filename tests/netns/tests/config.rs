//! Covers: `hyphae config` of the real binary: what it prints, exit codes, `--json`. The table of keys
//! itself is tested in the control plane, reloading beside this file.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::{Command, Output};

use common::binary;
use serde_json::Value;

fn run(line: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("config").args(line);
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn check_tells_all_that_is_wrong_and_its_exit_code_tells_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hyphae.toml");
    let file = path.to_str().unwrap();
    let missing = run(&["check", file]);
    assert_eq!(missing.status.code(), Some(2));

    std::fs::write(&path, "cores = \"any:1\"\n[tun]\nenabled = false\n").unwrap();
    let fine = run(&["check", file]);
    assert_eq!(fine.status.code(), Some(0));
    assert!(stdout(&fine).contains("all right"));

    let text = "listn = \"[::]:1\"\ncores = \"many\"\nlog_level = \"=\"\n[network]\nname = \"garden\"\n\
                key_file = \"nowhere.key\"\n[session]\nlost_after_ms = 10\n";
    std::fs::write(&path, text).unwrap();
    let wrong = run(&["check", file]);
    assert_eq!(wrong.status.code(), Some(1));
    let said = stdout(&wrong);
    for expected in [
        "line 1: listn",
        "did you mean `listen`?",
        "line 8: session.lost_after_ms: 10 is out of range",
        "cores: ",
        "log_level: ",
        "network.key_file: ",
        "nowhere.key",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let json: Value = serde_json::from_slice(&run(&["check", file, "--json"]).stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["problems"][0]["suggestion"], "listen");
    assert_eq!(json["problems"].as_array().unwrap().len(), 5);
}

#[test]
fn show_prints_what_a_node_would_have_and_explain_what_it_means() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hyphae.toml");
    std::fs::write(&path, "metrics = \"off\"\n[peering]\nallow = []\n").unwrap();
    let file = path.to_str().unwrap();
    let diff = run(&["show", "--config", file, "--diff", "--no-tun"]);
    let expected = "metrics = \"off\"\n\n[tun]\nenabled = false\n\n[peering]\nallow = []\n";
    assert_eq!(stdout(&diff), expected);
    let all = stdout(&run(&["show", "--config", file]));
    assert!(all.contains("listen = \"[::]:9670\"") && all.contains("allow = []"));
    let defaults = stdout(&run(&["show", "--defaults"]));
    assert_eq!(defaults, include_str!("../../../deploy/default.toml"));

    let said = stdout(&run(&["explain", "session.lost_after_ms"]));
    for expected in ["1000 to 600000 milliseconds", "default  2500", "reload"] {
        assert!(said.contains(expected), "{said}");
    }
    let section: Value =
        serde_json::from_slice(&run(&["explain", "tun", "--json"]).stdout).unwrap();
    let keys: Vec<_> = section
        .as_array()
        .unwrap()
        .iter()
        .map(|key| &key["key"])
        .collect();
    assert_eq!(keys, ["tun.enabled", "tun.name"]);
    let unknown = run(&["explain", "lost_after"]);
    assert_eq!(unknown.status.code(), Some(1));
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(error.contains("there is no key"), "{error}");
}

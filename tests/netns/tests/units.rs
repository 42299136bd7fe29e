//! Covers: `deploy/systemd` and `deploy/container` as files: what systemd itself says of the units, how far they
//! are closed, what both planes must have in common, and that the binary takes their command lines. That real
//! planes tell a service manager what the units expect is in `notify.rs`; installation is tested by
//! `deploy/debian/test`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::binary;

const UNITS: [&str; 2] = ["hyphae-dataplane.service", "hyphae-controlplane.service"];
/// What `systemd-analyze security` may say at most, in tenths: 0 is closed, 100 open.
const EXPOSURE_MAX: &str = "--threshold=30";

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy(path)).unwrap()
}

fn deploy(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(path)
}

/// The settings of a unit with this name, in order.
fn settings(unit: &str, name: &str) -> Vec<String> {
    let text = read(&format!("systemd/{unit}"));
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let named = lines.filter(|(key, _)| *key == name);
    named.map(|(_, value)| value.to_owned()).collect()
}

/// Runs systemd-analyze; `None` where there is none.
fn analyze(line: &[&str], files: &[PathBuf]) -> Option<Output> {
    let output = Command::new("systemd-analyze")
        .args(line)
        .args(files)
        .output();
    if output.is_err() {
        hyphae_test_skip::lacks("the package `systemd`");
    }
    output.ok()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for unit in UNITS.into_iter().chain(["hyphae.target"]) {
        // It looks whether the program is there.
        let program = binary().display().to_string();
        let text = read(&format!("systemd/{unit}")).replace("/usr/bin/hyphae", &program);
        let file = directory.path().join(unit);
        std::fs::write(&file, text).unwrap();
        files.push(file);
    }
    let Some(output) = analyze(&["verify", "--man=no"], &files) else {
        return;
    };
    let said = said(&output);
    assert!(
        output.status.success() && !said.contains("hyphae"),
        "{said}"
    );
}

#[test]
fn the_units_are_closed() {
    for unit in UNITS {
        let file = deploy("systemd").join(unit);
        let line = ["security", "--offline=true", "--no-pager", EXPOSURE_MAX];
        let Some(output) = analyze(&line, &[file]) else {
            return;
        };
        let said = said(&output);
        assert!(
            output.status.success() && said.contains("Overall exposure"),
            "{said}"
        );
    }
}

#[test]
fn the_planes_find_each_other_and_do_not_drag_each_other_down() {
    let same = [
        "User",
        "Group",
        "StateDirectory",
        "ConfigurationDirectory",
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "Restart",
        "Type",
    ];
    for name in same {
        let [one, other] = UNITS.map(|unit| settings(unit, name));
        assert!(one.len() == 1 && one == other, "{name}: {one:?} {other:?}");
    }
    for unit in UNITS {
        // systemd would remove the directory, with the other plane's socket in it, when either stops.
        assert_eq!(
            settings(unit, "RuntimeDirectoryPreserve"),
            ["yes"],
            "{unit}"
        );
        assert_eq!(settings(unit, "Type"), ["notify"], "{unit}");
        assert_eq!(settings(unit, "WatchdogSec").len(), 1, "{unit}");
        assert_eq!(settings(unit, "CapabilityBoundingSet"), ["CAP_NET_ADMIN"]);
        for bond in [
            "Requires",
            "BindsTo",
            "Requisite",
            "Upholds",
            "PropagatesStopTo",
        ] {
            assert!(settings(unit, bond).is_empty(), "{unit}: {bond}");
        }
        assert_eq!(settings(unit, "PartOf"), ["hyphae.target"], "{unit}");
    }
    let filter = settings(UNITS[0], "SystemCallFilter").join(" ");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(filter.contains(call), "{call}");
    }
    let users = read("systemd/hyphae.sysusers");
    assert!(users.contains("\nu hyphae "), "{users}");
}

#[test]
fn the_units_call_no_program_but_that_of_the_package() {
    for unit in UNITS {
        let text = read(&format!("systemd/{unit}"));
        let lines = text.lines().filter(|line| line.starts_with("Exec"));
        let lines: Vec<_> = lines.filter_map(|line| line.split_once('=')).collect();
        assert!(!lines.is_empty());
        for (key, line) in lines {
            // Not even /bin/kill: a small Debian has none.
            assert!(line.starts_with("/usr/bin/hyphae "), "{unit}: {key}={line}");
            let words = line["/usr/bin/hyphae".len()..].split_whitespace();
            let command = words.chain(["--help"]).collect::<Vec<_>>();
            let output = Command::new(binary()).args(command).output().unwrap();
            assert!(output.status.success(), "{unit}: {key}: {}", said(&output));
        }
    }
}

#[test]
fn the_command_lines_of_the_units_are_taken() {
    for unit in UNITS {
        let lines = settings(unit, "ExecStart");
        let words: Vec<_> = lines[0].split(' ').collect();
        assert_eq!(words[0], "/usr/bin/hyphae");
        let help = Command::new(binary()).args([words[1], "--help"]).output();
        let help = said(&help.unwrap());
        let flags: BTreeSet<_> = words.iter().filter(|word| word.starts_with("--")).collect();
        assert_eq!(flags.len(), 3, "{words:?}");
        for flag in flags {
            assert!(help.contains(&format!("{flag} ")), "{unit}: {flag}");
        }
    }
}

#[test]
fn the_profile_of_containers_lets_io_uring_through_and_little_else() {
    let profile: serde_json::Value = serde_json::from_str(&read("container/seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let allowed: BTreeSet<_> = rules
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .filter_map(|name| name.as_str())
        .collect();
    for call in [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "mlock",
        "sendmsg",
    ] {
        assert!(allowed.contains(call), "{call}");
    }
    for call in [
        "mount",
        "ptrace",
        "bpf",
        "kexec_load",
        "init_module",
        "unshare",
        "setns",
    ] {
        assert!(!allowed.contains(call), "{call}");
    }
}

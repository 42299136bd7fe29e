//! Covers the commands of `hyphae-bench` that need neither root nor a second process: each prints one document with
//! rows with sane values. Speed is not checked.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

use serde_json::Value;

fn document(words: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyphae-bench"));
    let output = command
        .args(words.split(' '))
        .arg("--json")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn rows(words: &str) -> Vec<Value> {
    let document = document(words);
    assert_eq!(document["bench"], words.split(' ').next().unwrap());
    assert!(document["date"].as_str().unwrap().ends_with('Z'));
    assert!(document["machine"]["cores"].as_u64().unwrap() > 0);
    document["rows"].as_array().unwrap().clone()
}

#[test]
fn steps_are_measured_against_a_baseline() {
    for (words, count) in [
        ("aead --seconds 0.001 --sizes 56 --trains 1,4", 12),
        ("fib --seconds 0.001 --prefixes 1000", 2),
        ("ring --seconds 0.001 --batches 4", 4),
        ("handshake --seconds 0.001", 3),
        (
            "scale --seconds 0.001 --peers 1,4 --routes 9 --flows 2 --trains 1,64 --workers 2",
            7,
        ),
    ] {
        let rows = rows(words);
        assert_eq!(rows.len(), count, "{words}");
        for row in rows {
            let positive = |name: &str| row[name].as_f64().unwrap() > 0.0;
            assert!(
                positive("value") && positive("baseline") && positive("ratio"),
                "{row}"
            );
        }
    }
}

#[test]
fn tables_of_the_control_plane_are_measured() {
    let rows = rows("rib --prefixes 100");
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["lookupNs"].as_f64().unwrap() > 0.0, "{}", rows[0]);
}

#[test]
fn a_mesh_is_measured_in_processes_of_its_own() {
    let rows = rows("mesh --nodes 3,4 --shape ring --idle 1");
    let nodes: Vec<u64> = rows
        .iter()
        .map(|row| row["nodes"].as_u64().unwrap())
        .collect();
    assert_eq!(nodes, [3, 4]);
}

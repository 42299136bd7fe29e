//! Covers: dependencies between the packages of the control plane point in one direction, and the node needs neither
//! JSON nor files. The compiler enforces what the manifests declare; this test checks the manifests.

use std::path::PathBuf;

use hyphae_test_tidy::root;

/// Packages of the control plane, and those of them that each may depend on.
const ARROWS: [(&str, &[&str]); 8] = [
    (
        "daemon",
        &["api", "metrics", "proxy", "node", "store", "host", "config"],
    ),
    ("api", &["metrics", "proxy", "node", "store", "config"]),
    ("metrics", &["proxy", "node", "store"]),
    ("proxy", &["node", "store"]),
    ("node", &["store", "host", "config"]),
    ("store", &["config"]),
    ("host", &["config"]),
    ("config", &[]),
];

/// Dependencies that only some packages of the control plane may have.
const RESERVED: [(&str, &[&str]); 3] = [
    ("hyphae-rpc", &["api"]),
    ("axum", &["api"]),
    ("serde_json", &["api", "proxy", "config"]),
];

/// What the sources of the node do not use: files of the host, and those of the state directory.
const NOT_IN_NODE: [&str; 3] = ["std::fs", "hyphae_store::files", "hyphae_store::stored"];

fn room(package: &str) -> PathBuf {
    root().join("controlplane").join(package)
}

/// Names of the dependencies of a package, without those of its tests.
fn dependencies(package: &str) -> Vec<String> {
    let manifest = room(package).join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("the package has a manifest");
    let table = text.split("[dependencies]").nth(1).unwrap_or_default();
    let table = table.split("\n[").next().unwrap_or_default();
    let names = table
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn name_of(package: &str) -> String {
    format!("hyphae-{package}")
}

#[test]
fn packages_of_the_control_plane_depend_in_one_direction() {
    for (package, allowed) in &ARROWS {
        let dependencies = dependencies(package);
        for (other, _) in ARROWS {
            if dependencies.contains(&name_of(other)) {
                assert!(allowed.contains(&other), "{package} depends on {other}");
            }
        }
        for (name, users) in RESERVED {
            if dependencies.iter().any(|dependency| dependency == name) {
                assert!(users.contains(package), "{package} depends on {name}");
            }
        }
    }
}

#[test]
fn the_node_reads_and_writes_no_files() {
    let mut directories = vec![room("node").join("src")];
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)
            .expect("it can be read")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("it can be read");
            let used = NOT_IN_NODE.iter().filter(|word| text.contains(**word));
            found.extend(used.map(|word| format!("{}: {word}", path.display())));
        }
    }
    assert!(found.is_empty(), "{found:?}");
}

//! Covers: what of a node's key is in the memory of its processes, as root sees it. That handshakes work is
//! tested everywhere else.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{PATIENCE, binary, eventually, own_place, privileged};
use hyphae::lab::LabNode;
use hyphae_controlplane::state;

/// Places of `needle` in the memory of a process, stacks included, by the mapping that they are in.
fn places(pid: u32, needle: &[u8]) -> Vec<String> {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let ends = range.split_once('-').unwrap();
        let [start, end] = [ends.0, ends.1].map(|end| u64::from_str_radix(end, 16).unwrap());
        if !rest.starts_with('r') {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // Some of the kernel's own mappings cannot be read.
        let Ok(len) = memory.read_at(&mut bytes, start) else {
            continue;
        };
        let hits = bytes[..len].windows(needle.len()).filter(|w| w == &needle);
        found.extend(hits.map(|_| line.to_owned()));
    }
    found
}

/// Flags of the mapping of a process that begins here.
fn flags(pid: u32, mapping: &str) -> String {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = maps.lines().skip_while(|line| *line != mapping);
    lines
        .find(|line| line.starts_with("VmFlags:"))
        .unwrap()
        .to_owned()
}

/// The process that started a process.
fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let parent = lines.find_map(|line| line.strip_prefix("PPid:")).unwrap();
    parent.trim().parse().unwrap()
}

#[test]
fn a_key_is_in_one_place_only() {
    if !privileged("a_key_is_in_one_place_only") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = [own_place(), own_place()];
    let url = format!("udp://{}", place[0]);
    let start = |n: usize| {
        let home = directory.path().join(format!("node{n}"));
        state::prepare_directory(&home).unwrap();
        let key = state::load_or_create_key(&state::prepare_directory(&home).unwrap()).unwrap();
        let listen = place[n].to_string();
        let mut line = "up --no-tun --rpc off --rest off --metrics off --discovery none --cores any:1 --listen"
            .split(' ')
            .map(str::to_owned)
            .collect::<Vec<_>>();
        line.push(listen);
        if n == 1 {
            line.extend(["--peer".to_owned(), url.clone()]);
        }
        LabNode::start(
            ["one", "two"][n],
            key.public_key(),
            home,
            line,
            None,
            binary(),
        )
        .unwrap()
    };
    let mut nodes = [start(0), start(1)];
    // A link and a session, again and again, begun by either end.
    for round in 0..3 {
        let (one, two) = (&nodes[0], &nodes[1]);
        eventually("connected", PATIENCE, || {
            one.ping(two.address(), Duration::from_secs(1)).is_ok()
                && two.ping(one.address(), Duration::from_secs(1)).is_ok()
        });
        if round < 2 {
            assert!(nodes[1].stop().unwrap());
            nodes[1] = start(1);
        }
    }
    // What a handshake leaves behind is gone after this time.
    std::thread::sleep(Duration::from_secs(1));
    for (n, node) in nodes.iter().enumerate() {
        let file = directory.path().join(format!("node{n}/priv_key.bin"));
        let key = std::fs::read(file).unwrap();
        // Without the bits that X25519 sets and clears.
        let needle = &key[1..31];
        let status = node.status().unwrap();
        let (control, dataplane) = (status.pid, status.dataplane.unwrap().pid);
        let found = places(control, needle);
        assert_eq!(found.len(), 1, "node {n}, control plane: {found:#?}");
        let flags = flags(control, &found[0]);
        for flag in [" dd", " wf", " lo"] {
            assert!(flags.contains(flag), "{flags}");
        }
        assert_eq!(places(dataplane, needle), [""; 0], "node {n}, dataplane");
        assert_eq!(
            places(parent(control), needle),
            [""; 0],
            "node {n}, supervisor"
        );
    }
}

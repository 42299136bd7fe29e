//! Covers: what of a node's key is in the memory of its processes, as root sees it, and that others of the node's user
//! see nothing of it. That handshakes work is
//! tested everywhere else.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{TIMEOUT, binary, eventually, own_place, privileged};
use hyphae::lab::LabNode;
use hyphae_store::files;
use hyphae_test_hostile::{Claims, Hostile, LaneKeys, Victim};
use hyphae_wire::babel::Serial;

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Places of any of `needles`, which have one length, in the memory of a process, stacks included, by the mapping that
/// they are in.
fn places(pid: u32, needles: &[&[u8]]) -> Vec<String> {
    let len_of_all = needles[0].len();
    let first = |byte: u8| needles.iter().any(|needle| needle[0] == byte);
    let begins: Vec<bool> = (0..=u8::MAX).map(first).collect();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let (mut found, mut seen) = (Vec::new(), 0);
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let ends = range.split_once('-').unwrap();
        let [mut at, end] = [ends.0, ends.1].map(|end| u64::from_str_radix(end, 16).unwrap());
        if !rest.starts_with('r') {
            continue;
        }
        // What was read up to `at` and may be the beginning of a needle, then what follows.
        let mut bytes = Vec::new();
        while at < end {
            let kept = bytes.len();
            let want = usize::try_from(CHUNK.min(end - at)).unwrap();
            bytes.resize(kept + want, 0);
            let len = memory.read_at(&mut bytes[kept..], at).unwrap_or(0);
            if len == 0 {
                // Some pages cannot be read: the kernel's own, those beyond the end of a file.
                bytes.clear();
                at += PAGE - at % PAGE;
                continue;
            }
            at += u64::try_from(len).unwrap();
            seen += len;
            bytes.truncate(kept + len);
            let hits = bytes.windows(len_of_all);
            let hits = hits.filter(|w| begins[usize::from(w[0])] && needles.contains(w));
            found.extend(hits.map(|_| line.to_owned()));
            bytes.drain(..bytes.len().saturating_sub(len_of_all - 1));
        }
    }
    assert!(seen > 0, "the memory of {pid} can be read");
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
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = [own_place(), own_place()];
    let url = format!("udp://{}", place[0]);
    let start = |n: usize| {
        let home = directory.path().join(format!("node{n}"));
        files::prepare_directory(&home).unwrap();
        let key = files::load_or_create_key(&files::prepare_directory(&home).unwrap()).unwrap();
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
        eventually("connected", TIMEOUT, || {
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
        let needle = &[&key[1..31]];
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

#[test]
fn secrets_of_a_handshake_end_with_it_and_lane_keys_with_their_session() {
    if !privileged() {
        return;
    }
    // A link of which nothing is heard ends soon.
    let config = "[session]\nkeepalive_seconds = 1\ndead_after_seconds = 2\n";
    let victim = Victim::start_at(&binary(), own_place(), config, &[]).unwrap();
    let status = victim.status().unwrap();
    let (control, dataplane) = (status.pid, status.dataplane.unwrap().pid);
    let hostile = Hostile::new(own_place()).unwrap();
    let mut link = hostile.link(victim.target.at, &Claims::default()).unwrap();
    link.greet(1).unwrap();
    link.announce(&hostile.identity, Serial(1 << 16)).unwrap();
    let to = victim.target.key.address();
    let session = link
        .session(&hostile.identity, to, &Claims::default())
        .unwrap();
    // Answers probes. What a handshake leaves behind is gone after this time.
    let second = Instant::now() + Duration::from_secs(1);
    while let Some(left) = second.checked_duration_since(Instant::now()) {
        link.receive(left).unwrap();
    }
    let passed: Vec<&[u8]> = [&link.passed, &session.passed]
        .into_iter()
        .flatten()
        .map(<[u8; 32]>::as_slice)
        .collect();
    let lanes = |of: &[LaneKeys]| of.iter().flat_map(|lane| lane.keys).collect::<Vec<_>>();
    let [of_link, of_session] = [lanes(&link.lanes), lanes(&session.lanes)];
    let slices = |keys: &[[u8; 32]]| keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>();
    let in_use = slices(&[&of_link[..], &of_session].concat());
    let in_use: Vec<&[u8]> = in_use.iter().map(Vec::as_slice).collect();
    for pid in [control, dataplane, parent(control)] {
        assert_eq!(places(pid, &passed), [""; 0], "{pid}");
    }
    for pid in [control, parent(control)] {
        assert_eq!(places(pid, &in_use), [""; 0], "{pid}");
    }
    // The search finds what there is: ChaCha20 keeps its keys as they are.
    assert!(places(dataplane, &in_use).len() >= in_use.len());
    eventually("the link ends", TIMEOUT, || {
        victim.status().unwrap().peers_up == 0
    });
    std::thread::sleep(Duration::from_secs(1));
    let of_link = slices(&of_link);
    let of_link: Vec<&[u8]> = of_link.iter().map(Vec::as_slice).collect();
    for pid in [control, dataplane] {
        assert_eq!(places(pid, &of_link), [""; 0], "{pid}");
    }
}

/// A user without privileges.
const USER: u32 = 64_002;

/// Whether a process of the user can open a file of a process in /proc.
fn opens(pid: u32, file: &str) -> bool {
    let mut open = Command::new("dd");
    open.args([&format!("if=/proc/{pid}/{file}"), "count=0"]);
    let output = open.uid(USER).gid(USER).output().unwrap();
    output.status.success()
}

/// Ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // The planes of a node end with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn other_processes_of_the_nodes_user_cannot_look_into_either_plane() {
    if !privileged() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    chown(directory.path(), Some(USER), Some(USER)).unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut up = Command::new(binary());
    up.args(["up", "--no-tun", "--rpc", "off", "--rest", "off"]);
    up.args(["--metrics", "off", "--discovery", "none"]);
    up.args(["--cores", "any:1", "--listen", &own_place().to_string()]);
    up.arg("--state-dir").arg(path("state"));
    up.arg("--socket-dir").arg(path("run"));
    up.stdout(Stdio::null()).stderr(Stdio::inherit());
    let _node = Ends(up.uid(USER).gid(USER).spawn().unwrap());
    let mut planes = None;
    eventually("the node answers", TIMEOUT, || {
        let mut status = Command::new(binary());
        status.args(["status", "--json", "--socket-dir"]);
        let output = status.arg(path("run")).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let pid = |of: &serde_json::Value| u32::try_from(of["pid"].as_u64()?).ok();
        planes = pid(&status).zip(pid(&status["dataplane"]));
        planes.is_some()
    });
    // What any process of that user may look into: the check can tell.
    let mut sleep = Command::new("sleep");
    let other = Ends(sleep.arg("600").uid(USER).gid(USER).spawn().unwrap());
    assert!(opens(other.0.id(), "environ"));
    let (control, dataplane) = planes.unwrap();
    for plane in [control, dataplane] {
        for file in ["mem", "environ", "maps"] {
            assert!(!opens(plane, file), "/proc/{plane}/{file}");
        }
    }
}

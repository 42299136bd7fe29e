//! Covers: a host that fails a running node or one that starts: a full disk, one that is read-only or becomes
//! immutable, wrong permissions, a TUN device that may not be opened, a socket directory that is deleted, a second
//! node; and `hyphae doctor` on this host.
//! Errors name the cause and the way out, exit codes are honest, nothing that was there is lost.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::local::LocalNode;
use common::{TIMEOUT, binary, eventually, own_place, privileged, scrape_at};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// A file system of its own at a place, for as long as this is there.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: &Path, options: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        Self(path.to_owned())
    }

    fn read_only(&self, on: bool) {
        let flags = if on {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        let none: Option<&str> = None;
        mount(none, &self.0, none, MsFlags::MS_REMOUNT | flags, none).unwrap();
    }
}

/// A directory whose entries cannot be changed, not even by root, for as long as this is there. Files that are
/// open stay writable.
struct Immutable(File);

impl Immutable {
    fn new(path: &Path) -> Self {
        let directory = File::open(path).unwrap();
        let flags = ioctl_getflags(&directory).unwrap();
        ioctl_setflags(&directory, flags | IFlags::IMMUTABLE).unwrap();
        Self(directory)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let flags = ioctl_getflags(&self.0).unwrap();
        ioctl_setflags(&self.0, flags - IFlags::IMMUTABLE).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A node that still ends there keeps it until it has.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Lets this thread, and what it starts, mount without anybody else seeing it.
fn private_mounts() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// A node that runs with its state on a file system of its own, and has been given [`PEER`].
fn with_a_peer_on(options: &str) -> (LocalNode, Mounted) {
    private_mounts();
    let mut node = LocalNode::new();
    node.metrics = own_place().to_string();
    let mounted = Mounted::new(&node.state(), options);
    node.start();
    assert!(node.run(&["peer", "add", PEER]).status.success());
    (node, mounted)
}

const PEER: &str = "udp://192.0.2.1:9670";
const OTHER: &str = "udp://192.0.2.2:9670";
const KEY: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

#[test]
fn a_full_disk_refuses_changes_and_loses_nothing() {
    if !privileged() {
        return;
    }
    let (mut node, mounted) = with_a_peer_on("size=4m,mode=0700");
    let filler = node.state().join("filler");
    let fill = || {
        // To the last byte: a page, then whatever is left.
        let _ = std::fs::write(&filler, vec![7; 8 << 20]);
    };
    fill();
    let said = node.refused(node.command(&["peer", "add", OTHER]));
    assert!(said.contains("not stored, so not changed"), "{said}");
    assert!(
        said.contains("No space left") && said.contains("peers.toml"),
        "{said}"
    );
    let peers = node.peers();
    assert!(
        peers.contains("192.0.2.1") && !peers.contains("192.0.2.2"),
        "{peers}"
    );

    // It stops and starts with a full disk, and has what it had.
    node.stop();
    fill();
    let key = node.run(&["key", "show"]).stdout;
    node.start();
    assert!(node.peers().contains("192.0.2.1"));
    assert_eq!(node.run(&["key", "show"]).stdout, key);
    std::fs::remove_file(&filler).unwrap();
    assert!(
        node.run(&["peer", "add", OTHER]).status.success(),
        "room again"
    );
    node.stop();

    // A first start on a full disk: no key can be made.
    let fresh = LocalNode::new();
    let other = Mounted::new(&fresh.state(), "size=64k,mode=0700");
    let _ = std::fs::write(fresh.state().join("filler"), vec![7; 1 << 20]);
    let said = fresh.refused(fresh.up());
    assert!(
        said.contains("priv_key.bin") && said.contains("No space left"),
        "{said}"
    );
    drop((mounted, other));
}

#[test]
fn a_read_only_state_directory_is_named_with_the_way_out() {
    if !privileged() {
        return;
    }
    let (mut node, mounted) = with_a_peer_on("size=8m,mode=0700");
    // Like a disk that had errors: it is read-only when the node starts again.
    node.stop();
    mounted.read_only(true);
    let said = node.refused(node.up());
    assert!(
        said.contains("Read-only") && said.contains("--state-dir"),
        "{said}"
    );
    mounted.read_only(false);
    node.start();
    assert!(node.peers().contains("192.0.2.1"));
    node.stop();
}

#[test]
fn a_state_directory_that_becomes_immutable_under_a_node_stops_changes_and_nothing_else() {
    if !privileged() {
        return;
    }
    let (mut node, _mounted) = with_a_peer_on("size=8m,mode=0700");
    let failures = |node: &LocalNode| {
        let text = scrape_at(&node.metrics);
        let name = "hyphae_state_write_failures_total ";
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().parse::<u64>().unwrap()
    };
    let own = node.run(&["status", "--json"]).stdout;
    let own: serde_json::Value = serde_json::from_slice(&own).unwrap();
    let own = own["info"]["nodeIp"].as_str().unwrap().to_owned();
    let send = |node: &LocalNode, text: &str| {
        let sent = node.run(&["message", "send", &own, text, "--topic", "t"]);
        assert!(
            sent.status.success(),
            "{}",
            String::from_utf8_lossy(&sent.stderr)
        );
    };
    send(&node, "before");
    let before = std::fs::read(node.state().join("peers.toml")).unwrap();
    assert_eq!(failures(&node), 0);

    // What is open stays open; nothing can be made, replaced or removed.
    let immutable = Immutable::new(&node.state());
    for line in [
        &["peer", "add", OTHER][..],
        &["topic", "add", "letters"],
        &["route", "add", "400:1:2:3::/64", KEY],
    ] {
        let said = node.refused(node.command(line));
        assert!(
            said.contains("not permitted") && said.contains("not stored, so not changed"),
            "{line:?}: {said}"
        );
        assert!(said.contains(".toml"), "the file: {said}");
    }
    assert_eq!(failures(&node), 3);
    assert!(node.log().contains("not permitted"), "{}", node.log());
    let peers = node.peers();
    assert!(peers.contains("192.0.2.1") && !peers.contains("192.0.2.2"));
    let topics = node.run(&["topic", "list"]).stdout;
    assert!(!String::from_utf8(topics).unwrap().contains("letters"));
    assert_eq!(
        std::fs::read(node.state().join("peers.toml")).unwrap(),
        before
    );
    send(&node, "meanwhile");

    // Writable again: what was refused can be done, and nothing was lost. Not even by a restart.
    drop(immutable);
    assert!(node.run(&["peer", "add", OTHER]).status.success());
    assert_eq!(failures(&node), 3);
    node.stop();
    node.start();
    let peers = node.peers();
    assert!(peers.contains("192.0.2.1") && peers.contains("192.0.2.2"));
    for text in ["before", "meanwhile"] {
        let got = node.run(&["message", "receive", "--topic", "t"]);
        let got = String::from_utf8(got.stdout).unwrap();
        assert!(got.contains(text), "{text}: {got}");
    }
    node.stop();
}

#[test]
fn a_tun_device_whose_file_is_closed_is_no_matter_of_capabilities() {
    if !privileged() {
        return;
    }
    private_mounts();
    let device = Path::new("/dev/net/tun");
    let node = LocalNode::new();
    let closed = node.directory.path().join("closed");
    std::fs::write(&closed, "").unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
    let none: Option<&str> = None;
    mount(Some(&closed), device, none, MsFlags::MS_BIND, none).unwrap();
    // Root that has all capabilities but the one that opens every file.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search"]);
    command.arg(binary());
    command.args(["up", "--rpc", "off", "--metrics", "off", "--cores", "any:1"]);
    command.args(["--listen", "127.0.0.1:0", "--tun-name", "hyclosed0"]);
    command.arg("--socket-dir").arg(node.sockets());
    command.arg("--state-dir").arg(node.state());
    let said = node.refused(command);
    assert!(
        said.contains("/dev/net/tun") && said.contains("chmod 666"),
        "{said}"
    );
    assert!(!said.contains("CAP_NET_ADMIN"), "{said}");
}

#[test]
fn a_key_that_others_can_read_is_refused_until_that_is_put_right() {
    let mut node = LocalNode::new();
    node.start();
    node.stop();
    let key = node.state().join("priv_key.bin");
    let before = std::fs::read(&key).unwrap();
    for mode in [0o644, 0o660, 0o604] {
        std::fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let said = node.refused(node.up());
        for expected in ["priv_key.bin", &format!("{mode:04o}"), "chmod 600"] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(std::fs::read(&key).unwrap(), before, "it is left as it is");
    node.start();
    node.stop();
}

#[test]
fn a_socket_directory_that_is_deleted_comes_back() {
    let mut node = LocalNode::new();
    node.start();
    let pid = |node: &LocalNode| {
        let status = node.run(&["status", "--json"]).stdout;
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
        Pid::from_raw(i32::try_from(status["pid"].as_i64().unwrap()).unwrap())
    };
    // It stands still, so that it is not faster than whoever asks.
    let first = pid(&node);
    kill(first, Signal::SIGSTOP).unwrap();
    std::fs::remove_dir_all(node.sockets()).unwrap();
    let said = node.refused(node.command(&["status"]));
    assert!(said.contains("rpc.sock"), "{said}");
    kill(first, Signal::SIGCONT).unwrap();
    node.answers();
    assert!(
        node.log().contains("rpc.sock"),
        "it says so: {}",
        node.log()
    );
    // A plane that dies finds the other one again.
    let pid = pid(&node);
    kill(pid, Signal::SIGKILL).unwrap();
    eventually("another control plane", TIMEOUT, || {
        let now = node.run(&["status", "--json"]).stdout;
        let now: serde_json::Value = serde_json::from_slice(&now).unwrap_or_default();
        now["pid"]
            .as_i64()
            .is_some_and(|now| now != i64::from(pid.as_raw()))
            && now["dataplane"].is_object()
    });
    node.stop();
}

#[test]
fn a_second_node_is_refused_and_the_first_goes_on() {
    let mut node = LocalNode::new();
    node.start();
    let said = node.refused(node.up());
    let names = |said: &str| said.contains("another node") || said.contains("in use by");
    assert!(names(&said) && said.contains("--state-dir"), "{said}");
    // Its own sockets do not help: the state is the first one's.
    let elsewhere = node.directory.path().join("elsewhere");
    let mut command = Command::new(binary());
    command.args([
        "up",
        "--no-tun",
        "--rpc",
        "off",
        "--metrics",
        "off",
        "--cores",
        "any:1",
    ]);
    command
        .args(["--listen", "127.0.0.1:0", "--socket-dir"])
        .arg(&elsewhere);
    command.arg("--state-dir").arg(node.state());
    let said = node.refused(command);
    assert!(names(&said) && said.contains("--state-dir"), "{said}");
    assert!(node.run(&["status"]).status.success(), "the first");
    node.stop();
}

#[test]
fn the_doctor_looks_at_this_host_and_says_what_it_is_told_to_say() {
    let mut node = LocalNode::new();
    let file = node.directory.path().join("hyphae.toml");
    let config = "cores = \"any:1\"\nlisten = \"127.0.0.1:0\"\nmetrics = \"off\"\nrpc = \"off\"\n\
                  peers = [\"udp://127.0.0.1:9\"]\n[tun]\nenabled = false\n[inbox]\nbytes_max = 1048576\n";
    std::fs::write(&file, config).unwrap();
    let doctor = |node: &LocalNode, file: &Path| {
        let output = node.run(&["doctor", "--json", "--config", file.to_str().unwrap()]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), json)
    };
    let level = |json: &serde_json::Value, name: &str| {
        let checks = json["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        check["level"].as_str().unwrap().to_owned()
    };
    let (code, json) = doctor(&node, &file);
    let worst = json["worst"].as_str().unwrap();
    let expected = match worst {
        "fail" => 2,
        "warn" => 1,
        _ => 0,
    };
    assert_eq!(code, expected, "{json}");
    for name in [
        "configuration",
        "workers",
        "ports",
        "peers",
        "state directory",
    ] {
        assert_eq!(level(&json, name), "ok", "{name}: {json}");
    }
    for check in json["checks"].as_array().unwrap() {
        let bad = check["level"] == "warn" || check["level"] == "fail";
        assert_eq!(bad, check["fix"] != "", "{check}");
    }
    assert!(!node.state().exists(), "it makes nothing");

    // Beside a running node, with a key that others can read, and with a broken file.
    node.start();
    let key = node.state().join("priv_key.bin");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&file, format!("{config}durabel = true\n")).unwrap();
    let (code, json) = doctor(&node, &file);
    assert_eq!(code, 2);
    assert_eq!(level(&json, "configuration"), "fail");
    assert_eq!(level(&json, "state directory"), "fail");
    node.stop();
}

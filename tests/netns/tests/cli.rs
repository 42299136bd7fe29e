//! Covers: start-up failures of the real binary and what it says about them; peers and routes at
//! run time and after a restart; exit codes and `--json`; output that cannot be written, and text that a terminal would
//! execute; how a node is stopped; what a hangup means. Runs as an ordinary user too.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{PATIENCE, binary, eventually};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A node's directories, and the node while it runs.
struct Node {
    directory: TempDir,
    child: Option<Child>,
}

impl Node {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            child: None,
        }
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn sockets(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(line)
            .arg("--state-dir")
            .arg(self.state())
            .arg("--socket-dir")
            .arg(self.sockets());
        command
    }

    /// The same, for commands that do not take the flags too.
    fn by_environment(&self, line: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(line).env("HYPHAE_STATE_DIR", self.state());
        command.env("HYPHAE_SOCKET_DIR", self.sockets());
        command
    }

    fn run(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    /// The error of `up` with these flags, which must end by itself.
    fn refused(&self, flags: &[&str]) -> String {
        let usual = ["up", "--no-tun", "--metrics", "off", "--rpc", "off"];
        let mut line: Vec<_> = usual.to_vec();
        line.extend(flags);
        if !flags.contains(&"--listen") {
            line.extend(["--listen", "127.0.0.1:0"]);
        }
        let output = self.command(&line).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    fn start(&mut self) {
        let line = [
            "up",
            "--no-tun",
            "--metrics",
            "off",
            "--rpc",
            "off",
            "--listen",
            "127.0.0.1:0",
        ];
        let child = self
            .command(&line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
        eventually("the node answers", PATIENCE, || {
            self.run(&["status"]).status.success()
        });
    }

    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        kill(
            Pid::from_raw(i32::try_from(child.id()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn start_up_failures_name_their_cause_and_the_way_out() {
    let node = Node::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let error = node.refused(&["--listen", &port]);
    assert!(
        error.contains("EADDRINUSE") && error.contains("--listen"),
        "{error}"
    );
    let error = node.refused(&["--cores", "100000"]);
    assert!(error.contains("core 100000 is not available"), "{error}");
    let error = node.refused(&["--driver", "dpdk"]);
    assert!(
        error.contains("--driver") && error.contains("epoll"),
        "{error}"
    );
    let error = node.refused(&["--suite", "rot13"]);
    assert!(
        error.contains("suite") && error.contains("aes-256-gcm"),
        "{error}"
    );
    let error = node.refused(&["--listen", "192.0.2.99:9670"]);
    assert!(
        error.contains("192.0.2.99") && error.contains("--listen"),
        "{error}"
    );

    let file = node.directory.path().join("config.toml");
    std::fs::write(&file, "listn = \"[::]:9670\"\n").unwrap();
    let error = node.refused(&["--config", file.to_str().unwrap()]);
    assert!(
        error.contains("line 1") && error.contains("did you mean `listen`"),
        "{error}"
    );
}

#[test]
fn a_key_file_that_is_none_is_refused_and_kept() {
    let node = Node::new();
    std::fs::create_dir(node.state()).unwrap();
    let path = node.state().join("priv_key.bin");
    std::fs::write(&path, [7; 31]).unwrap();
    let error = node.refused(&[]);
    assert!(
        error.contains("priv_key.bin") && error.contains("31 bytes"),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), [7; 31]);
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let node = Node::new();
    std::fs::write(node.state(), "a file").unwrap();
    let error = node.refused(&[]);
    assert!(error.contains(node.state().to_str().unwrap()), "{error}");
    if !rustix::process::geteuid().is_root() {
        let closed = node.directory.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
        let mut command = Command::new(binary());
        let below = closed.join("state");
        let output = command
            .args(["up", "--no-tun", "--state-dir"])
            .arg(below)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("--state-dir"), "{error}");
    }
}

#[test]
fn a_second_node_on_the_same_directories_is_refused() {
    let mut node = Node::new();
    node.start();
    let error = node.refused(&[]);
    // Whichever plane notices first.
    let way_out = error.contains("--socket-dir") || error.contains("--state-dir");
    assert!(error.contains("another") && way_out, "{error}");
    assert!(
        node.run(&["status"]).status.success(),
        "the first one is not disturbed"
    );
}

#[test]
fn a_command_without_a_node_says_so() {
    let node = Node::new();
    let output = node.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("is `hyphae up` running?")
    );
    let output = node.run(&["peer", "list", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(
        document["error"]["message"]
            .as_str()
            .unwrap()
            .contains("hyphae up")
    );
    let output = Command::new(binary()).arg("frobnicate").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn peers_and_routes_survive_a_restart() {
    let mut node = Node::new();
    node.start();
    let relay = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    let peer = format!("udp://127.0.0.1:9#{relay}");
    assert!(node.run(&["peer", "add", &peer]).status.success());
    assert!(
        node.run(&["route", "add", "400:1:2:3::/64", relay])
            .status
            .success()
    );
    let output = node.run(&["peer", "add", &peer, "--json"]);
    let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(document["error"]["code"], -32010);
    for bad in ["http://a", "udp://a", "udp://a:1#zz"] {
        let output = node.run(&["peer", "add", bad, "--json"]);
        let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(document["error"]["code"], -32009, "{bad}");
    }
    node.stop();
    node.start();
    let peers = stdout(&node.run(&["peer", "list", "--json"]));
    assert!(peers.contains("127.0.0.1:9"), "{peers}");
    let routes = stdout(&node.run(&["route", "list", "--json"]));
    assert!(routes.contains("400:1:2:3::/64"), "{routes}");
    assert!(node.run(&["peer", "remove", &peer]).status.success());
    assert!(
        node.run(&["route", "remove", "400:1:2:3::/64"])
            .status
            .success()
    );
    assert_eq!(
        node.run(&["route", "remove", "400:1:2:3::/64"])
            .status
            .code(),
        Some(1)
    );
    let file = |name: &str| std::fs::read_to_string(node.state().join(name)).unwrap();
    assert!(!file("peers.toml").contains("127.0.0.1") && !file("routes.toml").contains("400:"));
}

#[test]
fn a_key_is_made_once_and_shown() {
    let node = Node::new();
    assert_eq!(node.run(&["key", "show"]).status.code(), Some(1));
    assert!(node.run(&["key", "generate"]).status.success());
    let first = stdout(&node.run(&["key", "show", "--json"]));
    let document: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(document["publicKey"].as_str().unwrap().len(), 64);
    let again = node.run(&["key", "generate"]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("--force"));
    assert_eq!(stdout(&node.run(&["key", "show", "--json"])), first);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.state()), 0o700);
    assert_eq!(mode(&node.state().join("priv_key.bin")) & 0o027, 0);
}

/// Starts a node on a terminal of its own, by way of these programs; returns it with both ends of the terminal.
fn on_a_terminal(node: &Node, way: &[&str]) -> (Child, PtyMaster, File) {
    // Not openpty: whatever another test starts just then would keep the terminal.
    let terminal = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let near = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&terminal).unwrap())
        .unwrap();
    let log = std::fs::File::create(node.directory.path().join("log")).unwrap();
    // As a shell has it open: nohup does not.
    let held = near.try_clone().unwrap();
    // `setsid` makes what is its standard input the terminal of a new session.
    let child = Command::new("setsid")
        .arg("--ctty")
        .args(way)
        .arg(binary())
        .args(["up", "--no-tun", "--metrics", "off", "--rpc", "off"])
        .args(["--cores", "any:1", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(node.state())
        .arg("--socket-dir")
        .arg(node.sockets())
        .stdin(near)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    eventually("the node answers", PATIENCE, || {
        node.run(&["status"]).status.success()
    });
    (child, terminal, held)
}

fn reloads(node: &Node) -> usize {
    let log = std::fs::read_to_string(node.directory.path().join("log")).unwrap();
    log.matches("configuration reloaded").count()
}

#[test]
fn a_hangup_reloads_and_ends_a_node_only_when_its_terminal_is_gone() {
    let node = Node::new();
    // Whoever runs the tests may have said nohup, which is inherited.
    let usual = ["env", "--default-signal=HUP"];
    let (mut child, terminal, _held) = on_a_terminal(&node, &usual);
    let hang_up = |child: &Child| {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGHUP).unwrap();
    };
    // An administrator's signal, while the terminal is there.
    hang_up(&child);
    eventually("it is reloaded", PATIENCE, || reloads(&node) == 1);
    assert!(node.run(&["status"]).status.success());
    // The window is closed: the kernel sends the signal.
    drop(terminal);
    let mut ended = None;
    eventually("it ends", PATIENCE, || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success(), "in good order");

    // Whoever says nohup wants it to stay.
    let node = Node::new();
    let (mut child, terminal, _held) = on_a_terminal(&node, &["nohup"]);
    drop(terminal);
    eventually("the hangup is noticed", PATIENCE, || reloads(&node) > 0);
    assert!(node.run(&["status"]).status.success());
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
}

/// Something to write to that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Stdio::from(writer)
}

fn full() -> Stdio {
    File::create("/dev/full").unwrap().into()
}

#[test]
fn a_reader_that_has_gone_ends_any_command_quietly_and_a_full_device_is_an_error() {
    let mut node = Node::new();
    node.start();
    assert!(node.run(&["topic", "add", "logs"]).status.success());
    let message = ["message", "send", &own_address(&node), "hello"];
    for line in [
        &["--help"][..],
        &["--version"],
        &["status"],
        &["status", "--json"],
        &["peer", "list"],
        &["peer", "list", "--json"],
        &["route", "list"],
        &["topic", "list"],
        &["topic", "default", "accept"],
        &["config", "explain"],
        &["config", "show", "--defaults"],
        &["config", "check", "/dev/null"],
        &["doctor"],
        &["doctor", "--json"],
        &["key", "show"],
        &["reload", "--dry-run"],
        &["ping", "400::1", "--count", "1", "--timeout-ms", "1"],
        &message,
        &["message", "receive", "--peek", "--wait"],
        &["message", "receive", "--peek", "--raw"],
    ] {
        let output = |stdout: Stdio| {
            let mut command = node.by_environment(line);
            command.stdout(stdout).output().unwrap()
        };
        let Output { status, stderr, .. } = output(closed_pipe());
        let said = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(141), ""), "{line:?}");
        let Output { status, stderr, .. } = output(full());
        let said = String::from_utf8(stderr).unwrap();
        let cause = said.contains("standard output: No space left on device");
        assert!(cause && said.lines().count() == 1, "{line:?}: {said}");
        assert_eq!(status.code(), Some(1), "{line:?}");
    }
    // Where even the error cannot be shown, its exit code is.
    let mut command = node.command(&["status"]);
    let status = command.stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_node_whose_banner_and_log_nobody_takes_works_as_any_other() {
    for sink in [closed_pipe, full] {
        let mut node = Node::new();
        let up = ["up", "--no-tun", "--metrics", "off", "--rpc", "off"];
        let mut command = node.command(&up);
        command.args(["--cores", "any:1", "--listen", "127.0.0.1:0"]);
        node.child = Some(command.stdout(sink()).stderr(sink()).spawn().unwrap());
        eventually("the node answers", PATIENCE, || {
            node.run(&["status"]).status.success()
        });
        // Something to log, in each plane.
        assert!(node.run(&["reload"]).status.success());
        node.stop();
    }
}

fn own_address(node: &Node) -> String {
    let shown = stdout(&node.run(&["key", "show", "--json"]));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown["address"].as_str().unwrap().to_owned()
}

/// What is dangerous on a terminal: C0, DEL, C1, a directional override.
fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\n') || c == '\u{202e}'
}

#[test]
fn text_that_others_have_chosen_reaches_a_terminal_as_escapes() {
    let mut node = Node::new();
    node.start();
    let address = own_address(&node);
    let hostile = "\x1b]0;title\x07\r\x7f\u{9b}2J\u{202e}evil";
    let topic = "t\u{202e}x";
    let send = [
        "message", "send", &address, "--topic", topic, "--wait", hostile,
    ];
    let output = node.run(&send);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in [
        &["message", "receive", "--wait", "--peek"][..],
        &["message", "receive", "--wait", "--peek", "--json"],
    ] {
        let shown = stdout(&node.run(line));
        assert!(!shown.contains(is_unsafe), "{shown:?}");
    }
    let shown = stdout(&node.run(&["message", "receive", "--peek"]));
    assert!(
        shown.contains(r"\u{1b}]0;title\u{7}\r\u{7f}\u{9b}2J\u{202e}evil"),
        "{shown:?}"
    );
    assert!(node.run(&["topic", "add", topic]).status.success());
    let listed = stdout(&node.run(&["topic", "list"]));
    assert!(
        listed.contains(r"t\u{202e}x") && !listed.contains(is_unsafe),
        "{listed:?}"
    );
    let refused = node.run(&["peer", "add", "udp://\x1b[31m\nhyphae: forged:1"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.starts_with("hyphae: ") && !said.contains(is_unsafe),
        "{said:?}"
    );
    assert!(
        !said.lines().skip(1).any(|line| line.starts_with("hyphae")),
        "{said:?}"
    );
    // Bytes as they are, on request.
    let raw = node.run(&["message", "receive", "--raw"]);
    assert_eq!(raw.stdout, hostile.as_bytes());
}

#[test]
fn every_command_prints_one_json_document_and_fails_honestly() {
    let mut node = Node::new();
    node.start();
    assert!(node.run(&["topic", "add", "logs"]).status.success());
    let none = "400::1";
    for (line, code) in [
        (&["status"][..], 0),
        (&["peer", "list"], 0),
        (&["peer", "remove", "udp://192.0.2.1:1"], 1),
        (&["route", "list"], 0),
        (&["route", "list", "--fallback"], 0),
        (&["route", "remove", "400:1:2:3::/64"], 1),
        (&["topic", "list"], 0),
        (&["topic", "default"], 0),
        (&["topic", "default", "accept"], 0),
        (&["topic", "source", "list", "logs"], 0),
        (&["topic", "pubkey-source", "list", "logs"], 0),
        (&["topic", "forward", "show", "logs"], 0),
        (&["topic", "outbound", "show", "logs"], 0),
        (&["topic", "remove", "none"], 1),
        (&["admin", "list"], 0),
        (&["admin", "patterns"], 0),
        (&["admin", "call", none, "getInfo", "--timeout", "1"], 1),
        (&["key", "show"], 0),
        (&["key", "generate"], 1),
        (&["config", "check", "/dev/null"], 0),
        (&["config", "check", "/nonexistent"], 2),
        (&["config", "show"], 0),
        (&["config", "explain", "listen"], 0),
        (&["config", "explain", "nothing"], 1),
        (&["reload", "--dry-run"], 0),
        (
            &[
                "ping",
                none,
                "--count",
                "2",
                "--interval-ms",
                "1",
                "--timeout-ms",
                "1",
            ],
            1,
        ),
        (&["trace", none, "--probes", "1", "--timeout-ms", "1"], 1),
        (&["message", "send", none, "hello"], 0),
        (&["message", "receive"], 1),
        (&["drain", "--no-wait"], 0),
        (&["drain", "--off"], 0),
        (&["status", "--nonsense"], 2),
        (&["down"], 0),
        (&["down"], 1),
    ] {
        let output = node.by_environment(line).arg("--json").output().unwrap();
        let shown = stdout(&output);
        let document: serde_json::Result<serde_json::Value> = serde_json::from_str(&shown);
        let document = document.unwrap_or_else(|error| panic!("{line:?}: {error}: {shown}"));
        assert_eq!(output.status.code(), Some(code), "{line:?}: {shown}");
        assert_eq!(
            document["error"]["message"].is_string(),
            code != 0,
            "{line:?}: {shown}"
        );
    }
    assert!(
        node.child.take().unwrap().wait().unwrap().success(),
        "`down` ended it in order"
    );
}

#[test]
fn a_node_is_stopped_by_a_call_and_by_nothing_else_that_runs_it() {
    let mut node = Node::new();
    node.start();
    assert_eq!(stdout(&node.run(&["down"])), "stopped\n");
    // It has waited: nothing is left of the node.
    assert!(
        node.child
            .as_mut()
            .unwrap()
            .try_wait()
            .unwrap()
            .unwrap()
            .success()
    );
    node.child = None;
    assert!(!node.sockets().join("rpc.sock").exists());
    let again = node.run(&["down"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8(again.stderr)
            .unwrap()
            .contains("is `hyphae up` running?")
    );

    // Planes of their own are their manager's to stop.
    let plane = |name: &str| {
        let line = [
            name,
            "--no-tun",
            "--metrics",
            "off",
            "--rpc",
            "off",
            "--cores",
            "any:1",
        ];
        let mut command = node.command(&line);
        command.args(["--listen", "127.0.0.1:0"]);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut planes = [plane("dataplane"), plane("controlplane")];
    eventually("the node answers", PATIENCE, || {
        node.run(&["status"]).status.success()
    });
    let refused = node.run(&["down", "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(
        (refused.status.code(), &document["error"]["code"]),
        (Some(1), &(-32043).into())
    );
    assert!(node.run(&["status"]).status.success(), "it goes on");
    for child in &mut planes {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn peers_are_removed_as_they_are_listed_and_in_any_spelling() {
    let mut node = Node::new();
    node.start();
    let listed = || {
        let peers = stdout(&node.run(&["peer", "list", "--json"]));
        let peers: serde_json::Value = serde_json::from_str(&peers).unwrap();
        let peers = peers.as_array().unwrap().clone();
        let shown = peers.iter().map(|peer| {
            let text = |name: &str| peer["endpoint"][name].as_str().unwrap();
            format!("{}://{}", text("proto"), text("socketAddr"))
        });
        shown.collect::<Vec<_>>()
    };
    for (added, other) in [
        ("udp://192.0.2.1:9670", "udp://[::ffff:192.0.2.1]:9670"),
        ("udp://[2001:DB8:0::1]:9670", "udp://[2001:db8::1]:9670"),
        ("tcp://[fe80::1%lo]:9670", "tcp://[fe80:0::1%1]:9670"),
        ("udp://Nosuch.Invalid:9670", "udp://nosuch.invalid:9670"),
    ] {
        assert!(
            node.run(&["peer", "add", added]).status.success(),
            "{added}"
        );
        assert!(
            !node.run(&["peer", "add", other]).status.success(),
            "{other} is the same"
        );
        let shown = listed();
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert!(
            node.run(&["peer", "remove", &shown[0]]).status.success(),
            "{shown:?}"
        );
        assert!(node.run(&["peer", "add", added]).status.success());
        assert!(
            node.run(&["peer", "remove", other]).status.success(),
            "{other}"
        );
        assert!(listed().is_empty());
    }
    // A peer that is named and connects is listed by its address.
    let name = "udp://localhost:9";
    assert!(node.run(&["peer", "add", name]).status.success());
    eventually("the name is looked up", PATIENCE, || listed() != [name]);
    assert!(node.run(&["peer", "remove", &listed()[0]]).status.success());
    assert!(listed().is_empty());
    for bad in [
        "udp://0.0.0.0:9670",
        "udp://[::]:9670",
        "udp://[ff02::1%lo]:9670",
        "udp://255.255.255.255:9670",
        "udp://[fe80::1]:9670",
        "udp://[fe80::1%nosuch0]:9670",
    ] {
        let output = node.run(&["peer", "add", bad, "--json"]);
        let document: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(document["error"]["code"], -32009, "{bad}: {document}");
    }
}

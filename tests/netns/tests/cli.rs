//! Covers: start-up failures of the real binary and what it says about them; peers and routes at
//! run time and after a restart; exit codes and `--json`; what a hangup means. Runs as an ordinary user too.

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

//! Covers: output that cannot be written, text that a terminal would execute, what a hangup means, what a clean stop
//! logs. Verbs, exit codes and `--json` are in `cli.rs`. Runs as an ordinary user too.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Output, Stdio};

use common::local::LocalNode;
use common::{TIMEOUT, binary, eventually};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Starts a node on a terminal of its own, by way of these programs; returns it with both ends of the terminal.
fn on_a_terminal(node: &LocalNode, way: &[&str]) -> (Child, PtyMaster, File) {
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
    eventually("the node answers", TIMEOUT, || {
        node.run(&["status"]).status.success()
    });
    (child, terminal, held)
}

fn reloads(node: &LocalNode) -> usize {
    let log = std::fs::read_to_string(node.directory.path().join("log")).unwrap();
    log.matches("configuration reloaded").count()
}

#[test]
fn a_hangup_reloads_and_ends_a_node_only_when_its_terminal_is_gone() {
    let node = LocalNode::new();
    // Whoever runs the tests may have said nohup, which is inherited.
    let usual = ["env", "--default-signal=HUP"];
    let (mut child, terminal, _held) = on_a_terminal(&node, &usual);
    let hang_up = |child: &Child| {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGHUP).unwrap();
    };
    // An administrator's signal, while the terminal is there.
    hang_up(&child);
    eventually("it is reloaded", TIMEOUT, || reloads(&node) == 1);
    assert!(node.run(&["status"]).status.success());
    // The window is closed: the kernel sends the signal.
    drop(terminal);
    let mut ended = None;
    eventually("it ends", TIMEOUT, || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success(), "in good order");

    // Whoever says nohup wants it to stay.
    let node = LocalNode::new();
    let (mut child, terminal, _held) = on_a_terminal(&node, &["nohup"]);
    drop(terminal);
    eventually("the hangup is noticed", TIMEOUT, || reloads(&node) > 0);
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
    let mut node = LocalNode::new();
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
        let mut node = LocalNode::new();
        let mut command = node.up();
        node.child = Some(command.stdout(sink()).stderr(sink()).spawn().unwrap());
        node.answers();
        // Something to log, in each plane.
        assert!(node.run(&["reload"]).status.success());
        let mut child = node.child.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

fn own_address(node: &LocalNode) -> String {
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
    let mut node = LocalNode::new();
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
fn a_node_that_is_stopped_logs_neither_warnings_nor_errors() {
    let mut node = LocalNode::new();
    node.start();
    node.stop();
    let log = node.log();
    for level in ["WARN", "ERROR"] {
        assert!(!log.contains(level), "{log}");
    }
}

#[test]
fn the_banner_names_the_node_and_where_it_listens() {
    let mut node = LocalNode::new();
    let banner = node.directory.path().join("banner");
    let mut command = node.up();
    command.stdout(File::create(&banner).unwrap());
    node.child = Some(command.stderr(Stdio::null()).spawn().unwrap());
    node.answers();
    let address = own_address(&node);
    for part in [
        address.as_str(),
        "is up",
        "UDP",
        "rpc.sock",
        "metrics",
        "no peers yet",
    ] {
        eventually(part, TIMEOUT, || {
            std::fs::read_to_string(&banner).unwrap().contains(part)
        });
    }
}

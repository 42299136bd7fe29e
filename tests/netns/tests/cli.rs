//! Covers: start-up failures of the real binary and their messages; peers and routes at run time and after a
//! restart; exit codes and `--json`; how a node is stopped. Output and terminals are in `cli_output.rs`. Runs as an
//! ordinary user too.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::local::LocalNode;
use common::{TIMEOUT, binary, eventually};

/// The error of `up` with these flags, which must end by itself.
fn refused(node: &LocalNode, flags: &[&str]) -> String {
    let mut line = vec!["up", "--no-tun", "--metrics", "off", "--rpc", "off"];
    line.extend(flags);
    if !flags.contains(&"--listen") {
        line.extend(["--listen", "127.0.0.1:0"]);
    }
    node.refused(node.command(&line))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn start_up_failures_name_their_cause_and_the_way_out() {
    let node = LocalNode::new();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let error = refused(&node, &["--listen", &port]);
    assert!(
        error.contains("EADDRINUSE") && error.contains("--listen"),
        "{error}"
    );
    let error = refused(&node, &["--cores", "100000"]);
    assert!(error.contains("core 100000 is not available"), "{error}");
    let error = refused(&node, &["--driver", "dpdk"]);
    assert!(
        error.contains("--driver") && error.contains("epoll"),
        "{error}"
    );
    let error = refused(&node, &["--suite", "rot13"]);
    assert!(
        error.contains("suite") && error.contains("aes-256-gcm"),
        "{error}"
    );
    let error = refused(&node, &["--listen", "192.0.2.99:9670"]);
    assert!(
        error.contains("192.0.2.99") && error.contains("--listen"),
        "{error}"
    );

    let file = node.directory.path().join("config.toml");
    std::fs::write(&file, "listn = \"[::]:9670\"\n").unwrap();
    let error = refused(&node, &["--config", file.to_str().unwrap()]);
    assert!(
        error.contains("line 1") && error.contains("did you mean `listen`"),
        "{error}"
    );
}

#[test]
fn a_key_file_that_is_none_is_refused_and_kept() {
    let node = LocalNode::new();
    std::fs::create_dir(node.state()).unwrap();
    let path = node.state().join("priv_key.bin");
    std::fs::write(&path, [7; 31]).unwrap();
    let error = refused(&node, &[]);
    assert!(
        error.contains("priv_key.bin") && error.contains("31 bytes"),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), [7; 31]);
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let node = LocalNode::new();
    std::fs::write(node.state(), "a file").unwrap();
    let error = refused(&node, &[]);
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
    let mut node = LocalNode::new();
    node.start();
    let error = refused(&node, &[]);
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
    let node = LocalNode::new();
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
    let mut node = LocalNode::new();
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
    let node = LocalNode::new();
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

#[test]
fn every_command_prints_one_json_document_and_fails_honestly() {
    let mut node = LocalNode::new();
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
    let mut node = LocalNode::new();
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
    eventually("the node answers", TIMEOUT, || {
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
    let mut node = LocalNode::new();
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
    eventually("the name is looked up", TIMEOUT, || listed() != [name]);
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

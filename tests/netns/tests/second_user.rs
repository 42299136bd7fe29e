//! Covers: a second user of the host. Directories of that user, or that it may write; topics that lead to the node's
//! own socket, to servers of other users, and who set a path after a restart. What a directory handle refuses in
//! detail is in proto/files, what a gate lets through in controlplane/daemon.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{TIMEOUT, binary, eventually, privileged};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The second user.
const THEM: u32 = 64_001;

struct Node {
    directory: TempDir,
    child: Option<Child>,
    /// Who runs it.
    uid: u32,
}

impl Node {
    /// One that the second user runs, without any privilege.
    fn theirs() -> Self {
        let mut node = Self::new();
        chown(node.directory.path(), Some(THEM), Some(THEM)).unwrap();
        node.uid = THEM;
        node
    }

    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o755);
        let config = format!("[rpc]\nallow_uids = [{THEM}]\n");
        std::fs::write(directory.path().join("config.toml"), config).unwrap();
        Self {
            directory,
            child: None,
            uid: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn up(&self) -> Command {
        let mut command = Command::new(binary());
        command.args(["up", "--no-tun", "--rpc", "off", "--cores", "any:1"]);
        command.args(["--listen", "127.0.0.1:0", "--metrics", "off", "--config"]);
        command.arg(self.path("config.toml"));
        command.arg("--state-dir").arg(self.path("state"));
        command.arg("--socket-dir").arg(self.path("run"));
        command
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = self.up();
        command.stdout(Stdio::null()).stderr(log);
        if self.uid != 0 {
            command.uid(self.uid).gid(self.uid);
        }
        self.child = Some(command.spawn().unwrap());
        eventually("the node answers", TIMEOUT, || {
            self.run(self.uid, &["status"]).status.success()
        });
    }

    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// A command of a user.
    fn run(&self, uid: u32, line: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(line);
        command.arg("--socket-dir").arg(self.path("run"));
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        command.output().unwrap()
    }

    /// Leads the topic to a path; the error, if there is one.
    fn forward(&self, uid: u32, path: &Path) -> Result<(), String> {
        let path = path.to_str().unwrap();
        let output = self.run(uid, &["topic", "forward", "set", "t", path]);
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The planes end with it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn root_starts_no_node_in_a_directory_that_another_user_owns_or_may_write() {
    if !privileged() {
        return;
    }
    for place in ["state", "run"] {
        let node = Node::new();
        let theirs = node.path(place);
        std::fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(THEM), Some(THEM)).unwrap();
        // What chmod after bind, or a temporary file, would have been led to.
        let precious = node.path("precious");
        std::fs::write(&precious, "precious").unwrap();
        set_mode(&precious, 0o600);
        for name in ["rpc.sock", "dataplane.sock", "topics.toml", "lock"] {
            symlink(&precious, theirs.join(name)).unwrap();
        }
        let refused = |expected: &str| {
            let output = node.up().output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success(), "{said}");
            assert!(said.contains(expected), "{expected}: {said}");
        };
        refused(&format!("belongs to user {THEM}"));
        chown(&theirs, Some(0), Some(0)).unwrap();
        set_mode(&theirs, 0o777);
        refused("may be written by others");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(mode(&precious), 0o600);
    }
}

#[test]
fn state_and_sockets_have_their_modes_whatever_the_umask_of_whoever_starts_the_node() {
    if !privileged() {
        return;
    }
    let mut node = Node::new();
    node.start();
    for name in [
        "topics.toml",
        "admin.toml",
        "peers.toml",
        "inbox.redb",
        "priv_key.bin",
        "lock",
    ] {
        assert_eq!(mode(&node.path("state").join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&node.path("run/rpc.sock")), 0o666);
    assert_eq!(mode(&node.path("run/dataplane.sock")), 0o600);
    node.stop();
    for name in ["run/rpc.sock", "run/dataplane.sock"] {
        assert!(!node.path(name).exists(), "{name}");
    }
    // An emptied file is no decision to accept everything.
    std::fs::write(node.path("state/topics.toml"), "").unwrap();
    let output = node.up().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("topics.toml is empty"), "{said}");
}

#[test]
fn a_topic_leads_nowhere_that_its_setter_does_not_reach_also_after_a_restart() {
    if !privileged() {
        return;
    }
    let mut node = Node::new();
    node.start();
    assert!(node.run(0, &["topic", "add", "t"]).status.success());
    // The node takes whoever comes through its own sockets for an administrator.
    for uid in [0, THEM] {
        let said = node.forward(uid, &node.path("run/rpc.sock")).unwrap_err();
        assert!(said.contains("served by a Hyphae node"), "{said}");
    }
    let server = node.path("server");
    let listener = UnixListener::bind(&server).unwrap();
    set_mode(&server, 0o666);
    let said = node.forward(THEM, &server).unwrap_err();
    assert!(said.contains("is served by user 0"), "{said}");
    node.forward(0, &server).unwrap();
    drop(listener);
    std::fs::remove_file(&server).unwrap();
    // One that is not there yet is looked at when it is used.
    node.forward(THEM, &server).unwrap();
    let outbound = ["topic", "outbound", "set", "t"];
    let key = "11".repeat(32);
    let path = node.path("outbound");
    let line = [&outbound[..], &[key.as_str(), path.to_str().unwrap()]].concat();
    let refused = node.run(THEM, &line);
    assert!(!refused.status.success() && !path.exists());
    node.stop();
    node.start();
    let stored = std::fs::read_to_string(node.path("state/topics.toml")).unwrap();
    assert!(
        stored.contains("forward_set_by = \"uid 64001\""),
        "{stored}"
    );
    node.stop();
}

/// The planes of `hyphae up` are started as `/proc/self/exe` and show their program to nobody who lacks CAP_SYS_PTRACE.
#[test]
fn a_node_without_privileges_leads_no_topic_to_a_node_of_the_same_user() {
    if !privileged() {
        return;
    }
    let (mut node, mut other) = (Node::theirs(), Node::theirs());
    node.start();
    other.start();
    assert!(node.run(THEM, &["topic", "add", "t"]).status.success());
    for path in ["run/rpc.sock", "run/dataplane.sock"] {
        let said = node.forward(THEM, &node.path(path)).unwrap_err();
        assert!(said.contains("served by a Hyphae node"), "{path:?}: {said}");
    }
    // Another node's is looked at when it is used: the message stays here.
    let status = node.run(THEM, &["status", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    let [own, key] = ["nodeIp", "nodePubkey"].map(|name| status["info"][name].as_str().unwrap());
    let source = ["topic", "pubkey-source", "add", "t", key];
    assert!(node.run(THEM, &source).status.success());
    for path in ["run/rpc.sock", "run/dataplane.sock"] {
        node.forward(THEM, &other.path(path)).unwrap();
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"getInfo"}"#;
        let sent = node.run(THEM, &["message", "send", own, call, "--topic", "t"]);
        assert!(sent.status.success(), "{sent:?}");
        let received = node.run(THEM, &["message", "receive", "--topic", "t", "--wait"]);
        let received = String::from_utf8(received.stdout).unwrap();
        assert!(received.contains(call), "{path:?}: {received}");
    }
    other.stop();
    node.stop();
}

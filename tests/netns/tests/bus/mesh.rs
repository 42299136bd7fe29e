//! Nodes on loopback: own directories and ports, no TUN device, no privileges.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use hyphae_rpc::method::{
    Destination, EndpointParams, IncomingMessage, MessageIdParams, MessageInfo, MessageState,
    OutgoingMessage, PingParams, PopMessageParams, PushMessageParams, PushMessageResult,
    TopicParams,
};
use hyphae_rpc::{Base64, Client};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use super::common::TIMEOUT;
use super::common::{binary, eventually, own_place};

/// Who peers with whom; listening needs no entry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Everybody with everybody.
    Triangle,
    /// The first and the last with the one between them, and not with each other.
    Line,
}

impl Shape {
    fn peers(self) -> [&'static [usize]; 3] {
        match self {
            Self::Triangle => [&[1, 2], &[0, 2], &[0, 1]],
            Self::Line => [&[1], &[], &[1]],
        }
    }
}

/// Three nodes.
pub(crate) struct Mesh {
    pub(crate) nodes: [Node; 3],
    directory: TempDir,
}

impl Mesh {
    /// Starts them, and waits until each reaches each.
    pub(crate) fn start(shape: Shape) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let places = [own_place(), own_place(), own_place()];
        let nodes = [0, 1, 2].map(|n| {
            let name = format!("mycelium_network_test{}", n + 1);
            let home = directory.path().join(name);
            let peers = shape.peers()[n].iter();
            let peers = peers
                .map(|peer| format!("udp://{}", places[*peer]))
                .collect();
            Node::start(home, places[n], peers)
        });
        let mesh = Self { nodes, directory };
        mesh.wait_until_connected();
        mesh
    }

    pub(crate) fn wait_until_connected(&self) {
        for from in &self.nodes {
            for to in self.nodes.iter().filter(|to| to.key != from.key) {
                eventually("the nodes reach each other", TIMEOUT, || from.pings(to));
            }
        }
    }

    /// A path for a socket of the test's own.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A node; stopped when dropped.
pub(crate) struct Node {
    home: PathBuf,
    place: SocketAddr,
    peers: Vec<String>,
    pub(crate) client: Client,
    pub(crate) key: String,
    pub(crate) address: String,
    child: Option<Child>,
}

impl Node {
    fn start(home: PathBuf, place: SocketAddr, peers: Vec<String>) -> Self {
        let client = Client::new(home.join("run/rpc.sock"));
        let mut node = Self {
            home,
            place,
            peers,
            client,
            key: String::new(),
            address: String::new(),
            child: None,
        };
        node.up();
        let own = node.client.get_info().unwrap();
        (node.key, node.address) = (own.node_pubkey, own.node_ip);
        node
    }

    /// Starts it, the first time or again, and waits until both planes are there.
    pub(crate) fn up(&mut self) {
        std::fs::create_dir_all(&self.home).unwrap();
        let listen = self.place.to_string();
        let mut line = vec!["up", "--no-tun", "--cores", "any:1", "--listen", &listen];
        line.extend(["--metrics", "off", "--rpc", "off", "--log-level", "info"]);
        line.extend(self.peers.iter().flat_map(|peer| ["--peer", peer]));
        let mut log = std::fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.home.join("log"));
        let mut command = self.command(&line);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(log.unwrap()).spawn().unwrap();
        self.child = Some(child);
        eventually("the node answers", TIMEOUT, || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{}", self.log());
            let status = self.client.node_status();
            status.is_ok_and(|status| status.dataplane.is_some())
        });
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(line)
            .arg("--state-dir")
            .arg(self.home.join("state"))
            .arg("--socket-dir")
            .arg(self.home.join("run"));
        command
    }

    /// The command line, as an operator of this node uses it.
    pub(crate) fn hyphae(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    /// The same where it has to succeed; what it prints.
    pub(crate) fn printed(&self, line: &[&str]) -> String {
        let output = self.hyphae(line);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same where it has to fail; the code of its error.
    pub(crate) fn refused(&self, line: &[&str]) -> i64 {
        let output = self.hyphae(&[line, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(1), "{line:?}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        document["error"]["code"].as_i64().unwrap()
    }

    /// A command that runs while the test goes on.
    pub(crate) fn in_background(&self, line: &[&str]) -> Child {
        let mut command = self.command(line);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn pings(&self, to: &Self) -> bool {
        let params = PingParams {
            address: to.address.clone(),
            timeout_ms: 500,
        };
        self.client.node_ping(params).is_ok()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    pub(crate) fn state_file(&self, name: &str) -> PathBuf {
        self.home.join("state").join(name)
    }

    /// Kills both planes and what supervises them, on the spot, and waits until all are gone.
    pub(crate) fn kill(&mut self) {
        let status = self.client.node_status().unwrap();
        let planes = [status.pid, status.dataplane.unwrap().pid].map(|pid| {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            (pid, pidfd_open(pid, PidfdFlags::empty()).unwrap())
        });
        let mut supervisor = self.child.take().unwrap();
        supervisor.kill().unwrap();
        for (pid, _) in &planes {
            // The kernel may have been faster: they do not outlive their supervisor.
            let _ = kill_process(*pid, Signal::KILL);
        }
        supervisor.wait().unwrap();
        for (_, ended) in &planes {
            wait_for(ended);
        }
    }

    /// Stops it as an operator would.
    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    /// Sends a message; its id.
    pub(crate) fn push(&self, to: &Self, topic: &str, payload: &[u8]) -> String {
        let message = outgoing(to, topic, payload);
        let params = PushMessageParams {
            message,
            reply_timeout: None,
            wait: None,
        };
        match self.client.push_message(params).unwrap() {
            PushMessageResult::Id { id } => id,
            PushMessageResult::Reply(_) => panic!("no reply was asked for"),
        }
    }

    /// Waits until a message that was sent is settled.
    pub(crate) fn settled(&self, id: &str) -> MessageInfo {
        let mut found = None;
        eventually("the message is settled", TIMEOUT, || {
            let id = id.to_owned();
            let info = self
                .client
                .get_message_info(MessageIdParams { id })
                .unwrap();
            let settled = match info.state {
                MessageState::Pending | MessageState::Sending { .. } => false,
                MessageState::Received | MessageState::Read | MessageState::Aborted => true,
            };
            found = Some(info);
            settled
        });
        found.unwrap()
    }

    /// Takes a message out of the inbox.
    pub(crate) fn pop(&self, topic: Option<&str>, wait: Option<u64>) -> Option<IncomingMessage> {
        let params = PopMessageParams {
            peek: None,
            timeout: wait,
            topic: topic.map(Base64::encode),
        };
        self.client.pop_message(params).unwrap()
    }

    /// Everything that it has to remember.
    pub(crate) fn settings(&self) -> Value {
        let client = &self.client;
        let topics: Vec<Value> = client
            .get_topics()
            .unwrap()
            .into_iter()
            .map(|topic| {
                let named = || TopicParams {
                    topic: topic.clone(),
                };
                json!({
                    "subnets": client.get_topic_sources(named()).unwrap(),
                    "pubkeys": client.get_topic_pubkey_sources(named()).unwrap(),
                    "forward": client.get_topic_forward_socket(named()).unwrap(),
                    "outbound": client.get_topic_outbound_socket(named()).unwrap(),
                    "topic": topic,
                })
            })
            .collect();
        let peers = client.get_peers().unwrap();
        let mut peers: Vec<_> = peers
            .into_iter()
            .filter(|peer| peer.kind == "static")
            .map(|peer| peer.endpoint.socket_addr)
            .collect();
        peers.sort();
        json!({
            "key": client.get_info().unwrap().node_pubkey,
            "default": client.get_default_topic_action().unwrap(),
            "topics": topics,
            "admins": client.admin_list().unwrap(),
            "patterns": client.admin_get_method_patterns().unwrap(),
            "peers": peers,
        })
    }

    pub(crate) fn add_peer(&self, endpoint: &str) {
        let endpoint = endpoint.to_owned();
        assert!(self.client.add_peer(EndpointParams { endpoint }).unwrap());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended; either way it is gone then.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.home.display(), self.log());
        }
    }
}

pub(crate) fn outgoing(to: &Node, topic: &str, payload: &[u8]) -> OutgoingMessage {
    OutgoingMessage {
        dst: Destination::Pk(to.key.clone()),
        topic: (!topic.is_empty()).then(|| Base64::from(topic)),
        payload: Base64::from(payload),
    }
}

/// Waits for the end of a process.
fn wait_for(process: &OwnedFd) {
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, Some(&timeout)).unwrap(),
        1,
        "the process ends"
    );
}

/// Bytes that differ by seed and place.
pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    let byte = |at: usize| {
        let mixed = (seed * 1_000_003 + at).wrapping_mul(2_654_435_761) >> 13;
        mixed.to_le_bytes()[0]
    };
    (0..len).map(byte).collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

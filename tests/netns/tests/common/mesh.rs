//! Any number of nodes, each in its namespace with a TUN device, joined by cables.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use hyphae::lab::{LabNode, Namespace};
use hyphae_rpc::method::Route;
use hyphae_store::files;
use hyphae_wire::PublicKey;
use serde_json::json;
use tempfile::TempDir;

use super::{TIMEOUT, binary, command, eventually, host_up};

const NAMES: [&str; 8] = [
    "node0", "node1", "node2", "node3", "node4", "node5", "node6", "node7",
];

/// Nodes and the cables between them. Of each cable the second node dials the first.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Option<LabNode>>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) keys: Vec<PublicKey>,
    /// Where the nodes that are started from now on show their metrics.
    pub(crate) metrics: &'static str,
    /// Cores of the workers of the nodes that are started from now on.
    pub(crate) cores: &'static str,
    cables: Vec<(usize, usize)>,
    directory: TempDir,
}

impl Mesh {
    /// Makes places for `nodes` nodes, lays the cables, and starts nothing.
    pub(crate) fn new(nodes: usize, cables: &[(usize, usize)]) -> Self {
        let namespaces: Vec<_> = (0..nodes).map(|_| Namespace::new().unwrap()).collect();
        for (n, (a, b)) in (1..).zip(cables) {
            let place = |host| (IpAddr::V4(Ipv4Addr::new(198, 18, n, host)), 24);
            let (to_b, to_a) = (format!("cable{n}"), format!("plug{n}"));
            namespaces[*a]
                .join(&to_b, place(1), &namespaces[*b], &to_a, place(2))
                .unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let key = |n: usize| {
            let state = directory.path().join(NAMES[n]);
            let state = files::prepare_directory(&state).unwrap();
            files::generate_key(&state, false).unwrap().public_key()
        };
        Self {
            nodes: (0..nodes).map(|_| None).collect(),
            namespaces,
            keys: (0..nodes).map(key).collect(),
            metrics: "127.0.0.1:9469",
            cores: "any:1",
            cables: cables.to_vec(),
            directory,
        }
    }

    /// All nodes, started.
    pub(crate) fn started(nodes: usize, cables: &[(usize, usize)]) -> Self {
        let mut mesh = Self::new(nodes, cables);
        (0..nodes).for_each(|n| mesh.start(n, &[]));
        mesh
    }

    /// Starts a node, with flags besides those of the mesh.
    pub(crate) fn start(&mut self, n: usize, flags: &[&str]) {
        let mut line = vec![
            "up",
            "--metrics",
            self.metrics,
            "--rpc",
            "off",
            "--rest",
            "off",
            "--listen",
            "0.0.0.0:9670",
            "--cores",
            self.cores,
            "--discovery",
            "none",
        ]
        .into_iter()
        .chain(flags.iter().copied())
        .map(str::to_owned)
        .collect::<Vec<_>>();
        // A file may have a level of its own, which a flag would hide.
        if !flags.contains(&"--config") {
            line.extend(["--log-level", "warn"].map(str::to_owned));
        }
        for (cable, (a, b)) in (1..).zip(&self.cables) {
            if *b == n {
                let key = self.keys[*a];
                line.push("--peer".to_owned());
                line.push(format!("udp://198.18.{cable}.1:9670#{key}"));
            }
        }
        let node = LabNode::start(
            NAMES[n],
            self.keys[n],
            self.directory.path().join(NAMES[n]),
            line,
            Some(&self.namespaces[n]),
            binary(),
        );
        let node = node.unwrap();
        host_up(&self.namespaces[n], node.address());
        self.nodes[n] = Some(node);
    }

    /// Starts a node with a configuration file.
    pub(crate) fn start_with(&mut self, n: usize, config: &str) {
        self.configure(n, config);
        let file = self.file(n);
        self.start(n, &["--config", file.to_str().unwrap()]);
    }

    /// Replaces the configuration file of a node.
    pub(crate) fn configure(&self, n: usize, config: &str) {
        std::fs::write(self.file(n), config).unwrap();
    }

    /// The configuration file of a node.
    pub(crate) fn file(&self, n: usize) -> PathBuf {
        self.directory.path().join(format!("{}.toml", NAMES[n]))
    }

    pub(crate) fn node(&self, n: usize) -> &LabNode {
        self.nodes[n].as_ref().unwrap()
    }

    /// Ends a node as a power cut would.
    pub(crate) fn kill(&mut self, n: usize) {
        let mut node = self.nodes[n].take().unwrap();
        node.crash().unwrap();
        // A process that was killed lets go of its files only when the kernel has taken it apart.
        let state = files::prepare_directory(node.directory()).unwrap();
        eventually("the dead lets go", TIMEOUT, || files::lock(&state).is_ok());
    }

    /// Pulls or plugs in the cable with this number, from 1.
    pub(crate) fn cable(&self, n: usize, state: &str) {
        let (a, _) = self.cables[n - 1];
        command(
            &self.namespaces[a],
            &format!("ip link set cable{n} {state}"),
        );
    }

    pub(crate) fn routes(&self, n: usize) -> Vec<Route> {
        let routes = self.node(n).client.call("getSelectedRoutes", json!({}));
        routes.unwrap_or_default()
    }

    /// Whether every running node reaches every other.
    pub(crate) fn is_connected(&self) -> bool {
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].is_some())
            .collect();
        up.iter().all(|a| {
            up.iter().all(|b| {
                let address = self.keys[*b].address().ip();
                a == b
                    || self
                        .node(*a)
                        .ping(address, Duration::from_millis(500))
                        .is_ok()
            })
        })
    }
}

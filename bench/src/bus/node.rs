//! Two nodes on loopback: own directories and ports, no TUN device, no privileges.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyphae_rpc::method::{PingParams, Status};
use hyphae_rpc::{Client, Connection};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::{cpu, usage};

/// Limit of every wait; generous for a busy machine.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// Configuration of both nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Messages are on disk before they are acknowledged.
    pub(super) durable: bool,
    /// Bytes of the largest packet of the overlay.
    pub(super) mtu: u16,
}

/// Two nodes, peers of each other.
pub(super) struct Pair {
    pub(super) a: Node,
    pub(super) b: Node,
    pub(super) directory: TempDir,
}

impl Pair {
    /// Starts both nodes. `between` maps B's address to the one that A connects to.
    pub(super) fn start(
        binary: &Path,
        kind: Kind,
        between: impl FnOnce(SocketAddr) -> anyhow::Result<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let place = free_address()?;
        let b = Node::start(binary, directory.path().join("b"), kind, place, None)?;
        let peer = between(place)?;
        let home = directory.path().join("a");
        let a = Node::start(binary, home, kind, free_address()?, Some(peer))?;
        let pair = Self { a, b, directory };
        eventually("the nodes reach each other", || {
            let reaches = |from: &Node, to: &Node| {
                let params = PingParams {
                    address: to.address.clone(),
                    timeout_ms: 1000,
                };
                from.client.node_ping(params).is_ok()
            };
            Ok(reaches(&pair.a, &pair.b) && reaches(&pair.b, &pair.a))
        })?;
        Ok(pair)
    }
}

/// A node; stopped when dropped.
pub(super) struct Node {
    pub(super) client: Client,
    pub(super) key: String,
    address: String,
    home: PathBuf,
    child: Child,
}

impl Node {
    fn start(
        binary: &Path,
        home: PathBuf,
        kind: Kind,
        listen: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let (state, run) = (home.join("state"), home.join("run"));
        std::fs::create_dir_all(&state)?;
        let config = format!(
            "mtu = {}\n[inbox]\ndurable = {}\nmessages_max = 262144\n",
            kind.mtu, kind.durable
        );
        std::fs::write(state.join("config.toml"), config)?;
        let log = std::fs::File::create(home.join("log"))?;
        let mut command = Command::new(binary);
        command
            .args(["up", "--no-tun", "--cores", "any:1", "--metrics", "off"])
            .args(["--rpc", "off", "--log-level", "info", "--listen"])
            .arg(listen.to_string())
            .arg("--state-dir")
            .arg(&state)
            .arg("--socket-dir")
            .arg(&run);
        if let Some(peer) = peer {
            command.arg("--peer").arg(format!("udp://{peer}"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut node = Self {
            client: Client::new(run.join("rpc.sock")),
            key: String::new(),
            address: String::new(),
            home,
            child,
        };
        eventually("a node answers", || {
            if let Some(ended) = node.child.try_wait()? {
                bail!("a node ended with {ended}: {}", node.log());
            }
            let status = node.client.node_status();
            Ok(status.is_ok_and(|status| status.dataplane.is_some()))
        })?;
        let own = node.client.get_info()?;
        (node.key, node.address) = (own.node_pubkey, own.node_ip);
        Ok(node)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// A connection for many calls.
    pub(super) fn connection(&self) -> anyhow::Result<Connection> {
        Ok(Connection::open(self.home.join("run/rpc.sock"), TIMEOUT)?)
    }

    fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let Status { pid, dataplane, .. } = self.client.node_status()?;
        Ok([pid].into_iter().chain(dataplane.map(|d| d.pid)).collect())
    }

    /// Resident memory of both planes, in bytes.
    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        let one = |pid: u32| anyhow::Ok(usage(pid)?.resident_kib << 10);
        self.pids()?.into_iter().map(one).sum()
    }

    /// CPU time of both planes.
    pub(super) fn cpu(&self) -> anyhow::Result<[Duration; 2]> {
        let pids = self.pids()?;
        ensure!(pids.len() == 2, "a node has two planes");
        Ok([cpu(pids[0])?, cpu(pids[1])?])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // ESRCH if it has ended.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Polls until `done`, at most for [`TIMEOUT`].
pub(super) fn eventually(
    what: &str,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !done()? {
        ensure!(Instant::now() < deadline, "timeout: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn free_address() -> anyhow::Result<SocketAddr> {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let address = socket.local_addr()?;
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

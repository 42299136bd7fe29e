//! The relay that is measured: `hyphae up`, two processes of their own, and what they use.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyphae_rpc::Client;
use hyphae_rpc::method::{ReloadParams, Status};
use hyphae_test_hostile::Target;
use hyphae_wire::PublicKey;
use tempfile::TempDir;

use crate::process::{Usage, hyphae, usage};

/// Time limit of a relay's start.
const START_MAX: Duration = Duration::from_secs(20);
/// Interval of status requests until then.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How to start a relay.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    /// Limit of its peers.
    pub(super) peers_max: usize,
    /// As `hyphae up --cores`.
    pub(super) cores: &'a str,
    /// More of its configuration file.
    pub(super) settings: &'a str,
    /// Listens on all addresses, else on 127.0.0.1 only.
    pub(super) any_address: bool,
    /// Its only configured peer.
    pub(super) peer: Option<SocketAddr>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            peers_max: 1000,
            cores: "any:1",
            settings: "",
            any_address: false,
            peer: None,
        }
    }
}

/// A running relay; it ends when dropped.
pub(super) struct Relay {
    supervisor: Child,
    client: Client,
    /// Dataplane and control plane.
    pids: [u32; 2],
    pub(super) target: Target,
    /// Address of its metrics.
    metrics: SocketAddr,
    config: PathBuf,
    settings: String,
    _directory: TempDir,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Both planes end with it.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

impl Relay {
    /// Starts a relay on loopback.
    pub(super) fn start(options: &Options<'_>) -> anyhow::Result<Self> {
        let Options {
            peers_max,
            cores,
            settings: more,
            any_address,
            peer,
        } = *options;
        let program = hyphae(None)?;
        let directory = tempfile::Builder::new().prefix("hyphae-bench-").tempdir()?;
        let config = directory.path().join("relay.toml");
        let room = peers_max.max(64);
        let settings = format!(
            "[peering]\npeers_max = {room}\ninbound_max = {room}\n\
             inbound_per_source_max = 64\n[stream]\nlisten = false\nfallback = false\n{more}"
        );
        std::fs::write(&config, &settings)?;
        // Free now; no other program binds this address.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let at = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let listen = if any_address {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, at.port()))
        } else {
            at
        };
        let peer = peer.map(|peer| ["--peer".to_owned(), format!("udp://{peer}")]);
        let sockets = directory.path().join("run");
        let log = directory.path().join("log");
        let supervisor = Command::new(program)
            .args(["up", "--no-tun", "--discovery", "none", "--rpc", "off"])
            .args(["--log-level", "warn", "--cores", cores])
            .args(["--metrics", &metrics.to_string()])
            .args(["--listen", &listen.to_string()])
            .args(peer.iter().flatten())
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .arg("--socket-dir")
            .arg(&sockets)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting the relay")?;
        let client = Client::new(sockets.join("rpc.sock")).with_timeout(Duration::from_secs(10));
        let mut relay = Self {
            supervisor,
            client,
            pids: [0; 2],
            target: Target {
                at,
                key: PublicKey([0; 32]),
            },
            metrics,
            config,
            settings,
            _directory: directory,
        };
        relay.wait(&log)?;
        Ok(relay)
    }

    fn wait(&mut self, log: &Path) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Ok(status) = self.client.node_status()
                && let Some(dataplane) = &status.dataplane
            {
                self.pids = [dataplane.pid, status.pid];
                self.target.key = status.info.node_pubkey.parse()?;
                return Ok(());
            }
            let ended = self.supervisor.try_wait()?;
            if ended.is_some() || began.elapsed() > START_MAX {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                bail!("the relay did not come up ({ended:?}): {log}");
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    pub(super) fn status(&self) -> anyhow::Result<Status> {
        Ok(self.client.node_status()?)
    }

    /// Peers of each state.
    pub(super) fn peers(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut states = BTreeMap::new();
        for peer in self.client.get_peers()? {
            *states.entry(peer.connection_state).or_default() += 1;
        }
        Ok(states)
    }

    /// Enables per-peer families, for at most this number of peers.
    pub(super) fn show_peers(&self, peers_max: usize) -> anyhow::Result<()> {
        let settings = &self.settings;
        std::fs::write(
            &self.config,
            format!("metrics_peers_max = {peers_max}\n{settings}"),
        )?;
        self.client.config_reload(ReloadParams { dry_run: false })?;
        Ok(())
    }

    /// Scrapes the metrics once; returns the duration and the number of bytes.
    pub(super) fn scrape(&self) -> anyhow::Result<(Duration, usize)> {
        let began = Instant::now();
        let mut stream = TcpStream::connect(self.metrics)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        let took = began.elapsed();
        ensure!(
            text.starts_with(b"HTTP/1.0 200"),
            "the relay has no metrics"
        );
        Ok((took, text.len()))
    }

    /// CPU time and memory of dataplane and control plane.
    pub(super) fn usage(&self) -> anyhow::Result<[Usage; 2]> {
        Ok([usage(self.pids[0])?, usage(self.pids[1])?])
    }
}

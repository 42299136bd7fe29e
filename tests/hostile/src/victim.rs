//! The node that is attacked: `hyphae up` on loopback.

use std::fs::{DirBuilder, File, Permissions};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyphae_rpc::Client;
use hyphae_rpc::method::Status;
use hyphae_wire::{PublicKey, SecretKey};
use tempfile::TempDir;

/// Start-up timeout on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// Poll interval of the start-up.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Address and key of a node.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its underlay address.
    pub at: SocketAddr,
    /// Its key.
    pub key: PublicKey,
}

/// A real node without a TUN device; it ends when dropped.
pub struct Victim {
    supervisor: Child,
    /// Its RPC.
    pub client: Client,
    /// Its address and key.
    pub target: Target,
    directory: TempDir,
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Both planes end with it.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

impl Victim {
    /// Starts `program` with this configuration file and these peers.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &Path, config: &str, peers: &[SocketAddr]) -> anyhow::Result<Self> {
        let at = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        Self::start_at(program, at, config, peers)
    }

    /// The same with a given address.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_at(
        program: &Path,
        at: SocketAddr,
        config: &str,
        peers: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        Self::start_as(program, at, None, config, peers)
    }

    /// The same with a given key.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_as(
        program: &Path,
        at: SocketAddr,
        key: Option<&SecretKey>,
        config: &str,
        peers: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("hyphae-victim-")
            .tempdir()?;
        if let Some(key) = key {
            let state = directory.path().join("state");
            DirBuilder::new().mode(0o700).create(&state)?;
            let file = state.join("priv_key.bin");
            std::fs::write(&file, key.as_bytes())?;
            std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        }
        let file = directory.path().join("victim.toml");
        std::fs::write(&file, config)?;
        let sockets = directory.path().join("run");
        let mut command = Command::new(program);
        command
            .args(["up", "--no-tun", "--discovery", "none", "--rpc", "off"])
            .args(["--cores", "any:1"])
            .args(["--listen", &at.to_string()])
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .arg("--socket-dir")
            .arg(&sockets);
        // A flag would hide the setting of a file.
        if !config.contains("metrics = ") {
            command.args(["--metrics", "off"]);
        }
        for peer in peers {
            command.arg("--peer").arg(format!("udp://{peer}"));
        }
        let supervisor = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.path().join("log"))?)
            .spawn()
            .context("starting the node")?;
        let client = Client::new(sockets.join("rpc.sock")).with_timeout(Duration::from_secs(10));
        let mut victim = Self {
            supervisor,
            client,
            target: Target {
                at,
                key: PublicKey([0; 32]),
            },
            directory,
        };
        victim.wait()?;
        Ok(victim)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Ok(status) = self.client.node_status()
                && status.dataplane.is_some()
            {
                self.target.key = status.info.node_pubkey.parse()?;
                return Ok(());
            }
            let ended = self.supervisor.try_wait()?;
            if ended.is_some() || began.elapsed() > START_MAX {
                bail!("the node did not come up ({ended:?}): {}", self.log());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Its status.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> anyhow::Result<Status> {
        Ok(self.client.node_status()?)
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Its socket directory.
    pub fn sockets(&self) -> PathBuf {
        self.directory.path().join("run")
    }
}

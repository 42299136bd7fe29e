//! The three nodes of the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyphae_rpc::Client;
use hyphae_rpc::method::{PingParams, Status};
use hyphae_store::files;
use hyphae_wire::PublicKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::Namespace;
use crate::cli;

/// Settings of all nodes of a lab.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// `--driver` of every node.
    pub driver: Option<String>,
    /// `--suite` of every node.
    pub suite: Option<String>,
    /// `--mtu` of every node; links are sized to match.
    pub mtu: Option<u16>,
    /// `--cores` of client, relay and server.
    pub cores: [Option<String>; 3],
    /// Configuration file of every node.
    pub config: Option<PathBuf>,
    /// The `hyphae` binary [default: this program].
    pub program: Option<PathBuf>,
    /// The relay dials the ends instead of the ends dialling the relay.
    pub relay_dials: bool,
}

/// A running node.
#[derive(Debug)]
pub struct LabNode {
    /// Its name.
    pub name: &'static str,
    /// Its key.
    pub key: PublicKey,
    /// Its RPC client.
    pub client: Client,
    directory: PathBuf,
    program: PathBuf,
    line: Vec<String>,
    supervisor: Child,
}

/// Client, relay and server.
#[derive(Debug)]
pub struct Lab {
    /// The client; reaches only the relay.
    pub client: LabNode,
    /// The relay.
    pub relay: LabNode,
    /// The server; reaches only the relay.
    pub server: LabNode,
    /// Their namespaces in the same order; none on loopback.
    pub namespaces: Option<[Namespace; 3]>,
    _directory: TempDir,
}

/// Directory of the lab of this process.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// The temporary directory to remove if this process ends early.
pub(super) fn directory_in_use() -> Option<&'static Path> {
    DIRECTORY.get().map(PathBuf::as_path)
}

/// Time limit for a node to start or to answer, on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);
const NAMES: [&str; 3] = ["client", "relay", "server"];
const PORT: u16 = 9670;
/// Overhead of a packet of the overlay on a link, bytes: frame, UDP and IPv6 headers.
const LINK_OVERHEAD: u32 = 152;
const RELAY_TO_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
const RELAY_TO_SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 2);

impl Lab {
    /// Three namespaces in a line, the relay in the middle, each with a TUN device. Addresses are from the range
    /// reserved for benchmarks (RFC 2544).
    ///
    /// # Errors
    /// Without root, or when a node does not start.
    pub fn namespaces(spec: &Spec) -> anyhow::Result<Self> {
        let namespaces = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
        let [client, relay, server] = &namespaces;
        let net = |ip: Ipv4Addr| (IpAddr::V4(ip), 24);
        relay.join(
            "to-client",
            net(RELAY_TO_CLIENT),
            client,
            "to-relay",
            net(CLIENT),
        )?;
        relay.join(
            "to-server",
            net(RELAY_TO_SERVER),
            server,
            "to-relay",
            net(SERVER),
        )?;
        if let Some(mtu) = spec.mtu {
            for (inside, device) in [
                (client, "to-relay"),
                (relay, "to-client"),
                (relay, "to-server"),
                (server, "to-relay"),
            ] {
                inside.set_mtu(device, u32::from(mtu) + LINK_OVERHEAD)?;
            }
        }
        let places = [RELAY_TO_CLIENT, RELAY_TO_SERVER].map(|ip| format!("{ip}:{PORT}"));
        let ends = [CLIENT, SERVER].map(|ip| format!("{ip}:{PORT}"));
        Self::start(spec, Some(namespaces), [PORT; 3], places, ends)
    }

    /// Three nodes on loopback without TUN devices.
    ///
    /// # Errors
    /// When a node does not start.
    pub fn loopback(spec: &Spec) -> anyhow::Result<Self> {
        let free =
            || -> anyhow::Result<u16> { Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port()) };
        let ports = [free()?, free()?, free()?];
        let place = format!("127.0.0.1:{}", ports[1]);
        let ends = [ports[0], ports[2]].map(|port| format!("127.0.0.1:{port}"));
        Self::start(spec, None, ports, [place.clone(), place], ends)
    }

    fn start(
        spec: &Spec,
        namespaces: Option<[Namespace; 3]>,
        ports: [u16; 3],
        relay_at: [String; 2],
        ends_at: [String; 2],
    ) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("hyphae-lab-").tempdir()?;
        // Keeps the first lab of the process; the command creates only one.
        let _ = DIRECTORY.set(directory.path().to_owned());
        let mut keys = Vec::new();
        for name in NAMES {
            let state = directory.path().join(name);
            let state = files::prepare_directory(&state)?;
            keys.push(files::generate_key(&state, false)?.public_key());
        }
        let (client, relay, server) = (keys[0], keys[1], keys[2]);
        let program = match &spec.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("finding this program")?,
        };
        let node = |n: usize, links: Vec<String>| -> anyhow::Result<LabNode> {
            let namespace = namespaces.as_ref().map(|all| &all[n]);
            let at = directory.path().join(NAMES[n]);
            let mut line = spec.command_line(n, namespace.is_some());
            let listen = if namespace.is_some() {
                "0.0.0.0"
            } else {
                "127.0.0.1"
            };
            line.extend(["--listen".to_owned(), format!("{listen}:{}", ports[n])]);
            line.extend(links);
            LabNode::start(NAMES[n], keys[n], at, line, namespace, program.clone())
        };
        let links = |at: &str| match spec.relay_dials {
            true => Vec::new(),
            false => vec!["--peer".to_owned(), format!("udp://{at}#{relay}")],
        };
        let dials = ends_at.iter().zip([client, server]);
        let dials: Vec<String> = dials
            .filter(|_| spec.relay_dials)
            .flat_map(|(at, key)| ["--peer".to_owned(), format!("udp://{at}#{key}")])
            .collect();
        Ok(Self {
            relay: node(1, dials)?,
            client: node(0, links(&relay_at[0]))?,
            server: node(2, links(&relay_at[1]))?,
            namespaces,
            _directory: directory,
        })
    }

    /// Starts the relay again after [`LabNode::crash`], without waiting for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_relay(&mut self) -> anyhow::Result<()> {
        let namespace = self.namespaces.as_ref().map(|all| &all[1]);
        self.relay.supervisor = self.relay.spawn(namespace)?;
        Ok(())
    }

    /// Waits until client and server reach each other through the relay.
    ///
    /// # Errors
    /// When the timeout expires first.
    pub fn wait_until_connected(&self, timeout: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + timeout;
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            loop {
                match from.ping(to.address(), Duration::from_millis(300)) {
                    Ok(_) => break,
                    Err(error) if Instant::now() >= deadline => {
                        let (from, to) = (from.name, to.name);
                        return Err(error).with_context(|| format!("{from} does not reach {to}"));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        Ok(())
    }
}

impl Spec {
    fn command_line(&self, n: usize, tun: bool) -> Vec<String> {
        let mut line: Vec<String> = [
            "up",
            "--metrics",
            "off",
            "--rpc",
            "off",
            "--log-level",
            "warn",
        ]
        .map(str::to_owned)
        .into();
        let last = std::thread::available_parallelism().map_or(0, |n| n.get() - 1);
        // The relay gets the last core; the scheduler places the ends.
        let default = if n == 1 {
            last.to_string()
        } else {
            "any:1".to_owned()
        };
        let cores = self.cores[n].clone().unwrap_or(default);
        for (flag, value) in [
            ("--cores", Some(cores)),
            ("--driver", self.driver.clone()),
            ("--suite", self.suite.clone()),
            ("--mtu", self.mtu.map(|mtu| mtu.to_string())),
            (
                "--config",
                self.config
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned()),
            ),
        ] {
            line.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        }
        if !tun {
            line.push("--no-tun".to_owned());
        }
        line
    }
}

fn spawn(
    name: &str,
    program: &Path,
    line: &[String],
    directory: &Path,
    namespace: Option<&Namespace>,
) -> anyhow::Result<Child> {
    let log = std::fs::File::create(directory.join("log"))?;
    let mut command = Command::new(program);
    command
        .args(line)
        .arg("--state-dir")
        .arg(directory)
        .arg("--socket-dir")
        .arg(directory.join("run"))
        .env(cli::SUPERVISED, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let spawned = match namespace {
        Some(namespace) => namespace.run(move || command.spawn())?,
        None => command.spawn(),
    };
    spawned.with_context(|| format!("starting the {name}"))
}

impl LabNode {
    /// Starts a node with this command line (`up` and its flags, without directories), in a
    /// namespace or not, and waits until it answers. `key` is that of the state directory.
    ///
    /// # Errors
    /// When it does not start; with its log.
    pub fn start(
        name: &'static str,
        key: PublicKey,
        directory: PathBuf,
        line: Vec<String>,
        namespace: Option<&Namespace>,
        program: PathBuf,
    ) -> anyhow::Result<Self> {
        let sockets = directory.join("run");
        let supervisor = spawn(name, &program, &line, &directory, namespace)?;
        let client = Client::new(sockets.join("rpc.sock")).with_timeout(TIMEOUT);
        let mut node = Self {
            name,
            key,
            client,
            directory,
            program,
            line,
            supervisor,
        };
        let deadline = Instant::now() + TIMEOUT;
        while node.status().is_err() {
            if let Some(status) = node.supervisor.try_wait()? {
                bail!("the {name} ended with {status}: {}", node.log());
            }
            if Instant::now() >= deadline {
                bail!("the {name} does not answer: {}", node.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(node)
    }

    fn spawn(&self, namespace: Option<&Namespace>) -> anyhow::Result<Child> {
        spawn(
            self.name,
            &self.program,
            &self.line,
            &self.directory,
            namespace,
        )
    }

    /// Kills the supervisor and both planes, as a loss of power would.
    ///
    /// # Errors
    /// When it is not running.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        let status = self.status()?;
        let plane = status.dataplane.map(|plane| plane.pid);
        self.kill(self.supervisor.id())?;
        for pid in plane.into_iter().chain([status.pid]) {
            // The parent-death signal may have killed it already.
            let _ = self.kill(pid);
        }
        self.supervisor.wait()?;
        Ok(())
    }

    /// Its overlay address.
    pub fn address(&self) -> Ipv6Addr {
        self.key.address().ip()
    }

    /// Its status.
    ///
    /// # Errors
    /// When it does not answer, or its control plane is not attached.
    pub fn status(&self) -> anyhow::Result<Status> {
        let status = self.client.node_status()?;
        if status.dataplane.is_none() {
            bail!("the control plane of the {} is not attached", self.name);
        }
        Ok(status)
    }

    /// Round trip of a probe to another node.
    ///
    /// # Errors
    /// When no answer arrives in time.
    pub fn ping(&self, address: Ipv6Addr, timeout: Duration) -> anyhow::Result<Duration> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let params = PingParams {
            address: address.to_string(),
            timeout_ms,
        };
        let pong = self.client.node_ping(params)?;
        Ok(Duration::from_micros(pong.rtt_micros))
    }

    /// Its state directory; `run` inside is its socket directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Sends SIGKILL to one of its processes.
    ///
    /// # Errors
    /// When the process does not exist.
    pub fn kill(&self, pid: u32) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?)
    }

    /// Stops it with SIGTERM; returns whether it ended with success.
    ///
    /// # Errors
    /// When waiting fails.
    pub fn stop(&mut self) -> anyhow::Result<bool> {
        let pid = Pid::from_raw(i32::try_from(self.supervisor.id())?);
        // It may have ended already.
        let _ = kill(pid, Signal::SIGTERM);
        Ok(self.supervisor.wait()?.success())
    }
}

impl Drop for LabNode {
    fn drop(&mut self) {
        // Best effort: the kernel ends it with this process.
        let _ = self.stop();
    }
}

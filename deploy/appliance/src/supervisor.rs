//! `hyphae up`: starts both planes, keeps them running, stops them.
//!
//! A plane that dies is started again, at most [`RESTARTS_MAX`] times in [`RESTARTS_WINDOW`]; one
//! that cannot even start ends the node, because its error says what the operator has to do. If the
//! supervisor itself is killed, the kernel kills both planes (parent-death signal).

mod terminal;
mod vigil;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyphae_controlplane::config::Config;
use hyphae_controlplane::state;
use hyphae_rpc::Client;
use hyphae_rpc::method::Status;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use self::terminal::Terminal;
use self::vigil::Vigil;
use crate::cli::{self, NodeArgs};

/// Restarts of one plane that are allowed in the window.
const RESTARTS_MAX: usize = 5;
/// The window.
const RESTARTS_WINDOW: Duration = Duration::from_secs(30);
/// How long a plane may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the node may take to answer for the first time.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How often it is asked until then.
const START_POLL: Duration = Duration::from_millis(50);

/// Name of the plane that reloads.
const CONTROLPLANE: &str = "controlplane";

/// Runs a node until a signal ends it.
pub(crate) fn up(args: &NodeArgs, json: bool) -> anyhow::Result<()> {
    cli::end_with_parent()?;
    let config = args.load()?;
    config
        .cores
        .parse::<hyphae_dataplane::Cores>()
        .context("--cores")?
        .resolve()
        .context("--cores")?;
    let (state_directory, sockets) = args.directories()?;
    // Here first, so that neither a second node nor a key that cannot be used gets as far as a dataplane.
    drop(state::lock(&state_directory)?);
    drop(state::load_or_create_key(&state_directory)?);
    let tun = tun_possible(&config);
    if !tun && config.tun.is_some() {
        eprintln!(
            "hyphae: starting without a TUN device, so this host's own traffic is not carried: that \
             needs CAP_NET_ADMIN (run as root, or `setcap cap_net_admin+ep` on the binary; \
             in a container `--cap-add NET_ADMIN`); --no-tun says that this is meant"
        );
    }
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGCHLD,
        Signal::SIGHUP,
    ] {
        signals.add(signal);
    }
    signals.thread_block().context("signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&signals, flags).context("signals")?;

    let vigil = Vigil::from_environment()?;
    let start = |name: &'static str| {
        Plane::start(name, args.to_command_line(name, tun), vigil.environment())
    };
    let planes = [start("dataplane")?, start(CONTROLPLANE)?];
    let mut node = Node {
        planes,
        signals,
        terminal: Terminal::of_this_process(),
        vigil,
    };
    let result = node.ready(sockets.path()).and_then(|status| match status {
        None => Ok(()),
        Some(status) => {
            announce(&config, sockets.path(), &status, json)?;
            node.vigil.ready();
            node.watch()
        }
    });
    node.vigil.stopping();
    // The control plane first: it says good-bye to the peers through the dataplane.
    let [dataplane, controlplane] = &mut node.planes;
    let stopped = controlplane.stop().and(dataplane.stop());
    result.and(stopped)
}

/// Whether this process may make a TUN device.
fn tun_possible(config: &Config) -> bool {
    const CAP_NET_ADMIN: u32 = 12;
    let bits = status_bits("CapEff:").unwrap_or(0);
    config.tun.is_some() && bits >> CAP_NET_ADMIN & 1 == 1
}

/// A set that the kernel shows of this process.
fn status_bits(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let hex = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// A node that runs, and who tells it what.
struct Node {
    planes: [Plane; vigil::PLANES],
    signals: SignalFd,
    terminal: Terminal,
    vigil: Vigil,
}

/// One plane: the process that runs it now, and when it was restarted.
struct Plane {
    name: &'static str,
    line: Vec<String>,
    /// Whom it tells how it is doing.
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
    restarts: Restarts,
}

/// Limits the rate of restarts.
#[derive(Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Notes one more; false when it is one too many.
    fn allow(&mut self, now: Instant) -> bool {
        while self
            .0
            .front()
            .is_some_and(|at| now - *at >= RESTARTS_WINDOW)
        {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.len() <= RESTARTS_MAX
    }
}

impl Plane {
    fn start(
        name: &'static str,
        line: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let mut plane = Self {
            name,
            line,
            environment,
            child: None,
            restarts: Restarts::default(),
        };
        plane.spawn()?;
        Ok(plane)
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let program = PathBuf::from("/proc/self/exe");
        let mut command = Command::new(program);
        if !self.restarts.0.is_empty() {
            command.env(cli::RESTARTED, "1");
        }
        // The node is one service: its manager is told by this process, and the planes tell this process.
        for variable in hyphae_notify::VARIABLES {
            command.env_remove(variable);
        }
        let child = command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args(&self.line)
            .env(cli::SUPERVISED, std::process::id().to_string())
            .stdin(std::process::Stdio::null())
            .spawn()
            .with_context(|| format!("starting the {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// The exit status, if the process has ended.
    fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait().context("waiting for a plane")?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    fn restart(&mut self, status: ExitStatus) -> anyhow::Result<()> {
        if !self.restarts.allow(Instant::now()) {
            bail!(
                "the {} ended {} times within {} s (last: {status}); giving up",
                self.name,
                RESTARTS_MAX + 1,
                RESTARTS_WINDOW.as_secs()
            );
        }
        eprintln!(
            "hyphae: the {} ended ({status}); starting it again",
            self.name
        );
        self.spawn()
    }

    /// Process number, while it runs.
    fn pid(&self) -> Option<i32> {
        let child = self.child.as_ref()?;
        i32::try_from(child.id()).ok()
    }

    /// Lets it read its configuration again.
    fn reload(&self) {
        if let Some(pid) = self.pid() {
            // One that has ended just now reads it when it starts again.
            let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).context("process number")?);
        // It may have ended just now; then there is nothing to signal.
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                ensure!(status.success(), "the {} ended with {status}", self.name);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().context("killing a plane")?;
        child.wait().context("waiting for a plane")?;
        self.child = None;
        bail!(
            "the {} did not stop within {} s and was killed",
            self.name,
            STOP_TIMEOUT.as_secs()
        )
    }
}

/// What the signals say.
enum Told {
    Stop,
    Reload,
    ChildEnded,
    Nothing,
}

impl Node {
    /// Waits for the next thing, and passes on to the service manager what the planes tell.
    fn told(&mut self, timeout: Option<Duration>) -> anyhow::Result<Told> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut sources = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let ear = self.vigil.ear();
        sources.extend(ear.map(|ear| PollFd::from_borrowed_fd(ear, PollFlags::IN)));
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let planes = &self.planes;
        self.vigil
            .listen(|pid| planes.iter().position(|plane| plane.pid() == Some(pid)));
        let mut told = Told::Nothing;
        while let Some(info) = self.signals.read_signal().context("signals")? {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
            if signal == Signal::SIGCHLD as i32 {
                // Children are looked at before a reload, too.
                if !matches!(told, Told::Reload) {
                    told = Told::ChildEnded;
                }
            } else if signal == Signal::SIGHUP as i32 && !self.terminal.is_gone() {
                told = Told::Reload;
            } else {
                return Ok(Told::Stop);
            }
        }
        Ok(told)
    }

    /// Waits until the node answers; `None` when it was told to stop first.
    fn ready(&mut self, sockets: &Path) -> anyhow::Result<Option<Status>> {
        let client = Client::new(sockets.join("rpc.sock")).with_timeout(Duration::from_secs(2));
        let deadline = Instant::now() + START_TIMEOUT;
        let mut reload = false;
        loop {
            match self.told(Some(START_POLL))? {
                Told::Stop => return Ok(None),
                // Whoever has changed the file since it was read is not to be forgotten.
                Told::Reload => reload = true,
                Told::ChildEnded | Told::Nothing => {}
            }
            for plane in &mut self.planes {
                match plane.ended()? {
                    None => {}
                    // Killed, not ended by itself: nothing that the operator has to put right.
                    Some(status) if status.code().is_none() => plane.restart(status)?,
                    // Its own message says why.
                    Some(status) => bail!("the {} could not start ({status})", plane.name),
                }
            }
            let status = client.call::<Status>("node.status", json!({}));
            match status {
                Ok(status) if status.dataplane.is_some() => {
                    if reload {
                        self.reload();
                    }
                    return Ok(Some(status));
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("the node did not come up");
                }
                Ok(_) if Instant::now() >= deadline => bail!("the planes did not find each other"),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// The control plane decides, and tells the dataplane.
    fn reload(&self) {
        self.planes
            .iter()
            .filter(|plane| plane.name == CONTROLPLANE)
            .for_each(Plane::reload);
    }

    /// Keeps the planes running until told to stop.
    fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            match self.told(None)? {
                Told::Stop => return Ok(()),
                Told::Nothing => {}
                told @ (Told::ChildEnded | Told::Reload) => {
                    for plane in &mut self.planes {
                        if let Some(status) = plane.ended()? {
                            plane.restart(status)?;
                        }
                    }
                    if matches!(told, Told::Reload) {
                        self.reload();
                    }
                }
            }
        }
    }
}

/// Says that the node is up, and how to go on.
fn announce(config: &Config, sockets: &Path, status: &Status, json: bool) -> anyhow::Result<()> {
    if json {
        return cli::document(status);
    }
    let info = &status.info;
    let Some(plane) = &status.dataplane else {
        return Ok(());
    };
    let ports: Vec<_> = plane
        .workers
        .iter()
        .map(|worker| worker.port.to_string())
        .collect();
    let where_to =
        |at: Option<std::net::SocketAddr>| at.map_or("off".to_owned(), |at| at.to_string());
    cli::line(format_args!("hyphae {} is up", status.version));
    cli::line(format_args!("  key      {}", info.node_pubkey));
    cli::line(format_args!("  address  {}", info.node_ip));
    cli::line(format_args!("  subnet   {}", info.node_subnet));
    cli::line(format_args!(
        "  listens  UDP {} ({})",
        ports.join(", "),
        plane.driver
    ));
    cli::line(format_args!(
        "  tun      {}",
        plane.tun.as_deref().unwrap_or("none")
    ));
    cli::line(format_args!(
        "  rpc      {} and {}",
        sockets.join("rpc.sock").display(),
        where_to(config.rpc)
    ));
    cli::line(format_args!("  metrics  {}", where_to(config.metrics)));
    if status.peers == 0 {
        cli::line(
            "no peers yet: `hyphae peer add udp://HOST:PORT` adds one; others reach this node at",
        );
        cli::line(format_args!(
            "  udp://THIS-HOST:{}#{}",
            ports[0], info.node_pubkey
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_limited_in_a_window_and_only_there() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!((0..5).all(|n| restarts.allow(at(n))));
        assert!(!restarts.allow(at(5)));
        assert!(restarts.allow(at(60)));
    }
}

//! `hyphae up`: starts both planes, keeps them running, stops them.
//!
//! A plane that ends is started again, with a growing delay, for as long as it takes: the other one works on
//! meanwhile. Only a node that never worked ends with the error of a plane, because that says what the operator
//! has to do. If the supervisor itself is killed, the kernel kills both planes (parent-death signal).

mod plane;
mod terminal;
mod vigil;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyphae_config::Config;
use hyphae_controlplane::state;
use hyphae_rpc::Client;
use hyphae_rpc::method::Status;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use self::plane::{Plane, is_shutdown};
use self::terminal::Terminal;
use self::vigil::Vigil;
use crate::cli::{self, NodeArgs};

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
        cli::notice(
            "hyphae: starting without a TUN device, so this host's own traffic is not carried: that \
             needs CAP_NET_ADMIN (run as root, or `setcap cap_net_admin+ep` on the binary; \
             in a container `--cap-add NET_ADMIN`); --no-tun says that this is meant",
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

    crate::log::start(&config)?;
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
    let mut announced = false;
    let result = node.ready(sockets.path()).and_then(|status| match status {
        None => Ok(()),
        Some(status) => {
            announced = true;
            // A node whose banner nobody reads works as well as any other.
            if let Err(error) = announce(&config, sockets.path(), &status, json) {
                tracing::warn!("what the node is was not printed: {error:#}");
            }
            node.vigil.ready();
            node.watch()
        }
    });
    node.vigil.stopping();
    // The control plane first: it says good-bye to the peers through the dataplane.
    let [dataplane, controlplane] = &mut node.planes;
    let stopped = controlplane.stop().and(dataplane.stop());
    // The document of this command is printed when the node is up.
    let failed = |error| {
        if json && announced {
            cli::reported(&error)
        } else {
            error
        }
    };
    result.and(stopped).map_err(failed)
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
            let now = Instant::now();
            for plane in &mut self.planes {
                match plane.take_exit()? {
                    None => {}
                    Some(status) if is_shutdown(status) => return Ok(None),
                    // Its own message says why.
                    Some(status) if status.code().is_some_and(|code| code != 0) => {
                        bail!("the {} could not start ({status})", plane.name)
                    }
                    // Killed, or starting over: nothing that the operator has to put right.
                    Some(status) => plane.schedule(now, status.to_string()),
                }
            }
            self.start_those_due(now);
            let status = client.call::<Status>("node.status", json!({}));
            match status {
                Ok(status) if status.dataplane.is_some() => {
                    if reload {
                        self.reload();
                    }
                    return Ok(Some(status));
                }
                _ if Instant::now() < deadline => {}
                outcome => {
                    let ended = self.planes.iter().find_map(Plane::last_end);
                    let failure = match (ended, outcome) {
                        (Some(ended), _) => anyhow::Error::msg(ended),
                        (None, Err(error)) => error.into(),
                        (None, Ok(_)) => anyhow::Error::msg("the planes did not find each other"),
                    };
                    return Err(failure.context("the node did not come up"));
                }
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
            let told = self.told(self.wait(Instant::now()))?;
            if matches!(told, Told::Stop) {
                return Ok(());
            }
            let now = Instant::now();
            for plane in &mut self.planes {
                match plane.take_exit()? {
                    None => {}
                    // `hyphae down`: the control plane has left, and the dataplane is next.
                    Some(status) if is_shutdown(status) => return Ok(()),
                    Some(status) => plane.schedule(now, status.to_string()),
                }
            }
            self.start_those_due(now);
            if matches!(told, Told::Reload) {
                self.reload();
            }
        }
    }

    /// Starts planes whose delay is over, and tells the service manager about those that are down.
    fn start_those_due(&mut self, now: Instant) {
        for (n, plane) in self.planes.iter_mut().enumerate() {
            if plane.start_again(now) {
                self.vigil.restarted(n);
            }
            self.vigil.note(n, plane.absence(), plane.age(now));
        }
    }

    /// How long nothing has to be done here unless something is heard.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let due = self.planes.iter().filter_map(Plane::due);
        let due = due.map(|due| due.saturating_duration_since(now));
        due.chain(self.vigil.wait()).min()
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
    let over_tcp = config
        .rpc
        .map_or("not over TCP".to_owned(), |at| at.to_string());
    let metrics = config.metrics.map_or("off".to_owned(), |at| at.to_string());
    cli::line(format_args!("hyphae {} is up", status.version))?;
    cli::line(format_args!("  key      {}", info.node_pubkey))?;
    cli::line(format_args!("  address  {}", info.node_ip))?;
    cli::line(format_args!("  subnet   {}", info.node_subnet))?;
    cli::line(format_args!(
        "  listens  UDP {} ({})",
        ports.join(", "),
        plane.driver
    ))?;
    cli::line(format_args!(
        "  tun      {}",
        plane.tun.as_deref().unwrap_or("none")
    ))?;
    cli::line(format_args!(
        "  rpc      {}, {over_tcp}",
        sockets.join("rpc.sock").display(),
    ))?;
    cli::line(format_args!("  metrics  {metrics}"))?;
    if status.peers == 0 {
        cli::line(
            "no peers yet: `hyphae peer add udp://HOST:PORT` adds one; others reach this node at",
        )?;
        cli::line(format_args!(
            "  udp://THIS-HOST:{}#{}",
            ports[0], info.node_pubkey
        ))?;
    }
    Ok(())
}

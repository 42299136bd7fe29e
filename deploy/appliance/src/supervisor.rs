//! `hyphae up`: starts both planes, restarts them, stops them.
//!
//! A plane that ends is restarted with exponential back-off and without a limit; the other plane keeps running. The
//! supervisor gives up only before the node was ready for the first time, and returns the error of the plane, which
//! names what the operator has to fix. If the supervisor is killed, the kernel kills both planes (parent-death signal).

mod plane;
mod terminal;
mod watchdog;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyphae_config::Config;
use hyphae_rpc::method::Status;
use hyphae_rpc::{Client, ClientError};
use hyphae_store::files;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::CapabilitySet;

use self::plane::{Plane, is_shutdown};
use self::terminal::Terminal;
use self::watchdog::Watchdog;
use crate::cli::{self, NodeArgs};

/// Time limit for the first answer of the node.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of status requests until then.
const START_POLL: Duration = Duration::from_millis(50);

/// The plane that reloads the configuration.
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
    // Before a dataplane starts: a second node and an unusable key fail here.
    drop(files::lock(&state_directory)?);
    drop(files::load_or_create_key(&state_directory)?);
    let tun = config.tun.is_some() && may_create_tun();
    if !tun && config.tun.is_some() {
        cli::notice(
            "hyphae: starting without a TUN device, so this host's own traffic is not carried: that \
             needs CAP_NET_ADMIN (run as root, or `setcap cap_net_admin+ep` on the binary; \
             in a container `--cap-add NET_ADMIN`); --no-tun suppresses this warning",
        );
    }
    let signals = block_signals()?;
    crate::log::start(&config)?;
    let mut node = Supervisor::start(args, tun, signals)?;
    let mut announced = false;
    let result = node.ready(sockets.path()).and_then(|status| match status {
        None => Ok(()),
        Some(status) => {
            announced = true;
            // A node whose banner cannot be printed keeps running.
            if let Err(error) = announce(&config, sockets.path(), &status, json) {
                tracing::warn!("start-up banner not printed: {error:#}");
            }
            node.watchdog.ready();
            node.run()
        }
    });
    // The JSON document of this command was printed when the node became ready.
    result.and(node.stop()).map_err(|error| {
        if json && announced {
            cli::reported(&error)
        } else {
            error
        }
    })
}

/// Blocks the signals that the supervisor handles; before the first thread starts.
fn block_signals() -> anyhow::Result<SignalFd> {
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
    SignalFd::with_flags(&signals, flags).context("signals")
}

/// Whether this process has CAP_NET_ADMIN.
fn may_create_tun() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// A running node.
struct Supervisor {
    planes: [Plane; watchdog::PLANES],
    signals: SignalFd,
    terminal: Terminal,
    watchdog: Watchdog,
}

/// What the supervisor has to handle.
enum Event {
    Stop,
    Reload,
    ChildEnded,
    Timeout,
}

impl Supervisor {
    fn start(args: &NodeArgs, tun: bool, signals: SignalFd) -> anyhow::Result<Self> {
        let watchdog = Watchdog::from_environment(Instant::now())?;
        let start = |name: &'static str| {
            Plane::start(
                name,
                args.to_command_line(name, tun),
                watchdog.environment(),
            )
        };
        let planes = [start("dataplane")?, start(CONTROLPLANE)?];
        Ok(Self {
            planes,
            signals,
            terminal: Terminal::of_this_process(),
            watchdog,
        })
    }

    /// Waits for the next event; forwards notifications of the planes to the service manager.
    fn next_event(&mut self, timeout: Option<Duration>) -> anyhow::Result<Event> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut sources = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let socket = self.watchdog.socket();
        sources.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let planes = &self.planes;
        let plane_of = |pid| planes.iter().position(|plane| plane.pid() == Some(pid));
        self.watchdog.receive(Instant::now(), plane_of);
        let mut event = Event::Timeout;
        while let Some(info) = self.signals.read_signal().context("signals")? {
            let signal = i32::try_from(info.ssi_signo).unwrap_or(0);
            if signal == Signal::SIGCHLD as i32 {
                // A reload checks the children, too.
                if !matches!(event, Event::Reload) {
                    event = Event::ChildEnded;
                }
            } else if signal == Signal::SIGHUP as i32 && !self.terminal.is_hung_up() {
                event = Event::Reload;
            } else {
                return Ok(Event::Stop);
            }
        }
        Ok(event)
    }

    /// Waits until the node answers; `None` when it is stopped first.
    fn ready(&mut self, sockets: &Path) -> anyhow::Result<Option<Status>> {
        let client = Client::new(sockets.join("rpc.sock")).with_timeout(Duration::from_secs(2));
        let deadline = Instant::now() + START_TIMEOUT;
        let mut reload = false;
        loop {
            match self.next_event(Some(START_POLL))? {
                Event::Stop => return Ok(None),
                // The file may have changed since the planes read it.
                Event::Reload => reload = true,
                Event::ChildEnded | Event::Timeout => {}
            }
            let now = Instant::now();
            for plane in &mut self.planes {
                match plane.take_exit()? {
                    None => {}
                    Some(status) if is_shutdown(status) => return Ok(None),
                    // The plane has logged the cause.
                    Some(status) if status.code().is_some_and(|code| code != 0) => {
                        bail!("the {} could not start ({status})", plane.name)
                    }
                    // Killed, or starting over: nothing for the operator to fix.
                    Some(status) => plane.schedule(now, status.to_string()),
                }
            }
            self.start_due(now);
            match client.node_status() {
                Ok(status) if status.dataplane.is_some() => {
                    if reload {
                        self.reload();
                    }
                    return Ok(Some(status));
                }
                _ if Instant::now() < deadline => {}
                outcome => return Err(self.start_failure(outcome)),
            }
        }
    }

    /// The most specific cause of a start that timed out.
    fn start_failure(&self, outcome: Result<Status, ClientError>) -> anyhow::Error {
        let ended = self.planes.iter().find_map(Plane::last_end);
        let failure = match (ended, outcome) {
            (Some(ended), _) => anyhow::Error::msg(ended),
            (None, Err(error)) => error.into(),
            (None, Ok(_)) => anyhow::Error::msg("the control plane did not attach"),
        };
        failure.context("the node did not come up")
    }

    /// The control plane applies the configuration and signals the dataplane.
    fn reload(&self) {
        self.planes
            .iter()
            .filter(|plane| plane.name == CONTROLPLANE)
            .for_each(Plane::reload);
    }

    /// Restarts planes until the node is stopped.
    fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let event = self.next_event(self.timeout(Instant::now()))?;
            if matches!(event, Event::Stop) {
                return Ok(());
            }
            let now = Instant::now();
            for plane in &mut self.planes {
                match plane.take_exit()? {
                    None => {}
                    // `hyphae down`: the control plane has ended; stop the dataplane next.
                    Some(status) if is_shutdown(status) => return Ok(()),
                    Some(status) => plane.schedule(now, status.to_string()),
                }
            }
            self.start_due(now);
            if matches!(event, Event::Reload) {
                self.reload();
            }
        }
    }

    /// Restarts planes whose delay has passed; reports those that are down to the service manager.
    fn start_due(&mut self, now: Instant) {
        for (n, plane) in self.planes.iter_mut().enumerate() {
            if plane.restart_if_due(now) {
                self.watchdog.restarted(n);
            }
            let age = plane.age(now);
            self.watchdog.update(now, n, plane.down_reason(), age);
        }
    }

    /// Time until the next restart or watchdog deadline.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let due = self.planes.iter().filter_map(Plane::due);
        let due = due.map(|due| due.saturating_duration_since(now));
        due.chain(self.watchdog.timeout()).min()
    }

    /// Stops both planes. The control plane first: it notifies the peers through the dataplane.
    fn stop(&mut self) -> anyhow::Result<()> {
        self.watchdog.stopping();
        let [dataplane, controlplane] = &mut self.planes;
        controlplane.stop().and(dataplane.stop())
    }
}

/// Prints that the node is ready, with its addresses.
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
    let rpc = config
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
        "  rpc      {}, {rpc}",
        sockets.join("rpc.sock").display(),
    ))?;
    cli::line(format_args!("  metrics  {metrics}"))?;
    if status.peers == 0 {
        cli::line(
            "no peers yet: `hyphae peer add udp://HOST:PORT` adds one; other nodes reach this one at",
        )?;
        cli::line(format_args!(
            "  udp://THIS-HOST:{}#{}",
            ports[0], info.node_pubkey
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

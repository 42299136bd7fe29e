//! Start, wait, stop.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyphae_driver::tun;
use hyphae_notify::Notifier;
use hyphae_shm::{Doorbell, Layout, Segment};
use hyphae_time::monotonic;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::attach::Server;
use crate::device::Keeper;
use crate::error::{RunError, system};
use crate::open::HostParts;
use crate::options::Options;
use crate::threads::{Bells, Threads, duplicate};
use crate::watchdog::Watchdog;

/// Runs a dataplane until a signal ends it.
///
/// # Errors
/// When it cannot start, or a worker ends by itself. Errors name the likely cause and the remedy.
pub fn run(options: &Options) -> Result<(), RunError> {
    // Before any thread exists, so that signals reach the descriptor and no thread.
    let signals = block_signals()?;
    let host = HostParts::open(options)?;
    // At most 64 (Cores).
    let workers = host.cores.len() as u16;
    let (ports, kind, reason) = (host.ports(), host.kind, host.reason.clone());
    let (segment, memory) = Segment::create(Layout::new(workers))?;
    let bells = Arc::new(Bells::new(workers)?);
    let server = Server::listen(
        &options.socket_dir,
        segment.clone(),
        memory,
        duplicate(&bells.control)?,
        bells.worker_copies()?,
        host.hello(options),
    )?;
    let listener = host.stream_listener(options);
    let interface = host.tun.as_ref().map(tun::Tun::interface).transpose();
    let interface = interface.map_err(|source| RunError::System {
        call: "dup",
        source,
    })?;
    let mut keeper = Keeper::new(interface, bells.workers.clone()).map_err(system("eventfd"))?;
    let started = Threads::start(
        options,
        host,
        listener,
        &segment,
        &keeper,
        Arc::clone(&bells),
    );
    let (threads, watched) = started?;
    tracing::info!(
        workers,
        driver = %kind,
        reason,
        ports = ?ports,
        segment_locked = segment.is_locked(),
        "dataplane is up"
    );
    let begun = Arc::clone(&bells.begun);
    let mut watchdog = Watchdog::new(Notifier::from_environment(), watched, begun);
    let does = format!("{workers} workers ({kind}) on UDP {ports:?}");
    let waited = wait(
        server,
        &signals,
        &bells.ended,
        &mut watchdog,
        &mut keeper,
        &does,
    );
    watchdog.stopping();
    let stopped = threads.stop();
    waited.and(stopped)
}

fn block_signals() -> Result<SignalFd, RunError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let refused = |error: nix::Error| RunError::System {
        call: "signalfd",
        source: error.into(),
    };
    signals.thread_block().map_err(refused)?;
    SignalFd::new(&signals).map_err(refused)
}

/// Interval of checks that the socket file still exists.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Serves control planes until a signal comes or a worker ends.
fn wait(
    mut server: Server,
    signals: &SignalFd,
    ended: &Doorbell,
    watchdog: &mut Watchdog,
    keeper: &mut Keeper,
    does: &str,
) -> Result<(), RunError> {
    loop {
        server.restore();
        watchdog.poll(Instant::now());
        let has = if server.lease().is_some() {
            "control plane attached"
        } else {
            "no control plane: forwarding goes on with what the last one left"
        };
        watchdog.status(&format!("{does}; {has}"));
        let waits = [watchdog.wait(Instant::now()), keeper.poll(monotonic())];
        let timeout = waits
            .into_iter()
            .flatten()
            .fold(POLL_INTERVAL, Duration::min);
        let timeout = Timespec::try_from(timeout).ok();
        let readable = PollFlags::IN;
        let (ended_fd, listener) = (ended.as_fd(), server.listener());
        let (begun, lost) = (watchdog.begun().as_fd(), keeper.lost().as_fd());
        let mut fds = vec![
            PollFd::new(signals, readable),
            PollFd::new(&ended_fd, readable),
            PollFd::new(&listener, readable),
            PollFd::new(&begun, readable),
            PollFd::new(&lost, readable),
        ];
        let lease = server.lease();
        if let Some(lease) = &lease {
            fds.push(PollFd::new(lease, readable));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(system("poll")(error)),
        }
        let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if happened[0] || happened[1] {
            return Ok(());
        }
        if happened[4] {
            keeper.note_lost();
        }
        if happened.get(5) == Some(&true) {
            server.end_lease();
        }
        if happened[2] {
            server.admit();
        }
    }
}

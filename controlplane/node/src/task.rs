//! The engine task: waits for records, deadlines, requests and lookups, and runs a turn after each.
//!
//! A turn is the same with and without a dataplane: records of the workers, deadlines, services, then the output of
//! the engines into the rings. Without a dataplane there are no records and no room, and lookups and discovery wait.

use std::ops::ControlFlow;
use std::time::Duration;

use hyphae_shm::record::Punt;
use hyphae_time::monotonic;
use tokio::sync::mpsc;

use super::Node;
use super::alarm::Alarm;
use super::attachment::{ATTACH_RETRY, AttachLog, Attachment};
use super::command::Command;
use super::services::bus::BusRequest;
use super::services::{Input, NodeService, Turn};
use hyphae_host::discovery::DiscoveryEvent;
use hyphae_host::{Resolved, Watchdog};

/// Records of the workers per turn.
const PUNT_BUDGET: usize = 512;
/// Requests per turn.
const COMMAND_BUDGET: usize = 256;
/// Delay before a full program ring is tried again: a worker empties it within a turn.
const BACKLOG_RETRY: Duration = Duration::from_micros(50);
/// Longest wait between two turns.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Attempts to move the last records into the rings before the end, [`BACKLOG_RETRY`] apart.
const LAST_DRAINS_MAX: usize = 100;
/// Time for the workers to send the last records.
const LAST_SENDS: Duration = Duration::from_millis(20);

/// The engine task.
pub struct Task {
    node: Node,
    requests: Requests,
    watchdog: Watchdog,
    alarm: Alarm,
    attach_log: AttachLog,
    /// Whether the node has been attached and not been notified of the end since.
    attached: bool,
}

/// Receivers of requests.
pub(crate) struct Requests {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) bus: mpsc::Receiver<BusRequest>,
}

/// Why the wait between two turns has ended.
enum Wakeup {
    /// A deadline, or records of a worker.
    Due,
    Detached,
    Command(Option<Command>),
    Bus(BusRequest),
    Resolved(Resolved),
    Found(DiscoveryEvent),
    UnderlayChanged,
}

impl Task {
    pub(crate) fn new(node: Node, requests: Requests, watchdog: Watchdog) -> Self {
        Self {
            node,
            requests,
            watchdog,
            alarm: Alarm::new(),
            attach_log: AttachLog::default(),
            attached: false,
        }
    }

    /// Runs until a shutdown request, or until a dataplane needs other engines than these.
    pub async fn run(mut self, attachment: Attachment) {
        if self.attach(attachment).is_break() {
            return;
        }
        loop {
            if self.node.attachment.is_none() && self.reattach().await.is_break() {
                return;
            }
            let turn = self.turn();
            let pause = self.pause(turn);
            let wakeup = self.wait(pause).await;
            if let Some(attachment) = &mut self.node.attachment {
                attachment.wake();
            }
            if self.handle(wakeup).await.is_break() {
                return;
            }
        }
    }

    fn attach(&mut self, attachment: Attachment) -> ControlFlow<()> {
        if !self.node.fits(&attachment.hello) {
            tracing::warn!("the dataplane has other workers or ports; starting over");
            return ControlFlow::Break(());
        }
        self.attach_log = AttachLog::default();
        self.attached = true;
        self.node.attached(monotonic(), attachment);
        ControlFlow::Continue(())
    }

    /// Tries to attach again.
    async fn reattach(&mut self) -> ControlFlow<()> {
        if std::mem::take(&mut self.attached) {
            self.node.detached();
        }
        match Attachment::connect(&self.node.setup.socket_directory).await {
            Ok(attachment) => self.attach(attachment),
            Err(error) => {
                self.attach_log.refused(&error);
                ControlFlow::Continue(())
            }
        }
    }

    /// Runs everything that is due, and announces sleep to the workers unless there is more.
    fn turn(&mut self) -> Turn {
        let node = &mut self.node;
        let punts = take_punts(node);
        node.handle_timeout(monotonic());
        let mut turn = node.run_services(monotonic());
        if node.drain() {
            turn = turn.max(Turn::Blocked);
        }
        let now = monotonic();
        let Some(attachment) = &mut node.attachment else {
            self.watchdog
                .progress(now, || "waits for a dataplane".to_owned());
            return turn;
        };
        // Sleep is announced only when nothing is left: it costs a fence per worker.
        if turn == Turn::More || punts == PUNT_BUDGET || !attachment.sleep() {
            turn = Turn::More;
        }
        self.watchdog.ready();
        self.watchdog.progress(now, || node.status_line());
        turn
    }

    /// Time until the next turn at the latest.
    fn pause(&self, turn: Turn) -> Duration {
        if self.node.attachment.is_none() {
            return match self.attached {
                true => Duration::ZERO,
                false => ATTACH_RETRY,
            };
        }
        let now = monotonic();
        let due = self
            .node
            .poll_timeout()
            .map_or(WAIT_MAX, |at| at.since(now));
        let due = due.min(self.watchdog.poll_timeout().since(now));
        match turn {
            Turn::Idle => due,
            Turn::Blocked => due.min(BACKLOG_RETRY),
            Turn::More => Duration::ZERO,
        }
    }

    async fn wait(&mut self, pause: Duration) -> Wakeup {
        let (node, alarm) = (&mut self.node, &self.alarm);
        let attachment = node.attachment.as_ref();
        let attached = attachment.is_some();
        tokio::select! {
            biased;
            () = lease_ended(attachment) => Wakeup::Detached,
            command = self.requests.commands.recv() => Wakeup::Command(command),
            Some(request) = self.requests.bus.recv() => Wakeup::Bus(request),
            resolved = node.lookups.resolver.next(), if attached => Wakeup::Resolved(resolved),
            found = node.host.discovery.next(), if attached => Wakeup::Found(found),
            () = node.host.underlay.changed(), if attached => Wakeup::UnderlayChanged,
            wakeup = rung(attachment) => wakeup,
            () = sleep(alarm, pause) => Wakeup::Due,
        }
    }

    async fn handle(&mut self, wakeup: Wakeup) -> ControlFlow<()> {
        let (node, now) = (&mut self.node, monotonic());
        match wakeup {
            Wakeup::Due => {}
            Wakeup::Detached => node.attachment = None,
            Wakeup::Command(Some(command)) => return self.handle_commands(command).await,
            Wakeup::Command(None) => return ControlFlow::Break(()),
            Wakeup::Bus(request) => self.handle_bus(request),
            Wakeup::Resolved(resolved) => node.resolved(now, resolved),
            Wakeup::Found(found) => node.found(now, found),
            Wakeup::UnderlayChanged => node.underlay_changed(now),
        }
        ControlFlow::Continue(())
    }

    /// Handles the requests that wait; the turn after them runs once for all.
    async fn handle_commands(&mut self, mut command: Command) -> ControlFlow<()> {
        for _ in 0..COMMAND_BUDGET {
            if self.node.handle_command(monotonic(), command) {
                self.watchdog.stopping();
                self.leave().await;
                return ControlFlow::Break(());
            }
            let Ok(next) = self.requests.commands.try_recv() else {
                break;
            };
            command = next;
        }
        ControlFlow::Continue(())
    }

    /// The same for requests to the message bus.
    fn handle_bus(&mut self, mut request: BusRequest) {
        for _ in 0..COMMAND_BUDGET {
            let bus = &mut self.node.services.bus;
            bus.handle(monotonic(), Input::Request(request));
            let Ok(next) = self.requests.bus.try_recv() else {
                break;
            };
            request = next;
        }
    }

    /// Closes all sessions and leaves the dataplane.
    async fn leave(&mut self) {
        let node = &mut self.node;
        if node.attachment.is_none() {
            return;
        }
        node.overlay.shutdown(monotonic());
        for _ in 0..LAST_DRAINS_MAX {
            if !node.drain() {
                break;
            }
            tokio::time::sleep(BACKLOG_RETRY).await;
        }
        tokio::time::sleep(LAST_SENDS).await;
        if let Some(attachment) = &node.attachment {
            attachment.leave();
        }
    }
}

fn take_punts(node: &mut Node) -> usize {
    let mut taken = 0;
    while taken < PUNT_BUDGET {
        let Some(attachment) = &mut node.attachment else {
            break;
        };
        let Some((worker, code, len)) = attachment.pop() else {
            break;
        };
        taken += 1;
        let scratch = std::mem::take(&mut attachment.scratch);
        match Punt::parse(code, &scratch[..len]) {
            Some(punt) => node.handle_punt(monotonic(), worker, &punt),
            None => tracing::warn!(code, len, "unknown record of the dataplane; ignored"),
        }
        if let Some(attachment) = &mut node.attachment {
            attachment.scratch = scratch;
        }
    }
    if let Some(attachment) = &mut node.attachment {
        attachment.release();
    }
    taken
}

async fn lease_ended(attachment: Option<&Attachment>) {
    match attachment {
        Some(attachment) => attachment.lease_ended().await,
        None => std::future::pending().await,
    }
}

/// Waits until a worker rings.
async fn rung(attachment: Option<&Attachment>) -> Wakeup {
    match attachment {
        Some(attachment) => match attachment.rung().await {
            Ok(()) => Wakeup::Due,
            Err(_) => Wakeup::Detached,
        },
        None => std::future::pending().await,
    }
}

async fn sleep(alarm: &Alarm, pause: Duration) {
    if pause.is_zero() {
        tokio::task::yield_now().await;
    } else {
        alarm.sleep(pause).await;
    }
}

#[cfg(test)]
mod tests;

//! The loop of the engine task: waits for records, time, calls and names; after each, drains the
//! engines into the rings.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hyphae_shm::record::Punt;
use hyphae_time::monotonic;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::attach::{AttachFailure, Attachment, watch};
use crate::node::request::Command;
use crate::node::{BusDrained, Node};
use hyphae_host::Vigil;

/// Records taken from the workers before anything else gets a turn.
const PUNT_BUDGET: usize = 512;
/// Commands taken before anything else gets a turn.
const COMMAND_BUDGET: usize = 256;
/// How often attaching is tried.
const ATTACH_RETRY: Duration = Duration::from_millis(20);
/// How soon a full program ring is tried again: a worker empties it within a turn.
const BACKLOG_RETRY: Duration = Duration::from_micros(50);
/// Waits shorter than this need a finer clock than the runtime's, which counts milliseconds and rounds up.
const SHORT: Duration = Duration::from_millis(4);
/// How often a refusal to attach is logged.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(10);

/// Waiting for a dataplane: tries often, complains seldom.
#[derive(Default)]
pub(crate) struct Patience {
    complained: Option<tokio::time::Instant>,
}

impl Patience {
    pub(crate) async fn wait(&mut self, error: &AttachFailure) {
        let now = tokio::time::Instant::now();
        // At start the dataplane may need a moment.
        let first = self.complained.is_none() && matches!(error, AttachFailure::Absent(_));
        if !first && self.complained.is_none_or(|at| now - at >= COMPLAIN_AGAIN) {
            tracing::warn!(%error, "not attached to a dataplane; trying on");
            self.complained = Some(now);
        }
        self.complained.get_or_insert(now);
        tokio::time::sleep(ATTACH_RETRY).await;
    }
}

/// Sleeps as exactly as the kernel's timers.
struct Alarm {
    /// Missing where the kernel gave none; then the runtime's clock has to do.
    timer: Option<AsyncFd<OwnedFd>>,
}

impl Alarm {
    fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).ok();
        Self {
            timer: timer.and_then(|timer| watch(timer).ok()),
        }
    }

    async fn sleep(&self, wait: Duration) {
        let timer = self.timer.as_ref().filter(|_| wait < SHORT);
        let set = timer.filter(|timer| {
            let time = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec {
                    tv_sec: 0,
                    tv_nsec: wait.subsec_nanos().max(1).into(),
                },
            };
            timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &time).is_ok()
        });
        match set {
            Some(timer) => {
                // It is set anew each time, which takes back what it has said; an error ends the sleep.
                if let Ok(mut ready) = timer.readable().await {
                    ready.clear_ready();
                }
            }
            None => tokio::time::sleep(wait).await,
        }
    }
}

/// Runs until told to shut down.
pub(crate) async fn run(
    mut node: Node,
    attachment: Attachment,
    mut commands: mpsc::Receiver<Command>,
    mut vigil: Vigil,
) {
    let mut next = Some(attachment);
    let mut patience = Patience::default();
    loop {
        let attached = match next.take() {
            Some(attachment) => Ok(attachment),
            None => Attachment::connect(&node.socket_directory),
        };
        match attached {
            Ok(attachment) => {
                patience = Patience::default();
                if !node.fits(&attachment.hello) {
                    tracing::warn!("the dataplane has other workers or ports; starting over");
                    return;
                }
                node.attached(monotonic(), attachment);
                if serve(&mut node, &mut commands, &mut vigil).await {
                    return;
                }
                node.detached();
            }
            Err(error) => {
                tokio::select! {
                    () = patience.wait(&error) => {}
                    command = commands.recv() => {
                        if command.is_none_or(|command| node.handle_command(monotonic(), command)) {
                            vigil.stopping();
                            return;
                        }
                    }
                }
                // Deadlines of messages pass, and messages to this node itself arrive.
                node.handle_timeout(monotonic());
                node.drain_bus(monotonic());
                vigil.round(monotonic(), || "waits for a dataplane".to_owned());
            }
        }
    }
}

/// Works with one dataplane until it is gone. True when told to shut down.
async fn serve(node: &mut Node, commands: &mut mpsc::Receiver<Command>, vigil: &mut Vigil) -> bool {
    let alarm = Alarm::new();
    loop {
        let punts = take_punts(node);
        node.handle_timeout(monotonic());
        let bus = node.drain_bus(monotonic());
        let left = node.drain();
        vigil.ready();
        vigil.round(monotonic(), || node.in_a_line());
        let Some(attachment) = &mut node.attachment else {
            return false;
        };
        let more = bus == BusDrained::More || punts == PUNT_BUDGET || !attachment.sleep();
        let mut wait = node
            .poll_timeout()
            .map_or(Duration::from_secs(1), |at| at.since(monotonic()))
            .min(vigil.at().since(monotonic()));
        if left || bus == BusDrained::Blocked {
            wait = wait.min(BACKLOG_RETRY);
        }
        let pause = async {
            if more || wait.is_zero() {
                tokio::task::yield_now().await;
            } else {
                alarm.sleep(wait).await;
            }
        };
        let Some(attachment) = &node.attachment else {
            return false;
        };
        tokio::select! {
            biased;
            () = attachment.gone() => return false,
            command = commands.recv() => {
                let Some(mut command) = command else { return true };
                // What it leads to is done once for all that wait.
                for _ in 0..COMMAND_BUDGET {
                    if node.handle_command(monotonic(), command) {
                        vigil.stopping();
                        say_goodbye(node).await;
                        return true;
                    }
                    let Ok(next) = commands.try_recv() else { break };
                    command = next;
                }
            }
            resolved = node.resolver.next() => node.resolved(monotonic(), resolved),
            found = node.discovery.next() => node.found(monotonic(), found),
            () = node.underlay.changed() => node.underlay_changed(monotonic()),
            result = attachment.rung() => if result.is_err() { return false },
            () = pause => {}
        }
        if let Some(attachment) = &mut node.attachment {
            attachment.wake();
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
            None => tracing::warn!(code, len, "record of the dataplane is not known; ignored"),
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

/// Gives the last records a moment to reach the workers.
async fn say_goodbye(node: &mut Node) {
    node.overlay.shutdown(monotonic());
    for _ in 0..100 {
        if !node.drain() {
            break;
        }
        tokio::time::sleep(BACKLOG_RETRY).await;
    }
    // The workers send within a turn of taking them.
    tokio::time::sleep(Duration::from_millis(20)).await;
    if let Some(attachment) = &node.attachment {
        attachment.leave();
    }
}

//! One plane: its process and its restarts.
//!
//! A plane that ends is restarted without a limit: immediately the first time, then after a delay that doubles up to
//! [`DELAY_MAX`]. The other plane is not affected. A failed start counts as an end of the plane.

use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli;

/// Delay of the second consecutive restart.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// Longest delay.
const DELAY_MAX: Duration = Duration::from_secs(30);
/// Run time after which the count of consecutive restarts is reset.
const STABLE: Duration = DELAY_MAX;
/// Time limit for a plane to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// One plane: its running process, or the time of its next start.
pub(super) struct Plane {
    pub(super) name: &'static str,
    program: &'static str,
    line: Vec<String>,
    /// Variables of the notification socket.
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
    started: Instant,
    /// Time of the next start; `None` while it runs.
    due: Option<Instant>,
    /// Its last exit status, and the delay of the restart after that.
    ended: Option<(String, Duration)>,
    restarts: Restarts,
}

/// Counts restarts and computes their delays.
#[derive(Default)]
struct Restarts {
    consecutive: u32,
    total: u64,
}

impl Restarts {
    /// Counts a restart and returns its delay. `ran`: run time of the plane.
    fn next(&mut self, ran: Duration) -> Duration {
        if ran >= STABLE {
            self.consecutive = 0;
        }
        self.total += 1;
        self.consecutive += 1;
        match self.consecutive {
            1 => Duration::ZERO,
            n => DELAY_MIN
                .saturating_mul(2u32.saturating_pow(n - 2))
                .min(DELAY_MAX),
        }
    }
}

impl Plane {
    /// Starts a plane for the first time.
    pub(super) fn start(
        name: &'static str,
        line: Vec<String>,
        environment: Vec<(&'static str, String)>,
    ) -> anyhow::Result<Self> {
        let now = Instant::now();
        let mut plane = Self::new(name, "/proc/self/exe", line, now);
        plane.environment = environment;
        plane.spawn(now)?;
        Ok(plane)
    }

    /// A plane without a process.
    pub(super) fn new(
        name: &'static str,
        program: &'static str,
        line: Vec<String>,
        now: Instant,
    ) -> Self {
        Self {
            name,
            program,
            line,
            environment: Vec::new(),
            child: None,
            started: now,
            due: None,
            ended: None,
            restarts: Restarts::default(),
        }
    }

    fn spawn(&mut self, now: Instant) -> anyhow::Result<()> {
        let mut command = Command::new(self.program);
        if self.restarts.total > 0 {
            command.env(cli::RESTARTED, self.restarts.total.to_string());
        }
        // The node is one service: only the supervisor notifies the service manager.
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
        self.started = now;
        self.due = None;
        Ok(())
    }

    /// The exit status if the process has ended; returned once.
    pub(super) fn take_exit(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait().context("waiting for a plane")?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Schedules the restart of a plane that has ended.
    pub(super) fn schedule(&mut self, now: Instant, ended: String) {
        let delay = self.restarts.next(now - self.started);
        tracing::error!(
            plane = self.name,
            ended,
            restarts = self.restarts.total,
            delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            "plane ended; restarting it"
        );
        self.ended = Some((ended, delay));
        self.due = Some(now + delay);
    }

    /// Restarts the plane if its delay has passed; returns whether it did.
    pub(super) fn restart_if_due(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        // A failed attempt counts as a run of no time.
        self.started = now;
        match self.spawn(now) {
            Ok(()) => true,
            Err(error) => {
                self.schedule(now, format!("{error:#}"));
                false
            }
        }
    }

    /// Time of the next start.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Time since its last start.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now - self.started
    }

    /// Why it does not run, in one line; `None` while it runs.
    pub(super) fn down_reason(&self) -> Option<String> {
        self.due?;
        let (ended, delay) = self.ended.as_ref()?;
        let (name, restarts, delay) = (self.name, self.restarts.total, delay.as_secs_f64());
        Some(format!(
            "{name} is down ({ended}), restart {restarts} after {delay:.1} s"
        ))
    }

    /// Its last exit status, as an error message.
    pub(super) fn last_end(&self) -> Option<String> {
        let (ended, _) = self.ended.as_ref()?;
        Some(format!("the {} ended ({ended})", self.name))
    }

    /// Its process number while it runs.
    pub(super) fn pid(&self) -> Option<i32> {
        let child = self.child.as_ref()?;
        i32::try_from(child.id()).ok()
    }

    /// Sends SIGHUP: the plane reloads its configuration.
    pub(super) fn reload(&self) {
        if let Some(pid) = self.pid() {
            // A plane that has just ended reads it when it restarts.
            let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
        }
    }

    /// Stops it for good.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        self.due = None;
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        let pid = Pid::from_raw(i32::try_from(child.id()).context("process number")?);
        // It may have ended already.
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                let stopped = status.success() || is_shutdown(status);
                ensure!(stopped, "the {} ended with {status}", self.name);
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

/// Whether a plane ended because the node was asked to stop.
pub(super) fn is_shutdown(status: ExitStatus) -> bool {
    status.code() == Some(cli::SHUT_DOWN.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_delay_doubles_up_to_30_seconds_without_a_limit_of_restarts() {
        let mut restarts = Restarts::default();
        let crash = Duration::from_millis(10);
        let delays: Vec<_> = (0..100).map(|_| restarts.next(crash)).collect();
        let millis: Vec<_> = delays.iter().take(6).map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 100, 200, 400, 800, 1600]);
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(delays[12..].iter().all(|delay| *delay == DELAY_MAX));
        // After a stable run the delay is reset; the total is not.
        assert_eq!(restarts.next(STABLE), Duration::ZERO);
        assert_eq!((restarts.next(crash), restarts.total), (DELAY_MIN, 102));
    }

    #[test]
    fn a_failed_start_counts_as_a_restart() {
        // execve fails with a NUL in an argument.
        let line = vec!["\0".to_owned()];
        let mut plane = Plane::new("dataplane", "true", line, Instant::now());
        let mut now = plane.started;
        plane.schedule(now, "signal: 11".to_owned());
        for restarts in 2..20 {
            now = now.max(plane.due().unwrap());
            assert!(!plane.restart_if_due(now));
            assert_eq!(plane.restarts.total, restarts);
        }
        assert!(plane.due().unwrap() - now == DELAY_MAX);
        let reason = plane.down_reason().unwrap();
        assert!(reason.contains("starting the dataplane"), "{reason}");
        assert!(reason.contains("restart 19 after 30.0 s"), "{reason}");
        assert!(
            !plane.restart_if_due(now),
            "not before its delay has passed"
        );
        plane.stop().unwrap();
        assert!(plane.due().is_none());
    }
}

//! One plane: the process that runs it, and its restarts.
//!
//! A plane that ends is started again for as long as it takes: at once the first time, then with a delay that
//! doubles up to [`DELAY_MAX`]. The other plane is not touched. A start that fails counts as a plane that ended.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli;

/// Delay of the second restart in a row.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// Longest delay.
const DELAY_MAX: Duration = Duration::from_secs(30);
/// A plane that ran this long is no failed start: its next restart is the first of a row.
const STABLE: Duration = DELAY_MAX;
/// How long a plane may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// One plane: the process that runs it now, or when it is started again.
pub(super) struct Plane {
    pub(super) name: &'static str,
    line: Vec<String>,
    /// Where it sends notifications.
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
    started: Instant,
    /// When it is started again; `None` while it runs.
    due: Option<Instant>,
    /// How it ended the last time, and the delay before the start after that.
    ended: Option<(String, Duration)>,
    restarts: Restarts,
}

/// Restarts so far, and the delay before the next one.
#[derive(Default)]
struct Restarts {
    in_a_row: u32,
    total: u64,
}

impl Restarts {
    /// Counts one, and gives its delay. `ran`: how long the plane worked.
    fn next(&mut self, ran: Duration) -> Duration {
        if ran >= STABLE {
            self.in_a_row = 0;
        }
        self.total += 1;
        self.in_a_row += 1;
        match self.in_a_row {
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
        let mut plane = Self {
            name,
            line,
            environment,
            child: None,
            started: Instant::now(),
            due: None,
            ended: None,
            restarts: Restarts::default(),
        };
        plane.spawn()?;
        Ok(plane)
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let program = PathBuf::from("/proc/self/exe");
        let mut command = Command::new(program);
        if self.restarts.total > 0 {
            command.env(cli::RESTARTED, self.restarts.total.to_string());
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
        self.started = Instant::now();
        self.due = None;
        Ok(())
    }

    /// The exit status, once, if the process has ended.
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

    /// Plans the next start of a plane that does not run.
    pub(super) fn schedule(&mut self, now: Instant, ended: String) {
        let delay = self.restarts.next(now - self.started);
        tracing::error!(
            plane = self.name,
            ended,
            restarts = self.restarts.total,
            delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            "plane ended; starting it again"
        );
        self.ended = Some((ended, delay));
        self.due = Some(now + delay);
    }

    /// Starts it again when it is time for that; true when it did.
    pub(super) fn start_again(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        // For the rest of the row, an attempt that fails is a plane that worked for no time.
        self.started = now;
        match self.spawn() {
            Ok(()) => true,
            Err(error) => {
                self.schedule(now, format!("{error:#}"));
                false
            }
        }
    }

    /// When it is started again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How long it has been running.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now - self.started
    }

    /// In one line, why it does not run.
    pub(super) fn absence(&self) -> Option<String> {
        self.due?;
        let (ended, delay) = self.ended.as_ref()?;
        let (name, restarts, delay) = (self.name, self.restarts.total, delay.as_secs_f64());
        Some(format!(
            "{name} is down ({ended}), restart {restarts} after {delay:.1} s"
        ))
    }

    /// How it ended the last time.
    pub(super) fn last_end(&self) -> Option<String> {
        let (ended, _) = self.ended.as_ref()?;
        Some(format!("the {} ended ({ended})", self.name))
    }

    /// Process number, while it runs.
    pub(super) fn pid(&self) -> Option<i32> {
        let child = self.child.as_ref()?;
        i32::try_from(child.id()).ok()
    }

    /// Lets it read its configuration again.
    pub(super) fn reload(&self) {
        if let Some(pid) = self.pid() {
            // One that has ended just now reads it when it starts again.
            let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
        }
    }

    /// Ends it; it is not started again.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        self.due = None;
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

/// Whether a plane ended because the whole node is to end.
pub(super) fn is_shutdown(status: ExitStatus) -> bool {
    status.code() == Some(cli::SHUT_DOWN.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_go_on_with_a_delay_that_doubles_up_to_half_a_minute() {
        let mut restarts = Restarts::default();
        let crash = Duration::from_millis(10);
        let delays: Vec<_> = (0..100).map(|_| restarts.next(crash)).collect();
        let millis: Vec<_> = delays.iter().take(6).map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 100, 200, 400, 800, 1600]);
        assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(delays[12..].iter().all(|delay| *delay == DELAY_MAX));
        // What ran for a while starts at once again; the count goes on.
        assert_eq!(restarts.next(STABLE), Duration::ZERO);
        assert_eq!((restarts.next(crash), restarts.total), (DELAY_MIN, 102));
    }

    #[test]
    fn a_start_that_fails_is_an_attempt() {
        // The program cannot be started with a line that has a NUL in it.
        let mut plane = Plane {
            name: "dataplane",
            line: vec!["\0".to_owned()],
            environment: Vec::new(),
            child: None,
            started: Instant::now(),
            due: None,
            ended: None,
            restarts: Restarts::default(),
        };
        let mut now = plane.started;
        plane.schedule(now, "signal: 11".to_owned());
        for restarts in 2..20 {
            now = now.max(plane.due().unwrap());
            assert!(!plane.start_again(now));
            assert_eq!(plane.restarts.total, restarts);
        }
        assert!(plane.due().unwrap() - now == DELAY_MAX);
        let absence = plane.absence().unwrap();
        assert!(absence.contains("starting the dataplane"), "{absence}");
        assert!(absence.contains("restart 19 after 30.0 s"), "{absence}");
        assert!(!plane.start_again(now), "not before it is time");
        plane.stop().unwrap();
        assert!(plane.due().is_none());
    }
}

//! The measured program, and resource usage of processes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Path of the `hyphae` program: the given one, else the one beside this program.
pub(crate) fn hyphae(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let program = match named {
        Some(named) => named.to_owned(),
        None => std::env::current_exe()?.with_file_name("hyphae"),
    };
    ensure!(
        program.exists(),
        "{} does not exist: cargo build --release -p hyphae -p hyphae-bench",
        program.display()
    );
    Ok(program)
}

/// Fails without the privileges to create namespaces.
pub(crate) fn need_root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root"
    );
    Ok(())
}

/// Resource usage of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    at: Instant,
    /// Resident set size.
    pub(crate) resident_kib: u64,
    /// Private pages, without files and shared memory.
    pub(crate) anonymous_kib: u64,
    cpu: Duration,
    /// Voluntary context switches.
    wakeups: u64,
}

/// Usage of a process between two samples.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Activity {
    /// Of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) wakeups_per_second: f64,
}

impl Usage {
    pub(crate) fn until(&self, later: &Self) -> Activity {
        let seconds = later.at.duration_since(self.at).as_secs_f64().max(1e-9);
        let cpu = later.cpu.saturating_sub(self.cpu).as_secs_f64();
        Activity {
            cpu_percent: 100.0 * cpu / seconds,
            wakeups_per_second: later.wakeups.saturating_sub(self.wakeups) as f64 / seconds,
        }
    }
}

/// CPU time of a process, including ended threads.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let ended = || format!("process {pid} has ended");
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).with_context(ended)?;
    Ok(Duration::from(clock_gettime(clock).with_context(ended)?))
}

/// Reads the resource usage of a process.
pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let directory = Path::new("/proc").join(pid.to_string());
    let status = std::fs::read_to_string(directory.join("status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let mut wakeups = 0;
    for task in std::fs::read_dir(directory.join("task"))? {
        // The thread may have ended.
        let text = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        wakeups += field(&text, "voluntary_ctxt_switches").unwrap_or(0);
    }
    Ok(Usage {
        at: Instant::now(),
        resident_kib: field(&status, "VmRSS").context("VmRSS")?,
        anonymous_kib: field(&status, "RssAnon").context("RssAnon")?,
        cpu: cpu(pid)?,
        wakeups,
    })
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Busy time of all cores, including softirqs.
pub(crate) fn machine_busy() -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat")?;
    let fields: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
    // user nice system idle iowait irq softirq steal; a guest's time is in user already.
    let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else {
        anyhow::bail!("/proc/stat has times of the processor");
    };
    let ticks = user + nice + system + irq + softirq;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time_and_memory() {
        let before = usage(std::process::id()).expect("this process");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            std::hint::black_box(start);
        }
        let after = usage(std::process::id()).expect("this process");
        assert!(after.cpu > before.cpu && after.resident_kib > 0);
        assert!(machine_busy().expect("/proc/stat") > Duration::ZERO);
    }
}

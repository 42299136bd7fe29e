//! The two planes as processes.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyphae_config::{Config, Settings};
use hyphae_controlplane::{Exit, Reloader};
use hyphae_proxy::Plane;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::{NodeArgs, up};
use crate::log::SetLevel;

/// Set by the supervisor to its process number: the plane must not outlive it.
pub(crate) const SUPERVISED: &str = "HYPHAE_SUPERVISED";
/// Set by the supervisor: number of restarts of the plane.
pub(crate) const RESTARTED: &str = "HYPHAE_RESTARTED";
/// Exit code of a control plane that was asked to stop the node: the supervisor stops too.
pub(crate) const SHUT_DOWN: u8 = 20;

pub(crate) fn dataplane(args: &NodeArgs) -> anyhow::Result<()> {
    let (_, config, set_level) = start(args, Plane::Data)?;
    let (_, sockets) = args.directories()?;
    on_hangup({
        let args = args.clone();
        // The log level is the only setting that a running dataplane changes.
        move || match args.load() {
            Ok(config) => match set_level(&config.log_level) {
                Ok(()) => tracing::info!(level = config.log_level, "log level"),
                Err(error) => tracing::error!(error, "log level not changed"),
            },
            Err(error) => tracing::error!("configuration not reloaded: {error:#}"),
        }
    })?;
    let options = hyphae_dataplane::Options {
        listen: config.listen,
        stream_listen: config.stream.listen,
        cores: config.cores.parse().context("--cores")?,
        mark: config.underlay_mark,
        tun: config.tun,
        driver: config.driver.parse().context("--driver")?,
        poll_max: config.poll_max,
        socket_dir: sockets,
        busy_timeout: match std::env::var_os(RESTARTED) {
            Some(_) => Duration::from_secs(10),
            None => Duration::from_secs(3),
        },
    };
    Ok(hyphae_dataplane::run(&options)?)
}

pub(crate) fn controlplane(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    let (settings, _, set_log_level) = start(args, Plane::Control)?;
    let (state, sockets) = args.directories()?;
    // A file that was removed is an error; one that was created since is read.
    let (file, overrides, args) = (args.file(), args.overrides()?, args.clone());
    let reloader = Reloader {
        read: Arc::new(move || {
            let file = file.clone().or_else(|| args.file());
            up::read(file.as_deref(), &overrides)
        }),
        set_log_level,
        asked: Arc::default(),
    };
    let restarts = std::env::var(RESTARTED).ok();
    let restarts = restarts.and_then(|count| count.parse().ok());
    let asked = Arc::clone(&reloader.asked);
    on_hangup(move || asked.notify_one())?;
    let options = hyphae_controlplane::Options {
        settings,
        reloader,
        state_directory: state,
        socket_directory: sockets,
        shutdown: shutdown(),
        restarts: restarts.unwrap_or(0),
    };
    Ok(match hyphae_controlplane::run(options)? {
        Exit::Stopped => ExitCode::SUCCESS,
        Exit::ShutDown => ExitCode::from(SHUT_DOWN),
    })
}

/// Whether this process can stop the node, or else how to stop it.
fn shutdown() -> Result<(), String> {
    let supervisor = std::env::var(SUPERVISED).ok();
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // systemd would restart a service that stops by itself, or mark it as failed.
    let started = std::env::var("SYSTEMD_EXEC_PID").ok();
    let ours = [supervisor.clone(), Some(std::process::id().to_string())];
    let by_systemd = started.is_some() && ours.contains(&started);
    match (unit(&cgroup).filter(|_| by_systemd), supervisor) {
        (Some(unit), None) if unit.starts_with("hyphae-") => {
            Err("this node is run by systemd: `systemctl stop hyphae.target` stops it".to_owned())
        }
        (Some(unit), _) => Err(format!(
            "this node is run by systemd: `systemctl stop {unit}` stops it"
        )),
        (None, Some(_)) => Ok(()),
        (None, None) => Err(
            "this node was not started by `hyphae up`: stop the processes `hyphae controlplane` \
             and `hyphae dataplane`"
                .to_owned(),
        ),
    }
}

/// The innermost service in `/proc/PID/cgroup`, cgroups(7).
fn unit(cgroup: &str) -> Option<&str> {
    let mut parts = cgroup.lines().flat_map(|line| line.rsplit('/'));
    parts.find(|part| part.ends_with(".service"))
}

fn start(args: &NodeArgs, plane: Plane) -> anyhow::Result<(Settings, Config, SetLevel)> {
    // Before the first thread starts: the umask is per process, and threads inherit the signal mask.
    hyphae_files::clear_umask();
    hangup().thread_block().context("signals")?;
    end_with_parent()?;
    // Other nodes of this host recognise a plane by its name.
    plane.set_name().context("PR_SET_NAME")?;
    // Its memory holds keys: no core dumps, no ptrace by other processes of this user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("PR_SET_DUMPABLE")?;
    let settings = args.settings()?;
    let config = settings.config()?;
    let set_level = crate::log::start(&config)?;
    Ok((settings, config, set_level))
}

fn hangup() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGHUP);
    signals
}

/// Calls `then` at each SIGHUP, on a dedicated thread.
fn on_hangup(then: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let wait = move || {
        while hangup().wait().is_ok() {
            then();
        }
    };
    // The thread inherits this mask: no other signal is delivered to it.
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .context("signals")?;
    let thread = std::thread::Builder::new().name("reload".to_owned());
    let spawned = thread.spawn(wait).context("thread of SIGHUP");
    before.thread_set_mask().context("signals")?;
    spawned.map(drop)
}

/// Ends this process with its parent, if the parent set [`SUPERVISED`].
pub(crate) fn end_with_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(SUPERVISED) else {
        return Ok(());
    };
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).context("prctl")?;
    // The parent may have ended before the call above.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    anyhow::ensure!(
        now.as_deref() == parent.to_str(),
        "the supervisor has ended"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_service() {
        let session = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/node.service";
        assert_eq!(unit(session), Some("node.service"));
        assert_eq!(
            unit("0::/system.slice/hyphae.service\n"),
            Some("hyphae.service")
        );
        assert_eq!(unit("0::/user.slice/session-3.scope\n"), None);
    }
}

//! The two planes as processes of their own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyphae_controlplane::Reloader;
use hyphae_controlplane::config::{Config, Settings};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::{NodeArgs, up};
use crate::log::SetLevel;

/// Set by the supervisor: the plane is to end with it.
pub(crate) const SUPERVISED: &str = "HYPHAE_SUPERVISED";
/// Set by the supervisor: the plane replaces one that has ended just now.
pub(crate) const RESTARTED: &str = "HYPHAE_RESTARTED";

pub(crate) fn dataplane(args: &NodeArgs) -> anyhow::Result<()> {
    let (_, config, set_level) = start(args)?;
    let (_, sockets) = args.directories()?;
    on_hangup({
        let args = args.clone();
        // All that can change in a dataplane.
        move || match args.load() {
            Ok(config) => match set_level(&config.log_level) {
                Ok(()) => tracing::info!(level = config.log_level, "log level"),
                Err(error) => tracing::error!(error, "log level was not changed"),
            },
            Err(error) => tracing::error!("configuration was not read again: {error:#}"),
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
        patience: match std::env::var_os(RESTARTED) {
            Some(_) => Duration::from_secs(10),
            None => Duration::from_secs(3),
        },
    };
    Ok(hyphae_dataplane::run(&options)?)
}

pub(crate) fn controlplane(args: &NodeArgs) -> anyhow::Result<()> {
    let (settings, _, set_log_level) = start(args)?;
    let (state, sockets) = args.directories()?;
    // A file that was there and has gone is an error; one that was made since is read.
    let (file, overrides, args) = (args.file(), args.overrides()?, args.clone());
    let reloader = Reloader {
        read: Arc::new(move || {
            let file = file.clone().or_else(|| args.file());
            up::read(file.as_deref(), &overrides)
        }),
        set_log_level,
        asked: Arc::default(),
    };
    let asked = Arc::clone(&reloader.asked);
    on_hangup(move || asked.notify_one())?;
    let options = hyphae_controlplane::Options {
        settings,
        reloader,
        state_directory: state,
        socket_directory: sockets,
    };
    Ok(hyphae_controlplane::run(options)?)
}

fn start(args: &NodeArgs) -> anyhow::Result<(Settings, Config, SetLevel)> {
    // Both from before the first thread: a umask is the whole process's, and no thread is ended by a signal.
    hyphae_files::exact_modes();
    hangup().thread_block().context("signals")?;
    end_with_parent()?;
    // Keys are in its memory: no core dumps, and nobody but root looks into it.
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

/// Calls `then` at each SIGHUP, in a thread of its own.
fn on_hangup(then: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let wait = move || {
        while hangup().wait().is_ok() {
            then();
        }
    };
    // A thread inherits what its maker blocks. Other signals are for those who wait for them.
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .context("signals")?;
    let thread = std::thread::Builder::new().name("reload".to_owned());
    let spawned = thread.spawn(wait).context("thread of SIGHUP");
    before.thread_set_mask().context("signals")?;
    spawned.map(drop)
}

/// Ties this process to the one that started it, if that one asked for it.
pub(crate) fn end_with_parent() -> anyhow::Result<()> {
    let Some(parent) = std::env::var_os(SUPERVISED) else {
        return Ok(());
    };
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).context("prctl")?;
    // The parent may have died before the call above.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    anyhow::ensure!(now.as_deref() == parent.to_str(), "the supervisor is gone");
    Ok(())
}

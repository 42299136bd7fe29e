//! The two planes as processes of their own.

use std::time::Duration;

use anyhow::Context;
use hyphae_controlplane::config::Config;

use super::NodeArgs;

/// Set by the supervisor: the plane is to end with it.
pub(crate) const SUPERVISED: &str = "HYPHAE_SUPERVISED";
/// Set by the supervisor: the plane replaces one that has ended just now.
pub(crate) const RESTARTED: &str = "HYPHAE_RESTARTED";

pub(crate) fn dataplane(args: &NodeArgs) -> anyhow::Result<()> {
    let config = start(args)?;
    let (_, sockets) = args.directories()?;
    let options = hyphae_dataplane::Options {
        listen: config.listen,
        stream_listen: config.stream.listen,
        cores: config.cores.parse().context("--cores")?,
        tun: config.tun,
        driver: config.driver.parse().context("--driver")?,
        socket_dir: sockets,
        patience: match std::env::var_os(RESTARTED) {
            Some(_) => Duration::from_secs(10),
            None => Duration::from_secs(3),
        },
        receive_buffers: 32,
        transmit_buffers: 32,
    };
    Ok(hyphae_dataplane::run(&options)?)
}

pub(crate) fn controlplane(args: &NodeArgs) -> anyhow::Result<()> {
    let config = start(args)?;
    let (state, sockets) = args.directories()?;
    let options = hyphae_controlplane::Options {
        config,
        state_directory: state,
        socket_directory: sockets,
    };
    Ok(hyphae_controlplane::run(options)?)
}

fn start(args: &NodeArgs) -> anyhow::Result<Config> {
    end_with_parent()?;
    let config = args.load()?;
    crate::log::start(&config)?;
    Ok(config)
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

//! `hyphae lab`: a client, a relay and a server, real nodes in namespaces of their own, measured
//! through the relay. Everything it makes goes with it, however it ends: namespaces are anonymous
//! and held by threads of this process, node processes carry a parent-death signal, state is in a
//! temporary directory.

mod measure;
mod namespace;
mod nodes;
mod report;

use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

pub use namespace::Namespace;
pub use nodes::{Lab, LabNode, Spec};

/// What the lab is to do.
#[derive(Clone, Debug, Args)]
pub struct LabArgs {
    /// Seconds for all throughput measurements together.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// 'auto', 'uring' or 'epoll', for every node.
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// 'auto', 'chacha20-poly1305' or 'aes-256-gcm', for every node.
    #[arg(long, value_name = "SUITE")]
    pub suite: Option<String>,
    /// Largest packet of the overlay, for every node; links carry it [default: 1340, links of 1500].
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Cores of the relay's workers [default: the last core].
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Leave the lab running until interrupted, and print how to enter it.
    #[arg(long)]
    pub hold: bool,
}

/// Runs the lab.
pub(crate) fn run(args: &LabArgs, json: bool) -> anyhow::Result<()> {
    let spec = Spec {
        driver: args.driver.clone(),
        suite: args.suite.clone(),
        mtu: args.mtu,
        cores: [None, args.cores.clone(), None],
        ..Spec::default()
    };
    let mut progress = report::Progress::new(json);
    let root = rustix::process::geteuid().is_root();
    if !root {
        progress.note(
            "without root: three nodes on loopback, no TUN devices, messages of the lab's own \
             generator; run as root for TCP through namespaces",
        );
    }
    progress.step("starting client, relay and server");
    clean_up_when_interrupted()?;
    let lab = if root {
        Lab::namespaces(&spec)?
    } else {
        Lab::loopback(&spec)?
    };
    lab.wait_until_connected(Duration::from_secs(15))?;
    if args.hold {
        report::hold(&lab, json)?;
        std::thread::park();
    }
    let results = measure::all(&lab, Duration::from_secs(args.seconds), &mut progress)?;
    progress.finish();
    drop(lab);
    report::show(&results, json)
}

/// Waits for a signal on a thread of its own. The nodes end with this process (parent-death
/// signal), and with them namespaces and devices; only the temporary directory has to be removed
/// by hand.
fn clean_up_when_interrupted() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Blocked here, before any other thread exists, so that only the one below sees them.
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(move || {
            // It cannot fail with a valid set.
            let _ = signals.wait();
            if let Some(directory) = nodes::directory_in_use() {
                // Best effort: it holds nothing but state of nodes that are gone.
                let _ = std::fs::remove_dir_all(directory);
            }
            std::process::exit(130);
        })?;
    Ok(())
}

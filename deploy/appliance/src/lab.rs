//! `hyphae lab`: a client, a relay and a server, real nodes in network namespaces, measured through the relay.
//!
//! Everything it creates ends with it, also when it is killed: namespaces are anonymous and held by threads of this
//! process, node processes have a parent-death signal, state is in a temporary directory.

mod measure;
mod namespace;
mod nodes;
mod report;

use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

pub use namespace::Namespace;
pub use nodes::{Lab, LabNode, Spec};

/// Flags of `hyphae lab`.
#[derive(Clone, Debug, Args)]
pub struct LabArgs {
    /// Total time of the throughput measurements, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// 'auto', 'uring' or 'epoll', for every node.
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// 'auto', 'chacha20-poly1305' or 'aes-256-gcm', for every node.
    #[arg(long, value_name = "SUITE")]
    pub suite: Option<String>,
    /// MTU of the overlay, for every node; links are sized to match [default: 1340, links of 1500].
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Cores of the relay's workers [default: the last core].
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Keep the lab running until interrupted, and print how to enter it.
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
            "without root: three nodes on loopback without TUN devices, measured with probes of the nodes; run as \
             root for TCP through namespaces",
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

/// Removes the temporary directory on SIGINT and SIGTERM. The nodes end with this process (parent-death signal), and
/// with them namespaces and devices.
fn clean_up_when_interrupted() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before the first thread starts, so that only the thread below receives them.
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("interrupt".to_owned())
        .spawn(move || {
            // Cannot fail with a valid set.
            let _ = signals.wait();
            if let Some(directory) = nodes::directory_in_use() {
                // Best effort: state of nodes that end with this process.
                let _ = std::fs::remove_dir_all(directory);
            }
            std::process::exit(130);
        })?;
    Ok(())
}

//! `hyphae drain`: takes the node out of the paths of other nodes before maintenance, and back.

use std::time::{Duration, Instant};

use clap::Args;
use hyphae_rpc::method::DrainParams;
use serde_json::json;

use super::{NodeRef, output};

/// Interval between two readings of the transit counter.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Consecutive readings without transit after which the node counts as drained.
const QUIET_POLLS: u32 = 3;

#[derive(Clone, Debug, Args)]
pub(crate) struct DrainArgs {
    /// Carry transit traffic again. Until then the node stays drained, also across restarts.
    #[arg(long)]
    off: bool,
    /// Do not wait until transit traffic has stopped.
    #[arg(long, conflicts_with = "off")]
    no_wait: bool,
    /// Seconds to wait; the command fails when the node still carries transit traffic then.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    node: NodeRef,
}

pub(crate) fn run(args: &DrainArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let on = !args.off;
    client.node_drain(DrainParams { on })?;
    let mut carried = None;
    if on && !args.no_wait {
        carried = Some(wait(args, json)?);
    }
    if args.off && !json {
        output::line("carries transit traffic again")?;
    }
    let failure = carried.filter(|rate| *rate > 0.0).map(|rate| {
        format!(
            "still carries {rate:.0} frames/s after {} s: no other path exists for them (see `hyphae route \
             list`, and static routes of neighbours); stopping the node now drops them",
            args.timeout
        )
    });
    let document = json!({ "drained": on, "framesPerSecond": carried });
    output::outcome(document, failure, json)
}

/// Waits; returns the last rate of transit frames per second.
fn wait(args: &DrainArgs, json: bool) -> anyhow::Result<f64> {
    let client = args.node.client();
    let transit = || -> anyhow::Result<u64> {
        let counters = client.node_status()?.counters;
        Ok(counters.get("transit_packets").copied().unwrap_or(0))
    };
    let (start, mut quiet) = (Instant::now(), 0);
    let (mut at, mut before) = (start, transit()?);
    loop {
        std::thread::sleep(POLL_INTERVAL);
        let (now, total) = (Instant::now(), transit()?);
        // A restart of the dataplane resets the counter.
        let rate = total.saturating_sub(before) as f64 / (now - at).as_secs_f64();
        (at, before) = (now, total);
        quiet = if rate == 0.0 { quiet + 1 } else { 0 };
        let over = quiet == QUIET_POLLS || start.elapsed().as_secs() >= args.timeout;
        if !json {
            let seconds = start.elapsed().as_secs();
            output::line(format_args!("{seconds:>3} s  {rate:.0} transit frames/s"))?;
        }
        if over {
            return Ok(rate);
        }
    }
}

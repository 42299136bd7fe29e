//! `hyphae drain`: out of routing before maintenance, and back.

use std::time::{Duration, Instant};

use clap::Args;
use hyphae_rpc::method::{DrainParams, Status};
use serde_json::json;

use super::{NodeRef, output};

/// Time between looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row without transit that say that it is over.
const QUIET: u32 = 3;

#[derive(Clone, Debug, Args)]
pub(crate) struct DrainArgs {
    /// Carry others' traffic again. Until then the node stays drained, over restarts too.
    #[arg(long)]
    off: bool,
    /// Do not wait until the node carries nothing.
    #[arg(long, conflicts_with = "off")]
    no_wait: bool,
    /// How long to wait, seconds; fails when the node still carries something then.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    node: NodeRef,
}

pub(crate) fn run(args: &DrainArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let on = !args.off;
    let _: bool = client.call("node.drain", DrainParams { on })?;
    let mut carried = None;
    if on && !args.no_wait {
        carried = Some(wait(args, json)?);
    }
    if args.off && !json {
        output::line("carries others' traffic again")?;
    }
    let failure = carried.filter(|rate| *rate > 0.0).map(|rate| {
        format!(
            "still carries {rate:.0} frames/s after {} s: there is no other path for them (see `hyphae \
             route list`, and static routes of neighbours); stopping the node now cuts them off",
            args.timeout
        )
    });
    let document = json!({ "drained": on, "framesPerSecond": carried });
    output::outcome(document, failure, json)
}

/// Frames per second that the node carries for others in the end.
fn wait(args: &DrainArgs, json: bool) -> anyhow::Result<f64> {
    let client = args.node.client();
    let transit = || -> anyhow::Result<u64> {
        let status: Status = client.call("node.status", json!({}))?;
        let total = status.counters.get("transit_packets");
        Ok(total.copied().unwrap_or(0))
    };
    let (start, mut quiet) = (Instant::now(), 0);
    let (mut at, mut before) = (start, transit()?);
    loop {
        std::thread::sleep(LOOK);
        let (now, total) = (Instant::now(), transit()?);
        // The counters start over with the dataplane.
        let rate = total.saturating_sub(before) as f64 / (now - at).as_secs_f64();
        (at, before) = (now, total);
        quiet = if rate == 0.0 { quiet + 1 } else { 0 };
        let over = quiet == QUIET || start.elapsed().as_secs() >= args.timeout;
        if !json {
            let seconds = start.elapsed().as_secs();
            output::line(format_args!(
                "{seconds:>3} s  {rate:.0} frames/s for others"
            ))?;
        }
        if over {
            return Ok(rate);
        }
    }
}

//! `hyphae ping` and `hyphae trace`.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use clap::Args;
use hyphae_rpc::method::{PingParams, TraceHop, TraceOutcome, TraceParams};
use hyphae_rpc::{Client, ClientError};
use serde_json::json;

use super::{NodeRef, output};

/// Consecutive hops without an answer after which a trace ends.
const SILENT_MAX: u32 = 5;

#[derive(Clone, Debug, Args)]
pub(crate) struct PingArgs {
    /// Overlay address of the other node.
    address: Ipv6Addr,
    /// Number of probes.
    #[arg(long, short, default_value_t = 4)]
    count: u32,
    /// Time between probes, milliseconds.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// Time limit of each answer, milliseconds.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    #[command(flatten)]
    node: NodeRef,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TraceArgs {
    /// Overlay address of the other node.
    address: Ipv6Addr,
    /// Largest number of hops.
    #[arg(long, default_value_t = 30)]
    max_hops: u8,
    /// Probes per hop.
    #[arg(long, default_value_t = 3)]
    probes: u32,
    /// Time limit of each answer, milliseconds.
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    #[command(flatten)]
    node: NodeRef,
}

/// The result of a probe; `None` where no answer came in time.
fn answer<T>(result: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match result {
        Err(ClientError::Call(error)) if error.code == hyphae_rpc::code::NO_ANSWER => Ok(None),
        result => result.map(Some),
    }
}

pub(crate) fn ping(args: &PingArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let mut round_trips = Vec::new();
    for n in 0..args.count {
        let started = Instant::now();
        let pong = answer(client.node_ping(PingParams {
            address: args.address.to_string(),
            timeout_ms: args.timeout_ms,
        }))?;
        if !json {
            output::line(match &pong {
                Some(pong) => {
                    let ms = pong.rtt_micros as f64 / 1e3;
                    format!("{} answered in {ms:.3} ms", args.address)
                }
                None => format!("{}: no answer", args.address),
            })?;
        }
        round_trips.extend(pong.map(|pong| pong.rtt_micros));
        let rest = Duration::from_millis(args.interval_ms).saturating_sub(started.elapsed());
        if n + 1 < args.count {
            std::thread::sleep(rest);
        }
    }
    let (sent, received) = (args.count, round_trips.len());
    let mean = round_trips.iter().sum::<u64>().checked_div(received as u64);
    if !json {
        output::line(format_args!("{sent} sent, {received} answered"))?;
    }
    let document = json!({
        "address": args.address,
        "sent": sent,
        "received": received,
        "rttMicros": { "min": round_trips.iter().min(), "mean": mean, "max": round_trips.iter().max() },
    });
    let silent = received == 0 && sent > 0;
    let failure = silent.then(|| format!("{} does not answer", args.address));
    output::outcome(document, failure, json)
}

/// Probes hop after hop.
pub(crate) fn trace(args: &TraceArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let (mut hops, mut silent, mut end) = (Vec::new(), 0, None);
    for hop_limit in 1..=args.max_hops {
        let hop = probe_hop(&client, args, hop_limit)?;
        silent = if hop.is_some() { 0 } else { silent + 1 };
        if !json {
            output::line(match &hop {
                None => format!("{hop_limit:>3}  no answer"),
                Some(hop) => {
                    let ms = hop.rtt_micros as f64 / 1e3;
                    let (address, key) = (&hop.address, &hop.pubkey);
                    let outcome = outcome_text(hop.outcome);
                    format!("{hop_limit:>3}  {address}  {ms:.3} ms  {key}{outcome}")
                }
            })?;
        }
        end = hop.as_ref().map(|hop| hop.outcome);
        hops.push(json!({
            "hop": hop_limit,
            "address": hop.as_ref().map(|hop| &hop.address),
            "pubkey": hop.as_ref().map(|hop| &hop.pubkey),
            "outcome": end,
            "rttMicros": hop.as_ref().map(|hop| hop.rtt_micros),
        }));
        let forwarded = matches!(end, None | Some(TraceOutcome::HopLimit));
        if !forwarded || silent == SILENT_MAX {
            break;
        }
    }
    let reached = end == Some(TraceOutcome::Reached);
    let failure = (!reached).then(|| format!("the path to {} is incomplete", args.address));
    let document = json!({ "address": args.address, "reached": reached, "hops": hops });
    output::outcome(document, failure, json)
}

/// The last answer of a hop, with the shortest round-trip time of all probes.
fn probe_hop(
    client: &Client,
    args: &TraceArgs,
    hop_limit: u8,
) -> Result<Option<TraceHop>, ClientError> {
    let (mut last, mut best) = (None::<TraceHop>, u64::MAX);
    for _ in 0..args.probes {
        let hop = answer(client.node_trace(TraceParams {
            address: args.address.to_string(),
            hop_limit,
            timeout_ms: args.timeout_ms,
        }))?;
        if let Some(mut hop) = hop {
            best = best.min(hop.rtt_micros);
            hop.rtt_micros = best;
            last = Some(hop);
        }
    }
    Ok(last)
}

fn outcome_text(outcome: TraceOutcome) -> &'static str {
    match outcome {
        TraceOutcome::Reached | TraceOutcome::HopLimit => "",
        TraceOutcome::NoRoute => "  has no route",
        TraceOutcome::TooBig => "  MTU of the next link is too small",
    }
}

//! Commands that ask a running node.

use std::net::Ipv6Addr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use hyphae_rpc::ClientError;
use hyphae_rpc::method::{
    EndpointParams, Peer, PingParams, Pong, Route, RouteParams, StaticRoute, Status, TraceHop,
    TraceOutcome, TraceParams,
};
use hyphae_shm::stats::DropReason;
use rustix::io::Errno;
use serde_json::json;

use super::{NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// All peers, configured and inbound.
    #[command(after_help = "Examples:\n  hyphae peer list\n  hyphae peer list --json")]
    List(NodeRef),
    /// Connect to a peer, now and after every restart.
    #[command(
        after_help = "Examples:\n  hyphae peer add udp://192.0.2.1:9670#KEY\n  hyphae \
                            peer add tcp://192.0.2.1:443#KEY"
    )]
    Add {
        /// udp://HOST:PORT, or tcp://HOST:PORT for TCP only; optionally #KEY.
        endpoint: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Stop connecting to a peer and end the link.
    #[command(after_help = "Examples:\n  hyphae peer remove udp://192.0.2.1:9670")]
    Remove {
        /// udp://HOST:PORT or tcp://HOST:PORT, as it was added or as `hyphae peer list` shows it.
        endpoint: String,
        #[command(flatten)]
        node: NodeRef,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// Routes in use, wherever they come from, and static ones that are not.
    #[command(
        after_help = "Examples:\n  hyphae route list\n  hyphae route list --fallback\n  hyphae route list --json"
    )]
    List {
        /// Routes that neighbours offer and that are not in use, instead.
        #[arg(long)]
        fallback: bool,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Send packets for PREFIX to the node with this key or overlay address next.
    #[command(after_help = "Examples:\n  hyphae route add 400:1:2:3::/64 KEY")]
    Add {
        /// Destinations within the overlay, such as 400:1:2:3::/64.
        prefix: String,
        /// Public key of a peer, or overlay address.
        via: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Remove a static route.
    #[command(after_help = "Examples:\n  hyphae route remove 400:1:2:3::/64")]
    Remove {
        /// Destinations.
        prefix: String,
        /// Only the route with this next hop.
        via: Option<String>,
        #[command(flatten)]
        node: NodeRef,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct PingArgs {
    /// Overlay address of the other node.
    address: Ipv6Addr,
    /// How many.
    #[arg(long, short, default_value_t = 4)]
    count: u32,
    /// Time between two, milliseconds.
    #[arg(long, default_value_t = 1000)]
    interval_ms: u64,
    /// How long to wait for each answer, milliseconds.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    #[command(flatten)]
    node: NodeRef,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TraceArgs {
    /// Overlay address of the other node.
    address: Ipv6Addr,
    /// Hops to try at most.
    #[arg(long, default_value_t = 30)]
    max_hops: u8,
    /// Questions per hop.
    #[arg(long, default_value_t = 3)]
    probes: u32,
    /// How long to wait for each answer, milliseconds.
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
    #[command(flatten)]
    node: NodeRef,
}

/// Hops in a row that stay silent before a trace gives up.
const SILENT_MAX: u32 = 5;

/// Asks hop after hop who it is.
pub(crate) fn trace(args: &TraceArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let (mut hops, mut silent, mut end) = (Vec::new(), 0, None);
    for hop_limit in 1..=args.max_hops {
        let (mut answer, mut best) = (None::<TraceHop>, u64::MAX);
        for _ in 0..args.probes {
            let params = TraceParams {
                address: args.address.to_string(),
                hop_limit,
                timeout_ms: args.timeout_ms,
            };
            match client.call::<TraceHop>("node.trace", params) {
                Ok(hop) => {
                    best = best.min(hop.rtt_micros);
                    answer = Some(hop);
                }
                Err(ClientError::Call(error)) if error.code == hyphae_rpc::code::NO_ANSWER => {}
                Err(error) => return Err(error.into()),
            }
        }
        silent = if answer.is_some() { 0 } else { silent + 1 };
        if !json {
            output::line(match &answer {
                None => format!("{hop_limit:>3}  no answer"),
                Some(hop) => {
                    let ms = best as f64 / 1e3;
                    let said = said_of(hop.outcome);
                    let (address, key) = (&hop.address, &hop.pubkey);
                    format!("{hop_limit:>3}  {address}  {ms:.3} ms  {key}{said}")
                }
            })?;
        }
        end = answer.as_ref().map(|hop| hop.outcome);
        hops.push(json!({
            "hop": hop_limit,
            "address": answer.as_ref().map(|hop| &hop.address),
            "pubkey": answer.as_ref().map(|hop| &hop.pubkey),
            "outcome": end,
            "rttMicros": answer.as_ref().map(|_| best),
        }));
        let passed_on = matches!(end, None | Some(TraceOutcome::HopLimit));
        if !passed_on || silent == SILENT_MAX {
            break;
        }
    }
    let reached = end == Some(TraceOutcome::Reached);
    let failure = (!reached).then(|| format!("the path to {} ends before it", args.address));
    let document = json!({ "address": args.address, "reached": reached, "hops": hops });
    output::outcome(document, failure, json)
}

fn said_of(outcome: TraceOutcome) -> &'static str {
    match outcome {
        TraceOutcome::Reached | TraceOutcome::HopLimit => "",
        TraceOutcome::NoRoute => "  has no route",
        TraceOutcome::TooBig => "  next link is too small",
    }
}

pub(crate) fn status(node: &NodeRef, json: bool) -> anyhow::Result<()> {
    let status: Status = match node.client().call("node.status", json!({})) {
        Err(ClientError::Absent { place, source }) if is_listening(&node.socket_directory()) => {
            bail!(
                "the control plane does not answer at {place} ({source}); the dataplane runs, and forwards without \
                 it for up to three minutes; it is started again, and the log says how it ended"
            )
        }
        status => status?,
    };
    if json {
        return output::outcome(serde_json::to_value(&status)?, incomplete(&status), true);
    }
    let info = &status.info;
    output::line(format_args!(
        "hyphae {}  up {}",
        status.version,
        age(status.uptime)
    ))?;
    output::line(format_args!("key      {}", info.node_pubkey))?;
    output::line(format_args!("address  {}", info.node_ip))?;
    output::line(format_args!("subnet   {}", info.node_subnet))?;
    match &status.dataplane {
        None => output::line("dataplane  not attached")?,
        Some(plane) => {
            let workers = plane.workers.iter().map(|worker| match worker.core {
                Some(core) => format!("port {} on core {core}", worker.port),
                None => format!("port {}, not pinned", worker.port),
            });
            output::line(format_args!(
                "dataplane  pid {}, up {}, {} ({})",
                plane.pid,
                age(plane.uptime),
                plane.driver,
                plane.driver_reason
            ))?;
            output::line(format_args!(
                "workers  {}",
                workers.collect::<Vec<_>>().join("; ")
            ))?;
            output::line(format_args!(
                "tun      {}, MTU {}",
                plane.tun.as_deref().unwrap_or("none"),
                status.mtu
            ))?;
            if let Some(problem) = &status.host_problem {
                output::line(format_args!("PROBLEM  {problem}"))?;
            }
            output::line(format_args!(
                "attach   generation {}, control plane pid {}",
                plane.generation, status.pid
            ))?;
        }
    }
    let restarts = (status.controlplane_restarts, status.dataplane_restarts);
    if restarts != (0, 0) {
        output::line(format_args!(
            "restarts  control plane {}, dataplane {}: the log says how they ended",
            restarts.0, restarts.1
        ))?;
    }
    output::line(format_args!("suites   {}", status.suites.join(", ")))?;
    output::line(format_args!(
        "peers    {} up of {}; {} sessions; {} routes",
        status.peers_up, status.peers, status.sessions, status.routes
    ))?;
    if status.drained {
        output::line("drained  neighbours take other ways; `hyphae drain --off` ends it")?;
    }
    output::line("counters")?;
    for (name, n) in &status.counters {
        output::line(format_args!("  {name:<28} {n}"))?;
    }
    output::line("drops")?;
    for (name, n) in &status.drops {
        let mut reasons = DropReason::ALL.iter();
        let reason = reasons.find(|reason| reason.name() == name);
        let hint = reason.map_or("", |reason| reason.gloss());
        output::line(format!("  {name:<28} {n:<10} {hint}").trim_end())?;
    }
    incomplete(&status).map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
}

/// Whether a dataplane has its socket in a directory. It takes a peer that connects for a control plane, so this asks
/// with a socket of another type: unix(7), EPROTOTYPE where one is bound, ECONNREFUSED where none is.
pub(super) fn is_listening(directory: &Path) -> bool {
    let socket = directory.join("dataplane.sock");
    let refused = UnixDatagram::unbound().and_then(|probe| probe.connect(socket));
    refused.is_err_and(|error| error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()))
}

/// Why a node that answers does not do what it is for.
fn incomplete(status: &Status) -> Option<String> {
    let failure = "no dataplane is attached, so nothing is forwarded; the log says why";
    status.dataplane.is_none().then(|| failure.to_owned())
}

pub(crate) fn peer(command: PeerCommand, json: bool) -> anyhow::Result<()> {
    match command {
        PeerCommand::List(node) => {
            let peers: Vec<Peer> = node.client().call("getPeers", json!({}))?;
            if json {
                return output::document(&peers);
            }
            let none = || "-".to_owned();
            let row = |peer: &Peer| {
                vec![
                    peer.connection_state.clone(),
                    format!("{}://{}", peer.endpoint.proto, peer.endpoint.socket_addr),
                    peer.rtt_micros
                        .map_or_else(none, |us| format!("{:.2} ms", us as f64 / 1e3)),
                    peer.loss_permille
                        .map_or_else(none, |loss| format!("{:.1} %", f64::from(loss) / 10.0)),
                    format!("{}/{}", bytes(peer.tx_bytes), bytes(peer.rx_bytes)),
                    peer.suite.clone().unwrap_or_else(none),
                    format!("{}/{}", peer.lanes_active, peer.lanes),
                    peer.last_connected.map_or_else(none, age),
                    peer.kind.clone(),
                    match (&peer.pubkey, &peer.name) {
                        (Some(key), Some(name)) => format!("{key} ({name})"),
                        (Some(key), None) => key.clone(),
                        (None, _) => none(),
                    } + &duplicate(peer),
                    peer.error.clone().unwrap_or_else(none),
                ]
            };
            let heads = [
                "STATE", "ENDPOINT", "RTT", "LOSS", "TX/RX", "SUITE", "LANES", "SINCE", "TYPE",
                "KEY", "ERROR",
            ];
            output::table(&heads, &peers.iter().map(row).collect::<Vec<_>>())?;
            Ok(())
        }
        PeerCommand::Add { endpoint, node } => {
            let done: bool = node.client().call("addPeer", EndpointParams { endpoint })?;
            said(done, json)
        }
        PeerCommand::Remove { endpoint, node } => {
            let done: bool = node
                .client()
                .call("deletePeer", EndpointParams { endpoint })?;
            said(done, json)
        }
    }
}

/// What the list says of two hosts with one key.
fn duplicate(peer: &Peer) -> String {
    let Some(found) = &peer.duplicate else {
        return String::new();
    };
    let finding = if found.own {
        "DUPLICATE, as it says: this node's key"
    } else {
        "DUPLICATE: this key"
    };
    let places = found.places.join(" and ");
    format!(" {finding} is on two hosts, {places}")
}

const ROUTE_COLUMNS: [&str; 4] = ["PREFIX", "NEXT HOP", "METRIC", "ORIGIN"];

/// A line of the table of routes.
fn row(route: &Route) -> Vec<String> {
    let more = route.next_hops.len().saturating_sub(1);
    let next_hop = match more {
        0 => route.next_hop.clone(),
        more => format!("{} (+{more})", route.next_hop),
    };
    let metric = route.metric.to_string();
    vec![route.subnet.clone(), next_hop, metric, route.origin.clone()]
}

pub(crate) fn route(command: RouteCommand, json: bool) -> anyhow::Result<()> {
    match command {
        RouteCommand::List {
            fallback: true,
            node,
        } => {
            let routes: Vec<Route> = node.client().call("getFallbackRoutes", json!({}))?;
            if json {
                return output::document(&routes);
            }
            let rows: Vec<_> = routes.iter().map(row).collect();
            output::table(&ROUTE_COLUMNS, &rows)?;
            Ok(())
        }
        RouteCommand::List {
            fallback: false,
            node,
        } => {
            let client = node.client();
            let selected: Vec<Route> = client.call("getSelectedRoutes", json!({}))?;
            let configured: Vec<StaticRoute> = client.call("route.list", json!({}))?;
            if json {
                return output::document(&json!({ "selected": selected, "static": configured }));
            }
            let used = selected.iter().map(row);
            let unused = configured
                .iter()
                .filter(|route| !route.reachable)
                .map(|route| {
                    let state = "static, next hop is down".to_owned();
                    vec![
                        route.prefix.clone(),
                        route.via.clone(),
                        "-".to_owned(),
                        state,
                    ]
                });
            let rows: Vec<_> = used.chain(unused).collect();
            output::table(&ROUTE_COLUMNS, &rows)?;
            Ok(())
        }
        RouteCommand::Add { prefix, via, node } => {
            let params = RouteParams {
                prefix,
                via: Some(via),
            };
            said(node.client().call("route.add", params)?, json)
        }
        RouteCommand::Remove { prefix, via, node } => said(
            node.client()
                .call("route.remove", RouteParams { prefix, via })?,
            json,
        ),
    }
}

pub(crate) fn ping(args: &PingArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let (mut round_trips, mut lost) = (Vec::new(), 0u32);
    for n in 0..args.count {
        let started = Instant::now();
        let params = PingParams {
            address: args.address.to_string(),
            timeout_ms: args.timeout_ms,
        };
        match client.call::<Pong>("node.ping", params) {
            Ok(pong) => {
                if !json {
                    let ms = pong.rtt_micros as f64 / 1e3;
                    output::line(format_args!("{} answered in {ms:.3} ms", args.address))?;
                }
                round_trips.push(pong.rtt_micros);
            }
            Err(ClientError::Call(error)) if error.code == hyphae_rpc::code::NO_ANSWER => {
                lost += 1;
                if !json {
                    output::line(format_args!("{}: no answer", args.address))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        let rest = Duration::from_millis(args.interval_ms).saturating_sub(started.elapsed());
        if n + 1 < args.count {
            std::thread::sleep(rest);
        }
    }
    let (sent, received) = (args.count, args.count - lost);
    let mean = round_trips
        .iter()
        .sum::<u64>()
        .checked_div(round_trips.len() as u64);
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

pub(crate) fn said(done: bool, json: bool) -> anyhow::Result<()> {
    if json {
        return output::document(&json!({ "changed": done }));
    }
    Ok(output::line(if done {
        "done"
    } else {
        "nothing to change"
    })?)
}

fn age(seconds: u64) -> String {
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{s:02}s"),
        (0, ..) => format!("{h}h{m:02}m"),
        _ => format!("{d}d{h:02}h"),
    }
}

fn bytes(n: u64) -> String {
    let mut scaled = n as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{n} B")
    } else {
        format!("{scaled:.1} {unit}")
    }
}

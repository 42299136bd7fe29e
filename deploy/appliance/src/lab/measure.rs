//! Measurements of the lab, over ordinary sockets of the hosts.

mod generator;

use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::report::Progress;
use super::{Lab, LabNode};

/// Time limit for a new control plane to attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);

/// All results.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    pub(crate) driver: String,
    pub(crate) suite: Option<String>,
    pub(crate) with_tun: bool,
    /// Round trip of `hyphae ping`, microseconds.
    pub(crate) probe_rtt_micros: Percentiles,
    /// Round trip of 64-byte UDP packets between the hosts, microseconds.
    pub(crate) udp_rtt_micros: Option<Percentiles>,
    pub(crate) tcp: Vec<Tcp>,
    pub(crate) small_packets: Option<SmallPackets>,
    pub(crate) messages: Option<Messages>,
    pub(crate) control_plane_kill: ControlPlaneKill,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) samples: usize,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tcp {
    pub(crate) direction: &'static str,
    pub(crate) streams: usize,
    pub(crate) gbit_per_second: f64,
    /// CPU time of the relay's dataplane.
    pub(crate) relay_cpu_seconds_per_gigabyte: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SmallPackets {
    pub(crate) payload_bytes: usize,
    pub(crate) offered_per_second: f64,
    pub(crate) delivered_per_second: f64,
    pub(crate) loss_percent: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Messages {
    pub(crate) answered_per_second: f64,
    pub(crate) lost: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ControlPlaneKill {
    /// Probe packets sent while the control plane was killed and restarted.
    pub(crate) packets_sent: u64,
    pub(crate) packets_lost: u64,
    pub(crate) longest_gap_millis: Option<f64>,
    /// TCP through the relay meanwhile: mean and worst 100 ms.
    pub(crate) tcp_gbit_per_second: Option<f64>,
    pub(crate) tcp_worst_100ms_gbit_per_second: Option<f64>,
    /// From the kill until the new control plane has attached.
    pub(crate) reattached_after_millis: f64,
    /// Handshakes of the relay caused by the kill.
    pub(crate) handshakes_caused: u64,
}

/// Runs all measurements that this lab supports.
pub(crate) fn all(lab: &Lab, budget: Duration, progress: &mut Progress) -> anyhow::Result<Results> {
    let status = lab.relay.status()?;
    let peers = lab.relay.client.get_peers()?;
    progress.step("round trips");
    let probe_rtt_micros = probes(lab, 200)?;
    let mut results = Results {
        driver: status
            .dataplane
            .map(|plane| plane.driver)
            .unwrap_or_default(),
        suite: peers.iter().find_map(|peer| peer.suite.clone()),
        with_tun: lab.namespaces.is_some(),
        probe_rtt_micros,
        udp_rtt_micros: None,
        tcp: Vec::new(),
        small_packets: None,
        messages: None,
        control_plane_kill: ControlPlaneKill {
            packets_sent: 0,
            packets_lost: 0,
            longest_gap_millis: None,
            tcp_gbit_per_second: None,
            tcp_worst_100ms_gbit_per_second: None,
            reattached_after_millis: 0.0,
            handshakes_caused: 0,
        },
    };
    // Four TCP runs, one of small packets, one with the kill of the control plane.
    let slice = budget / 6;
    if lab.namespaces.is_some() {
        results.udp_rtt_micros = Some(generator::udp_round_trips(lab, 2000)?);
        for (to_server, streams) in [(true, 1), (false, 1), (true, 4), (false, 4)] {
            let direction = if to_server {
                "client to server"
            } else {
                "server to client"
            };
            progress.step(&format!("TCP, {direction}, {streams} streams"));
            results
                .tcp
                .push(tcp(lab, to_server, streams, slice, direction)?);
        }
        progress.step("small UDP packets");
        results.small_packets = Some(generator::small_packets(lab, slice)?);
    } else {
        progress.step("messages");
        results.messages = Some(generator::messages(lab, slice * 4)?);
    }
    progress.step("killing the relay's control plane");
    results.control_plane_kill = control_plane_kill(lab, slice.max(Duration::from_secs(2)))?;
    Ok(results)
}

fn probes(lab: &Lab, count: usize) -> anyhow::Result<Percentiles> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let rtt = lab
            .client
            .ping(lab.server.address(), Duration::from_secs(2))?;
        samples.push(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
    }
    Ok(percentiles(samples))
}

pub(crate) fn percentiles(mut samples: Vec<u64>) -> Percentiles {
    samples.sort_unstable();
    let at = |part: usize| samples.get((samples.len() * part / 100).min(samples.len().max(1) - 1));
    let value = |part| at(part).copied().unwrap_or(0);
    Percentiles {
        p50: value(50),
        p99: value(99),
        samples: samples.len(),
    }
}

fn tcp(
    lab: &Lab,
    to_server: bool,
    streams: usize,
    time: Duration,
    direction: &'static str,
) -> anyhow::Result<Tcp> {
    let before = dataplane_cpu(&lab.relay)?;
    let flow = generator::Transfer::start(lab, to_server, streams)?;
    let (bytes, took) = flow.run(time)?;
    let cpu = dataplane_cpu(&lab.relay)?.saturating_sub(before);
    let gigabytes = bytes as f64 / 1e9;
    Ok(Tcp {
        direction,
        streams,
        gbit_per_second: gigabytes * 8.0 / took.as_secs_f64(),
        relay_cpu_seconds_per_gigabyte: cpu.as_secs_f64() / gigabytes.max(1e-9),
    })
}

/// CPU time of a node's dataplane process.
fn dataplane_cpu(node: &LabNode) -> anyhow::Result<Duration> {
    let pid = node
        .status()?
        .dataplane
        .map(|plane| plane.pid)
        .context("a dataplane")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): utime and stime are fields 14 and 15; the name, field 2, may contain spaces.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<u64>().ok());
    let sum = ticks(12).zip(ticks(13)).map(|(user, system)| user + system);
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(
        sum.context("CPU time")? as f64 / per_second as f64,
    ))
}

/// Kills the relay's control plane while TCP and a paced stream of probes run.
fn control_plane_kill(lab: &Lab, time: Duration) -> anyhow::Result<ControlPlaneKill> {
    let before = lab.relay.status()?;
    let generation = before
        .dataplane
        .as_ref()
        .map_or(0, |plane| plane.generation);
    let handshakes_before = handshakes(lab)?;
    let transfer = match lab.namespaces {
        Some(_) => Some(generator::Transfer::start(lab, true, 1)?),
        None => None,
    };
    let transfer = transfer.map(generator::Transfer::spawn);
    let paced = generator::Paced::start(lab)?;
    std::thread::sleep(time / 3);
    let killed = Instant::now();
    lab.relay.kill(before.pid)?;
    let reattached = loop {
        let attached = lab.relay.status().ok().and_then(|status| status.dataplane);
        if attached.is_some_and(|plane| plane.generation > generation) {
            break killed.elapsed();
        }
        anyhow::ensure!(
            killed.elapsed() < ATTACH_TIMEOUT,
            "the control plane was not restarted"
        );
        std::thread::sleep(Duration::from_millis(2));
    };
    std::thread::sleep(time.saturating_sub(time / 3 + reattached));
    let paced = paced.stop()?;
    let transfer = transfer.map(|running| running.stop()).transpose()?;
    let handshakes_after = handshakes(lab)?;
    Ok(ControlPlaneKill {
        packets_sent: paced.sent,
        packets_lost: paced.sent.saturating_sub(paced.received),
        longest_gap_millis: paced.longest_gap.map(|gap| gap.as_secs_f64() * 1e3),
        tcp_gbit_per_second: transfer.as_ref().map(|result| result.mean),
        tcp_worst_100ms_gbit_per_second: transfer.as_ref().map(|result| result.worst),
        reattached_after_millis: reattached.as_secs_f64() * 1e3,
        handshakes_caused: handshakes_after.saturating_sub(handshakes_before),
    })
}

/// Handshakes that client and server completed with the relay. The relay's own counter is reset with its control plane.
fn handshakes(lab: &Lab) -> anyhow::Result<u64> {
    let mut sum = 0;
    for node in [&lab.client, &lab.server] {
        let peers = node.client.get_peers()?;
        sum += peers.iter().map(|peer| peer.handshakes).sum::<u64>();
    }
    Ok(sum)
}

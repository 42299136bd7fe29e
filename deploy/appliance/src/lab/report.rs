//! Progress and results of the lab.

use std::io::IsTerminal;
use std::time::Instant;

use serde_json::json;

use super::Lab;
use super::measure::{ControlPlaneKill, Percentiles, Results};
use crate::cli;

/// Progress on standard error: one live line on a terminal, plain lines elsewhere.
pub(crate) struct Progress {
    live: bool,
    quiet: bool,
    started: Instant,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        let live = std::io::stderr().is_terminal();
        Self {
            live,
            quiet: json && !live,
            started: Instant::now(),
        }
    }

    pub(crate) fn note(&mut self, text: &str) {
        if !self.quiet {
            cli::notice(text);
        }
    }

    pub(crate) fn step(&mut self, what: &str) {
        let at = self.started.elapsed().as_secs_f64();
        if self.live {
            cli::progress(format_args!("[{at:5.1} s] {what} ..."));
        } else if !self.quiet {
            cli::notice(format_args!("[{at:5.1} s] {what}"));
        }
    }

    pub(crate) fn finish(&mut self) {
        if self.live {
            cli::progress("");
        }
    }
}

/// Prints how to enter the lab.
pub(crate) fn hold(lab: &Lab, json: bool) -> anyhow::Result<()> {
    let nodes = [&lab.client, &lab.relay, &lab.server];
    if json {
        let nodes = nodes.map(|node| {
            let (address, run) = (node.address(), node.directory().join("run"));
            let pid = node.status()?.pid;
            anyhow::Ok(json!({ "name": node.name, "address": address, "pid": pid, "sockets": run }))
        });
        let nodes: anyhow::Result<Vec<_>> = nodes.into_iter().collect();
        return cli::document(&json!({ "nodes": nodes? }));
    }
    for node in nodes {
        let status = node.status()?;
        cli::line(format_args!(
            "{:<7} {}  control plane pid {}  sockets {}",
            node.name,
            node.address(),
            status.pid,
            node.directory().join("run").display()
        ))?;
    }
    cli::line("enter a namespace with: nsenter --net=/proc/PID/ns/net; Ctrl-C ends the lab")?;
    Ok(())
}

pub(crate) fn show(results: &Results, json: bool) -> anyhow::Result<()> {
    if json {
        return cli::document(results);
    }
    let mut rows = Vec::new();
    let mut row = |what: String, value: String, note: String| rows.push(vec![what, value, note]);
    let rtt = |p: &Percentiles| format!("{} µs p50, {} µs p99", p.p50, p.p99);
    row(
        "hyphae ping".into(),
        rtt(&results.probe_rtt_micros),
        String::new(),
    );
    if let Some(udp) = &results.udp_rtt_micros {
        row(
            "UDP round trip".into(),
            rtt(udp),
            "between the hosts".into(),
        );
    }
    for tcp in &results.tcp {
        row(
            format!("TCP {} x{}", tcp.direction, tcp.streams),
            format!("{:.2} Gbit/s", tcp.gbit_per_second),
            format!("relay {:.2} CPU s/GB", tcp.relay_cpu_seconds_per_gigabyte),
        );
    }
    if let Some(small) = &results.small_packets {
        row(
            format!("UDP {} B", small.payload_bytes),
            format!("{:.0} packets/s", small.delivered_per_second),
            format!(
                "{:.1} % of {:.0}/s lost",
                small.loss_percent, small.offered_per_second
            ),
        );
    }
    if let Some(messages) = &results.messages {
        row(
            "messages".into(),
            format!("{:.0} answered/s", messages.answered_per_second),
            format!("{} lost", messages.lost),
        );
    }
    rows.extend(kill_rows(&results.control_plane_kill));
    let suite = results.suite.as_deref().unwrap_or("unknown suite");
    cli::line(format_args!("driver {}, {suite}", results.driver))?;
    cli::table(&["WHAT", "RESULT", ""], &rows)?;
    Ok(())
}

fn kill_rows(kill: &ControlPlaneKill) -> Vec<Vec<String>> {
    let gap = kill.longest_gap_millis;
    let gap = gap.map_or_else(String::new, |gap| format!("longest gap {gap:.1} ms, "));
    let mut rows = vec![vec![
        "control plane killed".into(),
        format!(
            "{} of {} packets lost",
            kill.packets_lost, kill.packets_sent
        ),
        format!(
            "back after {:.0} ms, {gap}{} handshakes",
            kill.reattached_after_millis, kill.handshakes_caused
        ),
    ]];
    if let (Some(mean), Some(worst)) = (
        kill.tcp_gbit_per_second,
        kill.tcp_worst_100ms_gbit_per_second,
    ) {
        rows.push(vec![
            "  TCP meanwhile".into(),
            format!("{mean:.2} Gbit/s"),
            format!("worst 100 ms: {worst:.2} Gbit/s"),
        ]);
    }
    rows
}

//! Scaling of the routing protocol: meshes of real engines in virtual time.
//!
//! Every row runs in a process of its own, so that memory retained by the allocator does not count for the next.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args as ClapArgs;
use hyphae_test_sim::measure::{self, Case};
use hyphae_test_sim::{NodeId, Shape};
use serde::{Deserialize, Serialize};

use crate::output::{self, Document, Table, number};

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Nodes of each mesh, 2 to 65,535.
    #[arg(long, value_delimiter = ',', default_value = "100,1000", value_parser = clap::value_parser!(NodeId).range(2..))]
    nodes: Vec<NodeId>,
    /// Topologies: ring, lattice, random, scale-free, grid.
    #[arg(long = "shape", value_delimiter = ',', default_value = "random")]
    shapes: Vec<Shape>,
    /// Maximum number of nodes that announce their prefix; the others only relay. Memory grows with nodes times
    /// announcements: 0.8 GB for a million [default: all]
    #[arg(long, value_parser = clap::value_parser!(NodeId).range(1..))]
    announcing: Option<NodeId>,
    /// Seed of keys, links, delays and times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds of virtual time over which the idle mesh is observed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
}

/// One mesh. Packets, bytes and updates are per node; times are virtual but for the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    shape: String,
    nodes: NodeId,
    links: usize,
    announcing: NodeId,
    seed: u64,
    /// From the first start until the last session was up.
    sessions_seconds: f64,
    /// From the first start until all pairs had routes.
    convergence_seconds: f64,
    /// From the first start until the last route change before two seconds without one.
    settled_seconds: f64,
    /// Until all pairs had routes.
    packets: f64,
    bytes: f64,
    updates: f64,
    idle_packets_per_second: f64,
    idle_bytes_per_second: f64,
    /// Growth of the process, per node.
    memory_bytes: f64,
    wall_seconds: f64,
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    let (nodes, shapes) = (&args.nodes[..], &args.shapes[..]);
    if let ([nodes], [shape]) = (nodes, shapes) {
        return show(&[row(args, *nodes, *shape)?], json);
    }
    let mut rows = Vec::new();
    for shape in shapes {
        for nodes in nodes {
            rows.push(in_own_process(args, *nodes, *shape)?);
        }
    }
    show(&rows, json)
}

/// Runs this program again for one row.
fn in_own_process(args: &Args, nodes: NodeId, shape: Shape) -> anyhow::Result<Row> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(["mesh", "--json", "--shape", shape.name()]);
    for (name, value) in [
        ("--nodes", u64::from(nodes)),
        ("--seed", args.seed),
        ("--idle", u64::from(args.idle)),
    ] {
        command.args([name, &value.to_string()]);
    }
    if let Some(announcing) = args.announcing {
        command.args(["--announcing", &announcing.to_string()]);
    }
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("cannot run this program again")?;
    ensure!(
        output.status.success(),
        "the run with {nodes} nodes failed ({}); its reason is above, or it ran out of memory: \
         lower --announcing",
        output.status
    );
    let document: Document = serde_json::from_slice(&output.stdout).context("a document")?;
    match document.rows_as()?.into_iter().next() {
        Some(row) => Ok(row),
        None => bail!("the run with {nodes} nodes printed nothing"),
    }
}

fn row(args: &Args, nodes: NodeId, shape: Shape) -> anyhow::Result<Row> {
    let announcing = args.announcing.unwrap_or(nodes).min(nodes);
    let case = Case {
        nodes,
        shape,
        announcing,
        seed: args.seed,
        idle: Duration::from_secs(u64::from(args.idle)),
    };
    eprintln!("{}, {nodes} nodes, {announcing} announcing", shape.name());
    let start = Instant::now();
    let report =
        |text: &str| eprintln!("  {:4.0} s of work: {text}", start.elapsed().as_secs_f64());
    let measured = measure::measure(&case, report)?;
    let per_node = |total: u64| total as f64 / f64::from(nodes);
    let idle = f64::from(args.idle);
    Ok(Row {
        shape: shape.name().to_owned(),
        nodes,
        links: measured.links,
        announcing,
        seed: args.seed,
        sessions_seconds: measured.sessions.as_secs_f64(),
        convergence_seconds: measured.complete.as_secs_f64(),
        settled_seconds: measured.settled.as_secs_f64(),
        packets: per_node(measured.until_complete.packets),
        bytes: per_node(measured.until_complete.bytes),
        updates: per_node(measured.until_complete.updates),
        idle_packets_per_second: per_node(measured.idle.packets) / idle,
        idle_bytes_per_second: per_node(measured.idle.bytes) / idle,
        memory_bytes: per_node(measured.memory),
        wall_seconds: start.elapsed().as_secs_f64(),
    })
}

fn show(rows: &[Row], json: bool) -> anyhow::Result<()> {
    let columns = [
        "shape",
        "nodes",
        "links",
        "announcing",
        "sessions s",
        "all routes s",
        "settled s",
        "packets",
        "kB",
        "updates",
        "idle p/s",
        "idle B/s",
        "memory kB",
        "wall s",
    ];
    let table = Table::new(columns, rows, |row| {
        [
            row.shape.clone(),
            row.nodes.to_string(),
            row.links.to_string(),
            row.announcing.to_string(),
            number(row.sessions_seconds),
            number(row.convergence_seconds),
            number(row.settled_seconds),
            number(row.packets),
            number(row.bytes / 1e3),
            number(row.updates),
            number(row.idle_packets_per_second),
            number(row.idle_bytes_per_second),
            number(row.memory_bytes / 1e3),
            number(row.wall_seconds),
        ]
    });
    let note = "packets, kB, updates (until all had routes), idle and memory are per node; times are virtual but for the last";
    output::show("mesh", rows, &table.note(note), json)
}

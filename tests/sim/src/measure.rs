//! Convergence of a mesh of a given size: duration and cost.

use std::time::Duration;

use hyphae_time::Nanos;

use crate::scenario::{setup, speakers};
use crate::speaker::{RoutingNode, VerifyCache};
use crate::topology::{NodeId, Shape};
use crate::violation::Violation;
use crate::world::World;

/// Time limit for convergence.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Resolution of measured times.
const STEP: Duration = Duration::from_millis(10);
/// Time without a route change after which a mesh counts as settled.
const CALM: Duration = Duration::from_secs(2);

/// Parameters of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Nodes.
    pub nodes: NodeId,
    /// Their topology.
    pub shape: Shape,
    /// Nodes that announce themselves.
    pub announcing: NodeId,
    /// Seed of everything else.
    pub seed: u64,
    /// Observation time of the settled mesh.
    pub idle: Duration,
}

/// Traffic of all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of these, without the headers of links.
    pub bytes: u64,
    /// Updates in these.
    pub updates: u64,
}

impl Traffic {
    fn of(world: &World<RoutingNode>) -> Self {
        let (packets, bytes) = world.sent();
        let engines = world.nodes().iter().filter_map(|node| node.engine.as_ref());
        Self {
            packets,
            bytes,
            updates: engines.map(|engine| engine.counters().updates_sent).sum(),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            updates: self.updates - before.updates,
        }
    }
}

/// Results. Times are virtual unless stated otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Links.
    pub links: usize,
    /// From the first node's start to the last session's begin.
    pub sessions: Duration,
    /// From the first node's start to the first time that all pairs have routes.
    pub complete: Duration,
    /// From the first node's start to the last route change.
    pub settled: Duration,
    /// Sent until all pairs had routes.
    pub until_complete: Traffic,
    /// Sent until the mesh settled.
    pub until_calm: Traffic,
    /// Sent while the mesh was idle.
    pub idle: Traffic,
    /// Growth of the process from the empty world to the settled one, bytes.
    pub memory: u64,
}

/// Bytes of memory that this process occupies.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn elapsed(at: Nanos) -> Duration {
    Duration::from_nanos(at.0)
}

/// Builds a mesh and measures it. `report` receives progress.
///
/// # Errors
/// When an invariant is violated, or pairs remain without routes.
pub fn measure(case: &Case, mut report: impl FnMut(&str)) -> Result<Measured, Violation> {
    let mut setup = setup(case.seed, case.nodes, case.shape, None);
    setup.announcing = case.announcing;
    let cache = VerifyCache::default();
    let mut world = World::new(&setup, speakers(&setup, &cache));
    let empty = resident();
    let mut next_report = Nanos(0);
    let mut tell = |world: &World<RoutingNode>| {
        if world.now() >= next_report {
            next_report = world.now() + Duration::from_secs(1);
            let (has, wants) = world.routes();
            report(&format!(
                "{:.0} s: {has} of {wants} routes, {} packets",
                elapsed(world.now()).as_secs_f64(),
                world.sent().0
            ));
        }
    };
    while world.complete_at().is_none() {
        if elapsed(world.now()) > TIMEOUT {
            // Returns the first pair without a route.
            world.check_reachability()?;
            break;
        }
        world.run_for(STEP)?;
        tell(&world);
    }
    let complete = elapsed(world.complete_at().unwrap_or(world.now()));
    let until_complete = Traffic::of(&world);
    while world.now().since(world.last_change()) < CALM && elapsed(world.now()) < TIMEOUT {
        world.run_for(STEP)?;
        tell(&world);
    }
    let settled = elapsed(world.last_change());
    let grown = resident().saturating_sub(empty);
    world.check_reachability()?;
    let until_calm = Traffic::of(&world);
    world.run_for(case.idle)?;
    Ok(Measured {
        links: setup.links.len(),
        sessions: elapsed(world.last_session()),
        complete,
        settled,
        until_complete,
        until_calm,
        idle: Traffic::of(&world).since(until_calm),
        memory: grown,
    })
}

//! Complete runs from a seed: start, faults, quiet time, final checks.

use std::time::Duration;

use crate::engine::Engine;
use crate::link::Quality;
use crate::random::Random;
use crate::speaker::{RoutingNode, VerifyCache};
use crate::topology::{NodeId, Shape};
use crate::violation::Violation;
use crate::world::{Factory, Fault, Setup, World};

/// Start of the world, seconds since 1970.
const EPOCH: u32 = 1_800_000_000;

/// Creates nodes with the real engine. Some restarts set the clock back.
pub fn speakers(setup: &Setup, cache: &VerifyCache) -> Factory<RoutingNode> {
    let cache = cache.clone();
    let mut random = Random::new(setup.seed).fork(3);
    let setup = setup.clone();
    Box::new(move |node, secret, restarts, now| {
        let set_back = restarts > 0 && random.chance(200_000);
        let epoch = EPOCH + restarts * 10 - if set_back { 100_000 } else { 0 };
        let mut engine = RoutingNode::new(secret, epoch, now, random.next(), &cache);
        if !setup.announces(node) {
            engine.withdraw_all(now);
        }
        engine
    })
}

/// A setup with defaults.
pub fn setup(seed: u64, nodes: NodeId, shape: Shape, quality: Option<Quality>) -> Setup {
    Setup {
        seed,
        nodes,
        links: shape.links(nodes, &mut Random::new(seed).fork(4)),
        quality,
        skew_ppm: 200,
        boot_within: Duration::from_secs(2),
        announcing: nodes,
    }
}

/// Amount of faults.
#[derive(Clone, Copy, Debug)]
pub struct Chaos {
    /// Faults.
    pub faults: u32,
    /// Period in which they begin.
    pub within: Duration,
    /// Longest duration of a cut.
    pub cut_max: Duration,
    /// Nodes below this number never restart.
    pub spared: NodeId,
}

/// Plans faults, with loss, duplicates and reordering on every link from the start. All end within the period,
/// except for `leave` cuts that stay and may partition the mesh.
pub fn plan<E: Engine>(world: &mut World<E>, random: &mut Random, chaos: &Chaos, leave: u32) {
    let end = world.now() + chaos.within;
    for _ in 0..chaos.faults {
        let at = world.now() + random.duration(chaos.within);
        let link = random.index(world.links().len());
        match random.below(10) {
            0..5 => {
                let directions = [[true, true], [true, false], [false, true]][random.index(3)];
                world.plan(at, Fault::Cut(link, directions));
                let repaired = (at + random.duration(chaos.cut_max)).min(end);
                world.plan(repaired, Fault::Repair(link));
            }
            5..8 => {
                let nodes = u64::try_from(world.nodes().len()).unwrap_or(1);
                let node = NodeId::try_from(random.below(nodes)).unwrap_or(0);
                let down = random.between(Duration::from_millis(200), Duration::from_secs(30));
                if node >= chaos.spared {
                    world.plan(at, Fault::Restart(node, down));
                }
            }
            _ => world.plan(at, Fault::Change(link, Quality::random(random))),
        }
    }
    for link in 0..world.links().len() {
        let quality = Quality::random(random);
        world.plan(world.now(), Fault::Change(link, quality));
        world.plan(end, Fault::Change(link, quality.faultless()));
    }
    for _ in 0..leave {
        let link = random.index(world.links().len());
        world.plan(
            end + Duration::from_millis(1),
            Fault::Cut(link, [true, true]),
        );
    }
}

/// Quiet time after which all invariants hold: sessions end after 20 s and begin again within 3 s, and routes
/// are then advertised again.
pub const QUIET: Duration = Duration::from_secs(60);

/// One run with the real engine: start, faults, quiet time.
///
/// # Errors
/// When an invariant was violated at any time.
pub fn run(seed: u64, nodes: NodeId, shape: Shape, chaos: &Chaos) -> Result<(), Violation> {
    let cache = VerifyCache::default();
    let mut random = Random::new(seed).fork(5);
    let setup = setup(seed, nodes, shape, None);
    let mut world = World::new(&setup, speakers(&setup, &cache));
    world.run_for(Duration::from_secs(20))?;
    world.await_reachability(40)?;
    let leave = u32::try_from(random.below(4)).unwrap_or(0);
    plan(&mut world, &mut random, chaos, leave);
    world.run_for(chaos.within + QUIET)?;
    world.await_reachability(30)?;
    world.run_quiet(Duration::from_secs(20), 12)
}

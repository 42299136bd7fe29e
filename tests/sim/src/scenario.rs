//! Whole runs, made of a seed: a mesh is born, suffers, is left in peace, and is examined.

use std::time::Duration;

use crate::engine::Engine;
use crate::link::Quality;
use crate::random::Random;
use crate::speaker::{Memory, RoutingNode};
use crate::topology::{NodeId, Shape};
use crate::violation::Violation;
use crate::world::{Factory, Fault, Setup, World};

/// Seconds since 1970 at which worlds begin.
const EPOCH: u32 = 1_800_000_000;

/// Makes nodes with the real engine. Now and then one starts with a clock that was set back.
pub fn speakers(setup: &Setup, memory: &Memory) -> Factory<RoutingNode> {
    let memory = memory.clone();
    let mut random = Random::new(setup.seed).fork(3);
    let setup = setup.clone();
    Box::new(move |node, secret, restarts, now| {
        let set_back = restarts > 0 && random.chance(200_000);
        let epoch = EPOCH + restarts * 10 - if set_back { 100_000 } else { 0 };
        let mut engine = RoutingNode::new(secret, epoch, now, random.next(), &memory);
        if !setup.announces(node) {
            engine.be_silent(now);
        }
        engine
    })
}

/// A setup with nothing unusual about it.
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

/// How badly a world is treated.
#[derive(Clone, Copy, Debug)]
pub struct Chaos {
    /// Faults.
    pub faults: u32,
    /// In this time.
    pub within: Duration,
    /// A cut of one or both directions ends after this time at most.
    pub cut_max: Duration,
    /// Nodes that never restart: those numbered below.
    pub spared: NodeId,
}

/// Plans faults from now on, beginning with loss, copies and disorder on every link. All of them
/// end within the time, but for some cuts if `leave` says so: these stay, and may part the mesh.
pub fn plan<E: Engine>(world: &mut World<E>, random: &mut Random, chaos: &Chaos, leave: u32) {
    let end = world.now() + chaos.within;
    for _ in 0..chaos.faults {
        let at = world.now() + random.duration(chaos.within);
        let link = random.index(world.links().len());
        match random.below(10) {
            0..5 => {
                let directions = [[true, true], [true, false], [false, true]][random.index(3)];
                world.plan(at, Fault::Cut(link, directions));
                let mended = (at + random.duration(chaos.cut_max)).min(end);
                world.plan(mended, Fault::Mend(link));
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

/// Time without faults after which everything must be in order: sessions give up after 20 s,
/// begin again within 3 s, and what was told to a neighbour that has forgotten is told again.
pub const QUIET: Duration = Duration::from_secs(60);

/// One run with the real engine: birth, faults, peace.
///
/// # Errors
/// When a promise was broken at any time.
pub fn run(seed: u64, nodes: NodeId, shape: Shape, chaos: &Chaos) -> Result<(), Violation> {
    let memory = Memory::default();
    let mut random = Random::new(seed).fork(5);
    let setup = setup(seed, nodes, shape, None);
    let mut world = World::new(&setup, speakers(&setup, &memory));
    world.run_for(Duration::from_secs(20))?;
    world.await_reachability(40)?;
    let leave = u32::try_from(random.below(4)).unwrap_or(0);
    plan(&mut world, &mut random, chaos, leave);
    world.run_for(chaos.within + QUIET)?;
    world.await_reachability(30)?;
    world.run_quiet(Duration::from_secs(20), 12)
}

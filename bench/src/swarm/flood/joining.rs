//! Nodes that join during a flood: honest ones, and ones that claim many workers.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use hyphae_test_hostile::{Claims, Hostile, Target};
use hyphae_test_light::Spec;
use hyphae_time::{Nanos, monotonic};
use hyphae_wire::OverlayAddress;
use hyphae_wire::babel::Serial;

use super::super::loopback::Swarm;
use super::super::place;
use super::sources::{self, Sources};
use super::{Clockwork, Phase};

/// Time between newcomers.
const JOIN_EVERY: Duration = Duration::from_secs(1);

/// Joins new nodes one after the other; returns the times before and during the flood: to the link with the relay, or
/// to the first answer of `target` over a session, since there is a route to it.
pub(super) fn join(
    relay: Target,
    target: Option<OverlayAddress>,
    clockwork: &Clockwork,
) -> anyhow::Result<[Vec<Option<Duration>>; 2]> {
    let mut swarm = Swarm::new()?;
    let mut during = Vec::new();
    let mut asked: Vec<Option<Nanos>> = Vec::new();
    let mut next = monotonic();
    while clockwork.phase() != Phase::Over {
        let phase = clockwork.phase();
        if monotonic() >= next && phase != Phase::After {
            next = monotonic() + JOIN_EVERY;
            swarm.add(&Spec {
                at: place(1000 + swarm.nodes.len()),
                relay: relay.at,
                relay_key: relay.key,
                learns: target.is_some(),
                rekey_after: None,
            })?;
            during.push(phase == Phase::During);
            asked.push(None);
        }
        swarm.turn(monotonic() + Duration::from_millis(10))?;
        let Some(target) = target else { continue };
        for (number, asked) in asked.iter_mut().enumerate().filter(|(_, at)| at.is_none()) {
            if swarm.nodes[number].reaches(target) {
                let now = *asked.insert(monotonic());
                swarm.ping(now, number, target);
            }
        }
    }
    let nodes = swarm.nodes.iter().zip(&asked);
    let times: Vec<_> = nodes
        .map(|(node, asked)| match target {
            None => node.joined,
            Some(_) => Some(node.answered?.since((*asked)?)),
        })
        .collect();
    let of = |flooded: bool| {
        let times = times.iter().zip(&during);
        times
            .filter(|(_, during)| **during == flooded)
            .map(|(time, _)| *time)
            .collect()
    };
    Ok([of(false), of(true)])
}

/// Unauthenticated nodes with excessive claims that complete handshakes, one after the other during the flood, each
/// with a new key; returns how many succeeded.
pub(super) fn claim(
    sources: Sources,
    relay: Target,
    target: Target,
    claims: &Claims,
    clockwork: &Clockwork,
) -> anyhow::Result<usize> {
    while clockwork.phase() == Phase::Before {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut finished = 0;
    let local = || Hostile::new((Ipv4Addr::LOCALHOST, 0).into());
    let mut link = match sources {
        Sources::Forged | Sources::Site => None,
        Sources::Relayed => Some(local()?.link(relay.at, &Claims::default())?),
    };
    if let Some(link) = &mut link {
        link.greet(1)?;
    }
    for turn in 0.. {
        if clockwork.phase() != Phase::During {
            break;
        }
        // A refused node is an error of its handshake.
        let succeeded = match sources {
            Sources::Forged => local()?.link(relay.at, claims).is_ok(),
            Sources::Site => {
                let at: SocketAddr = sources::target(relay.at.port());
                sources::host(turn)?.link(at, claims).is_ok()
            }
            Sources::Relayed => {
                let link = link.as_mut().context("a link with the relay")?;
                let identity = sources::new_key()?;
                link.announce(&identity, Serial(1 << 16))?;
                let session = link.session(&identity, target.key.address(), claims);
                session.is_ok()
            }
        };
        finished += usize::from(succeeded);
    }
    Ok(finished)
}

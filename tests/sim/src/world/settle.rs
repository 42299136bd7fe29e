//! Execution of effects and checks of the invariants after each event.

use std::rc::Rc;

use hyphae_time::Nanos;

use hyphae_wire::Prefix;

use super::{Event, World};
use crate::engine::Engine;
use crate::forwarding::Hops;
use crate::topology::NodeId;
use crate::violation::Violation;

impl<E: Engine> World<E> {
    /// Executes a node's effects and checks the invariants.
    pub(super) fn settle(&mut self, node: NodeId) -> Result<(), Violation> {
        let mut effects = std::mem::take(&mut self.effects);
        let state = &mut self.nodes[usize::from(node)];
        let local = state.clock.local(self.now);
        if let Some(engine) = &mut state.engine {
            engine.drain(local, &mut effects);
            let wake = engine
                .poll_timeout()
                .map_or(Nanos::NEVER, |at| state.clock.world(at).max(self.now));
            if wake != state.wake {
                state.wake = wake;
                if wake != Nanos::NEVER {
                    self.queue.add(wake, Event::Wake(node));
                }
            }
        }
        let packets = effects.packets.len();
        let most = self.burst_max(node);
        for (peer, packet) in effects.packets.drain(..) {
            // An unknown number has no link.
            let peer = NodeId::try_from(peer).unwrap_or(NodeId::MAX);
            self.transmit(node, peer, packet.into());
        }
        let mut result = Ok(());
        for (prefix, peers) in effects.routes.drain(..) {
            result = result.and_then(|()| self.route(node, prefix, &peers));
        }
        // Changes of one event are applied as one batch, as by workers.
        let changed = std::mem::take(&mut self.changed);
        for destination in changed {
            result = result.and_then(|()| self.check_loop(destination, node));
        }
        self.effects = effects;
        result?;
        if packets > most {
            let at = self.now;
            return Err(Violation::Burst {
                at,
                node,
                packets,
                most,
            });
        }
        Ok(())
    }

    /// Packets that one event may cause: every route to every neighbour, several to a packet, plus some for the
    /// neighbours themselves.
    fn burst_max(&self, node: NodeId) -> usize {
        let neighbours = self.nodes[usize::from(node)].links.len();
        neighbours * (4 + self.nodes.len() / 4)
    }

    pub(super) fn transmit(&mut self, from: NodeId, to: NodeId, packet: Rc<[u8]>) {
        let state = &mut self.nodes[usize::from(from)];
        let Some(link) = state.links.get(&to).copied() else {
            return;
        };
        let near = self.links[link].end(from);
        let Some(session) = self.links[link].session[near] else {
            return;
        };
        state.packets += 1;
        state.bytes += u64::try_from(packet.len()).unwrap_or(0);
        let arrivals = self.links[link].directions[near].arrivals(self.now, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            let packet = Rc::clone(&packet);
            let arrive = Event::Arrive {
                link,
                end: 1 - near,
                session,
                packet,
            };
            self.queue.add(at, arrive);
        }
    }

    fn route(&mut self, node: NodeId, prefix: Prefix, peers: &[u32]) -> Result<(), Violation> {
        let at = self.now;
        let Some(destination) = self.owners.get(&prefix).copied() else {
            if peers.is_empty() || self.foreign.contains(&prefix) {
                return Ok(());
            }
            return Err(Violation::Invented { at, node, prefix });
        };
        let hops = Hops::new(peers.iter().filter_map(|peer| NodeId::try_from(*peer).ok()));
        if self.trace {
            eprintln!("{at:?} {node} -> {destination} via {:?}", hops.nodes());
        }
        for peer in hops.nodes() {
            let hostile = self.nodes[usize::from(*peer)].hostile;
            if hostile && *peer != destination {
                return Err(Violation::Attracted {
                    at,
                    node,
                    destination,
                    attacker: *peer,
                });
            }
        }
        if *self.forwarding.hops(destination, node) != hops {
            self.forwarding.set(destination, node, hops);
            self.last_change = at;
            self.changed.push(destination);
        }
        let (has, wants) = self.routes();
        if self.complete_at.is_none() && has == wants {
            self.complete_at = Some(at);
        }
        Ok(())
    }

    fn check_loop(&mut self, destination: NodeId, node: NodeId) -> Result<(), Violation> {
        // No path leads back to a node without incoming traffic.
        let mut neighbours = self.nodes[usize::from(node)].links.keys();
        let sends = |from: &NodeId| self.forwarding.hops(destination, *from).leads_to(node);
        if !neighbours.any(sends) {
            return Ok(());
        }
        let (nodes, links) = (&self.nodes, &self.links);
        let carries = |from: NodeId, to: NodeId| {
            let link = nodes[usize::from(from)].links.get(&to);
            link.is_some_and(|link| links[*link].agrees())
        };
        match self.forwarding.loop_through(destination, node, carries) {
            Some(path) => Err(Violation::Loop {
                at: self.now,
                destination,
                path,
            }),
            None => Ok(()),
        }
    }
}

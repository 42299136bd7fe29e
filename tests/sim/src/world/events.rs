//! Processing of events: packets, timers, sessions, faults.

use std::time::Duration;

use hyphae_time::Nanos;

use super::{CAPTURED_MAX, DEAD_AFTER, DIAL_MAX, Event, Fault, TIMER_MAX, World};
use crate::engine::Engine;
use crate::forwarding::Hops;
use crate::topology::NodeId;
use crate::violation::Violation;

impl<E: Engine> World<E> {
    pub(super) fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Boot(node) => {
                self.boot(node);
                return self.settle(node);
            }
            Event::Wake(node) => {
                let state = &mut self.nodes[usize::from(node)];
                if state.wake != self.now {
                    return Ok(());
                }
                state.wake = Nanos::NEVER;
                if state.fired.0 != self.now {
                    state.fired = (self.now, 0);
                }
                state.fired.1 += 1;
                let (at, times) = state.fired;
                if times > TIMER_MAX {
                    return Err(Violation::Spinning { at, node, times });
                }
                let local = state.clock.local(self.now);
                if let Some(engine) = &mut state.engine {
                    engine.handle_timeout(local);
                }
                return self.settle(node);
            }
            Event::Arrive {
                link,
                end,
                session,
                packet,
            } => {
                let from = self.links[link].ends[1 - end];
                if self.links[link].session[end] != Some(session) {
                    return Ok(());
                }
                let node = self.links[link].ends[end];
                let state = &mut self.nodes[usize::from(node)];
                let local = state.clock.local(self.now);
                if let Some(engine) = &mut state.engine {
                    engine.handle_packet(local, u32::from(from), &packet);
                }
                if state.hostile && self.captured.len() < CAPTURED_MAX {
                    self.captured.push(packet);
                }
                return self.settle(node);
            }
            Event::Dial { link, faults } => return self.dial(link, faults),
            Event::Begin {
                link,
                end,
                session,
                faults,
            } => {
                let state = &self.links[link];
                if state.sessions == session && state.faults == faults {
                    return self.begin(link, end, session);
                }
            }
            Event::End {
                link,
                end,
                session,
                faults,
            } => {
                let state = &self.links[link];
                if state.session[end] == Some(session) && state.faults == faults {
                    self.end(link, end)?;
                    self.redial(link);
                }
            }
            Event::Fault(fault) => self.strike(fault),
        }
        Ok(())
    }

    fn alive(&self, link: usize, end: usize) -> bool {
        let node = self.links[link].ends[end];
        self.nodes[usize::from(node)].engine.is_some()
    }

    fn boot(&mut self, node: NodeId) {
        let state = &mut self.nodes[usize::from(node)];
        let local = state.clock.local(self.now);
        let secret = &self.secrets[usize::from(node)];
        state.engine = Some((self.factory)(node, secret, state.restarts, local));
        let links: Vec<usize> = state.links.values().copied().collect();
        for link in links {
            self.redial(link);
        }
    }

    fn redial(&mut self, link: usize) {
        let faults = self.links[link].faults;
        let at = self.now + self.random.between(Duration::from_millis(5), DIAL_MAX);
        self.queue.add(at, Event::Dial { link, faults });
    }

    /// A handshake succeeds if both nodes are up and the link carries packets.
    fn dial(&mut self, link: usize, faults: u32) -> Result<(), Violation> {
        let state = &self.links[link];
        let possible = self.alive(link, 0) && self.alive(link, 1) && !state.is_cut();
        if state.faults != faults || !possible || state.agrees() {
            return Ok(());
        }
        let state = &mut self.links[link];
        state.sessions += 1;
        let session = state.sessions;
        let first = usize::from(self.random.chance(500_000));
        let delay = state.directions[first].quality.delay;
        let later = self.now + delay + self.random.duration(delay);
        let end = 1 - first;
        let begin = Event::Begin {
            link,
            end,
            session,
            faults,
        };
        self.queue.add(later, begin);
        self.begin(link, first, session)
    }

    fn begin(&mut self, link: usize, end: usize, session: u32) -> Result<(), Violation> {
        if self.links[link].session[end].is_some() {
            self.end(link, end)?;
        }
        self.links[link].session[end] = Some(session);
        self.last_session = self.now;
        let node = self.links[link].ends[end];
        let peer = self.links[link].ends[1 - end];
        let key = self.nodes[usize::from(peer)].key;
        let state = &mut self.nodes[usize::from(node)];
        let local = state.clock.local(self.now);
        if let Some(engine) = &mut state.engine {
            engine.peer_up(local, u32::from(peer), key);
        }
        self.settle(node)
    }

    fn end(&mut self, link: usize, end: usize) -> Result<(), Violation> {
        self.links[link].session[end] = None;
        let node = self.links[link].ends[end];
        let peer = self.links[link].ends[1 - end];
        let key = self.nodes[usize::from(peer)].key;
        let state = &mut self.nodes[usize::from(node)];
        let local = state.clock.local(self.now);
        if let Some(engine) = &mut state.engine {
            engine.peer_down(local, u32::from(peer), key);
        }
        self.settle(node)?;
        let owners = self.owners.values().copied();
        for destination in owners {
            if self.forwarding.hops(destination, node).leads_to(peer) {
                let at = self.now;
                return Err(Violation::DownPeer {
                    at,
                    node,
                    destination,
                    peer,
                });
            }
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) {
        if self.trace {
            eprintln!("{:?} {fault:?}", self.now);
        }
        match fault {
            Fault::Cut(link, directions) => {
                for (direction, cut) in self.links[link].directions.iter_mut().zip(directions) {
                    direction.cut = cut;
                }
                self.silence(link);
            }
            Fault::Repair(link) => {
                let state = &mut self.links[link];
                state.faults += 1;
                for direction in &mut state.directions {
                    direction.cut = false;
                }
                self.redial(link);
            }
            Fault::Change(link, quality) => {
                for direction in &mut self.links[link].directions {
                    direction.quality = quality;
                }
            }
            Fault::Restart(node, downtime) => {
                let state = &mut self.nodes[usize::from(node)];
                if state.engine.take().is_none() {
                    return;
                }
                state.restarts += 1;
                state.wake = Nanos::NEVER;
                let links: Vec<usize> = state.links.values().copied().collect();
                for link in links {
                    let end = self.links[link].end(node);
                    self.links[link].session[end] = None;
                    self.silence(link);
                }
                for destination in self.owners.values() {
                    self.forwarding.set(*destination, node, Hops::default());
                }
                self.queue.add(self.now + downtime, Event::Boot(node));
            }
        }
    }

    /// Schedules the end of the sessions on a link, unless a new one begins first.
    fn silence(&mut self, link: usize) {
        self.links[link].faults += 1;
        let faults = self.links[link].faults;
        for end in [0, 1] {
            if let Some(session) = self.links[link].session[end] {
                let at = self.now + DEAD_AFTER + self.random.duration(Duration::from_secs(5));
                let end = Event::End {
                    link,
                    end,
                    session,
                    faults,
                };
                self.queue.add(at, end);
            }
        }
    }
}

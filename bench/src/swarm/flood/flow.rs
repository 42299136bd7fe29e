//! A flow between two light nodes through the relay, at a fixed rate.

use std::time::Duration;

use anyhow::ensure;
use hyphae_forward::host::TunHeader;
use hyphae_test_hostile::Target;
use hyphae_test_light::Spec;
use hyphae_time::Nanos;

use hyphae_wire::OverlayAddress;
use serde::Serialize;

use super::super::loopback::Swarm;
use super::super::place;
use super::{Clockwork, Phase};
use hyphae_time::monotonic;

/// Limit of the setup.
const CONNECT_MAX: Duration = Duration::from_secs(30);
/// Rekey interval, short enough to occur during the flood.
const REKEY_AFTER: Duration = Duration::from_secs(15);
/// Interval of attempts during the setup.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Headers of IPv6 and UDP, then the phase.
const PHASE_AT: usize = 48;
const PACKET_LEN: usize = 200;
/// Packets of the setup, which belong to no phase.
const FIRST: u8 = u8::MAX;

/// Packets of one phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowPhase {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Longest gap between received packets.
    pub(super) silence_max_ms: f64,
}

impl FlowPhase {
    pub(super) fn lost_permille(&self) -> f64 {
        let lost = self.sent.saturating_sub(self.received);
        1000.0 * lost as f64 / self.sent.max(1) as f64
    }
}

/// A one-way flow between two nodes.
pub(super) struct Flow {
    swarm: Swarm,
    packet: Vec<u8>,
    /// Another node with which the sender has a session.
    session: Option<OverlayAddress>,
    asked: u64,
}

impl Flow {
    /// Connects two nodes to the relay and establishes a session between them.
    /// With a node `session`, the sender exchanges echoes in addition.
    pub(super) fn start(relay: Target, session: Option<OverlayAddress>) -> anyhow::Result<Self> {
        let mut swarm = Swarm::new()?;
        for n in 0..2 {
            swarm.add(&Spec {
                at: place(n),
                relay: relay.at,
                relay_key: relay.key,
                learns: true,
                rekey_after: Some(REKEY_AFTER),
            })?;
        }
        let (from, to) = (swarm.nodes[0].address(), swarm.nodes[1].address());
        let packet = packet(from, to);
        let mut flow = Self {
            swarm,
            packet,
            session,
            asked: 0,
        };
        let give_up = monotonic() + CONNECT_MAX;
        while flow.swarm.nodes[1].delivered.is_empty() {
            ensure!(
                monotonic() < give_up,
                "no session between two nodes through the relay within {CONNECT_MAX:?}"
            );
            if flow.swarm.nodes[0].reaches(to) {
                flow.send(monotonic(), FIRST)?;
            }
            flow.swarm.run_until(monotonic() + TRY_AGAIN)?;
        }
        while let Some(to) = session
            && flow.swarm.nodes[0].echoes == 0
        {
            ensure!(
                monotonic() < give_up,
                "no session with the attacked node within {CONNECT_MAX:?}"
            );
            flow.swarm.ping(monotonic(), 0, to);
            flow.swarm.run_until(monotonic() + TRY_AGAIN)?;
        }
        flow.swarm.nodes[0].echoes = 0;
        Ok(flow)
    }

    /// Links and sessions renewed so far.
    pub(super) fn renewed(&self) -> u64 {
        let nodes = self
            .swarm
            .nodes
            .iter()
            .map(|node| node.overlay.handshakes());
        nodes.map(|h| h.links_renewed + h.sessions_renewed).sum()
    }

    /// Echoes requested of the other node, and answered.
    pub(super) fn echoes(&self) -> Option<[u64; 2]> {
        let answered = self.swarm.nodes[0].echoes;
        self.session.map(|_| [self.asked, answered])
    }

    fn send(&mut self, now: Nanos, phase: u8) -> anyhow::Result<()> {
        self.packet[PHASE_AT] = phase;
        let header = TunHeader::default();
        let scratch = &mut self.swarm.scratch;
        let node = &mut self.swarm.nodes[0];
        node.send_packet(now, &header, &self.packet, &mut scratch.outgoing);
        node.drain(now, scratch);
        Ok(())
    }

    /// Sends until the end of the phases; returns the results before and during the flood.
    pub(super) fn run(
        &mut self,
        rate: u64,
        clockwork: &Clockwork,
    ) -> anyhow::Result<[FlowPhase; 2]> {
        let mut phases = [FlowPhase::default(); 2];
        let every = Duration::from_nanos(1_000_000_000 / rate);
        let mut next = monotonic();
        let mut heard = [None; 2];
        let mut next_echo = monotonic();
        loop {
            let now = monotonic();
            let at = match clockwork.phase() {
                Phase::Before => Some(0),
                Phase::During => Some(1),
                Phase::After => None,
                Phase::Over => return Ok(phases),
            };
            if let Some(at) = at {
                // No burst after the thread was preempted.
                next = next.max(Nanos(now.0.saturating_sub(20_000_000)));
                while next <= now {
                    next = next + every;
                    phases[at].sent += 1;
                    // 0 or 1.
                    self.send(now, u8::from(at == 1))?;
                }
            } else {
                next = now + every;
            }
            if let (Some(_), Some(to), true) = (at, self.session, now >= next_echo) {
                next_echo = now + TRY_AGAIN;
                self.asked += 1;
                self.swarm.ping(now, 0, to);
            }
            self.swarm.turn(next)?;
            let now = monotonic();
            for packet in std::mem::take(&mut self.swarm.nodes[1].delivered) {
                let at = usize::from(packet.get(PHASE_AT).copied().unwrap_or(FIRST));
                let Some(phase) = phases.get_mut(at) else {
                    continue;
                };
                phase.received += 1;
                let last = heard[at].replace(now).unwrap_or(now);
                let silence = now.since(last).as_secs_f64() * 1000.0;
                phase.silence_max_ms = phase.silence_max_ms.max(silence);
            }
        }
    }
}

/// A UDP packet from one node to another, without a valid checksum.
fn packet(from: OverlayAddress, to: OverlayAddress) -> Vec<u8> {
    let mut packet = vec![0; PACKET_LEN];
    packet[0] = 0x60;
    // Both lengths are below 256.
    packet[5] = 160;
    packet[6] = 17;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&from.0);
    packet[24..40].copy_from_slice(&to.0);
    packet[40..44].copy_from_slice(&[0x23, 0x28, 0x23, 0x29]);
    packet[45] = 160;
    packet
}

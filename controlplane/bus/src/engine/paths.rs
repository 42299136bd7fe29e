//! Paths to other nodes: sessions, path MTU, loss detection.

use hyphae_time::Nanos;
use hyphae_wire::report::INNER_MTU_MIN;
use hyphae_wire::{OverlayAddress, PublicKey};

use super::finish::back_off;
use super::{Bus, Timer};
use crate::Event;
use crate::path::{Flight, Path};
use crate::transfer::Phase;

impl Bus {
    /// Sets the path MTU to the node of this address: bytes of the largest payload. When it decreases, unfinished
    /// messages in larger packets restart in smaller ones; an increase applies to new messages.
    pub fn path_mtu(&mut self, address: OverlayAddress, mtu: usize) {
        let subnet = address.subnet_id();
        let mtu = mtu.max(INNER_MTU_MIN.into()).min(self.config.mtu);
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let less = mtu < path.packet();
        path.set_packet(mtu);
        if !less || path.messages == 0 {
            return;
        }
        if self
            .next
            .as_ref()
            .is_some_and(|next| next.payload.len() > mtu && next.address.subnet_id() == subnet)
        {
            // Its chunk is in flight like others and is retransmitted with them.
            self.next = None;
        }
        for of in path.unfinished() {
            let oversized = self.transfers.get_mut(of).filter(|it| !it.fits(mtu));
            // Delivered in full, it awaits its final status.
            let Some(transfer) = oversized.filter(|it| !it.awaits_status()) else {
                continue;
            };
            let phase = transfer.phase;
            if let Some(path) = self.paths.get_mut(&subnet) {
                for sequence in transfer.in_flight() {
                    path.remove(sequence);
                }
            }
            transfer.restart(mtu);
            transfer.phase = phase;
            self.make_ready(of);
        }
    }

    /// A session with the node of this address is established. `mtu` is its path MTU as far as known.
    pub fn session_up(&mut self, now: Nanos, address: OverlayAddress, key: PublicKey, mtu: usize) {
        let subnet = address.subnet_id();
        self.path_mtu(address, mtu);
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.session = Some(key);
        path.session_attempts = 0;
        self.timers.set(Timer::Session(subnet), Nanos::NEVER);
        for of in std::mem::take(&mut path.deferred) {
            if let Some(transfer) = self.transfers.get_mut(of)
                && matches!(transfer.phase, Phase::Deferred(_))
            {
                transfer.phase = Phase::Sending;
                self.transfers.schedule(of);
                self.make_ready(of);
            }
        }
        self.activate(subnet);
        self.schedule_path(now, subnet);
    }

    /// The last session with the node of this address has ended.
    pub fn session_down(&mut self, now: Nanos, address: OverlayAddress) {
        let subnet = address.subnet_id();
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let flights = path.reset();
        self.mark_lost(flights);
        self.schedule_path(now, subnet);
        self.session_due(now, subnet);
        self.close_path(subnet);
    }

    /// Requests a session, with exponential back-off.
    pub(super) fn session_due(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        if path.session.is_some() || path.messages == 0 {
            return;
        }
        let wait = back_off(path.session_attempts);
        path.session_attempts += 1;
        self.events.push_back(Event::NeedSession(path.address));
        self.timers.set(Timer::Session(subnet), now + wait);
    }

    /// Sets the timer of a path if its deadline is earlier. A timer that fires early is set again, which is cheaper
    /// than moving it with every ack.
    pub(super) fn schedule_path(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let at = path.deadline().max(now);
        if at < path.timer_at {
            path.timer_at = at;
            self.timers.set(Timer::Path(subnet), at);
        }
    }

    /// Detects losses once all acks of a payload are processed.
    pub(super) fn detect_losses(&mut self, now: Nanos, subnet: u64) {
        if let Some(path) = self.paths.get_mut(&subnet) {
            let lost = path.detect_losses(now);
            self.mark_lost(lost);
            self.activate(subnet);
            self.schedule_path(now, subnet);
            self.close_path(subnet);
        }
    }

    /// Loss detection or probe timeout.
    pub(super) fn path_due(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.timer_at = Nanos::NEVER;
        let mut lost = path.detect_losses(now);
        lost.extend(path.take_probes(now));
        self.mark_lost(lost);
        self.activate(subnet);
        self.schedule_path(now, subnet);
    }

    /// Queues chunks of lost packets for retransmission.
    pub(super) fn mark_lost(&mut self, flights: Vec<(u64, Flight)>) {
        for (sequence, flight) in flights {
            if let Some(transfer) = self.transfers.get_mut(flight.of) {
                transfer.mark_lost(flight.chunk, sequence);
            }
            self.make_ready(flight.of);
        }
    }

    /// Removes a path without messages and session.
    pub(super) fn close_path(&mut self, subnet: u64) {
        let empty = |path: &Path| path.messages == 0 && path.session.is_none();
        if self.paths.get(&subnet).is_some_and(empty) {
            self.paths.remove(&subnet);
            self.timers.set(Timer::Path(subnet), Nanos::NEVER);
            self.timers.set(Timer::Session(subnet), Nanos::NEVER);
        }
    }
}

//! Acks from receivers.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::PublicKey;
use hyphae_wire::message::{AckRange, Status};

use super::Bus;
use super::admission::rejection;
use super::finish::BACK_OFF;
use crate::AbortReason;
use crate::path::{Acked, Flight};
use crate::transfer::{Phase, Transfer, TransferKey};
use crate::transfers::TransferRef;

impl Bus {
    /// The transfer that packet `sequence` carried a chunk of, or else the one of this name, if it goes to `to`.
    pub(super) fn find_transfer(
        &self,
        name: TransferKey,
        sequence: u64,
        to: PublicKey,
    ) -> Option<TransferRef> {
        let flight = self.paths.get(&name.subnet)?.flight(sequence);
        let named = |of: &TransferRef| self.transfers.get(*of).is_some_and(|it| it.name == name);
        let of = flight.map(|flight| flight.of).filter(named);
        let of = of.or_else(|| self.transfers.live(name))?;
        self.transfers
            .get(of)
            .is_some_and(|transfer| transfer.key == Some(to))
            .then_some(of)
    }

    /// Handles an ack of one message.
    pub(super) fn handle_ack(
        &mut self,
        now: Nanos,
        of: TransferRef,
        sequence: u64,
        status: Status,
        (number, ranges): (u32, &[AckRange]),
    ) {
        let subnet = self.transfers.get(of).map(|transfer| transfer.name.subnet);
        if let Some(path) = subnet.and_then(|subnet| self.paths.get_mut(&subnet)) {
            let flight = path.flight(sequence).filter(|flight| flight.of == of);
            if let Some(at) = flight.map(|flight| flight.at) {
                path.on_ack(now, sequence, at, Duration::ZERO);
            }
        }
        match status {
            Status::Progress => self.handle_progress(now, of, sequence, number, ranges),
            Status::Full => self.handle_full(now, of, sequence, number),
            Status::Unknown => self.handle_unknown(of, sequence),
            Status::Resume => self.resume(of),
            Status::Received
            | Status::Forbidden
            | Status::Unasked
            | Status::Late
            | Status::Malformed => {
                self.finish(now, of, rejection(status).map(AbortReason::Rejected));
            }
        }
    }

    /// Handles an ack of complete messages, by packet number from `first` on.
    pub(super) fn handle_batch_ack(
        &mut self,
        now: Nanos,
        (from, subnet): (PublicKey, u64),
        first: u64,
        delay: Duration,
        (stored, received): (&[AckRange], &[AckRange]),
    ) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let single = |transfer: &Transfer| transfer.key == Some(from) && transfer.is_single();
        let (mut done, mut acked, mut newest) = (Vec::new(), Acked::default(), None);
        let all = stored.iter().map(|range| (range, true));
        for (range, stored) in all.chain(received.iter().map(|range| (range, false))) {
            let at = |offset: u32| first.saturating_add(offset.into());
            let (begin, end) = (at(range.first.get()), at(range.end.get()));
            if stored {
                let transfers = &self.transfers;
                let single = |of: &TransferRef| transfers.get(*of).is_some_and(single);
                done.extend(path.awaiting_status(begin, end).filter(single));
            }
            for sequence in path.in_flight(begin, end) {
                let Some(Flight { of, at, .. }) = path.flight(sequence).copied() else {
                    continue;
                };
                let Some(transfer) = self.transfers.get_mut(of).filter(|it| single(it)) else {
                    continue;
                };
                acked.add(path, sequence);
                newest = newest.max(Some((sequence, at)));
                if stored {
                    done.push(of);
                } else if transfer.phase == Phase::Sending {
                    transfer.acknowledge(0, 1, |_| {});
                    transfer.open_acked = true;
                    transfer.phase = Phase::AwaitStatus(now + path.timeout().max(BACK_OFF));
                    path.await_status(transfer.opened_by, of);
                    self.transfers.schedule(of);
                }
            }
        }
        if let Some((sequence, sent_at)) = newest {
            path.on_ack(now, sequence, sent_at, delay);
        }
        path.grow_window(acked);
        for of in done {
            // The caller closes the path and detects losses once for all packets of the payload.
            self.end(now, of, None);
        }
    }

    fn handle_progress(
        &mut self,
        now: Nanos,
        of: TransferRef,
        sequence: u64,
        number: u32,
        ranges: &[AckRange],
    ) {
        let Some(transfer) = self.transfers.get_mut(of) else {
            return;
        };
        // An ack from before the last opening may refer to another chunk layout.
        if sequence < transfer.opened_by {
            return;
        }
        let Some(path) = self.paths.get_mut(&transfer.name.subnet) else {
            return;
        };
        let mut acked = Acked::default();
        let count = transfer.next;
        transfer.acknowledge(0, number.min(count), |sequence| acked.add(path, sequence));
        for range in ranges {
            let (first, end) = (range.first.get(), range.end.get().min(count));
            transfer.acknowledge(first, end, |sequence| acked.add(path, sequence));
        }
        path.grow_window(acked);
        let awaited_open = transfer.awaits_open_ack();
        if number > 0 {
            transfer.open_acked = true;
            transfer.attempts = 0;
        }
        if transfer.phase == Phase::Sending && transfer.is_acknowledged() {
            path.await_status(transfer.opened_by, of);
            transfer.phase = Phase::AwaitStatus(now + path.timeout().max(BACK_OFF));
        }
        self.transfers.schedule(of);
        if awaited_open {
            self.make_ready(of);
        }
    }

    /// Back-pressure: the receiver has dropped the message, which restarts later.
    fn handle_full(&mut self, now: Nanos, of: TransferRef, sequence: u64, millis: u32) {
        if self.restart(of, sequence) {
            self.defer(now, of, Duration::from_millis(millis.into()));
        }
    }

    /// Back-pressure has ended.
    fn resume(&mut self, of: TransferRef) {
        if let Some(transfer) = self.transfers.get_mut(of)
            && matches!(transfer.phase, Phase::Deferred(_))
        {
            transfer.phase = Phase::Sending;
            self.transfers.schedule(of);
            self.make_ready(of);
        }
    }

    /// The receiver has no state for the message.
    fn handle_unknown(&mut self, of: TransferRef, sequence: u64) {
        let Some(transfer) = self.transfers.get_mut(of) else {
            return;
        };
        if sequence < transfer.opened_by {
            return;
        }
        if transfer.open_acked {
            // The receiver has restarted.
            self.restart(of, sequence);
            self.transfers.schedule(of);
        } else {
            // The chunk overtook the opening packet and was dropped.
            let flight = self
                .paths
                .get_mut(&transfer.name.subnet)
                .filter(|path| path.flight(sequence).is_some_and(|f| f.of == of))
                .and_then(|path| path.remove(sequence));
            let flight = flight.map(|flight| (sequence, flight));
            self.mark_lost(flight.into_iter().collect());
        }
        self.make_ready(of);
    }

    /// Restarts a message, unless the ack is older than its last opening.
    fn restart(&mut self, of: TransferRef, sequence: u64) -> bool {
        let found = self.transfers.get_mut(of);
        let Some(transfer) = found.filter(|it| sequence >= it.opened_by) else {
            return false;
        };
        let mut packet = self.config.mtu;
        if let Some(path) = self.paths.get_mut(&transfer.name.subnet) {
            packet = path.packet();
            path.on_acked(transfer.in_flight());
            if transfer.awaits_status() {
                path.status_known(transfer.opened_by);
            }
        }
        transfer.restart(packet);
        true
    }
}

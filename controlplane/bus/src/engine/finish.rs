//! Deadlines, back-off and completion of outgoing messages.

use std::time::Duration;

use hyphae_time::Nanos;

use super::Bus;
use super::control::{ControlPacket, HeaderOnly};
use super::transmit::STALE_MIN;
use crate::transfer::{Phase, Transfer, TransferKey};
use crate::transfers::TransferRef;
use crate::{AbortReason, Event, MessageInfo, MessageState};

/// First delay after back-pressure, a query, or a request for a session; doubles.
pub(super) const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

pub(super) fn back_off(attempts: u32) -> Duration {
    (BACK_OFF * (1 << attempts.min(6))).min(BACK_OFF_MAX)
}

impl Bus {
    /// Aborts a message past its deadline, queries its status, or retries after back-pressure.
    pub(super) fn transfer_due(&mut self, now: Nanos, of: TransferRef) {
        let Some(transfer) = self.transfers.get_mut(of) else {
            return;
        };
        let TransferKey { id, reply, subnet } = transfer.name;
        if transfer.deadline <= now {
            self.finish(now, of, Some(AbortReason::Deadline));
            return;
        }
        match transfer.phase {
            Phase::Deferred(at) if at <= now => {
                transfer.phase = Phase::Sending;
                if subnet == self.address.subnet_id() {
                    self.deliver_own(now, of);
                } else {
                    self.make_ready(of);
                }
            }
            Phase::AwaitStatus(at) if at <= now => {
                transfer.phase = Phase::AwaitStatus(now + back_off(transfer.attempts));
                transfer.attempts += 1;
                if let Some(path) = self.paths.get_mut(&subnet)
                    && path.session.is_some()
                {
                    let (address, sequence) = (path.address, path.next_sequence());
                    self.queue_control(ControlPacket::HeaderOnly {
                        address,
                        id,
                        reply,
                        sequence,
                        kind: HeaderOnly::Query,
                    });
                }
            }
            Phase::Sending | Phase::Deferred(_) | Phase::AwaitStatus(_) => {}
        }
        self.transfers.schedule(of);
    }

    /// Defers a message under back-pressure, for at least `least`.
    pub(super) fn defer(&mut self, now: Nanos, of: TransferRef, least: Duration) {
        let Some(transfer) = self.transfers.get_mut(of) else {
            return;
        };
        let wait = back_off(transfer.attempts).max(least).min(BACK_OFF_MAX);
        transfer.attempts += 1;
        transfer.phase = Phase::Deferred(now + self.rng.jitter(wait, 75, 125));
        let subnet = transfer.name.subnet;
        self.transfers.schedule(of);
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.deferred.push(of);
        if path.deferred.len() > 2 * path.messages + STALE_MIN {
            let transfers = &self.transfers;
            let deferred = |of: &TransferRef| {
                let transfer = transfers.get(*of);
                transfer.is_some_and(|it| matches!(it.phase, Phase::Deferred(_)))
            };
            path.deferred.retain(deferred);
            path.deferred.sort_unstable();
            path.deferred.dedup();
        }
    }

    /// Finishes an outgoing message, as received when there is no reason, and frees its payload.
    pub(super) fn finish(&mut self, now: Nanos, of: TransferRef, reason: Option<AbortReason>) {
        if let Some(subnet) = self.end(now, of, reason) {
            self.activate(subnet);
            self.schedule_path(now, subnet);
            self.close_path(subnet);
        }
    }

    /// As [`Self::finish`], but leaves the path to the caller and returns its /64.
    pub(super) fn end(
        &mut self,
        now: Nanos,
        of: TransferRef,
        reason: Option<AbortReason>,
    ) -> Option<u64> {
        let state = if reason.is_none() {
            MessageState::Received
        } else {
            MessageState::Aborted
        };
        let info = |transfer: &Transfer| MessageInfo {
            reason,
            ..transfer.info(state)
        };
        let transfer = self.transfers.finish(now, of, info)?;
        let TransferKey { id, reply, subnet } = transfer.name;
        self.outgoing_bytes -= transfer.payload.len();
        match reason {
            None => self.stats.received += 1,
            Some(reason) => {
                *self.stats.aborted.entry(reason.name()).or_default() += 1;
                if !reply {
                    self.forget_pending_reply(id);
                }
            }
        }
        self.leave_path(&transfer, reason);
        let (max, hold) = (self.config.finished_max, self.config.finished_hold);
        self.transfers.forget(max, |at| now.since(at) > hold);
        self.events.push_back(Event::Finished {
            id,
            reply,
            state,
            reason,
        });
        Some(subnet)
    }

    /// Removes a finished message from its path; sends an abort if the receiver may have state for it.
    fn leave_path(&mut self, transfer: &Transfer, reason: Option<AbortReason>) {
        let TransferKey { id, reply, subnet } = transfer.name;
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.messages -= 1;
        if transfer.awaits_status() {
            path.status_known(transfer.opened_by);
        }
        if reason.is_none() {
            path.on_acked(transfer.in_flight());
        } else {
            for sequence in transfer.in_flight() {
                path.remove(sequence);
            }
        }
        let abort = !matches!(reason, None | Some(AbortReason::Rejected(_)));
        if abort && transfer.started && path.session == transfer.key && transfer.key.is_some() {
            let address = path.address;
            self.queue_control(ControlPacket::HeaderOnly {
                address,
                id,
                reply,
                sequence: 0,
                kind: HeaderOnly::Abort,
            });
        }
    }
}

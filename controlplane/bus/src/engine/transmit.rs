//! Transmission: control packets first, then chunks. Paths take turns packet by packet, the messages of a path
//! [`MESSAGE_QUANTUM`] chunks at a time.

use hyphae_time::Nanos;
use hyphae_wire::PublicKey;
use hyphae_wire::message::{self, Body, MESSAGE_HEADER_LEN};
use hyphae_wire::report::INNER_MTU_MIN;

use super::Bus;
use super::control::{ControlPacket, encode};
use crate::path::{Flight, MESSAGE_QUANTUM, Path};
use crate::transfer::{Chunk, TransferKey};
use crate::transfers::TransferRef;
use crate::{AbortReason, Transmit};

/// Entries of finished messages allowed in the queues of a path, beyond as many as there are messages.
pub(super) const STALE_MIN: usize = 64;

impl Bus {
    /// The next payload to send: as many packets to one node as fit. The windows bound the number of payloads; a
    /// caller may stop early and continue later.
    pub fn poll_transmit(&mut self, now: Nanos) -> Option<Transmit> {
        let mut transmit = self.next.take().or_else(|| self.poll_packet(now))?;
        let path = self.paths.get(&transmit.address.subnet_id());
        // Peers that only receive control packets have no path.
        let most = path.map_or(INNER_MTU_MIN.into(), Path::packet);
        if let Some(peer) = path.and_then(|path| path.session) {
            self.piggyback_batch_ack(peer);
        }
        let room = most - MESSAGE_HEADER_LEN - 2 * message::BUNDLE_ENTRY_LEN;
        while transmit.payload.len() < room
            && let Some(mut next) = self.poll_packet(now)
        {
            let left = most.saturating_sub(transmit.payload.len());
            transmit.payload.reserve(left);
            let fits = next.address == transmit.address
                && message::append(&mut transmit.payload, &next.payload, most);
            if !fits {
                self.next = Some(next);
                break;
            }
            next.payload.clear();
            self.spare = next.payload;
        }
        Some(transmit)
    }

    /// Returns the buffer of a payload that has been sent.
    pub fn recycle(&mut self, transmit: Transmit) {
        self.spare = transmit.payload;
        self.spare.clear();
    }

    /// Whether [`Self::poll_transmit`] may have more.
    pub fn wants_transmit(&self) -> bool {
        self.next.is_some() || !self.control.is_empty() || !self.active.is_empty()
    }

    /// Queues a delayed batch ack now, to share the payload that is sent to its peer anyway.
    fn piggyback_batch_ack(&mut self, peer: PublicKey) {
        if let Some(batcher) = self.batchers.get_mut(&peer)
            && batcher.has_decided(|key| self.incoming.contains_key(key))
            && !std::mem::replace(&mut batcher.queued, true)
        {
            self.control.push_front(ControlPacket::BatchAck(peer));
        }
    }

    fn poll_packet(&mut self, now: Nanos) -> Option<Transmit> {
        let transmit = self.poll_control(now).or_else(|| self.poll_chunk(now))?;
        self.stats.packets_sent += 1;
        Some(transmit)
    }

    fn poll_chunk(&mut self, now: Nanos) -> Option<Transmit> {
        while let Some(subnet) = self.active.pop_front() {
            let Some(path) = self.paths.get_mut(&subnet) else {
                continue;
            };
            path.active = false;
            let (Some(session), true) = (path.session, path.has_room()) else {
                continue;
            };
            let Some(of) = path.ready.front().copied() else {
                continue;
            };
            let Some(transfer) = self.transfers.get_mut(of) else {
                path.end_turn();
                self.activate(subnet);
                continue;
            };
            if *transfer.key.get_or_insert(session) != session {
                self.finish(now, of, Some(AbortReason::OtherKey));
                self.activate(subnet);
                continue;
            }
            let transmit = self.transmit_chunk(now, of, session);
            self.activate(subnet);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }

    fn transmit_chunk(
        &mut self,
        now: Nanos,
        of: TransferRef,
        session: PublicKey,
    ) -> Option<Transmit> {
        let transfer = self.transfers.get_mut(of)?;
        let TransferKey { id, reply, subnet } = transfer.name;
        let path = self.paths.get_mut(&subnet)?;
        let Some(Chunk { number, retransmit }) = transfer.take_chunk() else {
            transfer.queued = false;
            path.end_turn();
            return None;
        };
        let range = transfer.layout.range(number)?;
        let data = transfer.payload.get(range)?;
        let sequence = path.next_sequence();
        let body = if number == 0 {
            transfer.opened_by = sequence;
            Body::Open {
                layout: transfer.layout,
                digest: &transfer.digest,
                topic: transfer.topic.as_bytes(),
                failure: transfer.failure,
                data,
            }
        } else {
            Body::Data { number, data }
        };
        let spare = std::mem::take(&mut self.spare);
        let transmit = encode(spare, path.address, id, reply, sequence, body);
        transfer.on_sent(number, sequence);
        if !transfer.started {
            transfer.started = true;
            if let Some(pending) = self.pending_replies.get_mut(&id).filter(|_| !reply) {
                pending.key = Some(session);
            }
        }
        self.stats.retransmissions += u64::from(retransmit);
        path.on_sent(
            sequence,
            Flight {
                of,
                chunk: number,
                bytes: transmit.payload.len(),
                at: now,
            },
        );
        path.turn += 1;
        let more = transfer.has_more();
        if !more || path.turn >= MESSAGE_QUANTUM {
            path.end_turn();
            transfer.queued = more;
            if more {
                path.ready.push_back(of);
            }
        }
        self.schedule_path(now, subnet);
        Some(transmit)
    }

    /// Queues a message on its path if it has chunks to send.
    pub(super) fn make_ready(&mut self, of: TransferRef) {
        let Some(transfer) = self.transfers.get_mut(of) else {
            return;
        };
        let subnet = transfer.name.subnet;
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        if transfer.has_more() && !transfer.queued {
            transfer.queued = true;
            path.ready.push_back(of);
            if path.ready.len() > 2 * path.messages + STALE_MIN {
                let transfers = &self.transfers;
                let queued = |of: &TransferRef| transfers.get(*of).is_some_and(|it| it.queued);
                path.ready.retain(queued);
            }
        }
        self.activate(subnet);
    }

    /// Queues a path if it has chunks to send and window to send them.
    pub(super) fn activate(&mut self, subnet: u64) {
        if let Some(path) = self.paths.get_mut(&subnet)
            && !path.active
            && !path.ready.is_empty()
            && path.has_room()
        {
            path.active = true;
            self.active.push_back(subnet);
        }
    }
}

//! Execution of verdicts and of program records for a light node, as a worker of the dataplane does it for its engine.

use hyphae_forward::{Egress, LinkSlot, Train, Verdict, cut};
use hyphae_shm::record::{Program, Punt};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::report::{FRAGMENT_HEADERS_LEN, FRAME_MIN_MAX};

use hyphae_wire::Endpoint;

use crate::{Node, WORKER};

impl Node {
    /// Executes the verdict about a frame; `out` is space for built frames.
    pub(super) fn execute(
        &mut self,
        now: Nanos,
        from: &Endpoint,
        verdict: &Verdict,
        frame: &[u8],
        out: &mut [u8],
    ) {
        let end = |len: u32| &frame[..frame.len().min(len as usize)];
        match *verdict {
            Verdict::Drop(_) | Verdict::Done => {}
            Verdict::Transmit(lane) => self.transmit(lane, frame, out),
            Verdict::TransmitPart(lane, len) => self.transmit(lane, end(len), out),
            Verdict::Reply { len, .. } => self.send(from, end(len)),
            Verdict::Deliver { offset, len, .. } => {
                let (offset, len) = (offset as usize, len as usize);
                self.delivered.push(frame[offset..offset + len].to_vec());
            }
            Verdict::PuntHandshake
            | Verdict::PuntLinkLocal { .. }
            | Verdict::PuntService { .. } => {
                let punt = |punt: &Punt<'_>| self.take_punt(now, punt);
                hyphae_dataplane::punts::of_verdict(now, from, verdict, frame, punt);
            }
            // There is one worker.
            Verdict::Handoff(_)
            | Verdict::HandoffOpened { .. }
            | Verdict::HandoffAll { .. }
            | Verdict::HandoffEgress { .. } => {}
        }
    }

    /// Applies a record of the overlay engine or of the RIB.
    pub(super) fn apply(&mut self, now: Nanos, program: &Program<'_>, out: &mut [u8]) {
        match program {
            // The workers of a light node are always new: there is no state to adopt.
            Program::SnapshotRequest(generation) => {
                let end = Punt::SnapshotEnd(generation);
                self.overlay.handle_punt(now, WORKER, &end);
            }
            Program::InjectRaw(record, frame) => self.send(&record.addresses.remote, frame),
            Program::InjectLinkLocal(record, payload) => {
                let train = self.engine.inject_link_local(now, record, payload, out);
                self.send_built(train, out, false);
            }
            Program::InjectRouted(record, payload) => {
                let train = self.engine.inject_routed(now, record, payload, out);
                self.send_built(train, out, false);
            }
            Program::InjectMtuProbe(record) => {
                let train = self.engine.inject_mtu_probe(now, record, out);
                self.send_built(train, out, true);
            }
            Program::InjectPathProbe(record) => {
                let train = self.engine.inject_path_probe(now, record, out);
                self.send_built(train, out, false);
            }
            Program::InjectTrace(record) => {
                let train = self.engine.inject_trace(now, record, out);
                self.send_built(train, out, false);
            }
            Program::PeerInstall(_)
            | Program::PeerRemove(_)
            | Program::LinkInstall(_)
            | Program::LinkRemove(_)
            | Program::SessionInstall(_)
            | Program::SessionRemove(_)
            | Program::FibReplace(_)
            | Program::FibRemove(_)
            | Program::LocalInstall(_)
            | Program::LinkMtu(_)
            | Program::PathMtu(_)
            | Program::ResyncBegin(_)
            | Program::ResyncEnd(_)
            | Program::PendingDrop(_)
            | Program::Retain(_)
            | Program::CookieSecret(_)
            | Program::NodeSecret(_) => {
                let refused = self.engine.apply(now, program).is_err();
                let counters = &mut self.engine.counters;
                counters.add(Counter::ProgramRefused, u64::from(refused));
            }
        }
    }

    /// Sends the frames of a train that was built at the start of `space`; `whole` ones are not fragmented.
    pub(super) fn send_built(
        &mut self,
        train: Result<Train, DropReason>,
        space: &mut [u8],
        whole: bool,
    ) {
        let (lane, len, segment) = match train {
            Ok(train) => match train.egress {
                Egress::Lane(lane) => (lane, train.len, train.segment),
                // There is one worker.
                Egress::Handoff(_) => return,
            },
            Err(reason) => {
                self.engine.counters.drop(reason);
                return;
            }
        };
        let (frames, rest) = space.split_at_mut(len);
        for frame in frames.chunks(segment) {
            if whole {
                self.enqueue_tx(lane, frame);
            } else {
                self.transmit(lane, frame, rest);
            }
        }
    }

    /// Sends a frame, in two fragments if it exceeds the MTU of the link.
    fn transmit(&mut self, lane: LinkSlot, frame: &[u8], out: &mut [u8]) {
        if frame.len() <= self.engine.link_mtu(lane) {
            self.enqueue_tx(lane, frame);
            return;
        }
        let room = FRAME_MIN_MAX as usize + 2 * FRAGMENT_HEADERS_LEN;
        let space = &mut out[..room];
        let Some((len, size)) = cut(frame, space) else {
            self.engine.counters.drop(DropReason::LinkTooBig);
            return;
        };
        for part in out[..len].chunks(size) {
            self.enqueue_tx(lane, part);
        }
    }

    fn enqueue_tx(&mut self, lane: LinkSlot, frame: &[u8]) {
        // A frame fits a datagram.
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.engine.note_sent(lane, 1, u64::from(len), len);
        if let Some(to) = self.engine.endpoint(lane).copied() {
            self.send(&to, frame);
        }
    }

    fn send(&mut self, to: &Endpoint, datagram: &[u8]) {
        let sent = self.socket.send_to(datagram, to.to_socket_addr());
        let refused = u64::from(sent.is_err());
        self.engine.counters.add(Counter::TxErrors, refused);
    }
}

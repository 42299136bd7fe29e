//! Execution of the engine's verdicts: what a turn does with each frame that arrives.

use hyphae_driver::{Driver, SEGMENTS_MAX, Span};
use hyphae_forward::{Egress, LinkSlot, Train, Verdict, cut};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::report::{FRAGMENT_HEADERS_LEN, FRAME_MIN_MAX};
use hyphae_wire::{AddressPair, WorkerId};

use crate::handoff::{self, Handed};
use crate::stream;
use crate::worker::Worker;

impl<D: Driver> Worker<D> {
    /// A train from the underlay.
    pub(crate) fn receive(&mut self, now: Nanos, from: &AddressPair, span: Span, segment: u32) {
        let mut verdicts = std::mem::take(&mut self.verdicts);
        let train = self.driver.spans(span);
        self.context
            .engine
            .receive(now, from, train, segment as usize, &mut verdicts);
        // Adjacent frames for one lane leave as one span: most trains pass through whole.
        let mut run: Option<(LinkSlot, Span)> = None;
        let mut offset = 0;
        for verdict in verdicts.drain(..) {
            let len = segment.min(span.len - offset);
            let frame = Self::part(span, offset, len);
            offset += len;
            match (verdict, &mut run) {
                (Verdict::Transmit(lane), Some((last, whole)))
                    if lane == *last
                        && whole.offset + whole.len == frame.offset
                        && whole.len < segment * SEGMENTS_MAX as u32 =>
                {
                    whole.len += len;
                }
                (Verdict::Transmit(lane), _) => {
                    if let Some((last, whole)) = run.replace((lane, frame)) {
                        self.transmit(last, whole, segment.min(whole.len));
                    }
                }
                (verdict, _) => self.execute(now, from, &verdict, frame),
            }
        }
        if let Some((lane, whole)) = run {
            self.transmit(lane, whole, segment.min(whole.len));
        }
        self.verdicts = verdicts;
    }

    fn execute(&mut self, now: Nanos, from: &AddressPair, verdict: &Verdict, frame: Span) {
        let context = &mut self.context;
        match *verdict {
            Verdict::Drop(_) | Verdict::Done => {}
            Verdict::Transmit(lane) => self.transmit(lane, frame, frame.len),
            Verdict::TransmitPart(lane, len) => self.transmit(lane, Self::part(frame, 0, len), len),
            Verdict::Reply { len, .. } => {
                let answer = Self::part(frame, 0, len);
                self.turn.output.send_raw(&mut self.driver, from, answer);
            }
            Verdict::Deliver {
                offset,
                len,
                partial_checksum,
            } => self.deliver(Self::part(frame, offset, len), partial_checksum),
            Verdict::Handoff(worker) => {
                let bytes = self.driver.spans(frame);
                let pushed = context.handoff.raw(worker, from, bytes);
                self.count_handoff(pushed, 1);
            }
            Verdict::HandoffOpened { worker, peer } => {
                let bytes = self.driver.spans(frame);
                let pushed = context.handoff.opened(worker, peer, bytes);
                self.count_handoff(pushed, 1);
            }
            Verdict::HandoffAll { peer } => {
                // One frame, however many workers miss it.
                let mut packets = 1;
                for worker in self.context.handoff.others() {
                    let bytes = self.driver.spans(frame);
                    let pushed = self.context.handoff.opened(worker, peer, bytes);
                    self.count_handoff(pushed, packets);
                    packets *= u64::from(pushed);
                }
            }
            Verdict::HandoffEgress { worker, peer, len } => {
                self.hand_off_egress(worker, peer, Self::part(frame, 0, len), len);
            }
            Verdict::PuntHandshake
            | Verdict::PuntLinkLocal { .. }
            | Verdict::PuntService { .. } => {
                let bytes = self.driver.spans(frame);
                let pushed = context.control.push_verdict(now, from, verdict, bytes);
                self.count_punt(pushed, 1);
            }
        }
    }

    /// Executes a record of another worker or of the stream thread. Frames are copied into a buffer of
    /// this worker, because sends and TUN writes refer to them until the end of the turn.
    pub(crate) fn execute_handed(&mut self, now: Nanos, handed: Handed<'_>) {
        match handed {
            Handed::Counts(counts) => self.count_streams(counts),
            Handed::Host(packet) => self.host_copy(now, &[packet]),
            Handed::Raw { from, frame } => {
                if let Some(span) = self.copy(frame) {
                    self.receive(now, &from, span, span.len);
                }
            }
            Handed::Opened { peer, frame } => {
                if let Some(span) = self.copy(frame) {
                    let frame = self.driver.spans(span);
                    let verdict = self.context.engine.receive_opened(now, peer, frame);
                    self.execute(now, &AddressPair::default(), &verdict, span);
                }
            }
            Handed::Egress {
                peer,
                segment,
                frames,
            } => {
                if let Some(span) = self.copy(frames) {
                    let frames = self.driver.spans(span);
                    let engine = &mut self.context.engine;
                    if let Some(lane) = engine.forward_handed(now, peer, frames, segment as usize) {
                        self.transmit(lane, span, segment);
                    }
                }
            }
        }
    }

    /// Counters of the stream thread are published as worker 0's.
    fn count_streams(&mut self, counts: &[u8]) {
        let Some(counts) = stream::parse_counts(counts) else {
            return;
        };
        let counters = &mut self.context.engine.counters;
        for (counter, n) in stream::COUNTERS.into_iter().zip(counts) {
            counters.add(counter, n.get());
        }
        let drops = counts.iter().skip(stream::COUNTERS.len());
        for (reason, n) in stream::DROPS.into_iter().zip(drops) {
            counters.drop_many(reason, n.get());
        }
        let lost = counts[stream::OVERRUNS_AT].get();
        counters.add(Counter::HandoffOverruns, lost);
        counters.drop_many(DropReason::HandoffFull, lost);
    }

    /// Receives reassembled frames like any others.
    pub(crate) fn receive_reassembled(&mut self, now: Nanos) -> bool {
        let mut any = false;
        while self.context.engine.has_whole() {
            any = true;
            let Some(space) = self.space(u32::from(FRAME_MIN_MAX)) else {
                self.context.engine.forget_wholes();
                break;
            };
            let bytes = self.driver.spans(space);
            let Some((len, from)) = self.context.engine.next_whole(bytes) else {
                break;
            };
            // At most FRAME_MIN_MAX.
            let frame = Self::part(space, 0, len as u32);
            self.turn.arena.take(frame.len);
            self.receive(now, &from, frame, frame.len);
        }
        any
    }

    /// Sends a train that was built at the start of `space`; a `whole` one is never fragmented, even if the
    /// link is not known to carry it.
    pub(crate) fn send_built(&mut self, space: Span, train: &Train, whole: bool) {
        // A train fits a buffer.
        let (len, segment) = (train.len as u32, train.segment as u32);
        let frames = Self::part(space, 0, len);
        match train.egress {
            Egress::Lane(lane) => {
                self.turn.arena.take(len);
                if whole {
                    self.enqueue_tx(lane, frames, segment);
                } else {
                    self.transmit(lane, frames, segment);
                }
            }
            Egress::Handoff(worker) => self.hand_off_egress(worker, 0, frames, segment),
        }
    }

    fn hand_off_egress(&mut self, worker: WorkerId, peer: u32, frames: Span, segment: u32) {
        let bytes = self.driver.spans(frames);
        let pushed = self.context.handoff.egress(worker, peer, segment, bytes);
        self.count_handoff(pushed, u64::from(frames.len.div_ceil(segment)));
    }

    fn transmit(&mut self, lane: LinkSlot, span: Span, segment: u32) {
        if segment as usize > self.context.engine.link_mtu(lane) {
            self.transmit_fragmented(lane, span, segment);
        } else {
            self.enqueue_tx(lane, span, segment);
        }
    }

    /// The link does not carry frames of this size: each leaves as two fragments, in a buffer of this worker.
    fn transmit_fragmented(&mut self, lane: LinkSlot, span: Span, segment: u32) {
        let mtu = self.context.engine.link_mtu(lane);
        let mut offset = 0;
        while offset < span.len {
            let frame = Self::part(span, offset, segment.min(span.len - offset));
            offset += frame.len;
            if frame.len as usize <= mtu {
                self.enqueue_tx(lane, frame, frame.len);
                continue;
            }
            let mut whole = [0; FRAME_MIN_MAX as usize];
            let bytes = self.driver.spans(frame);
            let Some(copy) = whole.get_mut(..bytes.len()) else {
                self.context.engine.counters.drop(DropReason::LinkTooBig);
                continue;
            };
            copy.copy_from_slice(bytes);
            let Some(out) = self.space(frame.len + 2 * FRAGMENT_HEADERS_LEN as u32) else {
                continue;
            };
            if let Some((len, size)) = cut(copy, self.driver.spans(out)) {
                // Both are below the length of `out`.
                let (len, size) = (len as u32, size as u32);
                self.turn.arena.take(len);
                self.context.engine.counters.add(Counter::FramesSplit, 1);
                self.enqueue_tx(lane, Self::part(out, 0, len), size);
            }
        }
    }

    fn enqueue_tx(&mut self, lane: LinkSlot, span: Span, segment: u32) {
        let engine = &mut self.context.engine;
        engine.note_sent(
            lane,
            u64::from(span.len.div_ceil(segment)),
            u64::from(span.len),
            segment,
        );
        let Some(to) = engine.addresses(lane) else {
            return;
        };
        self.turn
            .output
            .add(&mut self.driver, lane.0, to, span, segment);
    }

    /// Space for `len` bytes in a buffer of this turn; `None`, counted as a drop, when no buffer is free.
    pub(crate) fn space(&mut self, len: u32) -> Option<Span> {
        let space = self.turn.space(&mut self.driver, len);
        if space.is_none() {
            self.context.engine.counters.drop(DropReason::NoBuffer);
        }
        space
    }

    /// A copy of `bytes`, at most 64 KiB, in a buffer of this turn; `None` likewise.
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Option<Span> {
        let span = self.space(bytes.len() as u32)?;
        self.turn.arena.take(span.len);
        self.driver.spans(span).copy_from_slice(bytes);
        Some(span)
    }

    pub(crate) fn count_handoff(&mut self, pushed: bool, packets: u64) {
        handoff::count(&mut self.context.engine.counters, pushed, packets);
    }

    /// Counts a record for the control plane, which has `packets` packets: 1, or 0 for an event.
    pub(crate) fn count_punt(&mut self, pushed: bool, packets: u64) {
        let counters = &mut self.context.engine.counters;
        if pushed {
            counters.add(Counter::Punts, 1);
        } else {
            counters.add(Counter::PuntOverruns, 1);
            counters.drop_many(DropReason::PuntFull, packets);
        }
    }
}

//! What a turn does with each thing that arrives: carries out the engine's verdicts.

use hyphae_driver::{BufferId, Driver, SEGMENTS_MAX, Span};
use hyphae_forward::host::{Part, Splitter, TUN_HEADER_LEN, TunHeader, TunSink};
use hyphae_forward::{
    Egress, Engine, HostVerdict, LinkSlot, PendingPacket, SnapshotCursor, Train, Verdict, cut,
};
use hyphae_shm::record::{Program, Punt};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::control::PROBE_LEN;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::report::{FRAGMENT_HEADERS_LEN, FRAME_MIN_MAX, REPORT_LEN};

use hyphae_wire::{AddressPair, WorkerId, on_wiped_stack};
use zerocopy::{FromBytes, IntoBytes};

use crate::control;
use crate::handoff;
use crate::output::BUFFER_BYTES;
use crate::stream;
use crate::worker::Worker;

/// Records taken from the control plane in one turn.
const PROGRAM_BUDGET: usize = 64;
/// Bytes of headers that splitting repeats in every packet: IPv6 and TCP with all options.
const HEADERS_MAX: usize = 100;
/// Records of a snapshot in one turn.
const SNAPSHOT_BUDGET: usize = 256;

impl<D: Driver> Worker<D> {
    /// A train from the underlay.
    pub(crate) fn receive(&mut self, now: Nanos, from: &AddressPair, span: Span, segment: u32) {
        let mut verdicts = std::mem::take(&mut self.verdicts);
        let train = self.driver.spans(span);
        self.engine
            .receive(now, from, train, segment as usize, &mut verdicts);
        // Neighbouring frames for one lane leave as one span: most trains pass through whole.
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
                (verdict, _) => self.carry_out(now, from, &verdict, frame),
            }
        }
        if let Some((lane, whole)) = run {
            self.transmit(lane, whole, segment.min(whole.len));
        }
        self.verdicts = verdicts;
    }

    fn carry_out(&mut self, now: Nanos, from: &AddressPair, verdict: &Verdict, frame: Span) {
        match *verdict {
            Verdict::Drop(_) | Verdict::Done => {}
            Verdict::Transmit(lane) => self.transmit(lane, frame, frame.len),
            Verdict::TransmitPart(lane, len) => self.transmit(lane, Self::part(frame, 0, len), len),
            Verdict::Reply { len, .. } => {
                let answer = Self::part(frame, 0, len);
                self.turn.output.send_raw(&mut self.driver, from, answer);
            }
            Verdict::HandoffAll { peer } => {
                for worker in self.handoff.others() {
                    let taken = self.handoff.opened(worker, peer, self.driver.spans(frame));
                    self.count_handoff(taken);
                }
            }
            Verdict::Deliver {
                offset,
                len,
                partial_checksum,
            } => {
                self.deliver(Self::part(frame, offset, len), partial_checksum);
            }
            Verdict::Handoff(worker) => {
                let taken = self.handoff.raw(worker, from, self.driver.spans(frame));
                self.count_handoff(taken);
            }
            Verdict::HandoffOpened { worker, peer } => {
                let taken = self.handoff.opened(worker, peer, self.driver.spans(frame));
                self.count_handoff(taken);
            }
            Verdict::HandoffEgress { worker, len } => {
                self.hand_off_egress(worker, Self::part(frame, 0, len), len);
            }
            Verdict::PuntHandshake
            | Verdict::PuntLinkLocal { .. }
            | Verdict::PuntService { .. } => {
                let bytes = self.driver.spans(frame);
                let taken = self.control.push_verdict(now, from, verdict, bytes);
                self.count_punt(taken);
            }
        }
    }

    fn hand_off_egress(&mut self, worker: WorkerId, frames: Span, segment: u32) {
        let taken = self
            .handoff
            .egress(worker, segment, self.driver.spans(frames));
        self.count_handoff(taken);
    }

    /// What another worker handed off. It is copied into a buffer of ours, because what
    /// becomes of it may have to outlive this call.
    pub(crate) fn take_handoff(&mut self, now: Nanos, taken: handoff::Taken<'_>) {
        let (from, frame) = match &taken {
            handoff::Taken::Raw { from, frame } => (*from, &**frame),
            handoff::Taken::Opened { frame, .. } => (AddressPair::default(), &**frame),
            handoff::Taken::Egress { frames, .. } => (AddressPair::default(), *frames),
            handoff::Taken::Counts(counts) => {
                self.count_streams(counts);
                return;
            }
            handoff::Taken::Host(packet) => {
                self.host_copy(now, &[packet]);
                return;
            }
        };
        // A frame is at most 64 KiB.
        let len = frame.len() as u32;
        let space = self
            .turn
            .arena
            .space(&mut self.driver, len, &mut self.turn.held);
        let Some((buffer, offset)) = space else {
            self.engine.counters.drop(DropReason::NoBuffer);
            return;
        };
        self.turn.arena.take(len);
        let span = Span {
            buffer,
            offset,
            len,
        };
        self.driver.spans(span).copy_from_slice(frame);
        match taken {
            handoff::Taken::Raw { .. } => self.receive(now, &from, span, len),
            handoff::Taken::Opened { peer, .. } => {
                let verdict = self
                    .engine
                    .receive_opened(now, peer, self.driver.spans(span));
                self.carry_out(now, &from, &verdict, span);
            }
            handoff::Taken::Egress { segment, .. } => {
                let frames = self.driver.spans(span);
                let lane = self.engine.forward_handed(now, frames, segment as usize);
                if let Some(lane) = lane {
                    self.transmit(lane, span, segment);
                }
            }
            handoff::Taken::Counts(_) | handoff::Taken::Host(_) => {}
        }
    }

    /// What the stream thread has counted is shown with worker 0's own.
    fn count_streams(&mut self, counts: &[u8]) {
        let Some(counts) = stream::parse_counts(counts) else {
            return;
        };
        let counters = &mut self.engine.counters;
        for (counter, n) in stream::COUNTERS.into_iter().zip(counts) {
            counters.add(counter, n.get());
        }
        let drops = counts.iter().skip(stream::COUNTERS.len());
        for (reason, n) in stream::DROPS.into_iter().zip(drops) {
            counters.drop_many(reason, n.get());
        }
        counters.add(Counter::HandoffOverruns, counts[stream::OVERRUNS_AT].get());
    }

    /// A packet or super-packet of the host.
    pub(crate) fn host_packet(&mut self, now: Nanos, span: Span) {
        self.engine.counters.add(Counter::TunRxReads, 1);
        let bytes = self.driver.spans(span);
        let Ok((header, packet)) = TunHeader::read_from_prefix(bytes) else {
            self.engine.counters.drop(DropReason::TunMalformed);
            return;
        };
        self.engine
            .counters
            .add(Counter::TunRxBytes, packet.len() as u64);
        let departure = match self.engine.route_host(now, &header, packet) {
            HostVerdict::Depart(departure) => departure,
            HostVerdict::Handoff(worker) => {
                let taken = self.handoff.host(worker, bytes);
                self.count_handoff(taken);
                return;
            }
            HostVerdict::Wait | HostVerdict::Drop(_) => return,
        };
        let packet = Self::part(
            span,
            TUN_HEADER_LEN as u32,
            span.len - TUN_HEADER_LEN as u32,
        );
        let bytes = self.driver.spans(packet);
        let frames = match Splitter::new(&header, bytes, departure.mtu()) {
            Ok(splitter) => splitter.remaining(),
            Err(reason) => {
                self.engine.counters.drop(reason);
                if reason == DropReason::TunTooBig {
                    self.engine.host_too_big(now, departure.mtu(), bytes);
                }
                return;
            }
        };
        let (mut left, mut position) = (frames, 0);
        while left > 0 {
            let train = left.min(SEGMENTS_MAX);
            let exact = train * (usize::from(departure.mtu()) + OVERHEAD);
            let wanted = exact.min(packet.len as usize + train * (OVERHEAD + HEADERS_MAX));
            // Bounded by the buffer.
            let wanted = wanted.min(BUFFER_BYTES as usize) as u32;
            let Some((buffer, offset)) =
                self.turn
                    .arena
                    .space(&mut self.driver, wanted, &mut self.turn.held)
            else {
                self.engine.counters.drop(DropReason::NoBuffer);
                return;
            };
            let (read, write) = self.driver.pair(packet.buffer, buffer);
            let read = &read[packet.offset as usize..(packet.offset + packet.len) as usize];
            let write = &mut write[offset as usize..];
            // Made anew for every buffer: it borrows the packet from the driver that lends the
            // space.
            let Ok(mut splitter) = Splitter::new(&header, read, departure.mtu()) else {
                return;
            };
            splitter.seek(position);
            let Some(train) = self.engine.originate(now, &departure, &mut splitter, write) else {
                return;
            };
            (left, position) = (splitter.remaining(), splitter.position());
            self.send_built(buffer, offset, &train);
        }
    }

    /// A packet that waited for its session: like one that has just been read.
    pub(crate) fn send_ready(&mut self, now: Nanos, ready: &PendingPacket) {
        self.host_copy(now, &[ready.header.as_bytes(), &ready.packet]);
    }

    /// A TUN header and packet of the host, copied to a buffer of their own.
    fn host_copy(&mut self, now: Nanos, parts: &[&[u8]]) {
        // TUN packets are at most 64 KiB with their header.
        let len = parts.iter().map(|part| part.len() as u32).sum();
        let Some(buffer) = self.driver.allocate() else {
            self.engine.counters.drop(DropReason::NoBuffer);
            return;
        };
        self.turn.held.push(buffer);
        let span = Span {
            buffer,
            offset: 0,
            len,
        };
        let mut rest = self.driver.spans(span);
        for part in parts {
            let (room, after) = rest.split_at_mut(part.len());
            room.copy_from_slice(part);
            rest = after;
        }
        self.host_packet(now, span);
    }

    /// Takes a bounded number of records of the control plane.
    pub(crate) fn take_program(&mut self, now: Nanos) -> bool {
        let mut taken = 0;
        while taken < PROGRAM_BUDGET {
            match self.control.take() {
                control::Taken::Nothing => break,
                control::Taken::Corrupt => {
                    self.engine.counters.add(Counter::RingDetached, 1);
                    self.detached = true;
                    break;
                }
                control::Taken::Record(code, len) => {
                    taken += 1;
                    let mut scratch = std::mem::take(&mut self.control.scratch);
                    let applied = Program::parse(code, &scratch[..len])
                        .is_some_and(|program| self.apply(now, &program));
                    // Records may carry keys.
                    scratch[..len].fill(0);
                    self.control.scratch = scratch;
                    let counters = &mut self.engine.counters;
                    counters.add(Counter::ProgramRecords, 1);
                    counters.add(Counter::ProgramRefused, u64::from(!applied));
                }
            }
        }
        if taken > 0 {
            self.control.release();
        }
        taken > 0 || self.detached && self.control.snapshot.take().is_some()
    }

    fn apply(&mut self, now: Nanos, program: &Program<'_>) -> bool {
        match program {
            Program::SnapshotRequest(generation) => {
                self.control.snapshot = Some((SnapshotCursor::default(), **generation));
                true
            }
            Program::InjectRaw(record, frame) => self.inject_raw(&record.addresses, frame),
            Program::InjectLinkLocal(record, payload) => self
                .inject(payload.len(), |engine, space| {
                    engine.inject_link_local(now, record, payload, space)
                }),
            Program::InjectRouted(record, payload) => self
                .inject(payload.len(), |engine, space| {
                    engine.inject_routed(now, record, payload, space)
                }),
            Program::InjectMtuProbe(record) => {
                let wanted = usize::from(record.len.get());
                self.inject_whole(wanted, |engine, space| {
                    engine.inject_mtu_probe(now, record, space)
                })
            }
            Program::InjectPathProbe(record) => self.inject(
                usize::from(record.len.get()).max(PROBE_LEN),
                |engine, space| engine.inject_path_probe(now, record, space),
            ),
            Program::InjectTrace(record) => {
                self.inject(0, |engine, space| engine.inject_trace(now, record, space))
            }
            Program::PeerRemove(record) => {
                self.stats.clear_peer(record.peer.get());
                self.engine.apply(now, program).is_ok()
            }
            Program::LinkInstall(_)
            | Program::SessionInstall(_)
            | Program::CookieSecret(_)
            | Program::NodeSecret(_) => on_wiped_stack(|| self.engine.apply(now, program).is_ok()),
            Program::PeerInstall(_)
            | Program::LinkRemove(_)
            | Program::SessionRemove(_)
            | Program::FibReplace(_)
            | Program::FibRemove(_)
            | Program::LocalInstall(_)
            | Program::LinkMtu(_)
            | Program::PathMtu(_)
            | Program::ResyncBegin(_)
            | Program::ResyncEnd(_)
            | Program::PendingDrop(_)
            | Program::Retain(_) => self.engine.apply(now, program).is_ok(),
        }
    }

    fn inject_raw(&mut self, to: &AddressPair, frame: &[u8]) -> bool {
        // Records are at most 64 KiB and a little.
        let Ok(len) = u16::try_from(frame.len()) else {
            return false;
        };
        let len = u32::from(len);
        let space = self
            .turn
            .arena
            .space(&mut self.driver, len, &mut self.turn.held);
        let Some((buffer, offset)) = space.filter(|_| len > 0) else {
            return false;
        };
        self.turn.arena.take(len);
        let span = Span {
            buffer,
            offset,
            len,
        };
        self.driver.spans(span).copy_from_slice(frame);
        self.turn.output.send_raw(&mut self.driver, to, span);
        true
    }

    fn inject(
        &mut self,
        payload_len: usize,
        build: impl FnOnce(&mut Engine, &mut [u8]) -> Result<Train, DropReason>,
    ) -> bool {
        self.inject_built(payload_len, false, build)
    }

    /// The frame leaves whole, even if the link is not known to carry it.
    fn inject_whole(
        &mut self,
        payload_len: usize,
        build: impl FnOnce(&mut Engine, &mut [u8]) -> Result<Train, DropReason>,
    ) -> bool {
        self.inject_built(payload_len, true, build)
    }

    fn inject_built(
        &mut self,
        payload_len: usize,
        whole: bool,
        build: impl FnOnce(&mut Engine, &mut [u8]) -> Result<Train, DropReason>,
    ) -> bool {
        // Records are at most 64 KiB and a little.
        let wanted = (payload_len + OVERHEAD) as u32;
        if wanted > BUFFER_BYTES {
            return false;
        }
        let space = self
            .turn
            .arena
            .space(&mut self.driver, wanted, &mut self.turn.held);
        let Some((buffer, offset)) = space else {
            self.engine.counters.drop(DropReason::NoBuffer);
            return true;
        };
        let bytes = self.driver.spans(Span {
            buffer,
            offset,
            len: wanted,
        });
        match build(&mut self.engine, bytes) {
            Ok(train) if whole => self.send_whole(buffer, offset, &train),
            Ok(train) => self.send_built(buffer, offset, &train),
            Err(reason) => self.engine.counters.drop(reason),
        }
        true
    }

    /// A lone frame that leaves as it is.
    fn send_whole(&mut self, buffer: BufferId, offset: u32, train: &Train) {
        // A train fits a buffer.
        let len = train.len as u32;
        self.turn.arena.take(len);
        let span = Span {
            buffer,
            offset,
            len,
        };
        match train.egress {
            Egress::Lane(lane) => self.hand_out(lane, span, len),
            Egress::Handoff(worker) => self.hand_off_egress(worker, span, len),
        }
    }

    /// Frames that are whole again are received like any other.
    pub(crate) fn take_wholes(&mut self, now: Nanos) -> bool {
        let mut any = false;
        while self.engine.has_whole() {
            any = true;
            let room = u32::from(FRAME_MIN_MAX);
            let space = self
                .turn
                .arena
                .space(&mut self.driver, room, &mut self.turn.held);
            let Some((buffer, offset)) = space else {
                self.engine.counters.drop(DropReason::NoBuffer);
                self.engine.forget_wholes();
                break;
            };
            let span = |len| Span {
                buffer,
                offset,
                len,
            };
            let Some((len, from)) = self.engine.next_whole(self.driver.spans(span(room))) else {
                break;
            };
            // At most FRAME_MIN_MAX.
            let len = len as u32;
            self.turn.arena.take(len);
            self.receive(now, &from, span(len), len);
        }
        any
    }

    /// Errors that the engine made: reports to other nodes, ICMPv6 for the host.
    pub(crate) fn send_errors(&mut self, now: Nanos) {
        while self.engine.has_report() {
            let sent = self.inject(REPORT_LEN, |engine, space| engine.next_report(now, space));
            if !sent {
                break;
            }
        }
        while let Some(packet) = self.engine.next_host_reply() {
            // An error is at most 1280 bytes.
            let len = packet.len() as u32;
            let space = self
                .turn
                .arena
                .space(&mut self.driver, len, &mut self.turn.held);
            let Some((buffer, offset)) = space else {
                self.engine.counters.drop(DropReason::NoBuffer);
                continue;
            };
            self.turn.arena.take(len);
            let span = Span {
                buffer,
                offset,
                len,
            };
            self.driver.spans(span).copy_from_slice(&packet);
            let written = self
                .driver
                .write_tun(&TunHeader::default().to_bytes(), &[span])
                .is_ok();
            self.count_writes(u64::from(written), u64::from(len), u64::from(!written));
        }
    }

    fn send_built(&mut self, buffer: BufferId, offset: u32, train: &Train) {
        // A train fits a buffer.
        let (len, segment) = (train.len as u32, train.segment as u32);
        let span = Span {
            buffer,
            offset,
            len,
        };
        match train.egress {
            Egress::Lane(lane) => {
                self.turn.arena.take(len);
                self.transmit(lane, span, segment);
            }
            Egress::Handoff(worker) => self.hand_off_egress(worker, span, segment),
        }
    }

    fn transmit(&mut self, lane: LinkSlot, span: Span, segment: u32) {
        if segment as usize > self.engine.link_mtu(lane) {
            self.transmit_split(lane, span, segment);
        } else {
            self.hand_out(lane, span, segment);
        }
    }

    /// The link does not carry frames of this size: each leaves in two parts, in a buffer of ours.
    fn transmit_split(&mut self, lane: LinkSlot, span: Span, segment: u32) {
        let mtu = self.engine.link_mtu(lane);
        let mut offset = 0;
        while offset < span.len {
            let frame = Self::part(span, offset, segment.min(span.len - offset));
            offset += frame.len;
            if frame.len as usize <= mtu {
                self.hand_out(lane, frame, frame.len);
                continue;
            }
            let mut whole = [0; FRAME_MIN_MAX as usize];
            let bytes = self.driver.spans(frame);
            let Some(copy) = whole.get_mut(..bytes.len()) else {
                self.engine.counters.drop(DropReason::LinkTooBig);
                continue;
            };
            copy.copy_from_slice(bytes);
            let room = frame.len + 2 * FRAGMENT_HEADERS_LEN as u32;
            let space = self
                .turn
                .arena
                .space(&mut self.driver, room, &mut self.turn.held);
            let Some((buffer, at)) = space else {
                self.engine.counters.drop(DropReason::NoBuffer);
                continue;
            };
            let out = Span {
                buffer,
                offset: at,
                len: room,
            };
            if let Some((len, size)) = cut(copy, self.driver.spans(out)) {
                // Both are below the room asked for.
                let (len, size) = (len as u32, size as u32);
                self.turn.arena.take(len);
                self.engine.counters.add(Counter::FramesSplit, 1);
                self.hand_out(lane, Self::part(out, 0, len), size);
            }
        }
    }

    fn hand_out(&mut self, lane: LinkSlot, span: Span, segment: u32) {
        self.engine.note_sent(
            lane,
            u64::from(span.len.div_ceil(segment)),
            u64::from(span.len),
            segment,
        );
        let Some(to) = self.engine.addresses(lane) else {
            return;
        };
        self.turn
            .output
            .add(&mut self.driver, lane.0, to, span, segment);
    }

    fn deliver(&mut self, packet: Span, partial: bool) {
        let part = Part {
            buffer: packet.buffer.index(),
            offset: packet.offset,
            len: packet.len,
        };
        let mut sink = Sink {
            driver: &mut self.driver,
            writes: 0,
            bytes: 0,
            refused: 0,
        };
        let result = self.turn.coalescer.push(&mut sink, part, partial);
        let (writes, bytes, refused) = (sink.writes, sink.bytes, sink.refused);
        self.count_writes(writes, bytes, refused);
        if let Err(reason) = result {
            self.engine.counters.drop(reason);
        }
    }

    /// Writes what the coalescer still holds.
    pub(crate) fn flush_host(&mut self) {
        let mut sink = Sink {
            driver: &mut self.driver,
            writes: 0,
            bytes: 0,
            refused: 0,
        };
        self.turn.coalescer.flush(&mut sink);
        let (writes, bytes, refused) = (sink.writes, sink.bytes, sink.refused);
        self.count_writes(writes, bytes, refused);
    }

    /// Hands events and the rest of a snapshot to the control plane.
    pub(crate) fn report(&mut self, _now: Nanos) {
        while let Some(event) = self.engine.next_event() {
            let taken = self.control.push_event(&event);
            self.count_punt(taken);
        }
        if let Some((mut cursor, generation)) = self.control.snapshot.take() {
            let mut more = true;
            for _ in 0..SNAPSHOT_BUDGET {
                let before = cursor;
                let control = &mut self.control;
                more = self.engine.snapshot(&mut cursor, |punt| control.push(punt));
                if !more || cursor == before {
                    break;
                }
            }
            if more || !self.control.push(&Punt::SnapshotEnd(&generation)) {
                self.control.snapshot = Some((cursor, generation));
            }
        }
        self.control.publish();
        self.handoff.publish();
    }

    fn count_handoff(&mut self, taken: bool) {
        let counter = if taken {
            Counter::Handoffs
        } else {
            Counter::HandoffOverruns
        };
        self.engine.counters.add(counter, 1);
    }

    fn count_punt(&mut self, taken: bool) {
        let counter = if taken {
            Counter::Punts
        } else {
            Counter::PuntOverruns
        };
        self.engine.counters.add(counter, 1);
    }

    fn count_writes(&mut self, writes: u64, bytes: u64, refused: u64) {
        let counters = &mut self.engine.counters;
        counters.add(Counter::TunTxWrites, writes);
        counters.add(Counter::TunTxBytes, bytes);
        (0..refused).for_each(|_| counters.drop(DropReason::NoBuffer));
    }
}

/// The driver as the coalescer sees it.
struct Sink<'a, D: Driver> {
    driver: &'a mut D,
    writes: u64,
    bytes: u64,
    refused: u64,
}

impl<D: Driver> TunSink for Sink<'_, D> {
    fn slice(&mut self, buffer: u16, offset: u32, len: u32) -> &mut [u8] {
        self.driver.spans(Span {
            buffer: BufferId::new(buffer),
            offset,
            len,
        })
    }

    fn write(&mut self, header: &TunHeader, parts: &[Part]) {
        let mut spans = [Span {
            buffer: BufferId::new(0),
            offset: 0,
            len: 0,
        }; SEGMENTS_MAX];
        for (span, part) in spans.iter_mut().zip(parts) {
            *span = span_of(*part);
        }
        if self
            .driver
            .write_tun(&header.to_bytes(), &spans[..parts.len()])
            .is_ok()
        {
            self.writes += 1;
            self.bytes += parts.iter().map(|part| u64::from(part.len)).sum::<u64>();
        } else {
            self.refused += 1;
        }
    }
}

fn span_of(part: Part) -> Span {
    Span {
        buffer: BufferId::new(part.buffer),
        offset: part.offset,
        len: part.len,
    }
}

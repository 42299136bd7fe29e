//! Packets of the host: read from the TUN device and sent, received and written to it.

use hyphae_driver::{BufferId, Driver, SEGMENTS_MAX, Span};
use hyphae_forward::host::{Part, Splitter, TUN_HEADER_LEN, TunHeader, TunSink};
use hyphae_forward::{HostVerdict, PendingPacket};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::OVERHEAD;
use zerocopy::{FromBytes, IntoBytes};

use crate::output::BUFFER_BYTES;
use crate::worker::Worker;

/// Bytes of headers that splitting repeats in every packet: IPv6 and TCP with all options.
const HEADERS_MAX: usize = 100;

impl<D: Driver> Worker<D> {
    /// A packet or super-packet of the host, behind its TUN header.
    pub(crate) fn host_packet(&mut self, now: Nanos, span: Span) {
        let engine = &mut self.context.engine;
        let bytes = self.driver.spans(span);
        let Ok((header, packet)) = TunHeader::read_from_prefix(bytes) else {
            engine.counters.drop(DropReason::TunMalformed);
            return;
        };
        let departure = match engine.route_host(now, &header, packet) {
            HostVerdict::Depart(departure) => departure,
            HostVerdict::Handoff(worker) => {
                let pushed = self.context.handoff.host(worker, bytes);
                self.count_handoff(pushed, 1);
                return;
            }
            HostVerdict::Wait | HostVerdict::Drop(_) => return,
        };
        let frames = match Splitter::new(&header, packet, departure.mtu()) {
            Ok(splitter) => splitter.remaining(),
            Err(reason) => {
                engine.counters.drop(reason);
                if reason == DropReason::TunTooBig {
                    engine.host_too_big(now, departure.mtu(), packet);
                }
                return;
            }
        };
        let packet = Self::part(
            span,
            TUN_HEADER_LEN as u32,
            span.len - TUN_HEADER_LEN as u32,
        );
        let (mut left, mut position) = (frames, 0);
        while left > 0 {
            let train = left.min(SEGMENTS_MAX);
            let exact = train * (usize::from(departure.mtu()) + OVERHEAD);
            let wanted = exact.min(packet.len as usize + train * (OVERHEAD + HEADERS_MAX));
            // Bounded by the buffer.
            let wanted = wanted.min(BUFFER_BYTES as usize) as u32;
            let Some(space) = self.space(wanted) else {
                return;
            };
            let (read, write) = self.driver.pair(packet.buffer, space.buffer);
            let read = &read[packet.offset as usize..(packet.offset + packet.len) as usize];
            let write = &mut write[space.offset as usize..];
            // Again for every buffer: it borrows the packet from the driver that lends the space.
            let Ok(mut splitter) = Splitter::new(&header, read, departure.mtu()) else {
                return;
            };
            splitter.seek(position);
            let engine = &mut self.context.engine;
            let Some(train) = engine.originate(now, &departure, &mut splitter, write) else {
                return;
            };
            (left, position) = (splitter.remaining(), splitter.position());
            self.send_built(space, &train, false);
        }
    }

    /// A packet that waited for its session: like one that has just been read.
    pub(crate) fn send_ready(&mut self, now: Nanos, ready: &PendingPacket) {
        self.host_copy(now, &[ready.header.as_bytes(), &ready.packet]);
    }

    /// A TUN header and packet of the host, copied to a buffer of their own.
    pub(crate) fn host_copy(&mut self, now: Nanos, parts: &[&[u8]]) {
        let Some(buffer) = self.driver.allocate() else {
            self.context.engine.counters.drop(DropReason::NoBuffer);
            return;
        };
        self.turn.held.push(buffer);
        let span = Span {
            buffer,
            offset: 0,
            // TUN packets are at most 64 KiB with their header.
            len: parts.iter().map(|part| part.len() as u32).sum(),
        };
        let mut rest = self.driver.spans(span);
        for part in parts {
            let (room, after) = rest.split_at_mut(part.len());
            room.copy_from_slice(part);
            rest = after;
        }
        self.host_packet(now, span);
    }

    /// A received packet for the host.
    pub(crate) fn deliver(&mut self, packet: Span, partial: bool) {
        let part = Part {
            buffer: packet.buffer.index(),
            offset: packet.offset,
            len: packet.len,
        };
        let mut sink = Sink::new(&mut self.driver);
        let result = self.turn.coalescer.push(&mut sink, part, partial);
        let written = sink.written;
        self.count_writes(written);
        if let Err(reason) = result {
            self.context.engine.counters.drop(reason);
        }
    }

    /// Writes what the coalescer still holds.
    pub(crate) fn flush_host(&mut self) {
        let mut sink = Sink::new(&mut self.driver);
        self.turn.coalescer.flush(&mut sink);
        let written = sink.written;
        self.count_writes(written);
    }

    /// Writes the engine's ICMPv6 errors for the host.
    pub(crate) fn write_host_errors(&mut self) {
        while let Some(packet) = self.context.engine.next_host_reply() {
            let Some(span) = self.copy(&packet) else {
                continue;
            };
            let header = TunHeader::default().to_bytes();
            let accepted = self.driver.write_tun(&header, &[span]).is_ok();
            self.count_writes(Written {
                writes: u64::from(accepted),
                bytes: u64::from(span.len),
                refused: u64::from(!accepted),
            });
        }
    }

    fn count_writes(&mut self, written: Written) {
        let counters = &mut self.context.engine.counters;
        counters.add(Counter::TunTxWrites, written.writes);
        counters.add(Counter::TunTxBytes, written.bytes);
        counters.drop_many(DropReason::NoBuffer, written.refused);
    }
}

#[derive(Clone, Copy, Default)]
struct Written {
    writes: u64,
    bytes: u64,
    refused: u64,
}

/// The driver as the coalescer sees it.
struct Sink<'a, D: Driver> {
    driver: &'a mut D,
    written: Written,
}

impl<'a, D: Driver> Sink<'a, D> {
    fn new(driver: &'a mut D) -> Self {
        Self {
            driver,
            written: Written::default(),
        }
    }
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
        let spans = &spans[..parts.len()];
        if self.driver.write_tun(&header.to_bytes(), spans).is_ok() {
            self.written.writes += 1;
            self.written.bytes += parts.iter().map(|part| u64::from(part.len)).sum::<u64>();
        } else {
            self.written.refused += 1;
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

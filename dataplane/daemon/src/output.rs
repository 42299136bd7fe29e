//! The last step of the transmit path: each frame joins the train that leaves on its lane.
//!
//! A train is what one `sendmsg` with `UDP_SEGMENT` carries: equal segments, only the last may be
//! shorter, bounded in segments and bytes. Frames of one turn that leave on one
//! lane become one train wherever they came from, by iovec: this is how a relay makes trains out of
//! lone packets. Order on a lane is the order of `add`: a frame that cannot join closes the train
//! before it starts the next.
//!
//! Frames for a stream leave through the ring to the stream thread instead, one by one.
//!
//! Owned by one worker. Buffers stay referenced by the turn (see [`crate::worker`]) until `flush`.

use hyphae_driver::{BufferId, Driver, SEGMENTS_MAX, SLOT_BYTES, SendError, Span, TRAIN_BYTES_MAX};
use hyphae_shm::stats::FRAME_BUCKETS;
use hyphae_wire::{AddressPair, Endpoint};

use crate::stream::StreamOutlet;

/// Trains that can be open at once; one more closes the oldest.
const OPEN_MAX: usize = 16;

/// Outcome of what was passed to the driver since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) trains: u64,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Trains by how many frames they have.
    pub(crate) by_length: [u64; FRAME_BUCKETS.len()],
    /// Trains that the driver had no room for.
    pub(crate) refused: u64,
    /// Frames that the ring to the stream thread had no room for, since the counters were last published.
    pub(crate) stream_refused: u64,
}

/// Frames gathered per lane.
pub(crate) struct Output {
    /// Open trains, oldest first.
    open: Vec<OpenTrain>,
    /// Trains not in use, with their preallocated span lists.
    spare: Vec<OpenTrain>,
    stream: StreamOutlet,
    pub(crate) sent: Sent,
}

struct OpenTrain {
    lane: u32,
    to: AddressPair,
    segment: u32,
    segments: usize,
    bytes: u32,
    /// A shorter segment is in: nothing may follow.
    closed: bool,
    spans: Vec<Span>,
}

impl Output {
    pub(crate) fn new(stream: StreamOutlet) -> Self {
        let train = || OpenTrain {
            lane: 0,
            to: AddressPair::default(),
            segment: 0,
            segments: 0,
            bytes: 0,
            closed: false,
            spans: Vec::with_capacity(SEGMENTS_MAX),
        };
        Self {
            open: Vec::with_capacity(OPEN_MAX),
            spare: (0..OPEN_MAX).map(|_| train()).collect(),
            stream,
            sent: Sent::default(),
        }
    }

    /// Adds `span`, which holds frames of `segment` bytes each (the last may be shorter), to what
    /// leaves on `lane`.
    pub(crate) fn add<D: Driver>(
        &mut self,
        driver: &mut D,
        lane: u32,
        to: &AddressPair,
        span: Span,
        segment: u32,
    ) {
        debug_assert!(segment > 0 && span.len > 0, "a train has bytes");
        let count = span.len.div_ceil(segment) as usize;
        if let Some(at) = self
            .open
            .iter()
            .position(|train| train.lane == lane && train.to == *to)
        {
            if self.open[at].takes(span, segment, count) {
                self.open[at].append(span, count);
                return;
            }
            self.close(driver, at);
        } else if self.open.len() == OPEN_MAX {
            self.close(driver, 0);
        }
        // One of OPEN_MAX trains is spare whenever fewer than OPEN_MAX are open.
        let Some(mut train) = self.spare.pop() else {
            return;
        };
        train.start(lane, *to, segment);
        train.append(span, count);
        self.open.push(train);
    }

    /// Sends every open train.
    pub(crate) fn flush<D: Driver>(&mut self, driver: &mut D) {
        while !self.open.is_empty() {
            self.close(driver, 0);
        }
        self.stream.publish();
    }

    /// Sends bytes that belong to no lane (handshakes) at once.
    pub(crate) fn send_raw<D: Driver>(&mut self, driver: &mut D, to: &AddressPair, span: Span) {
        if to.remote.is_stream() {
            self.stream(driver, &to.remote, span, span.len);
            return;
        }
        let segment = u16::try_from(span.len).unwrap_or(u16::MAX);
        let result = driver.send(to, segment, &[span]);
        self.account(result, 1, span.len);
    }

    fn close<D: Driver>(&mut self, driver: &mut D, at: usize) {
        let train = self.open.remove(at);
        if train.to.remote.is_stream() {
            for span in &train.spans {
                self.stream(driver, &train.to.remote, *span, train.segment);
            }
            self.spare.push(train);
            return;
        }
        let segment = u16::try_from(train.segment).unwrap_or(u16::MAX);
        let result = driver.send(train.to, segment, &train.spans);
        self.account(result, train.segments as u64, train.bytes);
        self.spare.push(train);
    }

    /// Hands frames of `segment` bytes, the last maybe shorter, to the stream thread.
    fn stream<D: Driver>(&mut self, driver: &mut D, to: &Endpoint, span: Span, segment: u32) {
        for frame in driver.spans(span).chunks(segment as usize) {
            if self.stream.send(to, frame) {
                self.sent.packets += 1;
                self.sent.bytes += frame.len() as u64;
            } else {
                self.sent.stream_refused += 1;
            }
        }
    }

    fn account(&mut self, result: Result<(), SendError>, packets: u64, bytes: u32) {
        if result.is_ok() {
            self.sent.trains += 1;
            self.sent.packets += packets;
            self.sent.bytes += u64::from(bytes);
            if let Some(bucket) = FRAME_BUCKETS.iter().position(|bound| packets <= *bound) {
                self.sent.by_length[bucket] += 1;
            }
        } else {
            self.sent.refused += 1;
        }
    }
}

impl OpenTrain {
    fn start(&mut self, lane: u32, to: AddressPair, segment: u32) {
        self.lane = lane;
        self.to = to;
        self.segment = segment;
        self.segments = 0;
        self.bytes = 0;
        self.closed = false;
        self.spans.clear();
    }

    fn takes(&self, span: Span, segment: u32, count: usize) -> bool {
        // A lone shorter frame may end the train; longer or several of another size may not join.
        let fits = segment == self.segment || (count == 1 && span.len < self.segment);
        !self.closed
            && fits
            && self.segments + count <= SEGMENTS_MAX
            && self.bytes + span.len <= TRAIN_BYTES_MAX
            && self.spans.len() < SEGMENTS_MAX
    }

    fn append(&mut self, span: Span, count: usize) {
        self.segments += count;
        self.bytes += span.len;
        self.closed = !span.len.is_multiple_of(self.segment);
        match self.spans.last_mut() {
            Some(last) if adjoins(last, &span) => last.len += span.len,
            _ => self.spans.push(span),
        }
    }
}

fn adjoins(last: &Span, next: &Span) -> bool {
    last.buffer == next.buffer && last.offset + last.len == next.offset
}

/// Bytes of a buffer.
pub(crate) const BUFFER_BYTES: u32 = SLOT_BYTES as u32;

/// Space for frames that this worker builds: transmit buffers filled one after the other.
/// The buffer in use is referenced until the end of the turn.
pub(crate) struct Arena {
    current: Option<(BufferId, u32)>,
}

impl Arena {
    pub(crate) fn new() -> Self {
        Self { current: None }
    }

    /// `len` free bytes. A new buffer is added to `held`, to be released at the end of the turn.
    /// `None` when no buffer is free.
    pub(crate) fn space<D: Driver>(
        &mut self,
        driver: &mut D,
        len: u32,
        held: &mut Vec<BufferId>,
    ) -> Option<Span> {
        let (buffer, offset) = match self.current {
            Some((buffer, used)) if BUFFER_BYTES - used >= len => (buffer, used),
            Some(_) | None => {
                let buffer = driver.allocate()?;
                held.push(buffer);
                self.current = Some((buffer, 0));
                (buffer, 0)
            }
        };
        Some(Span {
            buffer,
            offset,
            len,
        })
    }

    /// Uses `len` bytes of the space returned last.
    pub(crate) fn take(&mut self, len: u32) {
        if let Some((_, used)) = &mut self.current {
            *used += len;
        }
    }

    /// Ends the turn: the buffers are released with the turn's references.
    pub(crate) fn reset(&mut self) {
        self.current = None;
    }
}

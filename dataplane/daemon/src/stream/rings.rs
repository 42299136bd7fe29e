//! The rings between the workers and the stream thread: like those between workers, one pair per
//! worker.

use std::sync::Arc;

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_shm::{Consumer, Doorbell};
use hyphae_wire::{Endpoint, WorkerId};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use crate::handoff::{COUNTS, Handoff, Header, Outlet, RAW};

/// Bytes of one ring: a turn of super-packets. Pages that are never used are never resident.
const RING_BYTES: usize = 1 << 20;

/// What the stream thread counts, in the order of a `COUNTS` record. Worker 0 adds it to its own.
pub(crate) const COUNTERS: [Counter; 11] = [
    Counter::StreamAccepted,
    Counter::StreamConnected,
    Counter::StreamConnectFailed,
    Counter::StreamEnded,
    Counter::StreamRefusedFull,
    Counter::StreamRefusedSource,
    Counter::StreamEndedSilent,
    Counter::StreamEndedMalformed,
    Counter::StreamEndedIdle,
    Counter::StreamRxFrames,
    Counter::StreamTxFrames,
];
/// Packets that it drops, after the counters; the last is of frames read, the others of frames to
/// be written.
pub(crate) const DROPS: [DropReason; 2] = [DropReason::StreamQueue, DropReason::StreamDown];
/// Frames read for which the worker's ring had no room, after the drops.
pub(crate) const OVERRUNS_AT: usize = COUNTERS.len() + DROPS.len();
/// Entries of a `COUNTS` record.
pub(crate) const COUNTS_LEN: usize = OVERRUNS_AT + 1;

/// What was counted since the last record.
pub(crate) type Counts = [U64; COUNTS_LEN];

/// Reads a `COUNTS` record.
pub(crate) fn parse_counts(bytes: &[u8]) -> Option<&Counts> {
    Counts::ref_from_bytes(bytes).ok()
}

/// A worker's way to the stream thread.
pub(crate) struct StreamOutlet(Outlet);

impl StreamOutlet {
    /// Hands a frame over that is to leave on the stream `to`. False when there is no room.
    pub(crate) fn send(&mut self, to: &Endpoint, frame: &[u8]) -> bool {
        self.0.push(RAW, &Header::raw(to), frame)
    }

    /// Makes what was handed over visible.
    pub(crate) fn publish(&mut self) {
        self.0.publish();
    }
}

/// The stream thread's ends.
pub(crate) struct Rings {
    to: Vec<Outlet>,
    from: Vec<Consumer>,
}

/// Makes the rings between every worker and a stream thread that `bell` wakes.
pub(crate) fn connect(
    workers: &mut [Handoff],
    bells: &[Arc<Doorbell>],
    bell: &Arc<Doorbell>,
) -> (Vec<StreamOutlet>, Rings) {
    let (mut outlets, mut to, mut from) = (Vec::new(), Vec::new(), Vec::new());
    for (worker, worker_bell) in workers.iter_mut().zip(bells) {
        let (inlet, consumer) = Outlet::connect(RING_BYTES, worker_bell);
        worker.also_from(consumer);
        to.push(inlet);
        let (outlet, consumer) = Outlet::connect(RING_BYTES, bell);
        outlets.push(StreamOutlet(outlet));
        from.push(consumer);
    }
    (outlets, Rings { to, from })
}

impl Rings {
    /// Hands a worker a frame that came from a stream. A worker that is not there is worker 0's
    /// to refuse. False when there is no room.
    pub(crate) fn push(&mut self, worker: WorkerId, from: &Endpoint, frame: &[u8]) -> bool {
        let at = Some(worker.as_usize()).filter(|at| *at < self.to.len());
        let outlet = self.to.get_mut(at.unwrap_or(0));
        outlet.is_some_and(|outlet| outlet.push(RAW, &Header::raw(from), frame))
    }

    /// Hands worker 0 what was counted. False when there is no room.
    pub(crate) fn push_counts(&mut self, counts: &Counts) -> bool {
        let header = Header::raw(Endpoint::default());
        let outlet = self.to.first_mut();
        outlet.is_some_and(|outlet| outlet.push(COUNTS, &header, counts.as_bytes()))
    }

    /// Makes what was handed over visible.
    pub(crate) fn publish(&mut self) {
        self.to.iter_mut().for_each(Outlet::publish);
    }

    /// Takes at most `budget` frames per worker. Returns whether any was there.
    pub(crate) fn take(
        &mut self,
        budget: usize,
        scratch: &mut [u8],
        mut each: impl FnMut(Endpoint, &[u8]),
    ) -> bool {
        let mut any = false;
        for ring in &mut self.from {
            for _ in 0..budget {
                // These rings live in this process: a corrupt one is a bug, not an input.
                let Ok(Some((_, len))) = ring.pop(scratch) else {
                    break;
                };
                any = true;
                if let Ok((header, frame)) = Header::ref_from_prefix(&scratch[..len]) {
                    each(header.from().remote, frame);
                }
            }
            ring.release();
        }
        any
    }

    /// Announces sleep on every ring; false when one of them has frames.
    pub(crate) fn sleep(&mut self) -> bool {
        self.from.iter_mut().all(Consumer::sleep)
    }

    /// Takes the announcement back.
    pub(crate) fn wake(&mut self) {
        self.from.iter_mut().for_each(Consumer::wake);
    }
}

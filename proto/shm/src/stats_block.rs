//! The stats block of a worker: written by the worker, read at scrape time, without stopping anyone.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use hyphae_time::Nanos;

use crate::record::PEERS_MAX;
use crate::segment::{Held, Segment};
use crate::stats::{COUNTERS, PeerStats};

/// What a worker keeps per peer: one cache line.
#[repr(C, align(64))]
pub(crate) struct PeerLine {
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    last_rx: AtomicU64,
}

const _: () = assert!(size_of::<PeerLine>() == 64);

/// Reads a worker's counters. Each value is whole; they are not all of one instant.
#[derive(Clone)]
pub struct StatsReader {
    counters: NonNull<[AtomicU64; COUNTERS]>,
    peers: NonNull<[PeerLine; PEERS_MAX as usize]>,
    _owner: Segment,
}

// SAFETY: both pointers stay valid while `_owner` lives; the memory is only accessed as atomics.
unsafe impl Send for StatsReader {}
// SAFETY: as above.
unsafe impl Sync for StatsReader {}

impl StatsReader {
    /// # Safety
    /// Both pointers are valid for their arrays as long as `owner` lives, and the memory is accessed
    /// as atomics only.
    pub(crate) unsafe fn new(
        counters: NonNull<[AtomicU64; COUNTERS]>,
        peers: NonNull<[PeerLine; PEERS_MAX as usize]>,
        owner: Segment,
    ) -> Self {
        Self {
            counters,
            peers,
            _owner: owner,
        }
    }

    /// All counters, in the order of [`crate::stats`].
    pub fn counters(&self) -> [u64; COUNTERS] {
        std::array::from_fn(|n| self.block()[n].load(Ordering::Relaxed))
    }

    /// Traffic of a peer; zero for numbers that do not exist.
    pub fn peer(&self, peer: u32) -> PeerStats {
        let Some(line) = self.line(peer) else {
            return PeerStats::default();
        };
        PeerStats {
            rx_packets: line.rx_packets.load(Ordering::Relaxed),
            rx_bytes: line.rx_bytes.load(Ordering::Relaxed),
            tx_packets: line.tx_packets.load(Ordering::Relaxed),
            tx_bytes: line.tx_bytes.load(Ordering::Relaxed),
            last_rx: line.last_rx.load(Ordering::Relaxed),
        }
    }

    fn block(&self) -> &[AtomicU64; COUNTERS] {
        // SAFETY: valid while `_owner` lives, which Segment::stats_reader promised in `new`.
        unsafe { self.counters.as_ref() }
    }

    fn line(&self, peer: u32) -> Option<&PeerLine> {
        // SAFETY: valid while `_owner` lives, which Segment::stats_reader promised in `new`.
        unsafe { self.peers.as_ref() }.get(peer as usize)
    }
}

/// Writes a worker's counters; there is one.
pub struct StatsWriter {
    block: StatsReader,
    _held: Held,
}

impl StatsWriter {
    pub(crate) fn new(block: StatsReader, held: Held) -> Self {
        Self { block, _held: held }
    }

    /// Makes the worker's counters visible.
    pub fn publish(&mut self, counters: &[u64; COUNTERS]) {
        for (place, value) in self.block.block().iter().zip(counters) {
            place.store(*value, Ordering::Relaxed);
        }
    }

    /// Adds what came from a peer.
    pub fn add_rx(&mut self, peer: u32, packets: u64, bytes: u64, now: Nanos) {
        let Some(line) = self.block.line(peer) else {
            return;
        };
        add(&line.rx_packets, packets);
        add(&line.rx_bytes, bytes);
        line.last_rx.store(now.0, Ordering::Relaxed);
    }

    /// Adds what left for a peer.
    pub fn add_tx(&mut self, peer: u32, packets: u64, bytes: u64) {
        let Some(line) = self.block.line(peer) else {
            return;
        };
        add(&line.tx_packets, packets);
        add(&line.tx_bytes, bytes);
    }

    /// Starts a peer number from zero.
    pub fn clear_peer(&mut self, peer: u32) {
        let Some(line) = self.block.line(peer) else {
            return;
        };
        let fields = [
            &line.rx_packets,
            &line.rx_bytes,
            &line.tx_packets,
            &line.tx_bytes,
            &line.last_rx,
        ];
        fields
            .into_iter()
            .for_each(|field| field.store(0, Ordering::Relaxed));
    }
}

/// A plain addition: there is one writer, so no locked instruction is needed.
fn add(place: &AtomicU64, value: u64) {
    place.store(
        place.load(Ordering::Relaxed).wrapping_add(value),
        Ordering::Relaxed,
    );
}

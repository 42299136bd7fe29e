//! The contract between a worker and what talks to the kernel for it.

use std::io;
use std::time::Duration;

use hyphae_wire::{AddressPair, Endpoint, LocalAddress};

/// Segments of one train: the kernel's limit for `UDP_SEGMENT` before 6.9.
pub const SEGMENTS_MAX: usize = 64;
/// Bytes of one train: the largest UDP payload over IPv4. A device's `gso_max_size` (64 KiB) counts
/// headers too, so the kernel cuts trains of more than about 65,400 bytes itself, one by one.
pub const TRAIN_BYTES_MAX: u32 = 65_507;
/// Spans of one send or TUN write, counted after those that adjoin are merged.
pub const SPANS_MAX: usize = 64;
/// Bytes of the virtio-net header before every packet of the TUN device.
pub const TUN_HEADER_LEN: usize = 10;

/// Trains and TUN packets that [`Driver::next`] hands out per turn: what was received is still in
/// the second-level cache when it is sent.
pub(crate) const EVENTS_PER_TURN: u16 = 16;
/// TUN packets read in one go.
pub(crate) const TUN_BATCH: u16 = 8;
/// Slots for TUN packets: one batch with the worker and one with the kernel.
pub(crate) const TUN_SLOTS: u16 = 2 * TUN_BATCH;
/// Slots for receives that a worker needs: one burst that it works on, until the socket has taken what of it leaves,
/// and one for the kernel to fill meanwhile. A power of two, as buffer rings are.
pub const RECEIVE_BUFFERS: u16 = 2 * EVENTS_PER_TURN;
/// Slots for what a worker builds: sealed, a TUN packet of 64 KiB needs two, a batch of them as many again while the
/// one before is sent.
pub const TRANSMIT_BUFFERS: u16 = 2 * 2 * TUN_BATCH;
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());

/// A slot of the driver's buffer pool.
///
/// Only a number: every use is checked against the pool, and a slot to which nobody holds a
/// reference is refused, because the kernel may be writing into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(u16);

impl BufferId {
    /// The slot with this index.
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// Index of the slot.
    pub const fn index(self) -> u16 {
        self.0
    }
}

/// Bytes within a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The slot.
    pub buffer: BufferId,
    /// First byte, from the beginning of the slot.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// Something that arrived. With each event its taker owns one reference of `buffer` and gives it
/// back with [`Driver::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// One receive from the underlay: a train or a lone datagram, never empty.
    Datagrams {
        /// Where it lies.
        buffer: BufferId,
        /// First byte of the first datagram.
        offset: u32,
        /// Bytes of all datagrams together.
        len: u32,
        /// Bytes of each datagram but the last, which may be shorter; `len` for a lone one.
        segment: u32,
        /// Who sent it.
        from: Endpoint,
        /// The address of this host that it was sent to; unset where the socket has one address.
        local: LocalAddress,
    },
    /// One packet or super-packet of the host.
    Tun {
        /// Where it lies.
        buffer: BufferId,
        /// First byte of the virtio-net header, [`TUN_HEADER_LEN`] bytes; the packet follows.
        offset: u32,
        /// Bytes of header and packet.
        len: u32,
    },
}

/// Why a train or a TUN write was not queued. No reference was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Back-pressure: drop and count.
    #[error("no operation or socket buffer is free")]
    Full,
    /// Nothing to send, more than [`SEGMENTS_MAX`] segments, [`TRAIN_BYTES_MAX`] bytes or
    /// [`SPANS_MAX`] spans.
    #[error("empty or larger than one train can be")]
    Size,
    /// A span leaves its slot, or nobody holds a reference of the slot.
    #[error("a span does not lie in a buffer that is in use")]
    Span,
    /// An IPv6 destination on an IPv4 socket.
    #[error("the socket's address family cannot reach the destination")]
    Family,
    /// A TUN write without a TUN device, or after the device was removed.
    #[error("no TUN device")]
    NoTun,
}

/// What happened since `open`. Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Receives that found no free buffer.
    pub buffer_exhausted: u64,
    /// Datagrams that the kernel dropped because the socket buffer was full (`SO_RXQ_OVFL`); known
    /// with the next datagram that is received.
    pub socket_overruns: u64,
    /// Receives that the kernel cut short; they are dropped.
    pub rx_truncated: u64,
    /// Receives that failed otherwise, and empty or malformed ones; they are dropped.
    pub rx_errors: u64,
    /// Trains that the kernel refused.
    pub tx_errors: u64,
    /// Trains dropped because the socket buffer was full.
    pub tx_backpressure: u64,
    /// Trains that the kernel refused because the interface does not carry their datagrams.
    pub tx_too_big: u64,
    /// Where the last of these was to go.
    pub too_big_to: Option<Endpoint>,
    /// Trains that the kernel refused to send from their local address, and sent without.
    pub tx_source_refused: u64,
    /// The last of these addresses.
    pub refused_source: Option<LocalAddress>,
    /// Reads and writes of the TUN device that failed.
    pub tun_errors: u64,
    /// Times the TUN device was found deleted; see [`Driver::resume_tun`].
    pub tun_lost: u64,
    /// Times the worker slept and woke.
    pub wakeups: u64,
    /// Times the doorbell was found rung.
    pub doorbells: u64,
}

impl DriverStats {
    pub(crate) fn note_too_big(&mut self, to: Endpoint) {
        self.tx_too_big += 1;
        self.too_big_to = Some(to);
    }

    pub(crate) fn note_source_refused(&mut self, local: LocalAddress) {
        self.tx_source_refused += 1;
        self.refused_source = Some(local);
    }
}

/// The device side of a worker. One thread creates it, uses it and drops it.
pub trait Driver {
    /// Name for status: `io_uring`, `epoll` or `memory`.
    fn name(&self) -> &'static str;

    /// Begins a turn: submits what is queued and waits until something happened, the doorbell rang
    /// or `timeout` passed (`None` = for ever, zero = only look). May return without cause. Does
    /// not sleep while events of the last turn are left. The doorbell is cleared when this returns.
    ///
    /// # Errors
    /// When the kernel does not serve the driver any more: nothing that a worker could mend.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The next event of this turn. `None` when there is no more or the turn's budget is used up.
    fn next(&mut self) -> Option<Event>;

    /// The whole slot, at least 64 KiB.
    ///
    /// # Panics
    /// When nobody holds a reference of `buffer`.
    fn bytes(&mut self, buffer: BufferId) -> &mut [u8];

    /// The bytes of `span`.
    ///
    /// # Panics
    /// When nobody holds a reference of the slot or the span leaves it.
    fn spans(&mut self, span: Span) -> &mut [u8] {
        let from = span.offset as usize;
        &mut self.bytes(span.buffer)[from..from + span.len as usize]
    }

    /// Two slots at once: one to read from, one to write to.
    ///
    /// # Panics
    /// When nobody holds a reference of one of them, or both are the same.
    fn pair(&mut self, read: BufferId, write: BufferId) -> (&[u8], &mut [u8]);

    /// A transmit slot with one reference for the caller, if one is free.
    fn allocate(&mut self) -> Option<BufferId>;

    /// Drops one reference of the caller. The slot is used again after the last one.
    ///
    /// # Panics
    /// When nobody holds a reference of `buffer`.
    fn release(&mut self, buffer: BufferId);

    /// Queues one train to the remote address, from the local one where that is set and the host has
    /// it still: the bytes of all `spans` in order, cut by the kernel into datagrams of
    /// `segment` bytes, the last maybe shorter. Trains leave in the order of the calls. Every
    /// buffer is referenced until the kernel is done; its bytes must not be changed meanwhile.
    ///
    /// # Errors
    /// [`SendError`]; the train is dropped and nothing is counted here.
    fn send(
        &mut self,
        to: impl Into<AddressPair>,
        segment: u16,
        spans: &[Span],
    ) -> Result<(), SendError>;

    /// Queues one TUN write: `header`, then the bytes of `spans`. Order and references as in
    /// [`Driver::send`].
    ///
    /// # Errors
    /// [`SendError`].
    fn write_tun(&mut self, header: &[u8; TUN_HEADER_LEN], spans: &[Span])
    -> Result<(), SendError>;

    /// Uses the TUN queue again after [`DriverStats::tun_lost`] has grown: its descriptor is attached to a device
    /// again. If it is not, it is lost once more.
    fn resume_tun(&mut self);

    /// Hands queued sends and writes to the kernel now, without waiting.
    ///
    /// # Errors
    /// As [`Driver::wait`].
    fn submit(&mut self) -> io::Result<()>;

    /// Buffers in use, and all.
    fn buffers(&self) -> (u16, u16);

    /// Counters since `open`.
    fn stats(&self) -> &DriverStats;
}

//! Single-producer single-consumer rings of records with variable length.
//!
//! ```text
//! memory   | producer line 128 | consumer line 128 | data, a power of two of bytes            |
//!            tail                head, asleep
//! record   | len u32 | code u16 | 0 u16 | payload … | padding to 8 |     len: payload bytes
//! ```
//!
//! `head` and `tail` count bytes and are multiples of 8; a position in the data is their low bits. A
//! record may run over the end of the data: both sides copy in two parts then.
//!
//! The producer stores `tail` after its records are complete, so one that dies in the middle leaves
//! nothing behind, and the next one resumes at the stored `tail`. The consumer believes nothing it
//! reads: indices and lengths are checked before they are used, the record is copied out before it is
//! looked at, and the first contradiction detaches the ring for good ([`Corrupt`]), until its owner
//! resets it for the next process at the other end. Each side works with its own copy of its own
//! index; what is in memory is for the other side.
//!
//! Sleep and wake (proven by the model under `cfg(loom)`): the consumer stores `asleep`, fences, looks
//! at `tail` once more and only then sleeps; the producer stores `tail`, fences, and looks at
//! `asleep`. One of the two sees the other, so no record waits for a doorbell that nobody rings.

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::memory::RingMemory;
use crate::sync::{AtomicU64, Ordering, fence};

/// Largest payload of a record: a UDP payload and the fixed part of any record around it.
pub const RECORD_MAX: usize = 65_535 + 256;

const HEADER_LEN: usize = 8;
const ALIGN: u64 = 8;

/// The indices of a ring, at its beginning.
#[repr(C)]
pub(crate) struct Indices {
    producer: Line<ProducerLine>,
    consumer: Line<ConsumerLine>,
}

/// Two cache lines: neighbouring lines are fetched in pairs.
#[repr(C, align(128))]
struct Line<T>(T);

#[repr(C)]
struct ProducerLine {
    tail: AtomicU64,
}

#[repr(C)]
struct ConsumerLine {
    head: AtomicU64,
    asleep: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Indices>() == 256);

#[cfg(loom)]
impl Indices {
    pub(crate) fn new() -> Self {
        Self {
            producer: Line(ProducerLine {
                tail: AtomicU64::new(0),
            }),
            consumer: Line(ConsumerLine {
                head: AtomicU64::new(0),
                asleep: AtomicU64::new(0),
            }),
        }
    }
}

impl Indices {
    fn tail(&self) -> &AtomicU64 {
        &self.producer.0.tail
    }

    fn head(&self) -> &AtomicU64 {
        &self.consumer.0.head
    }

    fn asleep(&self) -> &AtomicU64 {
        &self.consumer.0.asleep
    }

    /// Starts over, empty and awake.
    #[cfg(not(loom))]
    fn clear(&self) {
        self.asleep().store(0, Ordering::Relaxed);
        self.head().store(0, Ordering::Release);
        self.tail().store(0, Ordering::Release);
    }
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// No room now: back-pressure or a counted drop, by the ring's purpose.
    #[error("ring is full")]
    Full,
    /// Longer than [`RECORD_MAX`] or than the ring: never possible.
    #[error("record is longer than the ring takes")]
    TooBig,
    /// The consumer's index makes no sense; the ring is given up.
    #[error("ring is corrupt")]
    Corrupt,
}

/// The other side wrote something impossible. Sticky: the ring is not read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring is corrupt")]
pub struct Corrupt;

/// The writing end. There is one; it may move between threads.
pub struct Producer {
    memory: RingMemory,
    /// Next byte to write; ahead of the published tail until [`Self::publish`].
    tail: u64,
    /// What was last seen of the consumer. Unless corrupt, `tail - head` is at most the capacity.
    head: u64,
    corrupt: bool,
}

impl Producer {
    /// Takes the writing end, resuming where the last producer published.
    pub(crate) fn new(memory: RingMemory) -> Self {
        let tail = memory.indices().tail().load(Ordering::Acquire);
        let head = memory.indices().head().load(Ordering::Acquire);
        let corrupt = tail.wrapping_sub(head) > memory.capacity()
            || !tail.is_multiple_of(ALIGN)
            || !head.is_multiple_of(ALIGN);
        Self {
            memory,
            tail,
            head,
            corrupt,
        }
    }

    /// Whether more than half of the ring is free. The consumer is asked only when it was not at the
    /// last look.
    pub fn is_half_free(&mut self) -> bool {
        let half = self.memory.capacity() / 2;
        if self.free() <= half {
            self.refresh();
        }
        self.free() > half
    }

    /// Bytes that all records together may take.
    pub fn capacity_bytes(&self) -> usize {
        usize::try_from(self.memory.capacity()).unwrap_or(0)
    }

    /// Bytes that could be written now, record headers included.
    pub fn free_bytes(&mut self) -> usize {
        self.refresh();
        usize::try_from(self.free()).unwrap_or(0)
    }

    /// Writes a record of `code` whose payload is `parts` one after the other. Visible after
    /// [`Self::publish`].
    ///
    /// # Errors
    /// When there is no room (nothing is written then), or the record can never fit.
    pub fn push(&mut self, code: u16, parts: &[&[u8]]) -> Result<(), PushError> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(bytes).map_err(|_| PushError::TooBig)?;
        let size = record_size(len);
        if bytes > RECORD_MAX || size > self.memory.capacity() {
            return Err(PushError::TooBig);
        }
        if self.free() < size {
            self.refresh();
            if self.corrupt {
                return Err(PushError::Corrupt);
            }
            if self.free() < size {
                return Err(PushError::Full);
            }
        }
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4..6].copy_from_slice(&code.to_le_bytes());
        let mut at = self.tail;
        for part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
            self.memory.write(at, part);
            at = at.wrapping_add(part.len() as u64);
        }
        self.tail = self.tail.wrapping_add(size);
        Ok(())
    }

    /// Makes everything pushed visible. True when the consumer sleeps and its doorbell must be rung.
    #[must_use = "a sleeping consumer waits for its doorbell"]
    pub fn publish(&mut self) -> bool {
        if self.corrupt {
            return false;
        }
        let indices = self.memory.indices();
        indices.tail().store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders this against the store above.
        indices.asleep().load(Ordering::Relaxed) != 0
    }

    /// Whether the ring was given up.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }

    /// Starts over with an empty ring; what is in it is lost. For the side that owns the segment, while
    /// no process is attached at the other end: one that still were would see a corrupt ring.
    ///
    /// # Panics
    /// When this process has the other end, which it does of every [`heap`] ring.
    #[cfg(not(loom))]
    pub fn reset(&mut self) {
        let alone = self.memory.alone(&mut || self.memory.indices().clear());
        assert!(alone, "the other end is not in this process");
        (self.tail, self.head, self.corrupt) = (0, 0, false);
    }

    /// Overwrites what is free: a predecessor may have died with keys written but not published.
    #[cfg(not(loom))]
    pub(crate) fn wipe_free(&mut self) {
        let free = self.free();
        self.memory.wipe(self.tail, free);
    }

    fn refresh(&mut self) {
        let head = self.memory.indices().head().load(Ordering::Acquire);
        // The consumer may only move towards the tail.
        let used = self.tail.wrapping_sub(head);
        if used > self.tail.wrapping_sub(self.head) || !used.is_multiple_of(ALIGN) {
            self.corrupt = true;
        } else {
            self.head = head;
        }
    }

    fn free(&self) -> u64 {
        if self.corrupt {
            0
        } else {
            self.memory.capacity() - self.tail.wrapping_sub(self.head)
        }
    }
}

/// The reading end. There is one; it may move between threads. Dropping it releases what was popped.
pub struct Consumer {
    memory: RingMemory,
    /// Next byte to read.
    head: u64,
    /// The published head: `head` as of the last [`Self::release`].
    released: u64,
    /// What was last seen of the producer. Unless corrupt, `tail - released` is at most the capacity
    /// and `head` lies between the two.
    tail: u64,
    /// Overwrite records with zeros once read: they may carry keys.
    wipe: bool,
    corrupt: bool,
}

impl Consumer {
    /// Takes the reading end, resuming where the last consumer released.
    pub(crate) fn new(memory: RingMemory, wipe: bool) -> Self {
        let head = memory.indices().head().load(Ordering::Acquire);
        // The last consumer may have died asleep; this one is awake.
        memory.indices().asleep().store(0, Ordering::Relaxed);
        let corrupt = !head.is_multiple_of(ALIGN);
        Self {
            memory,
            head,
            released: head,
            tail: head,
            wipe,
            corrupt,
        }
    }

    /// Copies the next record's payload into `scratch`. Returns its code and length; `None` when there
    /// is none now.
    ///
    /// # Errors
    /// [`Corrupt`] when the producer's index or the record's header is impossible, now and ever after.
    ///
    /// # Panics
    /// When `scratch` is shorter than [`RECORD_MAX`].
    pub fn pop(&mut self, scratch: &mut [u8]) -> Result<Option<(u16, usize)>, Corrupt> {
        assert!(scratch.len() >= RECORD_MAX, "scratch holds any record");
        if self.corrupt {
            return Err(Corrupt);
        }
        if self.tail == self.head && !self.refresh()? {
            return Ok(None);
        }
        let mut header = [0; HEADER_LEN];
        self.memory.read(self.head, &mut header);
        let [l0, l1, l2, l3, c0, c1, reserved @ ..] = header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let size = record_size(len);
        let published = self.tail.wrapping_sub(self.head);
        let payload = usize::try_from(len).ok().filter(|len| *len <= RECORD_MAX);
        let (Some(payload), true, [0, 0]) = (payload, size <= published, reserved) else {
            return Err(self.detach());
        };
        let body = self.head.wrapping_add(HEADER_LEN as u64);
        self.memory.read(body, &mut scratch[..payload]);
        if self.wipe {
            self.memory.wipe(self.head, size);
        }
        self.head = self.head.wrapping_add(size);
        Ok(Some((u16::from_le_bytes([c0, c1]), payload)))
    }

    /// Gives the room of everything popped back to the producer.
    pub fn release(&mut self) {
        if !self.corrupt && self.released != self.head {
            self.memory
                .indices()
                .head()
                .store(self.head, Ordering::Release);
            self.released = self.head;
        }
    }

    /// Announces that this side is about to sleep. False when there are records after all: do not
    /// sleep then. A corrupt ring wakes nobody.
    pub fn sleep(&mut self) -> bool {
        self.memory.indices().asleep().store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Acquire is not needed to decide, only to read; `pop` loads again.
        let tail = self.memory.indices().tail().load(Ordering::Relaxed);
        let idle = self.corrupt || tail == self.head;
        if !idle {
            self.wake();
        }
        idle
    }

    /// Takes the announcement of [`Self::sleep`] back.
    pub fn wake(&mut self) {
        self.memory.indices().asleep().store(0, Ordering::Relaxed);
    }

    /// Whether the ring was given up.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }

    /// Starts over with an empty ring; what is in it is lost. For the side that owns the segment, while
    /// no process is attached at the other end: one that still were would see a corrupt ring.
    ///
    /// # Panics
    /// When this process has the other end, which it does of every [`heap`] ring.
    #[cfg(not(loom))]
    pub fn reset(&mut self) {
        let alone = self.memory.alone(&mut || {
            if self.wipe {
                self.memory.wipe(0, self.memory.capacity());
            }
            self.memory.indices().clear();
        });
        assert!(alone, "the other end is not in this process");
        (self.head, self.released, self.tail, self.corrupt) = (0, 0, 0, false);
    }

    fn refresh(&mut self) -> Result<bool, Corrupt> {
        let tail = self.memory.indices().tail().load(Ordering::Acquire);
        // The producer may only move forward, and not over what is not released.
        let room = self.memory.capacity() - self.head.wrapping_sub(self.released);
        if tail.wrapping_sub(self.head) > room || !tail.is_multiple_of(ALIGN) {
            return Err(self.detach());
        }
        self.tail = tail;
        Ok(tail != self.head)
    }

    fn detach(&mut self) -> Corrupt {
        self.corrupt = true;
        Corrupt
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // What was popped may be wiped: the next consumer must not find it.
        self.release();
    }
}

/// A ring in ordinary memory, for two threads of one process.
///
/// # Panics
/// When `capacity_bytes` is not a power of two or is less than 8.
pub fn heap(capacity_bytes: usize) -> (Producer, Consumer) {
    let memory = RingMemory::heap(capacity_bytes);
    (Producer::new(memory.clone()), Consumer::new(memory, false))
}

/// Bytes that a record takes in the ring.
fn record_size(len: u32) -> u64 {
    (HEADER_LEN as u64 + u64::from(len)).next_multiple_of(ALIGN)
}

//! Single-producer single-consumer rings of records with variable length.
//!
//! ```text
//! memory   | producer line 128 | consumer line 128 | data, a power of two of bytes            |
//!            tail, (pad)         head, asleep
//! record   | len u32 | code u16 | 0 u16 | payload … | padding to 8 |     len: payload bytes
//! ```
//!
//! `head` and `tail` count bytes and never wrap; a position in the data is their low bits. A record
//! may run over the end of the data: both sides copy in two parts then.
//!
//! The producer stores `tail` after the record is complete, so one that dies in the middle leaves
//! nothing behind. The consumer believes nothing it reads: indices and lengths are checked before they
//! are used, the record is copied out before it is looked at, and the first contradiction detaches
//! the ring for good ([`Corrupt`]).
//!
//! Sleep and wake (proven in the model under `cfg(loom)`): the consumer stores `asleep`, fences, looks
//! at `tail` once more and only then sleeps; the producer stores `tail`, fences, and looks at
//! `asleep`. One of the two sees the other, so no record waits for a doorbell that nobody rings.

use crate::memory::RingMemory;
use crate::sync::{AtomicU64, Ordering, fence};

/// Largest payload of a record: a UDP payload and the fixed part of any record around it.
pub const RECORD_MAX: usize = 65_535 + 256;

const HEADER_LEN: u64 = 8;

/// The indices of a ring, at its beginning.
#[repr(C)]
pub(crate) struct Indices {
    producer: Line<ProducerLine>,
    consumer: Line<ConsumerLine>,
}

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
    /// What was last seen of the consumer.
    head: u64,
    corrupt: bool,
}

impl Producer {
    /// Takes the writing end, resuming where the last producer published.
    pub(crate) fn new(memory: RingMemory) -> Self {
        let tail = memory.indices().producer.0.tail.load(Ordering::Acquire);
        let head = memory.indices().consumer.0.head.load(Ordering::Acquire);
        let corrupt = tail.wrapping_sub(head) > memory.capacity() || tail % 8 != 0;
        Self {
            memory,
            tail,
            head,
            corrupt,
        }
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
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let size = record_size(len as u64);
        if len > RECORD_MAX || size > self.memory.capacity() {
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
        let len = u32::try_from(len).map_err(|_| PushError::TooBig)?;
        let mut header = [0; HEADER_LEN as usize];
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4..6].copy_from_slice(&code.to_le_bytes());
        let mut at = self.tail;
        for part in std::iter::once(&header[..]).chain(parts.iter().copied()) {
            self.memory.write(at, part);
            at += part.len() as u64;
        }
        self.tail += size;
        Ok(())
    }

    /// Makes everything pushed visible. True when the consumer sleeps and its doorbell must be rung.
    #[must_use = "a sleeping consumer waits for its doorbell"]
    pub fn publish(&mut self) -> bool {
        let indices = self.memory.indices();
        indices.producer.0.tail.store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders this against the store above.
        indices.consumer.0.asleep.load(Ordering::Relaxed) != 0
    }

    fn refresh(&mut self) {
        let head = self
            .memory
            .indices()
            .consumer
            .0
            .head
            .load(Ordering::Acquire);
        // The consumer may only move towards the tail.
        if self.tail.wrapping_sub(head) > self.tail.wrapping_sub(self.head) {
            self.corrupt = true;
        } else {
            self.head = head;
        }
    }

    fn free(&self) -> u64 {
        if self.corrupt {
            0
        } else {
            self.memory.capacity() - (self.tail - self.head)
        }
    }
}

/// The reading end. There is one; it may move between threads.
pub struct Consumer {
    memory: RingMemory,
    /// Next byte to read; ahead of the published head until [`Self::release`].
    head: u64,
    /// What was last seen of the producer.
    tail: u64,
    /// Overwrite records with zeros once read: they may carry keys.
    wipe: bool,
    corrupt: bool,
}

impl Consumer {
    /// Takes the reading end, resuming where the last consumer released.
    pub(crate) fn new(memory: RingMemory, wipe: bool) -> Self {
        let head = memory.indices().consumer.0.head.load(Ordering::Acquire);
        Self {
            memory,
            head,
            tail: head,
            wipe,
            corrupt: head % 8 != 0,
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
        let mut header = [0; HEADER_LEN as usize];
        self.memory.read(self.head, &mut header);
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let code = u16::from_le_bytes([header[4], header[5]]);
        let size = record_size(u64::from(len));
        if len as usize > RECORD_MAX || size > self.tail - self.head {
            return Err(self.detach());
        }
        let len = len as usize;
        self.memory
            .read(self.head + HEADER_LEN, &mut scratch[..len]);
        if self.wipe {
            self.memory.wipe(self.head, size);
        }
        self.head += size;
        Ok(Some((code, len)))
    }

    /// Gives the room of everything popped back to the producer.
    pub fn release(&mut self) {
        if !self.corrupt {
            self.memory
                .indices()
                .consumer
                .0
                .head
                .store(self.head, Ordering::Release);
        }
    }

    /// Announces that this side is about to sleep. False when there are records after all: do not
    /// sleep then.
    pub fn sleep(&mut self) -> bool {
        self.memory
            .indices()
            .consumer
            .0
            .asleep
            .store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // Acquire is not needed to decide, only to read; `pop` loads again.
        let tail = self
            .memory
            .indices()
            .producer
            .0
            .tail
            .load(Ordering::Relaxed);
        let idle = self.corrupt || tail == self.head;
        if !idle {
            self.wake();
        }
        idle
    }

    /// Takes the announcement of [`Self::sleep`] back.
    pub fn wake(&mut self) {
        self.memory
            .indices()
            .consumer
            .0
            .asleep
            .store(0, Ordering::Relaxed);
    }

    /// Whether the ring was given up.
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }

    fn refresh(&mut self) -> Result<bool, Corrupt> {
        let tail = self
            .memory
            .indices()
            .producer
            .0
            .tail
            .load(Ordering::Acquire);
        if tail.wrapping_sub(self.head) > self.memory.capacity() || tail % 8 != 0 {
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

/// A ring in ordinary memory, for two threads of one process.
///
/// # Panics
/// When `capacity_bytes` is not a power of two.
pub fn heap(capacity_bytes: usize) -> (Producer, Consumer) {
    let memory = RingMemory::heap(capacity_bytes);
    (Producer::new(memory.clone()), Consumer::new(memory, false))
}

/// Bytes that a record takes in the ring.
fn record_size(len: u64) -> u64 {
    (HEADER_LEN + len).next_multiple_of(8)
}

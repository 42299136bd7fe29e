//! The TUN queue: a poll with a read behind it while there is little to do, batches of reads until the
//! device is empty while there is much.
//!
//! ```text
//!        poll, then a read          packet           more wanted at once
//!  Idle ──────────────────▶ Waiting ──────▶ Found ─────────────────────▶ Reading
//!   ▲                        │ │              │ the worker will sleep       │
//!   ├──────── EAGAIN ────────┘ │              ▼                             │
//!   ├──────────────────────────┼─────────── Idle                            │
//!   └──────────────────────────┼──────────── some read: EAGAIN ─────────────┘
//!                              └─ error ─▶ Gone ◀─ EBADFD
//! ```
//!
//! The descriptor of a deleted interface stays registered. When it is attached to a device again, `resume` leads from
//! Gone back to Idle.
//!
//! A multishot read is refused on this device. Reads do not wait: where the kernel would let them, each
//! packet would wake all of a batch. Reads and writes are therefore carried out while they are submitted,
//! or when the poll before them succeeds.
//!
//! A batch begins only when the last one is complete and buffers are free; `arm` is called in every
//! turn, so a batch that had to wait for buffers is not forgotten.

use io_uring::{opcode, squeue};

use super::receive::BufferRing;
use super::ring::Ring;
use super::{Kind, TUN};
use crate::device::tun_event;
use crate::driver::{BufferId, DriverStats, Event, SendError, Span, TUN_BATCH, TUN_HEADER_LEN};
use crate::pool::{Pool, length};
use crate::train::{Slab, Write};

/// Writes that can be queued or in flight. When all are, `write_tun` submits before it refuses.
const WRITES: u16 = 64;
/// Reads of the first batch: few packets are the likely case, and each read in vain has its price.
const FIRST_BATCH: u16 = 2;
/// "At the current position", the only one that a device has.
const NO_OFFSET: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Waiting,
    Found,
    Reading,
    /// The interface was deleted. [`TunQueue::resume`] ends it.
    Gone,
}

pub(super) struct TunQueue {
    state: State,
    /// Reads of the next batch; doubles while batches are full.
    batch: u16,
    reading: u16,
    /// Of reads: not to wait, unless the kernel has refused that for this device.
    flags: i32,
    /// A read of this batch found the device empty.
    drained: bool,
    writes: Slab<Write>,
}

impl TunQueue {
    pub(super) fn new() -> Self {
        Self {
            state: State::Idle,
            batch: FIRST_BATCH,
            reading: 0,
            flags: libc::RWF_NOWAIT,
            drained: false,
            writes: Slab::new(WRITES, Write::new),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        usize::from(self.reading) + self.writes.used()
    }

    pub(super) fn is_full(&self) -> bool {
        self.writes.used() == usize::from(WRITES)
    }

    /// Whether nothing has to be queued before the worker sleeps.
    pub(super) fn stands(&self) -> bool {
        matches!(self.state, State::Waiting | State::Gone)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// The descriptor is attached to a device again.
    pub(super) fn resume(&mut self) {
        if self.is_gone() {
            // Reads of a batch that are still in flight lead to Idle when the last is complete.
            self.drained = true;
            self.state = match self.reading {
                0 => State::Idle,
                _ => State::Reading,
            };
        }
    }

    /// Queues what is due: reads, or the poll with its read if the worker is going to sleep.
    pub(super) fn arm(&mut self, ring: &mut Ring, pool: &mut Pool, only_look: bool) {
        match self.state {
            State::Idle => self.wait(ring, pool),
            State::Found if only_look => {
                self.state = State::Reading;
                self.read(ring, pool);
            }
            State::Found => self.wait(ring, pool),
            State::Reading if self.reading == 0 => self.read(ring, pool),
            State::Waiting | State::Reading | State::Gone => {}
        }
    }

    fn wait(&mut self, ring: &mut Ring, pool: &mut Pool) {
        let Some(slot) = pool.lend_tun() else {
            return;
        };
        // Silent when it succeeds, even if only an error was to be seen: the read says which. When it
        // fails, the read is silent.
        let poll = opcode::PollAdd::new(TUN, libc::POLLIN as u32)
            .build()
            .flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS)
            .user_data(Kind::TunPoll.tag(slot.index()));
        let read = self.read_into(pool, slot);
        // SAFETY: a poll points to no memory; for the read see `read`.
        if unsafe { ring.push_linked(&[poll, read]) }.is_err() {
            pool.return_tun(slot);
            return;
        }
        self.state = State::Waiting;
        self.reading = 1;
    }

    fn read(&mut self, ring: &mut Ring, pool: &mut Pool) {
        self.drained = false;
        while self.reading < self.batch
            && let Some(slot) = pool.lend_tun()
        {
            // SAFETY: the slot is part of `Lent`, has no references and is off its free list until
            // `complete_read`: nobody else touches it.
            if unsafe { ring.push(&self.read_into(pool, slot)) }.is_err() {
                pool.return_tun(slot);
                break;
            }
            self.reading += 1;
        }
    }

    /// A read of one packet into a slot.
    fn read_into(&self, pool: &Pool, slot: BufferId) -> squeue::Entry {
        opcode::Read::new(TUN, pool.address(slot), length(pool.slot_bytes()))
            .offset(NO_OFFSET)
            .rw_flags(self.flags)
            .build()
            .user_data(Kind::TunRead.tag(slot.index()))
    }

    /// A read, or a poll that failed in its place.
    pub(super) fn complete_read(
        &mut self,
        slot: BufferId,
        result: i32,
        pool: &mut Pool,
        stats: &mut DriverStats,
    ) -> Option<Event> {
        self.reading -= 1;
        let event = match usize::try_from(result) {
            Ok(len) => {
                let event = tun_event(slot, len, pool.slot_bytes());
                stats.tun_errors += u64::from(event.is_none());
                event
            }
            Err(_) => {
                self.drained = true;
                match -result {
                    libc::EAGAIN | libc::EINTR | libc::ECANCELED => {}
                    // Older kernels refuse it for this device; the poll is ready again at once.
                    libc::EOPNOTSUPP if self.flags != 0 => self.flags = 0,
                    errno => {
                        stats.tun_errors += 1;
                        if matches!(errno, libc::EBADFD | libc::ENODEV) {
                            stats.tun_lost += u64::from(!self.is_gone());
                            self.state = State::Gone;
                        }
                    }
                }
                None
            }
        };
        match event {
            Some(_) => pool.take(slot),
            None => pool.return_tun(slot),
        }
        self.state = match self.state {
            State::Waiting if event.is_some() => State::Found,
            State::Waiting => State::Idle,
            State::Reading if self.reading == 0 && self.drained => {
                self.batch = FIRST_BATCH;
                State::Idle
            }
            State::Reading if self.reading == 0 => {
                self.batch = (2 * self.batch).min(TUN_BATCH);
                State::Reading
            }
            state @ (State::Idle | State::Found | State::Reading | State::Gone) => state,
        };
        event
    }

    pub(super) fn write(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
        ring: &mut Ring,
        pool: &mut Pool,
        buffers: &mut BufferRing,
    ) -> Result<(), SendError> {
        if self.is_gone() {
            return Err(SendError::NoTun);
        }
        let index = self.writes.take().ok_or(SendError::Full)?;
        if let Err(error) = self.writes.at(index).fill(pool, header, spans) {
            self.writes.give_back(index);
            return Err(error);
        }
        let iovecs = self.writes.at(index).iovecs();
        let entry = opcode::Writev::new(TUN, iovecs.as_ptr(), length(iovecs.len()))
            .offset(NO_OFFSET)
            .build()
            .user_data(Kind::TunWrite.tag(index));
        // SAFETY: as for sends: the operation lives in a slab of `Lent`, its index is not given
        // out again before `complete_write`, its slots are kept by the references of `fill`.
        if unsafe { ring.push_immediate(&entry) }.is_err() {
            self.finish(index, pool, buffers);
            return Err(SendError::Full);
        }
        Ok(())
    }

    pub(super) fn complete_write(
        &mut self,
        index: u16,
        result: i32,
        pool: &mut Pool,
        buffers: &mut BufferRing,
        stats: &mut DriverStats,
    ) {
        let whole = usize::try_from(result).is_ok_and(|len| len == self.writes.at(index).total());
        stats.tun_errors += u64::from(!whole);
        self.finish(index, pool, buffers);
    }

    fn finish(&mut self, index: u16, pool: &mut Pool, buffers: &mut BufferRing) {
        self.writes
            .at(index)
            .finish(pool, |pool, slot| buffers.publish(pool, slot));
        self.writes.give_back(index);
    }
}

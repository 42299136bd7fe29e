//! The TUN queue: one poll, then batches of one-shot reads until the device is empty.
//!
//! ```text
//!          poll            readable            some read: EAGAIN
//!  Idle ─────────▶ Polling ─────────▶ Readable ─────────────────▶ Idle
//!                     └──── error ────▶ Gone ◀── EBADFD ──┘
//! ```
//!
//! Neither a multishot read nor a read that waits works on this device: the first is refused, and
//! a descriptor that does not block (it must not, or reads would occupy kernel threads) says
//! `EAGAIN` at once. Reads and writes are therefore carried out while they are submitted.
//!
//! A batch begins only when the last one is complete and buffers are free; `arm` is called in every
//! turn, so a batch that had to wait for buffers is not forgotten.

use io_uring::opcode;

use super::receive::BufferRing;
use super::ring::Ring;
use super::{Kind, TUN};
use crate::device::tun_event;
use crate::driver::{BufferId, DriverStats, Event, SendError, Span, TUN_BATCH, TUN_HEADER_LEN};
use crate::pool::{Pool, length};
use crate::train::{Slab, Write};

/// Writes that can be queued or in flight. When all are, `write_tun` submits before it refuses.
const WRITES: u16 = 64;
/// Reads after a poll: a lone packet is the likely case, and each read in vain has its price.
const FIRST_BATCH: u16 = 2;
/// "At the current position", the only one that a device has.
const NO_OFFSET: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Polling,
    Readable,
    /// The interface was deleted. There is no way back.
    Gone,
}

pub(super) struct TunQueue {
    state: State,
    /// Reads of the next batch; doubles while batches are full.
    batch: u16,
    reading: u16,
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
            drained: false,
            writes: Slab::new(WRITES, Write::new),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        let polling = usize::from(self.state == State::Polling);
        usize::from(self.reading) + self.writes.used() + polling
    }

    pub(super) fn is_full(&self) -> bool {
        self.writes.used() == usize::from(WRITES)
    }

    /// Queues the poll or the next reads, whichever is due.
    pub(super) fn arm(&mut self, ring: &mut Ring, pool: &mut Pool) {
        match self.state {
            State::Idle => {
                let entry = opcode::PollAdd::new(TUN, libc::POLLIN as u32)
                    .build()
                    .user_data(Kind::TunPoll.tag(0));
                // SAFETY: a poll points to no memory.
                if unsafe { ring.push(&entry) }.is_ok() {
                    self.state = State::Polling;
                }
            }
            State::Readable if self.reading == 0 => self.read(ring, pool),
            State::Polling | State::Readable | State::Gone => {}
        }
    }

    fn read(&mut self, ring: &mut Ring, pool: &mut Pool) {
        self.drained = false;
        let len = length(pool.slot_bytes());
        while self.reading < self.batch
            && let Some(slot) = pool.lend_tun()
        {
            let entry = opcode::Read::new(TUN, pool.address(slot), len)
                .offset(NO_OFFSET)
                .build()
                .user_data(Kind::TunRead.tag(slot.index()));
            // SAFETY: the slot has `len` bytes, is part of `Lent`, has no references and is off
            // its free list until `complete_read`: nobody else touches it.
            if unsafe { ring.push(&entry) }.is_err() {
                pool.return_tun(slot);
                break;
            }
            self.reading += 1;
        }
    }

    pub(super) fn complete_poll(&mut self, result: i32, stats: &mut DriverStats) {
        let readable = result & i32::from(libc::POLLIN) != 0;
        self.state = match result {
            0.. if readable => State::Readable,
            // An error without packets is how a deleted interface looks.
            0.. => {
                stats.tun_errors += 1;
                State::Gone
            }
            _ => State::Idle,
        };
    }

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
                    errno => {
                        stats.tun_errors += 1;
                        if matches!(errno, libc::EBADFD | libc::ENODEV) {
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
        if self.reading == 0 && self.state == State::Readable {
            if self.drained {
                self.state = State::Idle;
                self.batch = FIRST_BATCH;
            } else {
                self.batch = (2 * self.batch).min(TUN_BATCH);
            }
        }
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
        if self.state == State::Gone {
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
        if unsafe { ring.push(&entry) }.is_err() {
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

//! The standing receive: `recvmsg` multishot into a ring of provided buffers.
//!
//! ```text
//!  slot: | recvmsg_out 16 | name 32 | control 112 | payload … |
//! ```
//!
//! The offsets are those of the rooms asked for, whatever the kernel put into them.
//!
//! Invariants:
//! * A receive slot is in the buffer ring, or has references; `published` counts those in the ring.
//! * The kernel picks a slot by index and says so in the completion; an index or length that it
//!   cannot have said is refused, not followed.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, RecvMsgOut};
use io_uring::{cqueue, opcode};

use super::ring::Ring;
use super::{Kind, SOCKET};
use crate::device::Failures;
use crate::driver::{BufferId, DriverStats, Event};
use crate::message::{CONTROL_ROOM, Intake, NAME_ROOM};
use crate::open::OpenError;
use crate::pool::{Mapping, Pool, length};
use crate::train::empty_header;

/// The one buffer group.
const GROUP: u16 = 0;
/// Bytes of the kernel's header before name, control and payload.
const OUT_BYTES: usize = 16;
const PAYLOAD_AT: usize = OUT_BYTES + NAME_ROOM + CONTROL_ROOM;

/// Slots that wait for the kernel to fill them.
pub(super) struct BufferRing {
    entries: Mapping,
    /// One less than the number of entries, a power of two.
    mask: u16,
    tail: u16,
    published: u16,
}

impl BufferRing {
    fn new(ring: &mut Ring, pool: &Pool) -> Result<Self, OpenError> {
        let slots = pool.receive_slots();
        // At most 32,768, which `device::prepare` has checked.
        let entries = u16::try_from(slots.len().next_power_of_two()).unwrap_or(1 << 15);
        let bytes = usize::from(entries) * size_of::<BufRingEntry>();
        let memory = Mapping::new(bytes).map_err(|source| OpenError::Memory { bytes, source })?;
        let address = memory.start().as_ptr() as u64;
        // SAFETY: `memory` is page-aligned (it is a mapping of its own) and holds `entries`
        // entries. It is part of `Lent`, which is freed only when nothing is in flight.
        unsafe { ring.register_buffers(address, entries, GROUP) }?;
        let mut buffers = Self {
            entries: memory,
            mask: entries - 1,
            tail: 0,
            published: 0,
        };
        slots
            .into_iter()
            .rev()
            .for_each(|slot| buffers.publish(pool, slot));
        Ok(buffers)
    }

    /// Gives a receive slot without references to the kernel.
    pub(super) fn publish(&mut self, pool: &Pool, slot: BufferId) {
        let base = self.entries.start().cast::<BufRingEntry>().as_ptr();
        let index = usize::from(self.tail & self.mask);
        // SAFETY: `index` is at most `mask`, so the entry lies in the mapping, which was zeroed, a
        // valid entry. The kernel reads entries from its head to the tail only, and this one is
        // beyond the tail: there are as many entries as receive slots, and a slot is in the ring
        // at most once (it comes here when its last reference goes, and at the start).
        let entry = unsafe { &mut *base.add(index) };
        entry.set_addr(pool.address(slot) as u64);
        entry.set_len(length(pool.slot_bytes()));
        entry.set_bid(slot.index());
        self.tail = self.tail.wrapping_add(1);
        self.published += 1;
        // SAFETY: `base` is the first entry of the registered ring, whose `resv` field is the tail
        // that the kernel reads: aligned, in the mapping, written by this thread only, and never
        // through the references above, whose setters leave `resv` alone.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// The standing receive and its buffers.
pub(super) struct Receive {
    buffers: BufferRing,
    /// What the kernel reads name and control room from, as long as the receive stands.
    header: Box<libc::msghdr>,
    slots: u16,
    armed: bool,
    intake: Intake,
    failures: Failures,
}

impl Receive {
    pub(super) fn new(ring: &mut Ring, pool: &mut Pool) -> Result<Self, OpenError> {
        let mut header = Box::new(empty_header());
        header.msg_namelen = length(NAME_ROOM);
        header.msg_controllen = CONTROL_ROOM as _;
        let buffers = BufferRing::new(ring, pool)?;
        Ok(Self {
            slots: buffers.published,
            buffers,
            header,
            armed: false,
            intake: Intake::default(),
            failures: Failures::default(),
        })
    }

    /// Queues the receive if it does not stand and a buffer is there for it.
    pub(super) fn arm(&mut self, ring: &mut Ring) {
        if self.armed || self.buffers.published == 0 {
            return;
        }
        let entry = opcode::RecvMsgMulti::new(SOCKET, &raw const *self.header, GROUP)
            .build()
            .user_data(Kind::Receive.tag(0));
        // SAFETY: the header is boxed in `Lent`, which outlives what is in flight, and nobody
        // writes to it. The buffers are those of the ring.
        self.armed = unsafe { ring.push(&entry) }.is_ok();
    }

    pub(super) fn armed(&self) -> bool {
        self.armed
    }

    pub(super) fn buffers(&mut self) -> &mut BufferRing {
        &mut self.buffers
    }

    /// Fails when receiving fails again and again.
    pub(super) fn check(&self) -> io::Result<()> {
        self.failures.check()
    }

    pub(super) fn complete(
        &mut self,
        entry: &cqueue::Entry,
        pool: &mut Pool,
        stats: &mut DriverStats,
    ) -> Option<Event> {
        self.armed = cqueue::more(entry.flags());
        let slot = cqueue::buffer_select(entry.flags())
            .filter(|&slot| slot < self.slots)
            .map(BufferId::new);
        if let Some(slot) = slot {
            self.buffers.published -= 1;
            pool.take(slot);
        }
        let event = match (usize::try_from(entry.result()), slot) {
            (Ok(len), Some(slot)) => {
                self.failures.forget();
                self.judge(slot, len, pool, stats)
            }
            (Ok(_), None) => {
                self.failures.note(libc::EPROTO, stats);
                None
            }
            (Err(_), _) => {
                match -entry.result() {
                    libc::ENOBUFS => stats.buffer_exhausted += 1,
                    libc::ECANCELED => {}
                    errno => self.failures.note(errno, stats),
                }
                None
            }
        };
        if event.is_none()
            && let Some(slot) = slot.and_then(|slot| pool.release(slot))
        {
            self.buffers.publish(pool, slot);
        }
        event
    }

    fn judge(
        &mut self,
        buffer: BufferId,
        len: usize,
        pool: &mut Pool,
        stats: &mut DriverStats,
    ) -> Option<Event> {
        let out = pool
            .bytes(buffer)
            .get(..len)
            .and_then(|bytes| RecvMsgOut::parse(bytes, &self.header).ok());
        let Some(out) = out else {
            stats.rx_errors += 1;
            return None;
        };
        let (len, segment, addresses) = self.intake.judge(
            stats,
            out.name_data(),
            out.control_data(),
            out.flags().cast_signed(),
            out.payload_data().len(),
        )?;
        let offset = length(PAYLOAD_AT);
        Some(Event::Datagrams {
            buffer,
            offset,
            len,
            segment,
            from: addresses.remote,
            local: addresses.local,
        })
    }
}

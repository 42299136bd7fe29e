//! The buffer pool: slots of one mapping, each with a count of its users.
//!
//! Invariants:
//! * A slot with no references belongs to its free list, or to the kernel (a receive slot in the
//!   buffer ring, a TUN slot under a read). User code gets at its bytes only while it has references.
//! * A slot with references is never given to the kernel for writing.
//! * Nothing grows: the free lists are as long as their class from the start.
//!
//! Slots come in three classes by index: receive, then TUN, then transmit. Freed receive slots go
//! back to the driver, which knows where they wait for the kernel.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::driver::{BufferId, Span};

/// Bytes of a slot: a whole 64 KiB receive, what `recvmsg` multishot writes before it, and no
/// power of two, so that the headers of all slots do not compete for the same cache sets.
pub const SLOT_BYTES: usize = 65_536 + 4_096;

/// Slots and their reference counts.
pub(crate) struct Pool {
    memory: Mapping,
    slot_bytes: usize,
    references: Box<[u16]>,
    receive: u16,
    /// First index after the TUN slots.
    tun_end: u16,
    free_tun: Vec<BufferId>,
    free_transmit: Vec<BufferId>,
    /// Slots with references.
    used: u16,
}

impl Pool {
    /// Maps `receive + tun + transmit` slots of `slot_bytes`. All receive slots are without
    /// references and belong to the driver.
    pub(crate) fn new(
        slot_bytes: usize,
        receive: u16,
        tun: u16,
        transmit: u16,
    ) -> io::Result<Self> {
        let too_many = || io::Error::new(io::ErrorKind::InvalidInput, "more than 65,535 buffers");
        let tun_end = receive.checked_add(tun).ok_or_else(too_many)?;
        let end = tun_end.checked_add(transmit).ok_or_else(too_many)?;
        let bytes = usize::from(end) * slot_bytes;
        Ok(Self {
            memory: Mapping::new(bytes)?,
            slot_bytes,
            references: vec![0; usize::from(end)].into_boxed_slice(),
            receive,
            tun_end,
            free_tun: ids(receive..tun_end),
            free_transmit: ids(tun_end..end),
            used: 0,
        })
    }

    /// The receive slots.
    pub(crate) fn receive_slots(&self) -> Vec<BufferId> {
        ids(0..self.receive)
    }

    /// A transmit slot with one reference.
    pub(crate) fn allocate(&mut self) -> Option<BufferId> {
        let id = self.free_transmit.pop()?;
        self.take(id);
        Some(id)
    }

    /// A TUN slot without references, for the kernel to read into.
    pub(crate) fn lend_tun(&mut self) -> Option<BufferId> {
        self.free_tun.pop()
    }

    /// Takes back a TUN slot into which nothing was read.
    pub(crate) fn return_tun(&mut self, id: BufferId) {
        debug_assert_eq!(self.references[usize::from(id.index())], 0);
        self.free_tun.push(id);
    }

    /// First reference of a slot that the kernel has filled.
    pub(crate) fn take(&mut self, id: BufferId) {
        let count = &mut self.references[usize::from(id.index())];
        assert_eq!(*count, 0, "a slot handed out twice");
        *count = 1;
        self.used += 1;
    }

    /// Slots in use, and all.
    pub(crate) fn usage(&self) -> (u16, u16) {
        let all = u16::try_from(self.references.len());
        (self.used, all.unwrap_or(u16::MAX))
    }

    /// One more reference of a slot in use.
    pub(crate) fn retain(&mut self, id: BufferId) {
        let count = &mut self.references[usize::from(id.index())];
        *count = match *count {
            0 => panic!("a reference of a slot that is not in use"),
            n => n.checked_add(1).expect("65,535 references of one slot"),
        };
    }

    /// Drops a reference. Returns the slot when it was the last one of a receive slot.
    pub(crate) fn release(&mut self, id: BufferId) -> Option<BufferId> {
        let count = &mut self.references[usize::from(id.index())];
        *count = count
            .checked_sub(1)
            .expect("release of a slot that is not in use");
        if *count > 0 {
            return None;
        }
        self.used -= 1;
        if id.index() < self.receive {
            return Some(id);
        }
        let free = if id.index() < self.tun_end {
            &mut self.free_tun
        } else {
            &mut self.free_transmit
        };
        free.push(id);
        None
    }

    /// Whether `span` lies in a slot that is in use.
    pub(crate) fn holds(&self, span: Span) -> bool {
        let used = self
            .references
            .get(usize::from(span.buffer.index()))
            .is_some_and(|&count| count > 0);
        let end = u64::from(span.offset) + u64::from(span.len);
        used && end <= self.slot_bytes as u64
    }

    /// The bytes of a slot in use.
    pub(crate) fn bytes(&mut self, id: BufferId) -> &mut [u8] {
        assert!(
            self.references[usize::from(id.index())] > 0,
            "a slot that is not in use"
        );
        let start = self.address(id);
        // SAFETY: `address` is the start of `slot_bytes` mapped bytes that live as long as `self`
        // and were zeroed by the kernel. The slot has references (asserted above), so the kernel
        // does not write to it: drivers lend only slots without references (`take` and `lend_tun`
        // are the only ways in and out). `&mut self` excludes every other Rust reference.
        unsafe { std::slice::from_raw_parts_mut(start, self.slot_bytes) }
    }

    /// The bytes of two different slots in use.
    pub(crate) fn pair(&mut self, read: BufferId, write: BufferId) -> (&[u8], &mut [u8]) {
        assert_ne!(read, write, "two different slots");
        for id in [read, write] {
            let held = self.references[usize::from(id.index())] > 0;
            assert!(held, "a slot that is not in use");
        }
        let (from, to) = (self.address(read), self.address(write));
        // SAFETY: as in `bytes` for each of them; slots do not overlap, and these two are different
        // (asserted above).
        unsafe {
            (
                std::slice::from_raw_parts(from, self.slot_bytes),
                std::slice::from_raw_parts_mut(to, self.slot_bytes),
            )
        }
    }

    /// Address of a slot, for the kernel. Not more than `slot_bytes` follow.
    pub(crate) fn address(&self, id: BufferId) -> *mut u8 {
        let index = usize::from(id.index());
        assert!(index < self.references.len(), "a slot that does not exist");
        // SAFETY: index is below the number of slots (asserted above), and `new` mapped that many
        // times `slot_bytes`, so the result stays inside the mapping.
        unsafe { self.memory.start.as_ptr().add(index * self.slot_bytes) }
    }

    /// Bytes of each slot.
    pub(crate) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// References of all slots together.
    pub(crate) fn references(&self) -> u64 {
        self.references.iter().map(|&count| u64::from(count)).sum()
    }
}

/// A length as the kernel's interfaces want it. No length here comes near the limit.
pub(crate) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Highest index first, so that the lowest is popped first.
fn ids(range: Range<u16>) -> Vec<BufferId> {
    range.rev().map(BufferId::new).collect()
}

/// Anonymous memory, faulted in, left out of core dumps because packets lie in it.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.max(1);
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches
        // no memory that Rust knows of.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )
        }?;
        // SAFETY: the range is the mapping made above, and DontDump changes neither its contents
        // nor its accessibility. Failure only means that a core dump is larger.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxDontDump) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped and nobody else unmaps. Pointers into it are
        // with the owner, and with the kernel while operations are in flight: the io_uring driver
        // drops its pool only after it has seen the last completion.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: the mapping is owned by exactly one `Mapping`, which has no interior mutability and hands
// out memory through `&mut self` of its owner only; where the owner lives does not matter.
unsafe impl Send for Mapping {}

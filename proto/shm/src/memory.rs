//! Where a ring's bytes are: in a mapped segment, on the heap, or in loom's cells.
//!
//! This is the only file that touches ring bytes by pointer. A position is a byte count that never
//! wraps; its place in the data is its low bits, so every access is inside the data by construction
//! whatever the other process wrote into the indices.
//!
//! Another process that breaks the protocol can write bytes while they are copied here. That is
//! outside of what Rust's memory model describes; the copy then holds any bytes, and any bytes are
//! what its readers expect.

use std::sync::Arc;

use crate::ring::Indices;

/// One ring's memory; clones share it.
#[derive(Clone)]
pub(crate) struct RingMemory {
    backing: Arc<Backing>,
}

/// Who keeps a ring's memory alive.
#[cfg(not(loom))]
pub(crate) trait Owner: Send + Sync {
    /// Runs `act` while nobody in this process has or takes the ring's other end. False, without
    /// running it, when somebody has.
    fn alone(&self, act: &mut dyn FnMut()) -> bool;
}

#[cfg(not(loom))]
mod backing {
    use std::ptr::NonNull;

    use super::{Indices, Owner};

    pub(crate) struct Backing {
        pub(super) indices: NonNull<Indices>,
        pub(super) data: NonNull<u8>,
        pub(super) capacity: usize,
        /// Keeps the memory alive: the mapping, or the heap allocation.
        pub(super) owner: Box<dyn Owner>,
    }

    // SAFETY: the pointers stay valid wherever the value is, because `owner` keeps the memory alive
    // and does not move it. Indices are atomics. Data bytes are only touched through `RingMemory`,
    // by one producer in the part between tail and head and by one consumer in the part between head
    // and tail; the ends are handed out once (segment.rs, ring::heap).
    unsafe impl Send for Backing {}
    // SAFETY: as above.
    unsafe impl Sync for Backing {}
}

#[cfg(not(loom))]
use backing::Backing;

#[cfg(not(loom))]
impl RingMemory {
    /// A ring over mapped memory.
    ///
    /// # Safety
    /// * `indices` is valid and aligned for `Indices`, `data` for `capacity` bytes, as long as `owner`
    ///   lives.
    /// * Only the rings made of this memory touch it in this process, at most one producer and one
    ///   consumer.
    pub(crate) unsafe fn mapped(
        indices: std::ptr::NonNull<Indices>,
        data: std::ptr::NonNull<u8>,
        capacity: usize,
        owner: Box<dyn Owner>,
    ) -> Self {
        assert!(
            capacity.is_power_of_two() && capacity >= 8,
            "ring capacity is a power of two"
        );
        Self {
            backing: Arc::new(Backing {
                indices,
                data,
                capacity,
                owner,
            }),
        }
    }

    pub(crate) fn heap(capacity: usize) -> Self {
        use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
        use std::ptr::NonNull;

        struct Allocation(NonNull<u8>, Layout);
        // SAFETY: a plain allocation; freeing it from another thread is fine.
        unsafe impl Send for Allocation {}
        // SAFETY: it gives no access to the memory.
        unsafe impl Sync for Allocation {}
        impl Owner for Allocation {
            fn alone(&self, _: &mut dyn FnMut()) -> bool {
                false
            }
        }
        impl Drop for Allocation {
            fn drop(&mut self) {
                // SAFETY: allocated below with this layout, freed once.
                unsafe { dealloc(self.0.as_ptr(), self.1) }
            }
        }

        assert!(
            capacity.is_power_of_two() && capacity >= 8,
            "ring capacity is a power of two"
        );
        let at = size_of::<Indices>();
        let Ok(layout) = Layout::from_size_align(at + capacity, align_of::<Indices>()) else {
            panic!("ring capacity fits the address space");
        };
        // SAFETY: the layout is not empty: `Indices` has a size.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let owner = Box::new(Allocation(base, layout));
        // SAFETY: the allocation holds both parts, is aligned for `Indices`, and zero bytes are valid
        // atomics; it lives as long as `owner`; nothing else knows it.
        unsafe { Self::mapped(base.cast(), base.add(at), capacity, owner) }
    }

    pub(crate) fn indices(&self) -> &Indices {
        // SAFETY: valid while `owner` lives (see `mapped`); all fields are atomics, so sharing with
        // the other process is what the type allows.
        unsafe { self.backing.indices.as_ref() }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.backing.capacity as u64
    }

    /// See [`Owner::alone`].
    pub(crate) fn alone(&self, act: &mut dyn FnMut()) -> bool {
        self.backing.owner.alone(act)
    }

    /// Copies `bytes` to position `at`.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.two_parts(at, bytes.len(), |place, from, len| {
            // SAFETY: `place` is valid for `len` bytes (two_parts); the producer owns this part of
            // the data until it publishes (Producer::push checked the room). A hostile other process
            // can change bytes meanwhile, but this side only stores.
            unsafe { place.copy_from_nonoverlapping(bytes[from..].as_ptr(), len) }
        });
    }

    /// Copies from position `at` into `bytes`.
    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) {
        let out = bytes.as_mut_ptr();
        self.two_parts(at, bytes.len(), |place, from, len| {
            // SAFETY: `place` is valid for `len` bytes (two_parts), `from + len` is inside `bytes`;
            // the consumer owns this part of the data until it releases. The copy is looked at, never
            // the shared bytes again, so a hostile writer can only choose what the copy says.
            unsafe { out.add(from).copy_from_nonoverlapping(place, len) }
        });
    }

    /// Overwrites `len` bytes at position `at` with zeros.
    pub(crate) fn wipe(&self, at: u64, len: u64) {
        let len = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(self.backing.capacity);
        self.two_parts(at, len, |place, _, len| {
            // SAFETY: `place` is valid for `len` bytes (two_parts); the caller owns this part of the
            // data: a consumer what it has not released (Consumer::pop), a producer the free room
            // (Producer::wipe_free), either of them all when alone (reset). Volatile is not
            // needed: the release store of an index that
            // follows makes these stores visible to the other end, so they cannot be left out.
            unsafe { place.write_bytes(0, len) }
        });
    }

    /// Calls `copy(place, offset, len)` for the one or two pieces that `len` bytes at position `at`
    /// consist of.
    fn two_parts(&self, at: u64, len: usize, copy: impl Fn(*mut u8, usize, usize)) {
        let capacity = self.backing.capacity;
        assert!(len <= capacity, "a record is not longer than its ring");
        let start = low_bits(at, capacity);
        let first = len.min(capacity - start);
        let data = self.backing.data.as_ptr();
        // SAFETY: `start < capacity`, so the place is inside the data.
        copy(unsafe { data.add(start) }, 0, first);
        if first < len {
            copy(data, first, len - first);
        }
    }
}

/// The place in the data of a position.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the result is below the capacity"
)]
fn low_bits(at: u64, capacity: usize) -> usize {
    (at & (capacity as u64 - 1)) as usize
}

#[cfg(loom)]
pub(crate) struct Backing {
    indices: Indices,
    data: Vec<loom::cell::UnsafeCell<u8>>,
}

// SAFETY: loom checks every access of the cells.
#[cfg(loom)]
unsafe impl Send for Backing {}
// SAFETY: loom checks every access of the cells.
#[cfg(loom)]
unsafe impl Sync for Backing {}

#[cfg(loom)]
impl RingMemory {
    pub(crate) fn heap(capacity: usize) -> Self {
        assert!(
            capacity.is_power_of_two() && capacity >= 8,
            "ring capacity is a power of two"
        );
        let data = (0..capacity)
            .map(|_| loom::cell::UnsafeCell::new(0))
            .collect();
        Self {
            backing: Arc::new(Backing {
                indices: Indices::new(),
                data,
            }),
        }
    }

    pub(crate) fn indices(&self) -> &Indices {
        &self.backing.indices
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.backing.data.len() as u64
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: loom reports a race if another thread touches the cell.
            self.cell(at.wrapping_add(n as u64))
                .with_mut(|place| unsafe { *place = *byte });
        }
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) {
        for (n, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: loom reports a race if another thread writes the cell.
            *byte = self
                .cell(at.wrapping_add(n as u64))
                .with(|place| unsafe { *place });
        }
    }

    pub(crate) fn wipe(&self, at: u64, len: u64) {
        (0..len).for_each(|n| self.write(at.wrapping_add(n), &[0]));
    }

    fn cell(&self, at: u64) -> &loom::cell::UnsafeCell<u8> {
        &self.backing.data[low_bits(at, self.backing.data.len())]
    }
}

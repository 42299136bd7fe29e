//! Where a ring's bytes are: in a mapped segment, on the heap, or in loom's cells.
//!
//! This is the only file that touches ring bytes by pointer. A position is a byte count that never
//! wraps; its place in the data is its low bits, so every access is inside the data by construction
//! whatever the other process wrote into the indices.

use std::sync::Arc;

use crate::ring::Indices;

/// One ring's memory; clones share it.
#[derive(Clone)]
pub(crate) struct RingMemory {
    backing: Arc<Backing>,
}

#[cfg(not(loom))]
mod backing {
    use std::any::Any;
    use std::ptr::NonNull;

    use super::Indices;

    pub(crate) struct Backing {
        pub(super) indices: NonNull<Indices>,
        pub(super) data: NonNull<u8>,
        pub(super) capacity: usize,
        /// Keeps the memory alive: the mapping, or the heap allocation.
        pub(super) _owner: Box<dyn Any + Send + Sync>,
    }

    // SAFETY: the pointers stay valid wherever the value is, because `_owner` keeps the memory alive
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
        owner: Box<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        assert!(
            capacity.is_power_of_two(),
            "ring capacity is a power of two"
        );
        Self {
            backing: Arc::new(Backing {
                indices,
                data,
                capacity,
                _owner: owner,
            }),
        }
    }

    pub(crate) fn heap(capacity: usize) -> Self {
        use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
        use std::ptr::NonNull;

        struct Owner(NonNull<u8>, Layout);
        // SAFETY: a plain allocation; freeing it from another thread is fine.
        unsafe impl Send for Owner {}
        // SAFETY: the owner gives no access to the memory.
        unsafe impl Sync for Owner {}
        impl Drop for Owner {
            fn drop(&mut self) {
                // SAFETY: allocated below with this layout, freed once.
                unsafe { dealloc(self.0.as_ptr(), self.1) }
            }
        }

        assert!(
            capacity.is_power_of_two(),
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
        let owner = Box::new(Owner(base, layout));
        // SAFETY: the allocation holds both parts, is aligned for `Indices`, and zero bytes are valid
        // atomics; it lives as long as `owner`; nothing else knows it.
        unsafe { Self::mapped(base.cast(), base.add(at), capacity, owner) }
    }

    pub(crate) fn indices(&self) -> &Indices {
        // SAFETY: valid while `_owner` lives (see `mapped`); all fields are atomics, so sharing with
        // the other process is what the type allows.
        unsafe { self.backing.indices.as_ref() }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.backing.capacity as u64
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
            // SAFETY: as in `write`. Volatile is not needed: the memory is shared, so the compiler
            // must assume that the store is seen.
            unsafe { place.write_bytes(0, len) }
        });
    }

    /// Calls `copy(place, offset, len)` for the one or two pieces that `len` bytes at position `at`
    /// consist of.
    fn two_parts(&self, at: u64, len: usize, copy: impl Fn(*mut u8, usize, usize)) {
        let capacity = self.backing.capacity;
        assert!(len <= capacity, "a record is not longer than its ring");
        // The low bits fit `usize` because the capacity does.
        let start = (at & (capacity as u64 - 1)) as usize;
        let first = len.min(capacity - start);
        let data = self.backing.data.as_ptr();
        // SAFETY: `start < capacity`, so the place is inside the data.
        copy(unsafe { data.add(start) }, 0, first);
        if first < len {
            copy(data, first, len - first);
        }
    }
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
            capacity.is_power_of_two(),
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
            self.cell(at, n).with_mut(|place| unsafe { *place = *byte });
        }
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) {
        for (n, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: loom reports a race if another thread writes the cell.
            *byte = self.cell(at, n).with(|place| unsafe { *place });
        }
    }

    pub(crate) fn wipe(&self, at: u64, len: u64) {
        self.write(at, &vec![0; len as usize]);
    }

    fn cell(&self, at: u64, n: usize) -> &loom::cell::UnsafeCell<u8> {
        &self.backing.data[(at as usize + n) % self.backing.data.len()]
    }
}

//! The buffers of one driver: one anonymous mapping, cut into 64 KiB slots, with a user count each.
//!
//! The first `receive` slots are lent to the kernel for receiving; the others are handed out by
//! `allocate`. Which of its slots a driver lends is the driver's business: a receive slot whose count
//! falls to zero is reported by `release`.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use crate::{BUFFER_BYTES, BufferId, Span};

pub(crate) struct Pool {
    base: NonNull<u8>,
    receive: u16,
    users: Vec<u16>,
    free: Vec<BufferId>,
}

// SAFETY: the pool owns its mapping; nothing about it belongs to a thread.
unsafe impl Send for Pool {}

impl Pool {
    pub(crate) fn new(receive: u16, transmit: u16) -> io::Result<Self> {
        let count = usize::from(receive) + usize::from(transmit);
        let len = count * BUFFER_BYTES as usize;
        // SAFETY: a new private mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let free = (receive..receive + transmit).rev().map(BufferId).collect();
        Ok(Self { base, receive, users: vec![0; count], free })
    }

    /// A transmit slot with one user.
    pub(crate) fn allocate(&mut self) -> Option<BufferId> {
        let buffer = self.free.pop()?;
        self.users[usize::from(buffer.0)] = 1;
        Some(buffer)
    }

    /// One more user.
    pub(crate) fn retain(&mut self, buffer: BufferId) {
        self.users[usize::from(buffer.0)] += 1;
    }

    /// One user less. True when a receive slot has become free: the driver lends it again.
    pub(crate) fn release(&mut self, buffer: BufferId) -> bool {
        let users = &mut self.users[usize::from(buffer.0)];
        assert!(*users > 0, "a buffer is released by those who hold it");
        *users -= 1;
        if *users > 0 {
            return false;
        }
        let receive = buffer.0 < self.receive;
        if !receive {
            self.free.push(buffer);
        }
        receive
    }

    /// Address of a span, for the kernel.
    ///
    /// # Panics
    /// When the span is not inside its buffer.
    pub(crate) fn address(&self, span: Span) -> *mut u8 {
        let inside = u64::from(span.offset) + u64::from(span.len) <= u64::from(BUFFER_BYTES);
        assert!(inside && usize::from(span.buffer.0) < self.users.len(), "span is in its buffer");
        let at = usize::from(span.buffer.0) * BUFFER_BYTES as usize + span.offset as usize;
        // SAFETY: asserted to be inside the mapping.
        unsafe { self.base.add(at).as_ptr() }
    }

    pub(crate) fn bytes(&mut self, span: Span) -> &mut [u8] {
        // SAFETY: inside the mapping (`address`), initialised (zeroed by the kernel), borrowed as
        // long as the pool. The kernel writes a slot only between lending and completion, when no
        // event for it has been handed out; the driver lends a slot only when its count is zero.
        unsafe { std::slice::from_raw_parts_mut(self.address(span), span.len as usize) }
    }

    pub(crate) fn pair(&mut self, read: Span, write: Span) -> (&[u8], &mut [u8]) {
        assert_ne!(read.buffer, write.buffer, "two buffers");
        // SAFETY: as in `bytes`, and the two slots are different, so the slices do not overlap.
        unsafe {
            (
                std::slice::from_raw_parts(self.address(read), read.len as usize),
                std::slice::from_raw_parts_mut(self.address(write), write.len as usize),
            )
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let len = self.users.len() * BUFFER_BYTES as usize;
        // SAFETY: mapped in `new` with this length; drivers drop the pool after their ring, so the
        // kernel does not use it any more. Unmapping our own mapping does not fail.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), len) };
    }
}

//! An allocator that leaves nothing behind.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

/// Bytes of the largest block that [`WipingAllocator`] wipes. Every secret lives in a smaller one;
/// larger ones hold messages and tables, which would make wiping them felt.
pub const WIPED_MAX: usize = 16 * 1024;

/// The system's allocator, but what is given back to it is overwritten with zeros first, up to
/// [`WIPED_MAX`] bytes: keys in the state of libraries, and in what they move or outgrow, too.
pub struct WipingAllocator;

// SAFETY: every call is passed on to `System`, with the arguments that its caller vouches for. What
// is written before is the caller's own block, which nobody uses any more.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() <= WIPED_MAX {
            // SAFETY: the block has this size and ends here, as the caller promises.
            unsafe { block.write_bytes(0, layout.size()) };
            // Else the compiler may leave the stores out: nobody reads a block that is freed.
            black_box(block);
        }
        // SAFETY: as the caller of this function promises.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() > WIPED_MAX {
            // SAFETY: as the caller of this function promises.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: `size` is not zero and does not overflow with the alignment, as the caller promises.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the layout is not empty.
        let moved = unsafe { System.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both blocks have at least this many bytes, and a new one overlaps no other. The
            // old one is given back once, here.
            unsafe {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_bytes_when_they_grow_and_shrink() {
        let layout = Layout::from_size_align(48, 16).unwrap();
        // SAFETY: the block is used within the sizes asked for, and given back once, with its last.
        unsafe {
            let block = WipingAllocator.alloc(layout);
            block.write_bytes(7, 48);
            let block = WipingAllocator.realloc(block, layout, 2 * WIPED_MAX);
            let layout = Layout::from_size_align(2 * WIPED_MAX, 16).unwrap();
            assert_eq!(std::slice::from_raw_parts(block, 48), [7; 48]);
            let block = WipingAllocator.realloc(block, layout, 24);
            let layout = Layout::from_size_align(24, 16).unwrap();
            assert_eq!(std::slice::from_raw_parts(block, 24), [7; 24]);
            WipingAllocator.dealloc(block, layout);
        }
    }
}

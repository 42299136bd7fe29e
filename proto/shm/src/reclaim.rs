//! The heap of this process.

/// Gives back to the kernel what the allocator keeps of memory that was freed. A burst (a thousand
/// peers that join and are told a thousand routes) leaves a heap many times the size of what lives on
/// in it, and the allocator returns only its end by itself. Takes milliseconds for a large heap.
pub fn give_back_free_memory() {
    // SAFETY: it takes no pointer, touches only memory that nobody has allocated, and takes the
    // allocator's own locks, so it may be called from any thread at any time.
    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    unsafe {
        libc::malloc_trim(0);
    }
}

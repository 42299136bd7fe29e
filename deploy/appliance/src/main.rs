//! The `hyphae` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Wipes freed memory: keys pass through the heap of both planes and of their libraries.
#[global_allocator]
static ALLOCATOR: hyphae_shm::WipingAllocator = hyphae_shm::WipingAllocator;

fn main() -> ExitCode {
    hyphae::cli::main()
}

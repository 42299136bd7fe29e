//! The `hyphae` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Keys pass through the heap of both planes, and of libraries in them.
#[global_allocator]
static ALLOCATOR: hyphae_shm::WipingAllocator = hyphae_shm::WipingAllocator;

fn main() -> ExitCode {
    hyphae::cli::main()
}

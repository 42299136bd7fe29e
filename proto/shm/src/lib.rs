//! The shared segment between the dataplane and a control plane: rings, statistics, records, and how
//! a control plane gets hold of it. Beside it what keeps secrets in memory: a locked page, and an
//! allocator that wipes.
//!
//! Who trusts whom: the dataplane trusts nothing that it reads here. Control-plane code may trust the
//! dataplane, which owns the segment, but uses the same checked readers.
//!
//! Under `cfg(loom)` only the rings are built, over loom's atomics and cells, for the model in
//! `ring/model.rs`: `RUSTFLAGS="--cfg loom" cargo test -p hyphae-shm --lib --release`.

#[cfg(not(loom))]
pub mod attach;
#[cfg(not(loom))]
mod doorbell;
#[cfg(not(loom))]
mod locked;
mod memory;
#[cfg(not(loom))]
mod peer_groups;
#[cfg(not(loom))]
mod reclaim;
pub mod record;
mod ring;
#[cfg(not(loom))]
mod segment;
pub mod stats;
#[cfg(not(loom))]
mod stats_block;
mod sync;
#[cfg(not(loom))]
mod wiping;

#[cfg(not(loom))]
pub use doorbell::Doorbell;
#[cfg(not(loom))]
pub use locked::LockedPage;
pub use peer_groups::peer_groups;
#[cfg(not(loom))]
pub use reclaim::give_back_free_memory;
pub use ring::{Consumer, Corrupt, Producer, PushError, RECORD_MAX, heap};
#[cfg(not(loom))]
pub use segment::{ABI_VERSION, Layout, Segment, SegmentError};
#[cfg(not(loom))]
pub use stats_block::{StatsReader, StatsWriter};
#[cfg(not(loom))]
pub use wiping::{WIPED_MAX, WipingAllocator};

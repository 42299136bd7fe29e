//! The shared segment between the dataplane and a control plane: rings, statistics, records, and how
//! a control plane gets hold of it.
//!
//! Who trusts whom: the dataplane trusts nothing that it reads here. Control-plane code may trust the
//! dataplane, which owns the segment, but uses the same checked readers.

pub mod attach;
mod doorbell;
mod memory;
pub mod record;
mod ring;
mod segment;
pub mod stats;
mod stats_block;
mod sync;

pub use doorbell::Doorbell;
pub use ring::{Consumer, Corrupt, Producer, PushError, RECORD_MAX, heap};
pub use segment::{ABI_VERSION, Layout, Segment, SegmentError};
pub use stats_block::{StatsReader, StatsWriter};

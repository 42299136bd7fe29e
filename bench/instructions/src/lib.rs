//! Packet and message paths without system calls: engines with known keys, and matching frames. Used by
//! micro-benchmarks and instruction counts.

#![forbid(unsafe_code)]

mod ends;
mod handshakes;
mod messages;
pub mod records;
mod relay;
mod source;

pub use ends::{Ends, Sent};
pub use handshakes::FirstMessages;
pub use messages::Messengers;
pub use relay::{Dimensions, Relay};
pub use source::Source;

/// The constant time of all events.
pub const NOW: hyphae_time::Nanos = hyphae_time::Nanos(1_000_000_000_000);

/// Numbers distributed like hashes (SplitMix64).
#[derive(Clone, Debug)]
pub struct Spread(pub u64);

impl Spread {
    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

//! Packet and message paths without a kernel: engines with known keys, and frames
//! that they take. Micro-benchmarks time them, and instruction counts are taken of them.

#![forbid(unsafe_code)]

mod ends;
mod handshakes;
mod messages;
pub mod records;
mod relay;
mod source;

pub use ends::{Ends, Sent};
pub use handshakes::Strangers;
pub use messages::Messengers;
pub use relay::{Crowd, Relay};
pub use source::Source;

/// When everything happens.
pub const NOW: hyphae_time::Nanos = hyphae_time::Nanos(1_000_000_000_000);

/// Numbers that are spread like hashes are (SplitMix64).
#[derive(Clone, Debug)]
pub struct Spread(pub u64);

impl Spread {
    /// The next one.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

//! FIB entries in the form of program records.

use hyphae_shm::record::{
    ACTION_FORWARD, ACTION_GATEWAY, FibRemove, FibReplace, NEXT_HOPS_MAX, NextHop, Program,
};
use hyphae_wire::{OverlayAddress, Prefix};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};

/// A change of the FIB, for every worker.
#[derive(Clone, Copy, Debug)]
pub enum FibChange {
    /// Add or replace an entry.
    Replace(FibReplace),
    /// Remove an entry.
    Remove(FibRemove),
}

impl FibChange {
    /// The record to push.
    pub fn program(&self) -> Program<'_> {
        match self {
            Self::Replace(replace) => Program::FibReplace(replace),
            Self::Remove(remove) => Program::FibRemove(remove),
        }
    }

    /// Its destinations.
    pub fn prefix(&self) -> Prefix {
        match self {
            Self::Replace(FibReplace {
                prefix, prefix_len, ..
            })
            | Self::Remove(FibRemove {
                prefix, prefix_len, ..
            }) => Prefix::new(*prefix, *prefix_len),
        }
    }
}

/// The entry that forwards `prefix` to peers, by number and weight, at most [`NEXT_HOPS_MAX`].
pub(crate) fn replace(prefix: Prefix, peers: impl IntoIterator<Item = (u32, u16)>) -> FibReplace {
    let mut next_hops = [NextHop::new_zeroed(); NEXT_HOPS_MAX];
    let mut next_hop_count = 0;
    for (place, (peer, weight)) in next_hops.iter_mut().zip(peers) {
        *place = NextHop {
            peer: U32::new(peer),
            weight: U16::new(weight),
            reserved: U16::ZERO,
        };
        next_hop_count += 1;
    }
    FibReplace {
        prefix: prefix.address(),
        prefix_len: prefix.len(),
        action: ACTION_FORWARD,
        next_hop_count,
        next_hops,
        ..FibReplace::new_zeroed()
    }
}

/// The entry of a prefix outside of the overlay that is behind `gateway`.
pub(crate) fn behind(prefix: Prefix, gateway: OverlayAddress) -> FibReplace {
    FibReplace {
        prefix: prefix.address(),
        prefix_len: prefix.len(),
        action: ACTION_GATEWAY,
        gateway,
        ..FibReplace::new_zeroed()
    }
}

/// The removal of the entry of `prefix`.
pub(crate) fn remove(prefix: Prefix) -> FibRemove {
    FibRemove {
        prefix: prefix.address(),
        prefix_len: prefix.len(),
        reserved: [0; 7],
    }
}

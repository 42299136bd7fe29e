//! An underlay address of a peer, measured while it is not in use.

use hyphae_time::Nanos;
use hyphae_wire::Endpoint;

use crate::liveness::Rtt;

/// An address of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) endpoint: Endpoint,
    pub(crate) rtt: Rtt,
    pub(crate) samples: u32,
    pub(crate) probe_at: Nanos,
}

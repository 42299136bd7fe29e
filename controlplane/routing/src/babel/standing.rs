//! Accounting of one destination.

use hyphae_shares::Ticket;

/// How a destination is accounted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Charged to no neighbour.
    #[default]
    Free,
    /// Charged to this link, by the ticket of its share.
    Charged(u32, Ticket),
    /// Waits for acknowledgements of its retraction.
    Ending(u64),
}

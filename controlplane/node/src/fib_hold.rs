//! Hold of the FIB after an attach.

use std::time::Duration;

use hyphae_time::Nanos;

/// Bounds of the hold after an attach to workers that forward, and the time without a route change that ends it.
const MIN: Duration = Duration::from_secs(1);
const MAX: Duration = Duration::from_secs(8);
const SETTLED: Duration = Duration::from_millis(400);

/// Whether the FIB of the workers follows the RIB.
///
/// A control plane that takes over has to learn all routes again. Until then the workers keep their FIB: no packet is
/// lost, and an incomplete RIB cannot cause a loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FibHold {
    /// The FIB follows the RIB.
    #[default]
    Off,
    /// Links are being adopted.
    Adopting,
    /// Links are adopted; their routes are being learnt.
    Learning { since: Nanos, changed: Nanos },
}

impl FibHold {
    pub(crate) fn is_off(self) -> bool {
        self == Self::Off
    }

    /// When the hold ends unless a route changes before.
    pub(crate) fn deadline(self) -> Option<Nanos> {
        match self {
            Self::Off | Self::Adopting => None,
            Self::Learning { since, changed } => {
                Some((changed + SETTLED).max(since + MIN).min(since + MAX))
            }
        }
    }
}

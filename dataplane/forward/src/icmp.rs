//! ICMPv6 errors for the host (RFC 4443), written as packets from a router to it.
//!
//! ```text
//! | IPv6 header 40 | type | code | checksum | MTU or unused 4 | as much of the packet as fits 1280 |
//! ```
//!
//! Built off the fast path, at a limited rate, and handed to the worker as owned bytes; at most
//! [`REPLIES_MAX`] wait.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::report::{INNER_MTU_MIN, ReportCode};

use hyphae_wire::OverlayAddress;

use crate::engine::Engine;
use crate::event::EngineEvent;
use crate::host;

/// Errors that may wait for the worker to take them.
const REPLIES_MAX: usize = 64;

/// What to tell the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// Type 1, code 0.
    NoRoute,
    /// Type 1, code 3.
    AddressUnreachable,
    /// Type 2, code 0.
    TooBig {
        /// What fits.
        mtu: u16,
    },
    /// Type 3, code 0.
    HopLimit,
}

impl HostError {
    /// Type, code and the word after the checksum.
    pub(crate) fn fields(self) -> (u8, u8, u32) {
        match self {
            Self::NoRoute => (1, 0, 0),
            Self::AddressUnreachable => (1, 3, 0),
            Self::TooBig { mtu } => (2, 0, u32::from(mtu)),
            Self::HopLimit => (3, 0, 0),
        }
    }

    /// The error that answers a packet which was dropped for this reason, if one does.
    pub(crate) fn of(reason: DropReason) -> Option<Self> {
        #[allow(
            clippy::wildcard_enum_match_arm,
            reason = "most reasons say that the packet is not one to answer, or that it may be tried again"
        )]
        match reason {
            DropReason::NoRoute | DropReason::RouteBlackhole => Some(Self::NoRoute),
            DropReason::AdjacencyDown | DropReason::TunDestinationForeign => {
                Some(Self::AddressUnreachable)
            }
            _ => None,
        }
    }

    /// The error that a report of a relay amounts to; `None` for those that are handled otherwise.
    pub(crate) fn reported(code: ReportCode) -> Option<Self> {
        match code {
            ReportCode::NoRoute => Some(Self::NoRoute),
            ReportCode::HopLimit => Some(Self::HopLimit),
            ReportCode::TooBig | ReportCode::Reached => None,
        }
    }
}

impl Engine {
    /// The next packet for the host that the engine made itself.
    pub fn next_host_reply(&mut self) -> Option<Vec<u8>> {
        self.replies.pop_front()
    }

    /// Tells the host that a packet is longer than its path carries, and the control plane too.
    pub fn host_too_big(&mut self, now: Nanos, mtu: u16, packet: &[u8]) {
        let Ok(inner) = host::inspect(packet) else {
            return;
        };
        let mtu = mtu.max(INNER_MTU_MIN);
        if self.answer_host(now, HostError::TooBig { mtu }, None, packet) {
            let address = inner.destination;
            self.report(EngineEvent::PathTooBig { address, mtu });
        }
    }

    /// Answers a packet of which only the start is left.
    pub(crate) fn answer_host_head(
        &mut self,
        now: Nanos,
        error: HostError,
        reporter: OverlayAddress,
        head: &[u8],
    ) {
        // It was a packet when it was sent.
        let [source, destination] = host::addresses(head).unwrap_or_default();
        if self.is_local(source) && !host::is_icmp_error(head) {
            self.push_reply(now, error, Some(reporter), (source, destination), head);
        }
    }

    /// Answers a packet of the host with an error, from `reporter` or from this node. False when no
    /// error may answer it or the limit is reached.
    pub(crate) fn answer_host(
        &mut self,
        now: Nanos,
        error: HostError,
        reporter: Option<OverlayAddress>,
        packet: &[u8],
    ) -> bool {
        let Ok(inner) = host::inspect(packet) else {
            return false;
        };
        if !self.is_local(inner.source) || host::is_icmp_error(packet) {
            return false;
        }
        self.push_reply(
            now,
            error,
            reporter,
            (inner.source, inner.destination),
            packet,
        )
    }

    fn push_reply(
        &mut self,
        now: Nanos,
        error: HostError,
        reporter: Option<OverlayAddress>,
        (source, destination): (OverlayAddress, OverlayAddress),
        packet: &[u8],
    ) -> bool {
        let Some(local) = self.local.filter(|_| self.config.has_tun) else {
            return false;
        };
        if self.replies.len() == REPLIES_MAX || !self.host_limit.admit(now, 0, destination) {
            self.counters.add(Counter::ErrorsSuppressed, 1);
            return false;
        }
        let from = reporter.unwrap_or(local.address);
        let (kind, code, word) = error.fields();
        let reply = host::icmp_error(from, source, (kind, code), word, packet);
        self.replies.push_back(reply);
        self.counters.add(Counter::HostErrors, 1);
        true
    }
}

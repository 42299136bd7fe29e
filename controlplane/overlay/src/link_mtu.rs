//! MTU of a link: packetization layer path MTU discovery (RFC 8899) with padded probes.
//!
//! ```text
//!            answered                        lost, small probes are answered
//!   First ───────────────▶ Idle ◀──────┐  First ──▶ Search   Confirm ──▶ Search from the base
//!   (the largest size      │  ▲        │
//!    ever needed)          │  │ answered, or small probes are lost too
//!                large     ▼  │        │
//!                frames  Confirm     Search (halves the gap until it is small)
//!                pass        every 10 min: First again; what is known still applies
//! ```
//!
//! No limit applies before the first probe is answered: nearly every link carries the largest size that is
//! needed, and one round trip confirms it. Sizes are bytes of a datagram (UDP payload).

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::report::{DATAGRAM_BASE, FRAME_MIN_MAX};

/// Probes of a size before it counts as too large (RFC 8899, `MAX_PROBES`).
const TRIES: u32 = 3;
/// Time between searches for more (RFC 8899, `PMTU_RAISE_TIMER`).
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// Time between confirmations of the size in use, while large frames are sent.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);
/// Time to the next attempt when small probes are lost too: size is not the cause.
const SILENT_RETRY: Duration = Duration::from_secs(1);
/// The search ends when the gap is no larger, bytes.
pub(crate) const RESOLUTION: u16 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    First,
    Search,
    Confirm,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    size: u16,
    tries: u32,
    first_sent: Nanos,
    /// Numbers of its probes; any answer counts.
    ids: [u64; TRIES as usize],
}

/// What the caller has to do for the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchAction {
    /// Send a probe of this size, and call [`LinkMtuSearch::sent`].
    Probe(u16),
    /// Send a small probe, which shows whether the link is alive.
    ProbeSmall,
    /// Set this limit in the workers.
    Limit(u16),
}

/// Search for the MTU of one link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkMtuSearch {
    phase: Phase,
    max: u16,
    /// Largest size known to pass, or the base.
    passes: u16,
    /// Smallest size known not to pass.
    fails: u16,
    probe: Option<InFlight>,
    due: Nanos,
    raise_at: Nanos,
    confirmed_at: Nanos,
    /// The limit that the workers have.
    reported: Option<u16>,
    /// The limit to report next.
    pending: Option<u16>,
    probe_small: bool,
}

impl Default for LinkMtuSearch {
    fn default() -> Self {
        Self {
            phase: Phase::Idle,
            max: FRAME_MIN_MAX,
            passes: DATAGRAM_BASE,
            fails: u16::MAX,
            probe: None,
            due: Nanos::NEVER,
            raise_at: Nanos::NEVER,
            confirmed_at: Nanos(0),
            reported: None,
            pending: None,
            probe_small: false,
        }
    }
}

impl LinkMtuSearch {
    /// Starts without knowledge; `max` is the largest size that is ever needed.
    pub(crate) fn begin(now: Nanos, max: u16) -> Self {
        Self {
            phase: Phase::First,
            max: max.max(FRAME_MIN_MAX),
            due: now,
            ..Self::default()
        }
    }

    /// The limit that the workers have; `None` for no limit.
    pub(crate) fn reported(&self) -> Option<u16> {
        self.reported
    }

    /// When to call [`Self::poll`] next.
    pub(crate) fn due(&self) -> Nanos {
        self.due.min(if self.phase == Phase::Idle {
            self.raise_at
        } else {
            Nanos::NEVER
        })
    }

    /// The next action. `timeout` is the time that an answer may take, `heard` the time of the last authentic
    /// frame. Call it until it returns `None`.
    pub(crate) fn poll(
        &mut self,
        now: Nanos,
        timeout: Duration,
        heard: Nanos,
    ) -> Option<SearchAction> {
        if let Some(mtu) = self.pending.take()
            && self.reported != Some(mtu)
        {
            self.reported = Some(mtu);
            return Some(SearchAction::Limit(mtu));
        }
        if std::mem::take(&mut self.probe_small) {
            return Some(SearchAction::ProbeSmall);
        }
        if self.phase == Phase::Idle && now >= self.raise_at {
            self.phase = Phase::First;
            self.fails = u16::MAX;
            self.raise_at = Nanos::NEVER;
            self.due = now;
        }
        if now < self.due {
            return None;
        }
        let Some(probe) = self.probe else {
            return self.next_size(now, timeout);
        };
        if probe.tries < TRIES {
            // After a lost probe, a small one shows whether the link is alive. If it is, the limit is lowered
            // at once, so that traffic does not stall.
            self.probe_small = true;
            if probe.tries == 2 && self.phase == Phase::First && heard > probe.first_sent {
                let lowered = |reported: u16| reported.min(self.passes);
                self.pending = Some(self.reported.map_or(DATAGRAM_BASE, lowered));
            }
            self.due = now + timeout;
            return Some(SearchAction::Probe(probe.size));
        }
        if heard <= probe.first_sent {
            self.probe = None;
            if self.phase == Phase::Confirm {
                self.phase = Phase::Idle;
                self.due = Nanos::NEVER;
            } else {
                self.due = now + SILENT_RETRY;
            }
            return None;
        }
        self.failed(now);
        self.poll(now, timeout, heard)
    }

    /// Records the number of the probe that [`SearchAction::Probe`] asked for.
    pub(crate) fn sent(&mut self, id: u64) {
        if let Some(probe) = &mut self.probe
            && let Some(place) = probe.ids.get_mut(probe.tries as usize)
        {
            *place = id;
            probe.tries += 1;
        }
    }

    /// Handles the answer to a probe; false when it is no probe of this search.
    pub(crate) fn answered(&mut self, now: Nanos, id: u64) -> bool {
        let Some(probe) = self
            .probe
            .filter(|probe| probe.ids[..probe.tries as usize].contains(&id))
        else {
            return false;
        };
        self.probe = None;
        self.passes = self.passes.max(probe.size);
        if self.phase == Phase::Confirm {
            self.phase = Phase::Idle;
            self.due = Nanos::NEVER;
        } else {
            self.due = now;
        }
        true
    }

    /// Large frames are being sent: confirm that they pass.
    pub(crate) fn confirm(&mut self, now: Nanos) {
        let proven = self.phase == Phase::Idle && self.passes > DATAGRAM_BASE;
        if proven && now.since(self.confirmed_at) >= CONFIRM_AFTER {
            self.confirmed_at = now;
            self.phase = Phase::Confirm;
            self.due = now;
        }
    }

    /// The kernel refused a datagram as too large for its interface.
    pub(crate) fn refused(&mut self, now: Nanos) {
        match self.phase {
            // In the search phase the refusal may be that of an earlier, larger probe.
            Phase::First | Phase::Confirm if self.probe.is_some() => self.failed(now),
            Phase::Idle => {
                self.confirmed_at = Nanos(0);
                self.confirm(now);
            }
            Phase::First | Phase::Confirm | Phase::Search => {}
        }
    }

    /// The probed size does not pass.
    fn failed(&mut self, now: Nanos) {
        let Some(probe) = self.probe.take() else {
            return;
        };
        self.fails = probe.size;
        if self.phase == Phase::Confirm {
            self.passes = DATAGRAM_BASE;
        }
        if self.phase != Phase::Search {
            self.pending = Some(self.passes);
        }
        self.phase = Phase::Search;
        self.due = now;
    }

    fn next_size(&mut self, now: Nanos, timeout: Duration) -> Option<SearchAction> {
        let size = match self.phase {
            Phase::Idle => {
                self.due = Nanos::NEVER;
                return None;
            }
            Phase::Confirm => self.passes,
            _ if self.passes >= self.max || self.fails - self.passes <= RESOLUTION => {
                return self.finish(now);
            }
            Phase::First => self.max,
            Phase::Search => self.passes.midpoint(self.fails),
        };
        self.probe = Some(InFlight {
            size,
            tries: 0,
            first_sent: now,
            ids: [0; TRIES as usize],
        });
        self.due = now + timeout;
        Some(SearchAction::Probe(size))
    }

    fn finish(&mut self, now: Nanos) -> Option<SearchAction> {
        self.phase = Phase::Idle;
        self.due = Nanos::NEVER;
        self.raise_at = if self.passes < self.max {
            now + RAISE_AFTER
        } else {
            Nanos::NEVER
        };
        let before = self.reported.replace(self.passes);
        (before != Some(self.passes)).then_some(SearchAction::Limit(self.passes))
    }
}

/// Time to wait for the answer to a probe, 150 ms to 1 s; 300 ms before a round trip was measured.
pub(crate) fn probe_timeout(rtt: Option<Duration>) -> Duration {
    rtt.map_or(Duration::from_millis(300), |rtt| {
        (rtt * 2 + Duration::from_millis(50))
            .clamp(Duration::from_millis(150), Duration::from_secs(1))
    })
}

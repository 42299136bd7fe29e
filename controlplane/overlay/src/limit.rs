//! What the way to a node beyond this one's own links carries, and who is on it.
//!
//! Relays report frames that their next link does not carry; the worker that sent them lowers its
//! MTU for that node and says so here. A report is a hint of somebody on the way, so it is put to
//! the test: a padded probe of the full size goes to the other end, sealed, and if it is answered
//! the limit goes. That is tried again every ten minutes, which is also how a path that has
//! recovered is found out. A limit that comes back soon after it was refuted stays for that time:
//! then some flows take a way that others do not.

use std::time::Duration;

use hyphae_shm::record::{InjectPathProbe, InjectTrace, MTU_UNKNOWN, PathMtu, Program};
use hyphae_time::Nanos;
use hyphae_wire::report::{INNER_MTU_MIN, Report, ReportCode};

use hyphae_wire::OverlayAddress;
use zerocopy::little_endian::{U16, U32, U64};

use crate::install::FIRST_WORKER;
use crate::pmtu::patience;
use crate::session::{Association, Owner};
use crate::{Event, Overlay};

/// Probes of the full size in a row.
const TRIES: u32 = 3;
/// Time between tests of a limit.
const TEST_AGAIN: Duration = Duration::from_secs(600);
/// A limit that comes back within this time was not refuted.
const REFUTED_FOR: Duration = Duration::from_secs(60);
/// Traces that wait for a report; an older one gives way.
const TRACES_MAX: usize = 1024;

/// A limit on the way to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathLimit {
    /// Largest packet of the host; `None` when there is no limit now.
    mtu: Option<u16>,
    tries: u32,
    ids: [u64; TRIES as usize],
    due: Nanos,
    refuted_at: Nanos,
}

impl Default for PathLimit {
    fn default() -> Self {
        Self {
            mtu: None,
            tries: 0,
            ids: [0; TRIES as usize],
            due: Nanos::NEVER,
            refuted_at: Nanos(0),
        }
    }
}

impl PathLimit {
    pub(crate) fn due(&self) -> Nanos {
        self.due
    }

    /// Largest packet.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(u16::MAX)
    }
}

/// A trace that waits for its report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    id: u64,
    address: OverlayAddress,
    sent: Nanos,
}

impl Overlay {
    /// A worker limits packets to a node.
    pub(crate) fn path_too_big(&mut self, now: Nanos, address: OverlayAddress, mtu: u16) {
        let owner = Owner::Remote(address.subnet_id());
        let mtu = mtu.max(INNER_MTU_MIN);
        let own = self.config.mtu;
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let limit = &mut association.limit;
        if mtu >= own || limit.mtu.is_some_and(|known| known <= mtu) {
            return;
        }
        let refuted = limit.refuted_at > Nanos(0) && now.since(limit.refuted_at) < REFUTED_FOR;
        limit.mtu = Some(mtu);
        limit.tries = 0;
        limit.due = if refuted { now + TEST_AGAIN } else { now };
        self.program_limit(address, mtu);
        let mtu = Some(mtu);
        self.output.event(Event::PathMtu { address, mtu });
        self.limit_due(now, owner);
        self.schedule(owner);
    }

    /// Puts a limit to the test when it is time.
    pub(crate) fn limit_due(&mut self, now: Nanos, owner: Owner) {
        let own = self.config.mtu;
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if association.limit.due > now {
            return;
        }
        let wait = patience(association.liveness.rtt.smoothed());
        let address = association.address;
        let target = own.min(association.mtu);
        let lane = association.current().and_then(|s| s.lanes.first()).copied();
        let limit = &mut association.limit;
        let pointless = limit.mtu.is_none_or(|mtu| mtu >= target);
        let (Some(lane), false, true) = (lane, pointless, limit.tries < TRIES) else {
            limit.tries = 0;
            limit.due = if limit.mtu.is_some() {
                now + TEST_AGAIN
            } else {
                Nanos::NEVER
            };
            return;
        };
        limit.due = now + wait;
        let at = limit.tries as usize;
        limit.tries += 1;
        let id = self.next_probe();
        if let Some(association) = self.associations.get_mut(&owner)
            && let Some(place) = association.limit.ids.get_mut(at)
        {
            *place = id;
        }
        let probe = InjectPathProbe {
            destination: address,
            id: U64::new(id),
            sent: U64::new(now.0),
            receive_index: U32::new(lane.receive.0),
            len: U16::new(target),
            reserved: [0; 10],
        };
        self.output
            .program(lane.receive.worker(), &Program::InjectPathProbe(&probe));
    }

    /// A link of this node carries more than before: limits may have been its own.
    pub(crate) fn test_limits(&mut self, now: Nanos) {
        let limited = |(owner, association): (&Owner, &mut Association)| {
            let limit = &mut association.limit;
            limit.mtu.is_some().then(|| {
                (limit.tries, limit.due) = (0, now);
                *owner
            })
        };
        let owners: Vec<_> = self.associations.iter_mut().filter_map(limited).collect();
        for owner in owners {
            self.schedule(owner);
        }
    }

    /// A probe of the full size came through: there is no limit. False when it is none of these.
    pub(crate) fn limit_refuted(&mut self, now: Nanos, owner: Owner, id: u64) -> bool {
        let Some(association) = self.associations.get_mut(&owner) else {
            return false;
        };
        let limit = &mut association.limit;
        if limit.mtu.is_none() || !limit.ids.contains(&id) {
            return false;
        }
        limit.refuted_at = now;
        self.clear_limit(owner);
        true
    }

    /// Ends a limit.
    pub(crate) fn clear_limit(&mut self, owner: Owner) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let limit = &mut association.limit;
        limit.due = Nanos::NEVER;
        limit.ids = [0; TRIES as usize];
        limit.tries = 0;
        if limit.mtu.take().is_some() {
            let address = association.address;
            self.program_limit(address, MTU_UNKNOWN);
            self.output.event(Event::PathMtu { address, mtu: None });
        }
    }

    fn program_limit(&mut self, address: OverlayAddress, mtu: u16) {
        let limit = PathMtu {
            address,
            mtu: U16::new(mtu),
            reserved: [0; 6],
        };
        self.output
            .program_all(self.workers, &Program::PathMtu(&limit));
    }

    /// Asks for a report by whoever is `hop_limit` hops away on the way to `address`, or is nearer
    /// and cannot pass the question on. The answer is [`Event::TraceReply`] with `id`. There may be
    /// none, so the caller keeps a deadline.
    pub fn trace(&mut self, now: Nanos, address: OverlayAddress, hop_limit: u8, id: u64) {
        if self.address.subnet().contains(address) {
            self.output.event(Event::TraceReply {
                id,
                code: ReportCode::Reached,
                key: self.key,
                rtt: Duration::ZERO,
            });
            return;
        }
        if !self.is_active() || !address.is_overlay() {
            return;
        }
        if self.traces.len() >= TRACES_MAX {
            let oldest = self.traces.iter().min_by_key(|(_, trace)| trace.sent);
            if let Some(nonce) = oldest.map(|(nonce, _)| *nonce) {
                self.traces.remove(&nonce);
            }
        }
        let nonce = u64::from_le_bytes(self.rng.array());
        let sent = now;
        self.traces.insert(nonce, Trace { id, address, sent });
        let inject = InjectTrace {
            destination: address,
            nonce: U64::new(nonce),
            hop_limit,
            reserved: [0; 7],
        };
        self.output
            .program(FIRST_WORKER, &Program::InjectTrace(&inject));
    }

    /// A report about a trace of this node.
    pub(crate) fn trace_reported(&mut self, source: OverlayAddress, received: Nanos, bytes: &[u8]) {
        let Some((report, code)) =
            Report::parse(bytes).and_then(|r| Some((r, ReportCode::from_code(r.code)?)))
        else {
            return;
        };
        let nonce = report.session.counter.get();
        let Some(trace) = self.traces.get(&nonce).copied() else {
            return;
        };
        // Not a proof, for a report is not sealed; but a report for somebody else is none.
        if report.destination != trace.address || report.reporter.address() != source {
            return;
        }
        self.traces.remove(&nonce);
        self.output.event(Event::TraceReply {
            id: trace.id,
            code,
            key: report.reporter,
            rtt: received.since(trace.sent),
        });
    }
}

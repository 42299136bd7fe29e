//! Reports about frames that could not be passed on: made here for others, taken here from others.
//!
//! A relay cannot read what it carries, so it cannot write the ICMPv6 error that a router would.
//! It tells the node that sealed the frame, which can. A report has no end-to-end seal, for relay
//! and sender have no session; so it is only a hint, and believed only when it quotes a frame that
//! this worker has sent on a live session not long ago:
//!
//! * "too big" lowers the path's MTU, never below 1280; the control plane probes whether it is so;
//! * "no route" and "hop limit" become an ICMPv6 error for the host, and change nothing else.

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::frame::{
    HOP_LIMIT_DEFAULT, LINK_TAG_AT, OVERHEAD, PAYLOAD_AT, SEALED_HEADERS_AT, SealedHeaders,
    TAG_LEN, handshake_trailer,
};
use hyphae_wire::report::{INNER_MTU_MIN, Report, ReportCode};

use hyphae_wire::{OverlayAddress, Service, SessionHeader, SessionIndex};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::engine::{Engine, PATH_MEMORY};
use crate::event::EngineEvent;
use crate::icmp::HostError;
use crate::originate::Train;
use crate::verdict::Verdict;

/// Reports that may wait for the worker to send them.
const REPORTS_MAX: usize = 64;
/// How far back the counter of a quoted frame may lie.
const QUOTED_MAX: u64 = 1 << 16;
/// How long a reported error waits for the next packet of the host.
const ERROR_MEMORY: std::time::Duration = std::time::Duration::from_secs(2);
/// Packets of the host with at most so many hops left are remembered, for traceroute and its like.
const FEW_HOPS: u8 = 32;
/// How many are remembered.
const HEADS_MAX: usize = 64;
/// And how much of each: headers and the start of what follows.
const HEAD_LEN: usize = 128;

/// A report that is to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Due {
    to: OverlayAddress,
    report: Report,
}

/// An error that the next packet of the host to a destination is answered with.
#[derive(Clone, Copy)]
pub(crate) struct Reported {
    pub(crate) error: HostError,
    pub(crate) reporter: OverlayAddress,
    pub(crate) until: Nanos,
}

/// Start of a packet of the host that had few hops left.
#[derive(Clone, Copy)]
struct Head {
    session: u32,
    counter: u64,
    len: usize,
    bytes: [u8; HEAD_LEN],
}

/// The packets with few hops left that were sent last.
pub(crate) struct Heads {
    ring: Vec<Head>,
    next: usize,
}

impl Heads {
    pub(crate) fn new() -> Self {
        Self {
            ring: Vec::with_capacity(HEADS_MAX),
            next: 0,
        }
    }

    /// The start of a packet, if it is one to remember.
    pub(crate) fn copy(hop_limit: u8, packet: &[u8]) -> Option<([u8; HEAD_LEN], usize)> {
        (hop_limit <= FEW_HOPS).then(|| {
            let len = packet.len().min(HEAD_LEN);
            let mut bytes = [0; HEAD_LEN];
            bytes[..len].copy_from_slice(&packet[..len]);
            (bytes, len)
        })
    }

    pub(crate) fn note(&mut self, session: &SessionHeader, (bytes, len): ([u8; HEAD_LEN], usize)) {
        let head = Head {
            session: session.receiver.get(),
            counter: session.counter.get(),
            len,
            bytes,
        };
        if self.ring.len() < HEADS_MAX {
            self.ring.push(head);
        } else {
            self.ring[self.next] = head;
            self.next = (self.next + 1) % HEADS_MAX;
        }
    }

    fn take(&mut self, session: &SessionHeader) -> Option<Vec<u8>> {
        let (index, counter) = (session.receiver.get(), session.counter.get());
        let mut found = self.ring.iter_mut();
        let head = found.find(|h| h.len > 0 && h.session == index && h.counter == counter)?;
        let bytes = head.bytes[..head.len].to_vec();
        head.len = 0;
        Some(bytes)
    }
}

impl Engine {
    /// Notes that the sender of a frame, whose headers are open, is to be told about it.
    /// It came from the neighbour `from`; 0 for a frame of this node.
    #[inline(never)]
    pub(crate) fn tell_sender(
        &mut self,
        now: Nanos,
        from: u32,
        (code, mtu): (ReportCode, usize),
        frame: &[u8],
    ) {
        let Some(open) = frame.get(SEALED_HEADERS_AT..LINK_TAG_AT) else {
            return;
        };
        let Ok(headers) = SealedHeaders::read_from_bytes(open) else {
            return;
        };
        let (routing, Some(local)) = (&headers.routing, self.local) else {
            return;
        };
        let source = routing.source;
        let answerable = routing.service != Service::Report.code()
            && source.is_overlay()
            && !self.is_local(source);
        if !answerable {
            return;
        }
        if self.reports.len() == REPORTS_MAX || !self.report_limit.admit(now, from, source) {
            self.counters.add(Counter::ErrorsSuppressed, 1);
            return;
        }
        let mut report = Report::new_zeroed();
        report.code = code.code();
        report
            .mtu
            .set(u32::try_from(mtu).unwrap_or(u32::from(u16::MAX)));
        report.reporter = local.key;
        report.destination = routing.destination;
        report.session = headers.session;
        report.service = routing.service;
        report.flow_hash = routing.flow_hash;
        self.reports.push_back(Due { to: source, report });
    }

    /// Whether [`Self::next_report`] has something to build.
    pub fn has_report(&self) -> bool {
        !self.reports.is_empty()
    }

    /// Builds the next report in `space`.
    ///
    /// # Errors
    /// Why it cannot be sent; not counted yet.
    pub fn next_report(&mut self, now: Nanos, space: &mut [u8]) -> Result<Train, DropReason> {
        let due = self.reports.pop_front().ok_or(DropReason::NoBuffer)?;
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.destination = due.to;
        headers.routing.service = Service::Report.code();
        headers.routing.hop_limit = HOP_LIMIT_DEFAULT;
        // It takes the way of the flow that it is about, back to the worker of its sender.
        headers.routing.flow_hash = due.report.flow_hash;
        let train = self.build_unsealed(now, headers, due.report.as_bytes(), space)?;
        self.counters.add(Counter::ReportsSent, 1);
        Ok(train)
    }

    /// Builds a frame of this node without an end-to-end seal: a digest is in its place.
    pub(crate) fn build_unsealed(
        &mut self,
        now: Nanos,
        mut headers: SealedHeaders,
        payload: &[u8],
        space: &mut [u8],
    ) -> Result<Train, DropReason> {
        headers.routing.source = self.local.ok_or(DropReason::SourceSpoofed)?.address;
        let len = payload.len() + OVERHEAD;
        // Bounded by PAYLOAD_MAX.
        headers.routing.payload_len.set(payload.len() as u16);
        let frame = space.get_mut(..len).ok_or(DropReason::NoBuffer)?;
        frame[SEALED_HEADERS_AT..LINK_TAG_AT].copy_from_slice(headers.as_bytes());
        frame[PAYLOAD_AT..len - TAG_LEN].copy_from_slice(payload);
        frame[len - TAG_LEN..].copy_from_slice(&handshake_trailer(payload));
        let (destination, flow_hash) =
            (headers.routing.destination, headers.routing.flow_hash.get());
        let egress = self.egress_or_handoff(destination, flow_hash, SessionIndex(0))?;
        self.seal_egress(now, egress, frame, len)?;
        Ok(Train {
            egress,
            len,
            segment: len,
        })
    }

    /// A report has come. `handed` when another worker has tried it before.
    #[inline(never)]
    pub(crate) fn take_report(
        &mut self,
        now: Nanos,
        peer: u32,
        report: Option<Report>,
        handed: bool,
        punt: Verdict,
    ) -> Verdict {
        let Some((report, code)) = report.and_then(|r| Some((r, ReportCode::from_code(r.code)?)))
        else {
            return Verdict::Drop(DropReason::ReportMalformed);
        };
        // Before anything is looked up: forged reports cost no more than this.
        if !handed && !self.taken_limit.admit(now, peer, report.destination) {
            self.counters.add(Counter::ReportsIgnored, 1);
            return Verdict::Done;
        }
        match Service::from_code(report.service) {
            Some(Service::Trace) => return punt,
            Some(Service::Ipv6 | Service::Control | Service::Message) => {}
            Some(Service::Handshake | Service::Report) | None => {
                self.counters.add(Counter::ReportsIgnored, 1);
                return Verdict::Done;
            }
        }
        if !self.quotes_ours(&report) {
            if !handed && self.config.workers > 1 {
                return Verdict::HandoffAll { peer };
            }
            self.counters.add(Counter::ReportsIgnored, 1);
            return Verdict::Done;
        }
        self.counters.add(Counter::ReportsTaken, 1);
        self.believe(now, code, &report);
        Verdict::Done
    }

    /// Whether a report quotes a frame that this worker sent not long ago.
    fn quotes_ours(&self, report: &Report) -> bool {
        let subnet = report.destination.subnet_id();
        let (index, counter) = (report.session.receiver.get(), report.session.counter.get());
        self.sessions.held(0).any(|(_, session)| {
            let sent = session.lane.sent();
            session.lane.send_index.0 == index
                && session.address.subnet_id() == subnet
                && counter < sent
                && sent - counter <= QUOTED_MAX
        })
    }

    fn believe(&mut self, now: Nanos, code: ReportCode, report: &Report) {
        let address = report.destination;
        if code == ReportCode::TooBig {
            let mtu = u16::try_from(report.mtu.get()).unwrap_or(u16::MAX);
            let mtu = mtu.max(INNER_MTU_MIN);
            if let Some(known) = self.destinations.get_mut(&address.subnet_id())
                && mtu < known.path_mtu(now)
            {
                known.path = (mtu, now + PATH_MEMORY);
                self.report(EngineEvent::PathTooBig { address, mtu });
            }
            return;
        }
        let Some(error) = HostError::reported(code) else {
            return;
        };
        let reporter = report.reporter.address();
        // The very packet, where it was remembered; else the next one is answered in its place.
        if let Some(packet) = self.heads.take(&report.session) {
            self.answer_host_head(now, error, reporter, &packet);
        } else if let Some(known) = self.destinations.get_mut(&address.subnet_id()) {
            known.reported = Some(Reported {
                error,
                reporter,
                until: now + ERROR_MEMORY,
            });
        }
    }
}

//! Traces: which relays are on the path to a node.

use std::time::Duration;

use hyphae_shm::record::{InjectTrace, Program};
use hyphae_time::Nanos;
use hyphae_wire::OverlayAddress;
use hyphae_wire::report::{Report, ReportCode};
use zerocopy::little_endian::U64;

use crate::ids::FIRST_WORKER;
use crate::{Event, Overlay};

/// Pending traces; the oldest is evicted.
const TRACES_MAX: usize = 1024;

/// A trace without a report yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    id: u64,
    address: OverlayAddress,
    sent: Nanos,
}

impl Overlay {
    /// Asks for a report by the node `hop_limit` hops away on the path to `address`, or by a nearer one that
    /// cannot forward the trace. The answer is [`Event::TraceReply`] with `id`. An answer is not guaranteed,
    /// so the caller needs a deadline.
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
        // A report is not sealed, so this is a check of plausibility only.
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

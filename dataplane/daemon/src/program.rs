//! The control plane's records: applied to the engine, or built into frames; events and snapshots in return.

use hyphae_driver::Driver;
use hyphae_forward::{Engine, SnapshotCursor, Train};
use hyphae_shm::record::{Program, Punt};
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::Nanos;
use hyphae_wire::control::PROBE_LEN;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::report::REPORT_LEN;
use hyphae_wire::{AddressPair, on_wiped_stack};

use crate::control;
use crate::output::BUFFER_BYTES;
use crate::worker::Worker;

/// Records of the control plane applied in one turn.
const PROGRAM_BUDGET: usize = 64;
/// Records of a snapshot sent in one turn.
const SNAPSHOT_BUDGET: usize = 256;

impl<D: Driver> Worker<D> {
    /// Applies at most [`PROGRAM_BUDGET`] records of the control plane.
    pub(crate) fn apply_program(&mut self, now: Nanos) -> bool {
        let mut applied = 0;
        while applied < PROGRAM_BUDGET {
            match self.context.control.pop() {
                control::Popped::Nothing => break,
                control::Popped::Corrupt => {
                    self.context.engine.counters.add(Counter::RingDetached, 1);
                    self.detached = true;
                    break;
                }
                control::Popped::Record(code, len) => {
                    applied += 1;
                    self.apply_record(now, code, len);
                }
            }
        }
        if applied > 0 {
            self.context.control.release();
        }
        applied > 0 || self.detached && self.context.control.snapshot.take().is_some()
    }

    fn apply_record(&mut self, now: Nanos, code: u16, len: usize) {
        let mut scratch = std::mem::take(&mut self.context.control.scratch);
        let accepted =
            Program::parse(code, &scratch[..len]).is_some_and(|program| self.apply(now, &program));
        // Records may carry keys.
        scratch[..len].fill(0);
        self.context.control.scratch = scratch;
        let counters = &mut self.context.engine.counters;
        counters.add(Counter::ProgramRecords, 1);
        counters.add(Counter::ProgramRefused, u64::from(!accepted));
    }

    fn apply(&mut self, now: Nanos, program: &Program<'_>) -> bool {
        let engine = &mut self.context.engine;
        match program {
            Program::SnapshotRequest(generation) => {
                self.context.control.snapshot = Some((SnapshotCursor::default(), **generation));
                true
            }
            Program::InjectRaw(record, frame) => self.inject_raw(&record.addresses, frame),
            Program::InjectLinkLocal(record, payload) => self
                .inject(payload.len(), |engine, space| {
                    engine.inject_link_local(now, record, payload, space)
                }),
            Program::InjectRouted(record, payload) => self
                .inject(payload.len(), |engine, space| {
                    engine.inject_routed(now, record, payload, space)
                }),
            Program::InjectMtuProbe(record) => {
                let wanted = usize::from(record.len.get());
                self.build(wanted, true, |engine, space| {
                    engine.inject_mtu_probe(now, record, space)
                })
            }
            Program::InjectPathProbe(record) => self.inject(
                usize::from(record.len.get()).max(PROBE_LEN),
                |engine, space| engine.inject_path_probe(now, record, space),
            ),
            Program::InjectTrace(record) => {
                self.inject(0, |engine, space| engine.inject_trace(now, record, space))
            }
            Program::PeerRemove(record) => {
                self.context.stats.clear_peer(record.peer.get());
                engine.apply(now, program).is_ok()
            }
            Program::LinkInstall(_)
            | Program::SessionInstall(_)
            | Program::CookieSecret(_)
            | Program::NodeSecret(_) => on_wiped_stack(|| engine.apply(now, program).is_ok()),
            Program::PeerInstall(_)
            | Program::LinkRemove(_)
            | Program::SessionRemove(_)
            | Program::FibReplace(_)
            | Program::FibRemove(_)
            | Program::LocalInstall(_)
            | Program::LinkMtu(_)
            | Program::PathMtu(_)
            | Program::ResyncBegin(_)
            | Program::ResyncEnd(_)
            | Program::PendingDrop(_)
            | Program::Retain(_) => engine.apply(now, program).is_ok(),
        }
    }

    fn inject_raw(&mut self, to: &AddressPair, frame: &[u8]) -> bool {
        // Records are at most 64 KiB and a little.
        let Ok(len) = u16::try_from(frame.len()) else {
            return false;
        };
        let space = self.turn.space(&mut self.driver, len.into());
        let Some(span) = space.filter(|_| len > 0) else {
            return false;
        };
        self.turn.arena.take(span.len);
        self.driver.spans(span).copy_from_slice(frame);
        self.turn.output.send_raw(&mut self.driver, to, span);
        true
    }

    fn inject(
        &mut self,
        payload_len: usize,
        build: impl FnOnce(&mut Engine, &mut [u8]) -> Result<Train, DropReason>,
    ) -> bool {
        self.build(payload_len, false, build)
    }

    /// Builds and sends a frame. A `whole` one is never fragmented, even if the link is not known to carry it.
    fn build(
        &mut self,
        payload_len: usize,
        whole: bool,
        build: impl FnOnce(&mut Engine, &mut [u8]) -> Result<Train, DropReason>,
    ) -> bool {
        // Records are at most 64 KiB and a little.
        let wanted = (payload_len + OVERHEAD) as u32;
        if wanted > BUFFER_BYTES {
            return false;
        }
        let Some(space) = self.space(wanted) else {
            return true;
        };
        let bytes = self.driver.spans(space);
        match build(&mut self.context.engine, bytes) {
            Ok(train) => self.send_built(space, &train, whole),
            Err(reason) => self.context.engine.counters.drop(reason),
        }
        true
    }

    /// Sends the engine's reports to other nodes.
    pub(crate) fn send_reports(&mut self, now: Nanos) {
        while self.context.engine.has_report() {
            let sent = self.inject(REPORT_LEN, |engine, space| engine.next_report(now, space));
            if !sent {
                break;
            }
        }
    }

    /// Pushes events and the rest of a snapshot to the control plane, and publishes what the turn
    /// pushed to it and to other workers.
    pub(crate) fn publish_rings(&mut self) {
        while let Some(event) = self.context.engine.next_event() {
            let pushed = self.context.control.push_event(&event);
            self.count_punt(pushed, 0);
        }
        let (engine, control) = (&mut self.context.engine, &mut self.context.control);
        if let Some((mut cursor, generation)) = control.snapshot.take() {
            let mut more = true;
            for _ in 0..SNAPSHOT_BUDGET {
                let before = cursor;
                more = engine.snapshot(&mut cursor, |punt| control.push(punt));
                if !more || cursor == before {
                    break;
                }
            }
            if more || !control.push(&Punt::SnapshotEnd(&generation)) {
                control.snapshot = Some((cursor, generation));
            }
        }
        control.publish();
        self.context.handoff.publish();
    }
}

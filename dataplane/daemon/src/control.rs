//! A worker's side of the control plane: takes program records, hands over punts and events.

use std::sync::Arc;

use hyphae_forward::{EngineEvent, SnapshotCursor, Verdict};
use hyphae_shm::record::{Generation, Punt};
use hyphae_shm::{Consumer, Doorbell, Producer, RECORD_MAX};
use hyphae_wire::{AddressPair, Nanos};

use crate::punts;

/// A worker's ends of the segment's rings.
pub(crate) struct Control {
    program: Consumer,
    punt: Producer,
    /// Rings in the control plane.
    bell: Arc<Doorbell>,
    /// Something was pushed since the last publish.
    dirty: bool,
    pub(crate) scratch: Box<[u8]>,
    /// A snapshot that is being sent, and for which generation.
    pub(crate) snapshot: Option<(SnapshotCursor, Generation)>,
}

/// What the program ring has.
pub(crate) enum Taken {
    /// A record of this code and length is in the scratch memory.
    Record(u16, usize),
    Nothing,
    /// The ring is corrupt, found now.
    Corrupt,
}

impl Control {
    pub(crate) fn new(program: Consumer, punt: Producer, bell: Arc<Doorbell>) -> Self {
        let scratch = vec![0; RECORD_MAX].into_boxed_slice();
        Self {
            program,
            punt,
            bell,
            dirty: false,
            scratch,
            snapshot: None,
        }
    }

    pub(crate) fn take(&mut self) -> Taken {
        if self.program.is_corrupt() {
            return Taken::Nothing;
        }
        match self.program.pop(&mut self.scratch) {
            Ok(Some((code, len))) => Taken::Record(code, len),
            Ok(None) => Taken::Nothing,
            Err(_) => Taken::Corrupt,
        }
    }

    /// Gives the room of taken records back.
    pub(crate) fn release(&mut self) {
        self.program.release();
    }

    pub(crate) fn sleep(&mut self) -> bool {
        self.program.sleep()
    }

    pub(crate) fn wake(&mut self) {
        self.program.wake();
    }

    /// Hands a record over; false when the ring is full.
    pub(crate) fn push(&mut self, punt: &Punt<'_>) -> bool {
        let (code, fixed, tail) = punt.parts();
        let pushed = self.punt.push(code, &[fixed, tail]).is_ok();
        self.dirty |= pushed;
        pushed
    }

    /// Makes what was pushed visible.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) && self.punt.publish() {
            self.bell.ring();
        }
    }

    pub(crate) fn push_event(&mut self, event: &EngineEvent) -> bool {
        punts::of_event(event, |punt| self.push(punt))
    }

    /// Hands over what a punt verdict names in `frame`; false when the ring is full or the verdict
    /// is another.
    pub(crate) fn push_verdict(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        verdict: &Verdict,
        frame: &[u8],
    ) -> bool {
        punts::of_verdict(now, from, verdict, frame, |punt| self.push(punt)).unwrap_or(false)
    }
}

//! A worker's ends of the segment's rings: pops program records, pushes punts and events.

use std::sync::Arc;

use hyphae_forward::{EngineEvent, SnapshotCursor, Verdict};
use hyphae_shm::record::{Generation, Punt};
use hyphae_shm::{Consumer, Doorbell, Producer, RECORD_MAX};
use hyphae_time::Nanos;

use hyphae_wire::AddressPair;

use crate::punts;

/// Counted shares, by neighbour number modulo this; neighbours that collide have one share.
const SHARES: usize = 1024;
/// Of a punt ring that is more than half full, one neighbour gets this part.
const SHARE: usize = 16;

/// Bytes that each neighbour's punts occupy of a punt ring that is more than half full. Below that nothing is
/// limited; above it, one neighbour's messages leave room for those of others and for the worker's own events.
struct PuntShares {
    taken: Box<[u32; SHARES]>,
    crowded: bool,
}

impl PuntShares {
    fn new() -> Self {
        Self {
            taken: Box::new([0; SHARES]),
            crowded: false,
        }
    }

    /// Whether a neighbour may take bytes of a ring of `capacity` bytes.
    fn admit(&mut self, half_free: bool, capacity: usize, peer: u32, len: u32) -> bool {
        if half_free {
            if std::mem::take(&mut self.crowded) {
                self.taken.fill(0);
            }
            return true;
        }
        self.crowded = true;
        let taken = &mut self.taken[peer as usize % SHARES];
        let after = taken.saturating_add(len);
        if after as usize > capacity / SHARE {
            return false;
        }
        *taken = after;
        true
    }
}

/// A worker's ends of the segment's rings.
pub(crate) struct Control {
    program: Consumer,
    punt: Producer,
    shares: PuntShares,
    /// Rings in the control plane.
    bell: Arc<Doorbell>,
    /// Something was pushed since the last publish.
    dirty: bool,
    pub(crate) scratch: Box<[u8]>,
    /// A snapshot that is being sent, and for which generation.
    pub(crate) snapshot: Option<(SnapshotCursor, Generation)>,
}

/// Outcome of reading the program ring.
pub(crate) enum Popped {
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
            shares: PuntShares::new(),
            bell,
            dirty: false,
            scratch,
            snapshot: None,
        }
    }

    pub(crate) fn pop(&mut self) -> Popped {
        if self.program.is_corrupt() {
            return Popped::Nothing;
        }
        match self.program.pop(&mut self.scratch) {
            Ok(Some((code, len))) => Popped::Record(code, len),
            Ok(None) => Popped::Nothing,
            Err(_) => Popped::Corrupt,
        }
    }

    /// Frees the space of popped records.
    pub(crate) fn release(&mut self) {
        self.program.release();
    }

    pub(crate) fn sleep(&mut self) -> bool {
        self.program.sleep()
    }

    pub(crate) fn wake(&mut self) {
        self.program.wake();
    }

    /// Pushes a record; false when the ring is full.
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

    /// Pushes what a punt verdict refers to in `frame`; false when the ring is full or the verdict is no punt.
    pub(crate) fn push_verdict(
        &mut self,
        now: Nanos,
        from: &AddressPair,
        verdict: &Verdict,
        frame: &[u8],
    ) -> bool {
        // Handshakes have rates of their own.
        if let Verdict::PuntLinkLocal { peer, len, .. } | Verdict::PuntService { peer, len, .. } =
            *verdict
        {
            let (half_free, capacity) = (self.punt.is_half_free(), self.punt.capacity_bytes());
            if !self.shares.admit(half_free, capacity, peer, len) {
                return false;
            }
        }
        punts::of_verdict(now, from, verdict, frame, |punt| self.push(punt)).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use hyphae_wire::{OverlayAddress, Service};

    use super::*;

    #[test]
    fn a_neighbour_that_floods_leaves_room_for_others() {
        let (_, programs) = hyphae_shm::heap(1 << 12);
        let (punt, mut consumer) = hyphae_shm::heap(1 << 16);
        let bell = Arc::new(Doorbell::new().unwrap());
        let mut control = Control::new(programs, punt, bell);
        let frame = [0; 500];
        let punted = |control: &mut Control, peer| {
            let verdict = Verdict::PuntService {
                destination: OverlayAddress::default(),
                source: OverlayAddress::default(),
                receive_index: 1,
                peer,
                service: Service::Message,
                hop_limit: 1,
                offset: 0,
                len: 500,
            };
            control.push_verdict(Nanos(1), &AddressPair::default(), &verdict, &frame)
        };
        let loud = (0..1000).filter(|_| punted(&mut control, 1)).count();
        assert!((60..80).contains(&loud), "half of it and a share: {loud}");
        let others = (2..6).filter(|peer| punted(&mut control, *peer)).count();
        assert_eq!(others, 4);
        // No limit applies once the control plane has drained the ring.
        control.publish();
        let mut scratch = vec![0; RECORD_MAX];
        while consumer.pop(&mut scratch).unwrap().is_some() {}
        consumer.release();
        assert!(punted(&mut control, 1));
    }
}

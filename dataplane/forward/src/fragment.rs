//! Frames that a link does not carry whole: cut in two by the sender, put together here.
//!
//! IPv6 promises every packet of 1280 bytes; sealed that is a frame of 1384 bytes, more than an
//! underlay of MTU 1280 carries. Only frames up to that size are ever cut, always in two halves.
//! Parts are not authenticated themselves: the frame that they make is opened like any other. So
//! the room for them is fixed, per lane, and a part that finds none pushes out the oldest.

use std::collections::VecDeque;

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_wire::frame::LINK_LOCAL_OVERHEAD;
use hyphae_wire::report::{FRAGMENT_HEADERS_LEN, FRAME_MIN_MAX, FragmentHeader, fragment_range};
use hyphae_wire::{AddressPair, FrameKind, LinkHeader, SessionIndex};
use zerocopy::{FromBytes, IntoBytes};

use crate::engine::Engine;
use crate::verdict::{LinkSlot, Verdict};

/// Frames of one lane that may wait for their other half.
const WAITING_MAX: usize = 16;
const TOTAL_MAX: usize = FRAME_MIN_MAX as usize;

/// A frame of which one half is there, or both.
struct Half {
    counter: u64,
    total: usize,
    /// Bit per part.
    have: u8,
    from: AddressPair,
    bytes: [u8; TOTAL_MAX],
}

/// Halves of one lane.
pub(crate) struct Halves {
    waiting: Vec<Half>,
    oldest: usize,
}

/// A whole frame that waits for the worker: lane, and the counter that it has there.
pub(crate) type Wholes = VecDeque<(u32, u64)>;

impl Halves {
    fn new() -> Self {
        Self {
            waiting: Vec::with_capacity(WAITING_MAX),
            oldest: 0,
        }
    }

    /// The place of a frame, made when it is new. True when that pushed out another.
    fn place(&mut self, counter: u64, total: usize) -> (&mut Half, bool) {
        let known = self
            .waiting
            .iter()
            .position(|half| half.counter == counter && half.total == total);
        if let Some(at) = known {
            return (&mut self.waiting[at], false);
        }
        let fresh = Half {
            counter,
            total,
            have: 0,
            from: AddressPair::default(),
            bytes: [0; TOTAL_MAX],
        };
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(fresh);
            let last = self.waiting.len() - 1;
            return (&mut self.waiting[last], false);
        }
        let at = self.oldest;
        self.oldest = (at + 1) % WAITING_MAX;
        // What was taken out leaves an empty place.
        let lost = self.waiting[at].have != 0;
        self.waiting[at] = fresh;
        (&mut self.waiting[at], lost)
    }
}

impl Engine {
    /// A part of a frame.
    #[inline(never)]
    pub(crate) fn receive_fragment(
        &mut self,
        from: &AddressPair,
        header: &LinkHeader,
        frame: &[u8],
    ) -> Verdict {
        let owner = SessionIndex(header.receiver.get()).worker();
        if owner != self.config.worker && owner.0 < self.config.workers {
            return Verdict::Handoff(owner);
        }
        match self.keep_fragment(from, header, frame) {
            Ok(()) => Verdict::Done,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn keep_fragment(
        &mut self,
        from: &AddressPair,
        header: &LinkHeader,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let rest = frame
            .get(size_of::<LinkHeader>()..)
            .ok_or(DropReason::FrameTooShort)?;
        let (part, bytes) =
            FragmentHeader::ref_from_prefix(rest).map_err(|_| DropReason::FrameTooShort)?;
        if part.reserved != 0 || part.reserved2.get() != 0 {
            return Err(DropReason::FrameReservedBits);
        }
        let total = usize::from(part.total.get());
        let range = fragment_range(total, part.part);
        let sound = part.part <= 1
            && (LINK_LOCAL_OVERHEAD..=TOTAL_MAX).contains(&total)
            && range.len() == bytes.len();
        if !sound {
            return Err(DropReason::FragmentMalformed);
        }
        let index = SessionIndex(header.receiver.get());
        let slot = self.links.find(index).ok_or(DropReason::LinkUnknown)?;
        let link = self.links.get_mut(slot).ok_or(DropReason::LinkUnknown)?;
        let counter = header.counter.get();
        if !link.lane.replay.is_fresh(counter) {
            return Err(DropReason::LinkReplay);
        }
        let halves = link.halves.get_or_insert_with(|| Box::new(Halves::new()));
        let (half, lost) = halves.place(counter, total);
        half.bytes[range].copy_from_slice(bytes);
        half.have |= 1 << part.part;
        half.from = *from;
        if half.have == 0b11 && self.wholes.len() < WAITING_MAX {
            // Slots have 16 bits.
            self.wholes.push_back((slot as u32, counter));
        }
        if lost {
            self.counters.drop(DropReason::FragmentLost);
        }
        Ok(())
    }

    /// The next frame that is whole now: its length and where its last part came from. Its bytes
    /// are in `space`, which holds at least 1384 bytes.
    pub fn next_whole(&mut self, space: &mut [u8]) -> Option<(usize, AddressPair)> {
        while let Some((slot, counter)) = self.wholes.pop_front() {
            let halves = self
                .links
                .get_mut(slot as usize)
                .and_then(|link| link.halves.as_mut());
            let Some(half) = halves.and_then(|halves| {
                let mut waiting = halves.waiting.iter_mut();
                waiting.find(|half| half.counter == counter && half.have == 0b11)
            }) else {
                continue;
            };
            half.have = 0;
            half.counter = u64::MAX;
            let (total, from) = (half.total, half.from);
            let Some(out) = space.get_mut(..total) else {
                self.counters.drop(DropReason::NoBuffer);
                continue;
            };
            out.copy_from_slice(&half.bytes[..total]);
            // A part inside a part is nothing that anybody sends; it would go round here.
            if out[0] == FrameKind::Fragment.code() {
                self.counters.drop(DropReason::FragmentMalformed);
                continue;
            }
            self.counters.add(Counter::FramesJoined, 1);
            return Some((total, from));
        }
        None
    }

    /// Whether a frame may wait in [`Self::next_whole`].
    pub fn has_whole(&self) -> bool {
        !self.wholes.is_empty()
    }

    /// Lets go of frames that are whole: there is no room to receive them.
    pub fn forget_wholes(&mut self) {
        self.wholes.clear();
    }

    /// Bytes that a datagram on a lane may have; frames beyond leave in two parts.
    pub fn link_mtu(&self, lane: LinkSlot) -> usize {
        self.links
            .get(lane.0 as usize)
            .map_or(usize::MAX, |link| usize::from(link.mtu))
    }
}

/// Writes both parts of a sealed frame next to each other: they leave as a train of datagrams of
/// the returned size, the last maybe shorter. `None` when `out` is too short or the frame is none
/// that may be cut.
pub fn cut(frame: &[u8], out: &mut [u8]) -> Option<(usize, usize)> {
    if frame.len() > TOTAL_MAX {
        return None;
    }
    let (header, _) = LinkHeader::split(frame)?;
    let mut header = *header;
    header.kind = FrameKind::Fragment.code();
    let mut at = 0;
    for part in [0, 1] {
        let bytes = &frame[fragment_range(frame.len(), part)];
        let place = out.get_mut(at..at + FRAGMENT_HEADERS_LEN + bytes.len())?;
        let (link, rest) = place.split_at_mut(size_of::<LinkHeader>());
        let (own, body) = rest.split_at_mut(size_of::<FragmentHeader>());
        link.copy_from_slice(header.as_bytes());
        let fragment = FragmentHeader {
            // At most FRAME_MIN_MAX.
            total: (frame.len() as u16).into(),
            part,
            reserved: 0,
            reserved2: 0.into(),
        };
        own.copy_from_slice(fragment.as_bytes());
        body.copy_from_slice(bytes);
        at += FRAGMENT_HEADERS_LEN + bytes.len();
    }
    Some((at, FRAGMENT_HEADERS_LEN + frame.len().div_ceil(2)))
}

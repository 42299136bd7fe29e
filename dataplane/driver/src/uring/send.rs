//! Trains in flight: one `sendmsg` each, never waiting, so they leave in the order they were queued.
//!
//! Once in the life of a socket that cannot segment, when the first train comes back refused, what
//! was submitted together with it may overtake it.

use std::os::fd::BorrowedFd;

use hyphae_wire::AddressPair;
use io_uring::opcode;

use super::receive::BufferRing;
use super::ring::Ring;
use super::{Kind, SOCKET};
use crate::address::Family;
use crate::driver::{DriverStats, SendError, Span};
use crate::pool::Pool;
use crate::train::{Segmentation, Send, Slab};

/// Trains that can be queued or in flight. When all are, `send` submits before it refuses.
const SENDS: u16 = 256;

pub(super) struct Sends {
    slab: Slab<Send>,
    segmentation: Segmentation,
}

impl Sends {
    pub(super) fn new() -> Self {
        Self {
            slab: Slab::new(SENDS, Send::new),
            segmentation: Segmentation::new(),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slab.used()
    }

    #[cfg(test)]
    pub(super) fn is_offloaded(&self) -> bool {
        self.segmentation.offloaded
    }

    pub(super) fn is_full(&self) -> bool {
        self.slab.used() == usize::from(SENDS)
    }

    /// Describes a train and takes references of its buffers.
    pub(super) fn fill(
        &mut self,
        pool: &mut Pool,
        family: Family,
        to: &AddressPair,
        segment: u16,
        spans: &[Span],
    ) -> Result<u16, SendError> {
        let index = self.slab.take().ok_or(SendError::Full)?;
        let filled = self.slab.at(index).fill(pool, family, to, segment, spans);
        if filled.is_err() {
            self.slab.give_back(index);
        }
        filled.map(|()| index)
    }

    /// Whether the kernel is known not to cut this train.
    pub(super) fn goes_singly(&mut self, index: u16) -> bool {
        !self.segmentation.offloaded && self.slab.at(index).is_segmented()
    }

    pub(super) fn send_singly(
        &mut self,
        index: u16,
        socket: BorrowedFd<'_>,
        pool: &mut Pool,
        buffers: &mut BufferRing,
        stats: &mut DriverStats,
    ) {
        self.segmentation
            .send_singly(socket, self.slab.at(index), stats);
        self.finish(index, pool, buffers);
    }

    pub(super) fn push(
        &mut self,
        index: u16,
        ring: &mut Ring,
        pool: &mut Pool,
        buffers: &mut BufferRing,
    ) -> Result<(), SendError> {
        let entry = opcode::SendMsg::new(SOCKET, self.slab.at(index).header())
            .flags(libc::MSG_DONTWAIT as u32)
            .build()
            .user_data(Kind::Send.tag(index));
        // SAFETY: the operation lives in the slab, which never grows and is part of `Lent`; its
        // index is not given out again before `complete`, and the slots that it points into are
        // kept by the references that `fill` took.
        if unsafe { ring.push_immediate(&entry) }.is_err() {
            self.finish(index, pool, buffers);
            return Err(SendError::Full);
        }
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        index: u16,
        result: i32,
        socket: BorrowedFd<'_>,
        pool: &mut Pool,
        buffers: &mut BufferRing,
        stats: &mut DriverStats,
    ) {
        let send = self.slab.at(index);
        match u32::try_from(result) {
            Ok(sent) => stats.tx_errors += u64::from(sent != send.total()),
            Err(_) => self.segmentation.refused(socket, send, -result, stats),
        }
        self.finish(index, pool, buffers);
    }

    fn finish(&mut self, index: u16, pool: &mut Pool, buffers: &mut BufferRing) {
        self.slab
            .at(index)
            .finish(pool, |pool, slot| buffers.publish(pool, slot));
        self.slab.give_back(index);
    }
}

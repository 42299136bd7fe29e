//! The io_uring driver: one ring for the socket, the TUN queue and the doorbell of a worker.
//!
//! A turn is one `io_uring_enter`: [`UringDriver::wait`] arms what is not armed, submits what the
//! last turn queued, lets the kernel run its deferred work, sleeps if it may, and takes every completion.
//! Receives become events; completions of sends give their buffers back.
//!
//! | operation | how | armed again |
//! |---|---|---|
//! | receive | `recvmsg` multishot into the buffer ring | when the kernel ends it, once a buffer is there |
//! | doorbell | poll multishot | when the kernel ends it |
//! | TUN read | a poll with a read linked to it, or batches of one-shot reads until `EAGAIN` | when they are complete |
//! | send, TUN write | one-shot, never waiting | - |
//!
//! Invariants:
//! * `wait` arms before it enters and sleeps only when nothing is left to arm, so no re-arm is lost,
//!   whether it could not be queued, no buffer was there, or the caller came late.
//! * Sends and writes never wait in the kernel (`MSG_DONTWAIT`, `O_NONBLOCK`): they are carried out
//!   in the order of the submission queue while `io_uring_enter` runs. A sleep that submits them waits for
//!   one completion more than there are of them.
//! * Everything that the kernel may hold a pointer to is in `Lent`, and is freed only when no
//!   operation is in flight; if the kernel does not let go, it is leaked.

mod receive;
mod ring;
mod send;
mod tun;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hyphae_wire::AddressPair;
use io_uring::{cqueue, opcode, types};

pub use ring::{ProbeError, probe};

use crate::address::Family;
use crate::device::{Ready, clear_doorbell, prepare};
use crate::driver::{BufferId, Driver, DriverStats, Event, SendError, Span, TUN_HEADER_LEN};
use crate::open::{DriverParts, OpenError};
use crate::pool::{Pool, SLOT_BYTES};
use receive::Receive;
use ring::Ring;
use send::Sends;
use tun::TunQueue;

/// Registered files, by index.
const SOCKET: types::Fixed = types::Fixed(0);
const DOORBELL: types::Fixed = types::Fixed(1);
const TUN: types::Fixed = types::Fixed(2);

/// How long `drop` waits for the kernel to let go of the buffers.
const DROP_MAX: Duration = Duration::from_secs(2);

/// What an operation is, in the upper half of its user data; the lower half is an index.
#[derive(Clone, Copy)]
enum Kind {
    Receive = 1,
    Doorbell,
    TunPoll,
    TunRead,
    TunWrite,
    Send,
}

impl Kind {
    fn tag(self, index: u16) -> u64 {
        ((self as u64) << 32) | u64::from(index)
    }

    fn parse(tag: u64) -> Option<(Self, u16)> {
        let kind = match tag >> 32 {
            1 => Self::Receive,
            2 => Self::Doorbell,
            3 => Self::TunPoll,
            4 => Self::TunRead,
            5 => Self::TunWrite,
            6 => Self::Send,
            _ => return None,
        };
        Some((kind, u16::try_from(tag & 0xffff_ffff).ok()?))
    }
}

/// Everything that the kernel may hold a pointer to.
struct Lent {
    pool: Pool,
    receive: Receive,
    sends: Sends,
    tun: Option<TunQueue>,
}

impl Lent {
    fn in_flight(&self) -> usize {
        let tun = self.tun.as_ref().map_or(0, TunQueue::in_flight);
        usize::from(self.receive.armed()) + self.sends.in_flight() + tun
    }
}

/// UDP and TUN over io_uring; see the module's head.
pub struct UringDriver {
    ring: Ring,
    lent: ManuallyDrop<Lent>,
    doorbell_armed: bool,
    /// The doorbell rang, or the TUN device was deleted, and `wait` has not returned since.
    rung: bool,
    ready: Ready,
    family: Family,
    stats: DriverStats,
    /// Registered with the ring, so they outlive every operation; kept for the calls beside it.
    socket: OwnedFd,
    doorbell: OwnedFd,
    _tun: Option<OwnedFd>,
}

impl UringDriver {
    /// Opens a ring for `parts`, on the worker's own thread.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(parts: DriverParts) -> Result<Self, OpenError> {
        Self::with_slots(parts, SLOT_BYTES)
    }

    pub(crate) fn with_slots(parts: DriverParts, slot_bytes: usize) -> Result<Self, OpenError> {
        let (family, mut pool) = prepare(&parts, slot_bytes)?;
        let ready = Ready::new(&parts);
        let mut ring = Ring::open()?;
        let files = [
            Some(&parts.socket),
            Some(&parts.doorbell),
            parts.tun.as_ref(),
        ];
        let mut raw = [-1; 3];
        for (raw, file) in raw.iter_mut().zip(files.into_iter().flatten()) {
            *raw = file.as_raw_fd();
        }
        ring.register_files(&raw[..files.iter().flatten().count()])?;
        let receive = Receive::new(&mut ring, &mut pool)?;
        let tun = parts.tun.is_some().then(TunQueue::new);
        Ok(Self {
            ring,
            lent: ManuallyDrop::new(Lent {
                pool,
                receive,
                sends: Sends::new(),
                tun,
            }),
            doorbell_armed: false,
            rung: false,
            ready,
            family,
            stats: DriverStats::default(),
            socket: parts.socket,
            doorbell: parts.doorbell,
            _tun: parts.tun,
        })
    }

    #[cfg(test)]
    pub(crate) fn pool(&self) -> &Pool {
        &self.lent.pool
    }

    #[cfg(test)]
    pub(crate) fn is_offloaded(&self) -> bool {
        self.lent.sends.is_offloaded()
    }

    /// Queues every standing operation that is not in flight and can be. True when all are.
    fn arm(&mut self, only_look: bool) -> bool {
        let Lent {
            pool, receive, tun, ..
        } = &mut *self.lent;
        receive.arm(&mut self.ring);
        if let Some(tun) = tun {
            tun.arm(&mut self.ring, pool, only_look);
        }
        if !self.doorbell_armed {
            let poll = opcode::PollAdd::new(DOORBELL, libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(Kind::Doorbell.tag(0));
            // SAFETY: a poll points to no memory.
            self.doorbell_armed = unsafe { self.ring.push(&poll) }.is_ok();
        }
        receive.armed() && self.doorbell_armed && tun.as_ref().is_none_or(TunQueue::stands)
    }

    /// Takes every completion that is there.
    fn reap(&mut self) {
        while let Some(entry) = self.ring.next() {
            self.complete(&entry);
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry) {
        let Some((kind, index)) = Kind::parse(entry.user_data()) else {
            return;
        };
        let Lent {
            pool,
            receive,
            sends,
            tun,
        } = &mut *self.lent;
        let (stats, result) = (&mut self.stats, entry.result());
        let event = match (kind, tun) {
            (Kind::Receive, _) => receive.complete(entry, pool, stats),
            (Kind::Doorbell, _) => {
                self.doorbell_armed = cqueue::more(entry.flags());
                self.rung = true;
                clear_doorbell(self.doorbell.as_fd(), stats);
                None
            }
            (Kind::Send, _) => {
                let socket = self.socket.as_fd();
                sends.complete(index, result, socket, pool, receive.buffers(), stats);
                None
            }
            (Kind::TunPoll | Kind::TunRead, Some(tun)) => {
                let event = tun.complete_read(BufferId::new(index), result, pool, stats);
                // Not an event, but the worker has to know.
                self.rung |= event.is_none() && tun.is_gone();
                event
            }
            (Kind::TunWrite, Some(tun)) => {
                tun.complete_write(index, result, pool, receive.buffers(), stats);
                None
            }
            (Kind::TunPoll | Kind::TunRead | Kind::TunWrite, None) => None,
        };
        if let Some(event) = event {
            self.ready.push(event);
        }
    }

    /// Submits, lets the kernel run its deferred work, takes what completed.
    fn look(&mut self) -> io::Result<()> {
        self.ring.look()?;
        self.reap();
        Ok(())
    }

    fn has_news(&self) -> bool {
        self.rung || !self.ready.is_empty()
    }

    /// Frees operations. Deferred work has to run for it: a TUN write that fails completes there.
    fn make_room(&mut self) -> Result<(), SendError> {
        self.look().map_err(|_| SendError::Full)
    }
}

impl Driver for UringDriver {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.ready.begin_turn();
        let only_look = timeout.is_some_and(|timeout| timeout.is_zero());
        // What completes may leave something to arm (a poll after the last read, a receive after
        // its buffers ran out): sleep only once everything stands, or a round has queued nothing.
        loop {
            let stands = self.arm(only_look);
            if (stands || self.ring.queued() == 0) && !only_look && !self.has_news() {
                self.ring.sleep(timeout)?;
                self.stats.wakeups += 1;
                self.reap();
                break;
            }
            self.look()?;
            self.lent.receive.check()?;
            if only_look || self.has_news() {
                break;
            }
        }
        self.rung = false;
        self.lent.receive.check()
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.next()
    }

    fn bytes(&mut self, buffer: BufferId) -> &mut [u8] {
        self.lent.pool.bytes(buffer)
    }

    fn pair(&mut self, read: BufferId, write: BufferId) -> (&[u8], &mut [u8]) {
        self.lent.pool.pair(read, write)
    }

    fn allocate(&mut self) -> Option<BufferId> {
        self.lent.pool.allocate()
    }

    fn release(&mut self, buffer: BufferId) {
        let Lent { pool, receive, .. } = &mut *self.lent;
        if let Some(slot) = pool.release(buffer) {
            receive.buffers().publish(pool, slot);
        }
    }

    fn send(
        &mut self,
        to: impl Into<AddressPair>,
        segment: u16,
        spans: &[Span],
    ) -> Result<(), SendError> {
        if self.lent.sends.is_full() {
            self.make_room()?;
        }
        let Lent {
            pool,
            receive,
            sends,
            ..
        } = &mut *self.lent;
        let index = sends.fill(pool, self.family, &to.into(), segment, spans)?;
        if sends.goes_singly(index) {
            // Past the ring, so what is in it must leave first.
            let submitted = self.ring.submit();
            let socket = self.socket.as_fd();
            sends.send_singly(index, socket, pool, receive.buffers(), &mut self.stats);
            return submitted.map_err(|_| SendError::Full);
        }
        sends.push(index, &mut self.ring, pool, receive.buffers())
    }

    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        if self.lent.tun.as_ref().is_some_and(TunQueue::is_full) {
            self.make_room()?;
        }
        let Lent {
            pool, receive, tun, ..
        } = &mut *self.lent;
        let tun = tun.as_mut().ok_or(SendError::NoTun)?;
        tun.write(header, spans, &mut self.ring, pool, receive.buffers())
    }

    fn resume_tun(&mut self) {
        if let Some(tun) = &mut self.lent.tun {
            tun.resume();
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.submit()?;
        self.reap();
        Ok(())
    }

    fn buffers(&self) -> (u16, u16) {
        self.lent.pool.usage()
    }

    fn stats(&self) -> &DriverStats {
        &self.stats
    }
}

impl Drop for UringDriver {
    /// Sends what is queued, then ends every operation and waits for its completion, because an
    /// operation in flight may still write to the buffers.
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_MAX;
        let mut served = self.submit().is_ok();
        self.ring.cancel_all();
        while served && self.lent.in_flight() > 0 && Instant::now() < deadline {
            served = self.ring.sleep(Some(DROP_MAX / 20)).is_ok();
            self.reap();
        }
        self.ring.unregister();
        if self.lent.in_flight() == 0 {
            // SAFETY: `lent` is not used again: this is the end of `drop`. No operation that
            // points into it is in flight (checked above).
            unsafe { ManuallyDrop::drop(&mut self.lent) };
        }
    }
}

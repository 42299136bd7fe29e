//! The driver without io_uring: epoll to sleep, `recvmmsg` and `sendmmsg` to move trains.
//!
//! A turn is one `epoll_wait`, then at most one batch of receives and one of TUN reads; what is not
//! taken stays readable (level-triggered), so nothing is lost. Sends gather until the next `wait`,
//! `submit` or full batch; TUN writes are carried out at once. Since no call outlives its return,
//! the kernel never holds a pointer between calls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use hyphae_wire::AddressPair;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::address::{Family, NAME_BYTES};
use crate::device::{Failures, Ready, clear_doorbell, prepare, tun_event};
use crate::driver::{
    BufferId, Driver, DriverStats, EVENTS_PER_TURN, Event, SendError, Span, TUN_BATCH,
    TUN_HEADER_LEN,
};
use crate::message::{CONTROL_ROOM, Intake};
use crate::open::{DriverParts, OpenError};
use crate::pool::{Pool, SLOT_BYTES, length};
use crate::train::{Segmentation, Send, Write, empty_header, send_messages};

/// Receives of one `recvmmsg`: few enough that their bytes are still cached when they are sent.
const RECEIVES: usize = 8;
/// Trains that gather before they are sent.
const SENDS: usize = 64;

const SOCKET: u64 = 0;
const DOORBELL: u64 = 1;
const TUN: u64 = 2;

/// Where one receive puts what is not payload.
#[derive(Clone, Copy)]
struct Incoming {
    name: [u8; NAME_BYTES],
    control: [u8; CONTROL_ROOM],
    iovec: libc::iovec,
}

/// UDP and TUN over epoll; see the module's head.
pub struct EpollDriver {
    epoll: OwnedFd,
    socket: OwnedFd,
    doorbell: OwnedFd,
    tun: Option<OwnedFd>,
    /// The interface of `tun` was deleted.
    tun_gone: bool,
    pool: Pool,
    free_receive: Vec<BufferId>,
    incoming: Box<[Incoming]>,
    incoming_headers: Box<[libc::mmsghdr]>,
    sends: Box<[Send]>,
    send_headers: Box<[libc::mmsghdr]>,
    queued: usize,
    segmentation: Segmentation,
    write: Box<Write>,
    family: Family,
    intake: Intake,
    failures: Failures,
    ready: Ready,
    stats: DriverStats,
}

impl EpollDriver {
    /// Opens the driver for `parts`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(parts: DriverParts) -> Result<Self, OpenError> {
        Self::with_slots(parts, SLOT_BYTES)
    }

    pub(crate) fn with_slots(parts: DriverParts, slot_bytes: usize) -> Result<Self, OpenError> {
        let (family, pool) = prepare(&parts, slot_bytes)?;
        let call = |call| {
            move |source: rustix::io::Errno| OpenError::Call {
                call,
                source: source.into(),
            }
        };
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(call("epoll_create"))?;
        let fds = [
            (SOCKET, Some(&parts.socket)),
            (DOORBELL, Some(&parts.doorbell)),
            (TUN, parts.tun.as_ref()),
        ];
        for (number, fd) in fds {
            let Some(fd) = fd else { continue };
            epoll::add(&epoll, fd, EventData::new_u64(number), EventFlags::IN)
                .map_err(call("epoll_ctl"))?;
        }
        let no_bytes = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let incoming = Incoming {
            name: [0; NAME_BYTES],
            control: [0; CONTROL_ROOM],
            iovec: no_bytes,
        };
        let header = libc::mmsghdr {
            msg_hdr: empty_header(),
            msg_len: 0,
        };
        Ok(Self {
            epoll,
            ready: Ready::new(&parts),
            free_receive: pool.receive_slots(),
            socket: parts.socket,
            doorbell: parts.doorbell,
            tun: parts.tun,
            tun_gone: false,
            pool,
            incoming: vec![incoming; RECEIVES].into_boxed_slice(),
            incoming_headers: vec![header; RECEIVES].into_boxed_slice(),
            sends: (0..SENDS).map(|_| Send::new()).collect(),
            send_headers: vec![header; SENDS].into_boxed_slice(),
            queued: 0,
            segmentation: Segmentation::new(),
            write: Box::new(Write::new()),
            family,
            intake: Intake::default(),
            failures: Failures::default(),
            stats: DriverStats::default(),
        })
    }

    #[cfg(test)]
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    #[cfg(test)]
    pub(crate) fn is_offloaded(&self) -> bool {
        self.segmentation.offloaded
    }

    /// One batch of receives, into events.
    fn receive(&mut self) {
        let count = self.free_receive.len().min(RECEIVES);
        if count == 0 {
            self.stats.buffer_exhausted += 1;
            return;
        }
        // The slots are the last `count` of the free list, and leave it only when filled.
        let slots = &self.free_receive[self.free_receive.len() - count..];
        for ((incoming, header), &slot) in self
            .incoming
            .iter_mut()
            .zip(&mut self.incoming_headers)
            .zip(slots.iter().rev())
        {
            incoming.iovec.iov_base = self.pool.address(slot).cast();
            incoming.iovec.iov_len = self.pool.slot_bytes();
            let header = &mut header.msg_hdr;
            header.msg_name = incoming.name.as_mut_ptr().cast();
            header.msg_namelen = Family::V6.name_len();
            header.msg_iov = &raw mut incoming.iovec;
            header.msg_iovlen = 1;
            header.msg_control = incoming.control.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_ROOM as _;
            header.msg_flags = 0;
        }
        // SAFETY: the first `count` headers were just filled in. Names, controls and iovecs lie in
        // `incoming`, as many as headers, which nothing moves meanwhile; the iovecs describe whole
        // slots without references, so no Rust reference to their bytes exists. The kernel is done
        // with all of them when the call returns.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                self.incoming_headers.as_mut_ptr(),
                length(count),
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        match usize::try_from(received) {
            Ok(received) => {
                self.failures.forget();
                (0..received.min(count)).for_each(|at| self.accept(at));
            }
            Err(_) => match io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or_default()
            {
                libc::EAGAIN | libc::EINTR => {}
                errno => self.failures.note(errno, &mut self.stats),
            },
        }
    }

    /// Makes an event of receive `at`, whose slot is the last of the free list.
    fn accept(&mut self, at: usize) {
        let Some(buffer) = self.free_receive.pop() else {
            return;
        };
        let header = &self.incoming_headers[at];
        let incoming = &self.incoming[at];
        let name = (header.msg_hdr.msg_namelen as usize).min(NAME_BYTES);
        let control = header.msg_hdr.msg_controllen.min(CONTROL_ROOM);
        let len = (header.msg_len as usize).min(self.pool.slot_bytes());
        let judged = self.intake.judge(
            &mut self.stats,
            &incoming.name[..name],
            &incoming.control[..control],
            header.msg_hdr.msg_flags,
            len,
        );
        self.pool.take(buffer);
        match judged {
            Some((len, segment, AddressPair { remote, local })) => {
                self.ready.push(Event::Datagrams {
                    buffer,
                    offset: 0,
                    len,
                    segment,
                    from: remote,
                    local,
                });
            }
            // Not back onto the top, where the slots of the receives after this one are.
            None => {
                if let Some(slot) = self.pool.release(buffer) {
                    self.free_receive.insert(0, slot);
                }
            }
        }
    }

    /// One batch of TUN reads, into events.
    fn read_tun(&mut self, flags: EventFlags) {
        if !flags.contains(EventFlags::IN) {
            // An error without packets is how a deleted interface looks.
            self.lose_tun();
            return;
        }
        for _ in 0..TUN_BATCH {
            let Some(tun) = &self.tun else { return };
            let Some(buffer) = self.pool.lend_tun() else {
                return;
            };
            self.pool.take(buffer);
            let bytes = self.pool.bytes(buffer);
            let room = bytes.len();
            let read = rustix::io::read(tun, bytes);
            match read.map(|len| tun_event(buffer, len, room)) {
                Ok(Some(event)) => {
                    self.ready.push(event);
                    continue;
                }
                Ok(None) => self.stats.tun_errors += 1,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::BADFD | rustix::io::Errno::NODEV) => self.lose_tun(),
                Err(_) => self.stats.tun_errors += 1,
            }
            self.release(buffer);
            if read.is_err() {
                return;
            }
        }
    }

    fn lose_tun(&mut self) {
        self.stats.tun_errors += 1;
        if let Some(tun) = self.tun.as_ref().filter(|_| !self.tun_gone) {
            self.stats.tun_lost += 1;
            self.tun_gone = true;
            // Else it would be ready, with an error, again and again. It was added by `open` or `resume_tun`.
            let _ = epoll::delete(&self.epoll, tun);
        }
    }

    /// Sends what has gathered.
    fn flush(&mut self) {
        let count = std::mem::take(&mut self.queued);
        let mut at = 0;
        while at < count {
            match send_messages(self.socket.as_fd(), &mut self.send_headers[at..count]) {
                Ok(sent) => {
                    for (header, send) in self.send_headers[at..at + sent]
                        .iter()
                        .zip(&self.sends[at..])
                    {
                        self.stats.tx_errors += u64::from(header.msg_len != send.total());
                    }
                    at += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or_default();
                    let (socket, send) = (self.socket.as_fd(), &mut self.sends[at]);
                    self.segmentation
                        .refused(socket, send, errno, &mut self.stats);
                    at += 1;
                }
            }
        }
        for send in &mut self.sends[..count] {
            send.finish(&mut self.pool, |_, slot| self.free_receive.push(slot));
        }
    }
}

impl Driver for EpollDriver {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.flush();
        self.ready.begin_turn();
        let timeout = if self.ready.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        let sleeps = timeout.is_none_or(|timeout| !timeout.is_zero());
        // Longer than the kernel can express is for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let nothing = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(u64::MAX),
        };
        let mut events = [nothing; 3];
        let count = match epoll::wait(&self.epoll, events.as_mut_slice(), timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.stats.wakeups += u64::from(sleeps);
        for event in &events[..count] {
            match event.data.u64() {
                SOCKET if self.ready.len() < usize::from(EVENTS_PER_TURN) => self.receive(),
                DOORBELL => clear_doorbell(self.doorbell.as_fd(), &mut self.stats),
                TUN => self.read_tun(event.flags),
                _ => {}
            }
        }
        self.failures.check()
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.next()
    }

    fn bytes(&mut self, buffer: BufferId) -> &mut [u8] {
        self.pool.bytes(buffer)
    }

    fn pair(&mut self, read: BufferId, write: BufferId) -> (&[u8], &mut [u8]) {
        self.pool.pair(read, write)
    }

    fn allocate(&mut self) -> Option<BufferId> {
        self.pool.allocate()
    }

    fn release(&mut self, buffer: BufferId) {
        self.free_receive.extend(self.pool.release(buffer));
    }

    fn send(
        &mut self,
        to: impl Into<AddressPair>,
        segment: u16,
        spans: &[Span],
    ) -> Result<(), SendError> {
        if self.queued == SENDS {
            self.flush();
        }
        let send = &mut self.sends[self.queued];
        send.fill(&mut self.pool, self.family, &to.into(), segment, spans)?;
        if send.is_segmented() && !self.segmentation.offloaded {
            // Past the queue, so what is in it must leave first. Flushing finishes only what is
            // queued, and this train is not.
            let queued = self.queued;
            self.flush();
            let send = &mut self.sends[queued];
            self.segmentation
                .send_singly(self.socket.as_fd(), send, &mut self.stats);
            send.finish(&mut self.pool, |_, slot| self.free_receive.push(slot));
            return Ok(());
        }
        // SAFETY: `header` returns a pointer to a header inside `send`, which is alive, initialised
        // by that very call, and borrowed by nobody else.
        self.send_headers[self.queued].msg_hdr = unsafe { *send.header() };
        self.queued += 1;
        Ok(())
    }

    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        let tun = self.tun.as_ref().filter(|_| !self.tun_gone);
        let tun = tun.ok_or(SendError::NoTun)?;
        self.write.fill(&mut self.pool, header, spans)?;
        let iovecs = self.write.iovecs();
        let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `count` initialised iovecs in `self.write`, which point to its own header and
        // into slots that `fill` has referenced. The kernel only reads them, and is done with them
        // when the call returns.
        let written = unsafe { libc::writev(tun.as_raw_fd(), iovecs.as_ptr(), count) };
        let whole = usize::try_from(written).is_ok_and(|len| len == self.write.total());
        self.stats.tun_errors += u64::from(!whole);
        self.write
            .finish(&mut self.pool, |_, slot| self.free_receive.push(slot));
        Ok(())
    }

    fn resume_tun(&mut self) {
        if let Some(tun) = self.tun.as_ref().filter(|_| self.tun_gone) {
            let data = EventData::new_u64(TUN);
            // Without memory for it the device stays gone.
            self.tun_gone = epoll::add(&self.epoll, tun, data, EventFlags::IN).is_err();
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.flush();
        Ok(())
    }

    fn buffers(&self) -> (u16, u16) {
        self.pool.usage()
    }

    fn stats(&self) -> &DriverStats {
        &self.stats
    }
}

impl Drop for EpollDriver {
    fn drop(&mut self) {
        self.flush();
    }
}

//! The epoll driver, for hosts where io_uring is forbidden.
//!
//! Same buffers, same trains, same trait: `recvmmsg` fills free receive buffers, queued trains leave
//! by `sendmmsg`, TUN packets are read and written one call each. Sends complete in the call, so an
//! operation never outlives `submit`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use hyphae_wire::Endpoint;
use rustix::event::{Timespec, epoll};

use crate::cmsg::{self, CONTROL_LEN, NAME_LEN};
use crate::ops::{self, Ops};
use crate::pool::Pool;
use crate::{
    BUFFER_BYTES, BufferId, Driver, DriverStats, Event, OpenError, Parts, SendError, Span,
    TUN_HEADER_LEN,
};

/// Receives per call, and trains handed out per turn.
const BATCH: usize = 16;
const TUN_READS: usize = 8;
const OPS_MAX: u16 = 448;
const SOCKET: u64 = 0;
const DOORBELL: u64 = 1;
const TUN: u64 = 2;

/// The epoll driver of one worker.
pub struct Epoll {
    epoll: OwnedFd,
    socket: OwnedFd,
    tun: Option<OwnedFd>,
    doorbell: OwnedFd,
    pool: Pool,
    /// Receive buffers that nobody uses.
    idle: Vec<BufferId>,
    ops: Ops,
    /// Operations in the order of their calls.
    queued: Vec<u16>,
    /// Memory that `recvmmsg` fills.
    receives: Box<[Receive]>,
    headers: Box<[libc::mmsghdr]>,
    sends: Vec<libc::mmsghdr>,
    ready: VecDeque<Event>,
    freed: Vec<BufferId>,
    overruns: u32,
    stats: DriverStats,
}

#[repr(C, align(8))]
struct Receive {
    control: [u8; CONTROL_LEN],
    name: [u8; NAME_LEN],
    vector: libc::iovec,
}

// SAFETY: raw pointers inside refer to boxed memory and the pool of this driver, which move with it.
unsafe impl Send for Epoll {}

impl Epoll {
    /// Opens a driver, on the thread that is to use it.
    ///
    /// # Errors
    /// When the kernel refuses; the error names the likely cause.
    pub fn open(parts: Parts) -> Result<Self, OpenError> {
        let count = parts.receive_buffers;
        if !count.is_power_of_two() || !(2..=4096).contains(&count) {
            return Err(OpenError::Buffers(count));
        }
        let system = |call| move |source: io::Error| OpenError::System { call, source };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| system("epoll_create")(error.into()))?;
        let mut watched = vec![(&parts.socket, SOCKET), (&parts.doorbell, DOORBELL)];
        watched.extend(parts.tun.as_ref().map(|tun| (tun, TUN)));
        for (fd, data) in watched {
            let data = epoll::EventData::new_u64(data);
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN)
                .map_err(|error| system("epoll_ctl")(error.into()))?;
        }
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let receive = || Receive { control: [0; CONTROL_LEN], name: [0; NAME_LEN], vector: empty };
        // SAFETY: all-zero bytes are a valid `mmsghdr`.
        let header = || unsafe { std::mem::zeroed() };
        let ipv4 = crate::udp::is_ipv4(&parts.socket).map_err(system("getsockname"))?;
        Ok(Self {
            epoll,
            socket: parts.socket,
            tun: parts.tun,
            doorbell: parts.doorbell,
            pool: Pool::new(count, parts.transmit_buffers).map_err(system("buffer memory"))?,
            idle: (0..count).rev().map(BufferId).collect(),
            ops: Ops::new(OPS_MAX, ipv4),
            queued: Vec::with_capacity(usize::from(OPS_MAX)),
            receives: (0..BATCH).map(|_| receive()).collect(),
            headers: (0..BATCH).map(|_| header()).collect(),
            sends: Vec::with_capacity(usize::from(OPS_MAX)),
            ready: VecDeque::with_capacity(BATCH + TUN_READS),
            freed: Vec::with_capacity(usize::from(count)),
            overruns: 0,
            stats: DriverStats::default(),
        })
    }

    fn receive(&mut self) {
        let count = self.idle.len().min(BATCH);
        if count == 0 {
            self.stats.buffer_exhausted += 1;
            return;
        }
        for (n, (receive, header)) in
            self.receives.iter_mut().zip(self.headers.iter_mut()).take(count).enumerate()
        {
            let buffer = self.idle[self.idle.len() - 1 - n];
            let slot = Span { buffer, offset: 0, len: BUFFER_BYTES };
            let iov_base = self.pool.address(slot).cast();
            receive.vector = libc::iovec { iov_base, iov_len: BUFFER_BYTES as usize };
            let message = &mut header.msg_hdr;
            message.msg_name = receive.name.as_mut_ptr().cast();
            message.msg_namelen = NAME_LEN as libc::socklen_t;
            message.msg_iov = &raw mut receive.vector;
            message.msg_iovlen = 1;
            message.msg_control = receive.control.as_mut_ptr().cast();
            message.msg_controllen = CONTROL_LEN;
            message.msg_flags = 0;
        }
        // SAFETY: `count` headers were filled above with pointers into `receives` and into idle
        // receive slots, each valid for the length beside it; the call ends before they are used
        // otherwise.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted
            {
                self.stats.rx_errors += 1;
            }
            return;
        };
        for n in 0..received {
            let Some(buffer) = self.idle.pop() else { break };
            match self.train(buffer, n) {
                Some(event) => {
                    self.pool.retain(buffer);
                    self.ready.push_back(event);
                }
                None => self.freed.push(buffer),
            }
        }
        self.idle.append(&mut self.freed);
    }

    fn train(&mut self, buffer: BufferId, n: usize) -> Option<Event> {
        let (receive, header) = (&self.receives[n], &self.headers[n]);
        let message = &header.msg_hdr;
        let control_len = message.msg_controllen.min(CONTROL_LEN);
        let control = cmsg::parse_control(&receive.control[..control_len]);
        if let Some(overruns) = control.overruns {
            self.stats.socket_overruns += u64::from(overruns.wrapping_sub(self.overruns));
            self.overruns = overruns;
        }
        if message.msg_flags & libc::MSG_TRUNC != 0 || header.msg_len > BUFFER_BYTES {
            self.stats.rx_truncated += 1;
            return None;
        }
        let name_len = (message.msg_namelen as usize).min(NAME_LEN);
        let len = header.msg_len;
        let Some(from) = cmsg::parse_name(&receive.name[..name_len]).filter(|_| len > 0) else {
            self.stats.rx_errors += 1;
            return None;
        };
        let segment = control.segment.filter(|size| *size > 0 && *size < len).unwrap_or(len);
        Some(Event::Datagrams { span: Span { buffer, offset: 0, len }, segment, from })
    }

    fn read_tun(&mut self) {
        let Some(tun) = &self.tun else { return };
        for _ in 0..TUN_READS {
            let Some(buffer) = self.pool.allocate() else { return };
            let slot = Span { buffer, offset: 0, len: BUFFER_BYTES };
            match rustix::io::read(tun, self.pool.bytes(slot)) {
                Ok(len) if len > TUN_HEADER_LEN => {
                    // At most the slot.
                    let span = Span { len: len as u32, ..slot };
                    self.ready.push_back(Event::Tun { span });
                    continue;
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => self.stats.tun_errors += 1,
            }
            self.pool.release(buffer);
            return;
        }
    }

    fn queue_send(&mut self, to: &Endpoint, segment: u32, spans: &[Span]) -> Result<(), SendError> {
        let id = self.ops.send(&mut self.pool, to, segment, spans)?;
        self.queued.push(id);
        Ok(())
    }

    /// Sends the queued operations from `first` on that are sends; returns how many were dealt with.
    fn send_batch(&mut self, first: usize) -> usize {
        self.sends.clear();
        for id in self.queued[first..].iter().take_while(|id| self.ops.is_send(**id)) {
            // SAFETY: the message is initialised and valid until the operation is finished, below
            // in `submit`; `mmsghdr` copies its pointers.
            let msg_hdr = unsafe { *self.ops.message(*id) };
            self.sends.push(libc::mmsghdr { msg_hdr, msg_len: 0 });
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the headers point to operations in flight whose buffers are referenced.
        let sent = unsafe {
            let count = self.sends.len() as libc::c_uint;
            libc::sendmmsg(self.socket.as_raw_fd(), self.sends.as_mut_ptr(), count, flags)
        };
        if let Ok(sent) = usize::try_from(sent) {
            return sent.max(1);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => return 0,
            Some(libc::EAGAIN) => self.stats.tx_backpressure += 1,
            code => {
                self.ops.segmentation_off |= code == Some(libc::EIO);
                self.stats.tx_errors += 1;
            }
        }
        // The first of the batch is what failed; the next call goes on behind it.
        1
    }

    fn write_one(&mut self, id: u16) {
        let Some(tun) = &self.tun else { return };
        let (vectors, count) = self.ops.vectors(id);
        // SAFETY: the vectors are valid until the operation is finished.
        let written = unsafe { libc::writev(tun.as_raw_fd(), vectors, count as libc::c_int) };
        if written < 0 {
            self.stats.tun_errors += 1;
        }
    }
}

impl Driver for Epoll {
    fn name(&self) -> &'static str {
        "epoll"
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.submit()?;
        let timeout = if self.ready.is_empty() { timeout } else { Duration::ZERO };
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 3];
        let time = Timespec::try_from(timeout).ok();
        let count = match epoll::wait(&self.epoll, &mut events, time.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.stats.wakeups += u64::from(!timeout.is_zero());
        for event in &events[..count] {
            match event.data.u64() {
                SOCKET if self.ready.len() < BATCH => self.receive(),
                TUN if self.ready.len() < BATCH => self.read_tun(),
                DOORBELL => {
                    // Failure means that it was empty.
                    let _ = rustix::io::read(&self.doorbell, &mut [0u8; 8]);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut done = 0;
        while done < self.queued.len() {
            let id = self.queued[done];
            if self.ops.is_send(id) {
                done += self.send_batch(done);
            } else {
                self.write_one(id);
                done += 1;
            }
        }
        let Self { queued, ops, pool, idle, .. } = self;
        for id in queued.drain(..) {
            ops.finish(pool, id, |buffer| idle.push(buffer));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn bytes(&mut self, span: Span) -> &mut [u8] {
        self.pool.bytes(span)
    }

    fn pair(&mut self, read: Span, write: Span) -> (&[u8], &mut [u8]) {
        self.pool.pair(read, write)
    }

    fn allocate(&mut self) -> Option<BufferId> {
        self.pool.allocate()
    }

    fn release(&mut self, buffer: BufferId) {
        if self.pool.release(buffer) {
            self.idle.push(buffer);
        }
    }

    fn send(&mut self, to: &Endpoint, segment: u32, spans: &[Span]) -> Result<(), SendError> {
        if !self.ops.segmentation_off {
            return self.queue_send(to, segment, spans);
        }
        ops::singles(segment.max(1), spans).try_for_each(|one| self.queue_send(to, one.len, &[one]))
    }

    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        if self.tun.is_none() {
            return Err(SendError::Shape);
        }
        let id = self.ops.write(&mut self.pool, header, spans)?;
        self.queued.push(id);
        Ok(())
    }

    fn stats(&self) -> &DriverStats {
        &self.stats
    }
}

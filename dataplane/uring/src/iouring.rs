//! The io_uring driver.
//!
//! One multishot `recvmsg` fills buffers from a ring of provided buffers; one multishot poll listens to
//! the doorbell; a poll on the TUN queue starts batches of reads. Everything that a turn queues goes to
//! the kernel in the `io_uring_enter` that also waits.
//!
//! A slot is the kernel's from the moment it is published in the buffer ring until a completion
//! names it, and the worker's from then until its user count is zero. The ring is dropped before the
//! memory it refers to (field order), which ends every operation in flight.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hyphae_wire::Endpoint;
use io_uring::types::{BufRingEntry, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use rustix::mm::{MapFlags, ProtFlags};

use crate::cmsg::{self, CONTROL_LEN, NAME_LEN};
use crate::ops::{self, Ops};
use crate::pool::Pool;
use crate::{
    BUFFER_BYTES, BufferId, Driver, DriverStats, Event, OpenError, Parts, SendError, Span,
    TUN_HEADER_LEN,
};

const SOCKET: Fixed = Fixed(0);
const DOORBELL: Fixed = Fixed(1);
const TUN: Fixed = Fixed(2);

const SQ_ENTRIES: u32 = 512;
const OPS_MAX: u16 = 448;
const TUN_READS: usize = 8;
const GROUP: u16 = 0;
/// What precedes the payload in a provided buffer: `io_uring_recvmsg_out`, name, control messages.
const OUT_HEADER_LEN: usize = 16;
const PAYLOAD_AT: usize = OUT_HEADER_LEN + NAME_LEN + CONTROL_LEN;
/// Trains handed out per turn: their buffers should still be in the cache when they are sent.
const BUDGET: usize = 16;

const TAG_RECEIVE: u64 = 1 << 56;
const TAG_DOORBELL: u64 = 2 << 56;
const TAG_OP: u64 = 3 << 56;
const TAG_TUN_POLL: u64 = 4 << 56;
const TAG_TUN_READ: u64 = 5 << 56;
const TAG_MASK: u64 = 0xff << 56;

/// io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The administrator forbids it.
    #[error(
        "io_uring_setup: {source}: kernel.io_uring_disabled is {value}; set it to 0, or use \
         --driver epoll"
    )]
    Disabled {
        /// Value of the sysctl.
        value: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Something else forbids it.
    #[error(
        "io_uring_setup: {0}: forbidden, most likely by a seccomp profile of the container; allow \
         io_uring_setup, io_uring_enter and io_uring_register, or use --driver epoll"
    )]
    Forbidden(io::Error),
    /// Built without it.
    #[error("io_uring_setup: {0}: this kernel is built without io_uring; use --driver epoll")]
    Absent(io::Error),
    /// Too old.
    #[error("io_uring: this kernel lacks {0}, which Linux 6.1 has; use --driver epoll")]
    Old(&'static str),
    /// Resource limits.
    #[error("io_uring_setup: {0}: raise the memory limit (ulimit -l, LimitMEMLOCK) of the process")]
    Memory(io::Error),
    /// Something unexpected.
    #[error("io_uring_setup: {0}")]
    Other(io::Error),
}

fn explain(source: io::Error) -> ProbeError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let value = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match value.as_deref().map(str::trim) {
                Ok(value @ ("1" | "2")) => {
                    ProbeError::Disabled { value: value.to_owned(), source }
                }
                _ => ProbeError::Forbidden(source),
            }
        }
        Some(libc::ENOSYS) => ProbeError::Absent(source),
        Some(libc::EINVAL) => ProbeError::Old("IORING_SETUP_SINGLE_ISSUER or DEFER_TASKRUN"),
        Some(libc::ENOMEM) => ProbeError::Memory(source),
        _ => ProbeError::Other(source),
    }
}

fn build() -> Result<IoUring, ProbeError> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(SQ_ENTRIES * 4);
    // Saves an indirection; from 6.6.
    let mut lean = builder.clone();
    lean.setup_no_sqarray();
    lean.build(SQ_ENTRIES).or_else(|_| builder.build(SQ_ENTRIES)).map_err(explain)
}

/// Tries everything the driver needs.
///
/// # Errors
/// When something is missing; the error names the likely cause and the way out.
pub fn probe() -> Result<(), ProbeError> {
    let ring = build()?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(ProbeError::Other)?;
    let needed = [
        (opcode::RecvMsg::CODE, "recvmsg"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::Writev::CODE, "writev"),
        (opcode::Read::CODE, "read"),
        (opcode::PollAdd::CODE, "poll"),
    ];
    if let Some((_, name)) = needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        return Err(ProbeError::Old(name));
    }
    BufferRing::register(&ring, 2).map(drop).map_err(|_| ProbeError::Old("buffer rings"))
}

/// The ring by which slots are lent to the kernel.
struct BufferRing {
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
}

// SAFETY: owns its mapping; nothing about it belongs to a thread.
unsafe impl Send for BufferRing {}

impl BufferRing {
    fn register(ring: &IoUring, count: u16) -> io::Result<Self> {
        let len = usize::from(count) * size_of::<BufRingEntry>();
        // SAFETY: a new private mapping at an address of the kernel's choice aliases nothing; it is
        // page aligned, which the interface asks for.
        let entries = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE)
        }?;
        let entries = NonNull::new(entries.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let this = Self { entries, count, tail: 0 };
        // SAFETY: the memory holds `count` entries and lives until `this` is dropped, which the
        // driver does after its ring.
        unsafe {
            let address = entries.as_ptr() as u64;
            ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0)?;
        }
        Ok(this)
    }

    /// Adds a slot; the kernel sees it after `publish`.
    fn lend(&mut self, buffer: BufferId, address: *mut u8) {
        let at = usize::from(self.tail & (self.count - 1));
        // SAFETY: `at < count`. The kernel only reads entries between its head and the published
        // tail; this one is not, because there are never more lent slots than entries.
        let entry = unsafe { &mut *self.entries.as_ptr().add(at) };
        entry.set_addr(address as u64);
        entry.set_len(BUFFER_BYTES);
        entry.set_bid(buffer.0);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the tail is inside the first entry, aligned for u16, and shared with the kernel,
        // which reads it with acquire semantics.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        let len = usize::from(self.count) * size_of::<BufRingEntry>();
        // SAFETY: mapped in `register` with this length; the ring is gone (field order of the
        // driver; at the end of `probe` nothing was ever lent).
        let _ = unsafe { rustix::mm::munmap(self.entries.as_ptr().cast(), len) };
    }
}

/// The io_uring driver of one worker.
pub struct Uring {
    /// First: dropping the ring ends every operation that refers to the fields below.
    ring: IoUring,
    buffers: BufferRing,
    ops: Ops,
    pool: Pool,
    /// Template of every receive; the kernel reads the two lengths when it is armed.
    receive: Box<libc::msghdr>,
    doorbell: OwnedFd,
    _socket: OwnedFd,
    has_tun: bool,
    receive_armed: bool,
    doorbell_armed: bool,
    tun: TunState,
    ready: std::collections::VecDeque<Event>,
    /// Receive buffers on their way from a finished operation to the buffer ring.
    freed: Vec<BufferId>,
    budget: usize,
    overruns: u32,
    stats: DriverStats,
    _tun: Option<OwnedFd>,
}

/// What the TUN queue is waiting for.
struct TunState {
    /// A poll is in flight.
    polling: bool,
    /// Reads in flight.
    reading: usize,
    /// The last batch found the queue empty: poll before reading again.
    empty: bool,
}

// SAFETY: `receive` points to nothing (null pointers, lengths only); the other parts are `Send`.
unsafe impl Send for Uring {}

impl Uring {
    /// Opens a driver, on the thread that is to use it.
    ///
    /// # Errors
    /// When the kernel refuses; the error names the likely cause.
    pub fn open(parts: Parts) -> Result<Self, OpenError> {
        let count = parts.receive_buffers;
        if !count.is_power_of_two() || !(2..=4096).contains(&count) {
            return Err(OpenError::Buffers(count));
        }
        let system = |call| move |source| OpenError::System { call, source };
        let ring = build()?;
        let mut fds = vec![parts.socket.as_raw_fd(), parts.doorbell.as_raw_fd()];
        fds.extend(parts.tun.as_ref().map(AsRawFd::as_raw_fd));
        ring.submitter().register_files(&fds).map_err(system("io_uring_register files"))?;
        let buffers = BufferRing::register(&ring, count)
            .map_err(system("io_uring_register buffer ring"))?;
        let pool = Pool::new(count, parts.transmit_buffers).map_err(system("buffer memory"))?;
        // SAFETY: all-zero bytes are a valid `msghdr`.
        let mut receive: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        receive.msg_namelen = NAME_LEN as libc::socklen_t;
        receive.msg_controllen = CONTROL_LEN;
        let ipv4 = crate::udp::is_ipv4(&parts.socket).map_err(system("getsockname"))?;
        let mut this = Self {
            ring,
            buffers,
            ops: Ops::new(OPS_MAX, ipv4),
            pool,
            receive,
            doorbell: parts.doorbell,
            _socket: parts.socket,
            has_tun: parts.tun.is_some(),
            receive_armed: false,
            doorbell_armed: false,
            tun: TunState { polling: false, reading: 0, empty: true },
            ready: std::collections::VecDeque::with_capacity(usize::from(count) + TUN_READS),
            freed: Vec::with_capacity(usize::from(count)),
            budget: 0,
            overruns: 0,
            stats: DriverStats::default(),
            _tun: parts.tun,
        };
        (0..count).for_each(|n| this.lend(BufferId(n)));
        Ok(this)
    }

    fn lend(&mut self, buffer: BufferId) {
        let slot = Span { buffer, offset: 0, len: BUFFER_BYTES };
        self.buffers.lend(buffer, self.pool.address(slot));
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: everything that queued entries refer to (operations, receive template,
            // buffers) lives in this driver until the completion, and is dropped after the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Queues what listens: receive, doorbell, TUN.
    fn arm(&mut self) -> io::Result<()> {
        self.buffers.publish();
        if !self.receive_armed {
            let message = &raw const *self.receive;
            let entry = opcode::RecvMsgMulti::new(SOCKET, message, GROUP).build();
            self.push(entry.user_data(TAG_RECEIVE))?;
            self.receive_armed = true;
        }
        if !self.doorbell_armed {
            // POLLIN fits.
            let entry = opcode::PollAdd::new(DOORBELL, libc::POLLIN as u32).multi(true).build();
            self.push(entry.user_data(TAG_DOORBELL))?;
            self.doorbell_armed = true;
        }
        if self.has_tun && !self.tun.polling && self.tun.reading == 0 {
            if self.tun.empty {
                let entry = opcode::PollAdd::new(TUN, libc::POLLIN as u32).build();
                self.push(entry.user_data(TAG_TUN_POLL))?;
                self.tun.polling = true;
            } else {
                self.read_tun()?;
            }
        }
        Ok(())
    }

    fn read_tun(&mut self) -> io::Result<()> {
        while self.tun.reading < TUN_READS {
            let Some(buffer) = self.pool.allocate() else { break };
            let slot = Span { buffer, offset: 0, len: BUFFER_BYTES };
            let entry = opcode::Read::new(TUN, self.pool.address(slot), BUFFER_BYTES)
                .offset(u64::MAX)
                .build()
                .user_data(TAG_TUN_READ | u64::from(buffer.0));
            self.push(entry)?;
            self.tun.reading += 1;
        }
        Ok(())
    }

    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            let data = entry.user_data();
            let id = (data & 0xffff) as u16;
            match data & TAG_MASK {
                TAG_RECEIVE => self.received(&entry),
                TAG_OP => self.finished(id, entry.result()),
                TAG_DOORBELL => {
                    self.doorbell_armed = cqueue::more(entry.flags());
                    // Level-triggered sources must be emptied; failure means it was empty.
                    let _ = rustix::io::read(&self.doorbell, &mut [0u8; 8]);
                }
                TAG_TUN_POLL => {
                    self.tun.polling = false;
                    self.tun.empty = false;
                }
                TAG_TUN_READ => self.tun_read(BufferId(id), entry.result()),
                _ => {}
            }
        }
    }

    fn received(&mut self, entry: &cqueue::Entry) {
        self.receive_armed = cqueue::more(entry.flags());
        let Some(id) = cqueue::buffer_select(entry.flags()) else {
            match -entry.result() {
                libc::ENOBUFS => self.stats.buffer_exhausted += 1,
                _ => self.stats.rx_errors += 1,
            }
            return;
        };
        let buffer = BufferId(id);
        match self.train(buffer, entry.result()) {
            Some(event) => {
                self.pool.retain(buffer);
                self.ready.push_back(event);
            }
            None => self.lend(buffer),
        }
    }

    /// Reads what the kernel put in front of the payload. Every length is checked before use.
    fn train(&mut self, buffer: BufferId, result: i32) -> Option<Event> {
        let Ok(used) = usize::try_from(result) else {
            self.stats.rx_errors += 1;
            return None;
        };
        if used < PAYLOAD_AT || used > BUFFER_BYTES as usize {
            self.stats.rx_truncated += 1;
            return None;
        }
        let bytes = self.pool.bytes(Span { buffer, offset: 0, len: BUFFER_BYTES });
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (name_len, control_len) = (word(0) as usize, word(4) as usize);
        let (payload_len, flags) = (word(8) as usize, word(12));
        let truncated = flags & libc::MSG_TRUNC as u32 != 0 || payload_len != used - PAYLOAD_AT;
        let name = &bytes[OUT_HEADER_LEN..OUT_HEADER_LEN + name_len.min(NAME_LEN)];
        let from = cmsg::parse_name(name);
        let control = &bytes[OUT_HEADER_LEN + NAME_LEN..PAYLOAD_AT];
        let control = cmsg::parse_control(&control[..control_len.min(CONTROL_LEN)]);
        if let Some(overruns) = control.overruns {
            self.stats.socket_overruns += u64::from(overruns.wrapping_sub(self.overruns));
            self.overruns = overruns;
        }
        if truncated {
            self.stats.rx_truncated += 1;
            return None;
        }
        let Some(from) = from.filter(|_| payload_len > 0) else {
            self.stats.rx_errors += 1;
            return None;
        };
        // Both fit: the buffer is 64 KiB.
        let len = payload_len as u32;
        let segment = control.segment.filter(|size| *size > 0 && *size < len).unwrap_or(len);
        let span = Span { buffer, offset: PAYLOAD_AT as u32, len };
        Some(Event::Datagrams { span, segment, from })
    }

    fn tun_read(&mut self, buffer: BufferId, result: i32) {
        self.tun.reading -= 1;
        match u32::try_from(result) {
            Ok(len) if len as usize > TUN_HEADER_LEN => {
                self.ready.push_back(Event::Tun { span: Span { buffer, offset: 0, len } });
                return;
            }
            Ok(_) => self.stats.tun_errors += 1,
            Err(_) if -result == libc::EAGAIN => self.tun.empty = true,
            Err(_) => {
                self.stats.tun_errors += 1;
                self.tun.empty = true;
            }
        }
        self.release(buffer);
    }

    fn finished(&mut self, id: u16, result: i32) {
        if result < 0 {
            match (self.ops.is_send(id), -result) {
                (true, libc::EAGAIN) => self.stats.tx_backpressure += 1,
                (true, error) => {
                    // EIO: the device cannot checksum, so the kernel will not segment for it.
                    self.ops.segmentation_off |= error == libc::EIO;
                    self.stats.tx_errors += 1;
                }
                (false, _) => self.stats.tun_errors += 1,
            }
        }
        let Self { ops, pool, freed, .. } = self;
        ops.finish(pool, id, |buffer| freed.push(buffer));
        while let Some(buffer) = self.freed.pop() {
            self.lend(buffer);
        }
    }

    fn queue_send(&mut self, to: &Endpoint, segment: u32, spans: &[Span]) -> Result<(), SendError> {
        let id = self.ops.send(&mut self.pool, to, segment, spans)?;
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32;
        let entry = opcode::SendMsg::new(SOCKET, self.ops.message(id)).flags(flags).build();
        self.queue_op(id, entry)
    }

    fn queue_op(&mut self, id: u16, entry: squeue::Entry) -> Result<(), SendError> {
        if self.push(entry.user_data(TAG_OP | u64::from(id))).is_ok() {
            return Ok(());
        }
        self.finished(id, 0);
        Err(SendError::Full)
    }
}

impl Driver for Uring {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.budget = BUDGET;
        self.arm()?;
        // What a previous turn left over its budget must not wait for new completions.
        let look = timeout.is_zero() || !self.ready.is_empty();
        let result = if look {
            self.look()
        } else {
            let time = Timespec::from(timeout);
            let result = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time));
            self.stats.wakeups += 1;
            result
        };
        match result {
            Ok(_) => {}
            Err(error) if passing(&error) => {}
            Err(error) => return Err(error),
        }
        self.reap();
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
        self.look()?;
        self.reap();
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        self.budget = self.budget.checked_sub(1)?;
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
            self.lend(buffer);
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
        if !self.has_tun {
            return Err(SendError::Shape);
        }
        let id = self.ops.write(&mut self.pool, header, spans)?;
        let (vectors, count) = self.ops.vectors(id);
        let entry = opcode::Writev::new(TUN, vectors, count).offset(u64::MAX).build();
        self.queue_op(id, entry)
    }

    fn stats(&self) -> &DriverStats {
        &self.stats
    }
}

impl Uring {
    /// Submits and runs deferred work without waiting: with DEFER_TASKRUN nothing completes unless
    /// the flag asks for it.
    fn look(&mut self) -> io::Result<usize> {
        let queued = self.ring.submission().len();
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument is passed; what queued entries refer to lives as `push` says.
        let result = unsafe {
            let queued = u32::try_from(queued).unwrap_or(u32::MAX);
            self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None)
        };
        match result {
            Err(error) if passing(&error) => Ok(0),
            other => other,
        }
    }
}

/// Errors of `io_uring_enter` that mean: look at the completions and come again.
fn passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
    )
}

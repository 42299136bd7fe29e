//! Preallocated operations: what the kernel reads of a send or a TUN write while it is in flight.
//!
//! Invariants:
//! * From `fill` to `finish` an operation holds one reference per iovec, so no slot that it points
//!   into is used again meanwhile.
//! * Operations point into themselves. They live in a [`Slab`] or another vector that never grows,
//!   and `fill` sets every pointer anew, so they are valid from `fill` on.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use hyphae_wire::{AddressPair, Endpoint, LocalAddress};

use crate::address::{Family, NAME_BYTES, write_name};
use crate::driver::{
    BufferId, DriverStats, SEGMENTS_MAX, SPANS_MAX, SendError, Span, TRAIN_BYTES_MAX,
    TUN_HEADER_LEN,
};
use crate::message::{Refusal, SEND_CONTROL_ROOM, blames_source, refusal, write_control};
use crate::pool::Pool;

const NO_BYTES: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// A message header that says nothing.
pub(crate) fn empty_header() -> libc::msghdr {
    // SAFETY: `msghdr` is a C struct of integers and pointers, padding fields on some C libraries
    // included; all zero is the valid value "no name, no data, no control".
    unsafe { mem::zeroed() }
}

/// Bytes of a train, if its spans lie in buffers in use and it is neither empty nor too large.
pub(crate) fn check_train(pool: &Pool, segment: u16, spans: &[Span]) -> Result<u32, SendError> {
    let total = check_spans(pool, spans)?;
    let fits = segment > 0
        && (1..=TRAIN_BYTES_MAX).contains(&total)
        && total.div_ceil(u32::from(segment)) as usize <= SEGMENTS_MAX;
    if fits {
        Ok(total)
    } else {
        Err(SendError::Size)
    }
}

/// Bytes of `spans`, if they lie in buffers in use.
pub(crate) fn check_spans(pool: &Pool, spans: &[Span]) -> Result<u32, SendError> {
    let mut total = 0u32;
    for &span in spans {
        if !pool.holds(span) {
            return Err(SendError::Span);
        }
        total = total.checked_add(span.len).ok_or(SendError::Size)?;
    }
    Ok(total)
}

/// Spans as iovecs, with the references that keep them. The first iovec is free for a header.
struct Gather {
    iovecs: [libc::iovec; 1 + SPANS_MAX],
    buffers: [BufferId; SPANS_MAX],
    count: usize,
}

impl Gather {
    const fn new() -> Self {
        Self {
            iovecs: [NO_BYTES; 1 + SPANS_MAX],
            buffers: [BufferId::new(0); SPANS_MAX],
            count: 0,
        }
    }

    /// Takes `spans`, which [`check_spans`] has accepted, joining those that adjoin.
    fn fill(&mut self, pool: &mut Pool, spans: &[Span]) -> Result<(), SendError> {
        self.count = 0;
        let mut end = None;
        for span in spans.iter().filter(|span| span.len > 0) {
            let len = span.len as usize;
            if end == Some((span.buffer, span.offset)) {
                self.iovecs[self.count].iov_len += len;
            } else if self.count == SPANS_MAX {
                self.count = 0;
                return Err(SendError::Size);
            } else {
                // Stays inside the slot: `Pool::holds` was true for this span.
                let base = pool.address(span.buffer).wrapping_add(span.offset as usize);
                self.buffers[self.count] = span.buffer;
                self.count += 1;
                self.iovecs[self.count] = libc::iovec {
                    iov_base: base.cast(),
                    iov_len: len,
                };
            }
            end = Some((span.buffer, span.offset + span.len));
        }
        self.buffers[..self.count]
            .iter()
            .for_each(|&buffer| pool.retain(buffer));
        Ok(())
    }

    fn spans(&self) -> &[libc::iovec] {
        &self.iovecs[1..=self.count]
    }

    /// Gives the references back; calls `freed` for receive slots that nobody uses any more.
    fn finish(&mut self, pool: &mut Pool, mut freed: impl FnMut(&mut Pool, BufferId)) {
        for &buffer in &self.buffers[..mem::take(&mut self.count)] {
            if let Some(slot) = pool.release(buffer) {
                freed(pool, slot);
            }
        }
    }
}

/// One train on its way out.
pub(crate) struct Send {
    header: libc::msghdr,
    name: [u8; NAME_BYTES],
    name_len: libc::socklen_t,
    control: [u8; SEND_CONTROL_ROOM],
    gather: Gather,
    total: u32,
    segment: u16,
    family: Family,
    to: Endpoint,
    /// Where it leaves from; unset once the kernel has refused that.
    local: LocalAddress,
}

impl Send {
    pub(crate) fn new() -> Self {
        Self {
            header: empty_header(),
            name: [0; NAME_BYTES],
            name_len: 0,
            control: [0; SEND_CONTROL_ROOM],
            gather: Gather::new(),
            total: 0,
            segment: 0,
            family: Family::V6,
            to: Endpoint::default(),
            local: LocalAddress::UNSET,
        }
    }

    /// Makes this the train of `spans` to `to` and takes references of their buffers.
    pub(crate) fn fill(
        &mut self,
        pool: &mut Pool,
        family: Family,
        to: &AddressPair,
        segment: u16,
        spans: &[Span],
    ) -> Result<(), SendError> {
        self.total = check_train(pool, segment, spans)?;
        self.segment = segment;
        self.family = family;
        self.to = to.remote;
        self.local = to.local;
        self.name_len = family.name_len();
        if !write_name(&to.remote, family, &mut self.name) {
            return Err(SendError::Family);
        }
        self.gather.fill(pool, spans)
    }

    /// Whether the kernel is to cut it.
    pub(crate) fn is_segmented(&self) -> bool {
        self.total > u32::from(self.segment)
    }

    /// Bytes of the whole train.
    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// The header that describes it, pointing into `self`: `self` must stay where it is until the
    /// kernel is done with it.
    pub(crate) fn header(&mut self) -> *mut libc::msghdr {
        let segment = self.is_segmented().then_some(self.segment);
        let mut header = self.addressed(segment);
        header.msg_iov = self.gather.iovecs[1..].as_mut_ptr();
        header.msg_iovlen = self.gather.count as _;
        self.header = header;
        &raw mut self.header
    }

    /// A header with addresses and, where the kernel is to cut, the size of the datagrams.
    fn addressed(&mut self, segment: Option<u16>) -> libc::msghdr {
        let mut header = empty_header();
        header.msg_name = self.name.as_mut_ptr().cast();
        header.msg_namelen = self.name_len;
        let len = write_control(&mut self.control, self.family, &self.local, segment);
        if len > 0 {
            header.msg_control = self.control.as_mut_ptr().cast();
            header.msg_controllen = len as _;
        }
        header
    }

    /// Leaves the source address to the kernel, if `errno` may be for want of it. What it was.
    fn forget_source(&mut self, errno: i32) -> Option<LocalAddress> {
        let blamed = !self.local.is_unset() && blames_source(errno);
        blamed.then(|| mem::take(&mut self.local))
    }

    /// Gives the references back.
    pub(crate) fn finish(&mut self, pool: &mut Pool, freed: impl FnMut(&mut Pool, BufferId)) {
        self.gather.finish(pool, freed);
    }
}

/// One TUN write on its way out.
pub(crate) struct Write {
    header: [u8; TUN_HEADER_LEN],
    gather: Gather,
    total: usize,
}

impl Write {
    pub(crate) fn new() -> Self {
        Self {
            header: [0; TUN_HEADER_LEN],
            gather: Gather::new(),
            total: 0,
        }
    }

    /// Makes this the write of `header` and `spans` and takes references of their buffers.
    pub(crate) fn fill(
        &mut self,
        pool: &mut Pool,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        let bytes = check_spans(pool, spans)?;
        if bytes == 0 {
            return Err(SendError::Size);
        }
        self.total = TUN_HEADER_LEN + bytes as usize;
        self.header = *header;
        self.gather.fill(pool, spans)
    }

    /// Header and spans, pointing into `self`: as [`Send::header`].
    pub(crate) fn iovecs(&mut self) -> &[libc::iovec] {
        self.gather.iovecs[0] = libc::iovec {
            iov_base: self.header.as_mut_ptr().cast(),
            iov_len: TUN_HEADER_LEN,
        };
        &self.gather.iovecs[..=self.gather.count]
    }

    /// Bytes that the kernel has to take.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Gives the references back.
    pub(crate) fn finish(&mut self, pool: &mut Pool, freed: impl FnMut(&mut Pool, BufferId)) {
        self.gather.finish(pool, freed);
    }
}

/// A fixed number of operations and which of them are free, the one used last first.
pub(crate) struct Slab<T> {
    operations: Vec<T>,
    free: Vec<u16>,
}

impl<T> Slab<T> {
    pub(crate) fn new(count: u16, new: impl Fn() -> T) -> Self {
        Self {
            operations: (0..count).map(|_| new()).collect(),
            free: (0..count).rev().collect(),
        }
    }

    pub(crate) fn take(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub(crate) fn give_back(&mut self, index: u16) {
        debug_assert!(!self.free.contains(&index));
        self.free.push(index);
    }

    pub(crate) fn at(&mut self, index: u16) -> &mut T {
        &mut self.operations[usize::from(index)]
    }

    /// Operations that are not free.
    pub(crate) fn used(&self) -> usize {
        self.operations.len() - self.free.len()
    }
}

/// Whether the kernel cuts trains of this socket, and the way to send them when it does not.
pub(crate) struct Segmentation {
    /// False once the kernel has refused a train whose datagrams it took one by one.
    pub(crate) offloaded: bool,
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
}

impl Segmentation {
    pub(crate) fn new() -> Self {
        let header = libc::mmsghdr {
            msg_hdr: empty_header(),
            msg_len: 0,
        };
        Self {
            offloaded: true,
            headers: vec![header; SEGMENTS_MAX].into_boxed_slice(),
            // Every iovec of a train yields one piece, and every cut between datagrams one more.
            iovecs: vec![NO_BYTES; SPANS_MAX + SEGMENTS_MAX].into_boxed_slice(),
        }
    }

    /// What becomes of a train that the kernel has refused with `errno`: it is sent again, once
    /// without its source address if that may be missing, then as datagrams of their own if
    /// segmentation may be, or else is counted.
    pub(crate) fn refused(
        &mut self,
        socket: BorrowedFd<'_>,
        train: &mut Send,
        mut errno: i32,
        stats: &mut DriverStats,
    ) {
        if let Some(source) = train.forget_source(errno) {
            // SAFETY: `header` returns a pointer to a header inside `train`, which is alive,
            // initialised by that very call, and borrowed by nobody else.
            self.headers[0].msg_hdr = unsafe { *train.header() };
            match send_uninterrupted(socket, &mut self.headers[..1]) {
                Ok(_) => {
                    stats.note_source_refused(source);
                    return;
                }
                // It was not to blame, or not alone.
                Err(again) => (train.local, errno) = (source, again),
            }
        }
        match refusal(errno) {
            Refusal::Backpressure => stats.tx_backpressure += 1,
            Refusal::Offload if train.is_segmented() => self.send_singly(socket, train, stats),
            Refusal::TooBig => stats.note_too_big(train.to),
            Refusal::Offload | Refusal::Other => stats.tx_errors += 1,
        }
    }

    /// Sends `train` as datagrams of their own, at once, and counts what the kernel refuses.
    ///
    /// If the kernel takes the first of them although it has just refused the whole train, cutting
    /// is what does not work on this socket, and no train is tried as a whole again. If it refuses
    /// that too (the path's MTU, say), cutting is not to blame.
    pub(crate) fn send_singly(
        &mut self,
        socket: BorrowedFd<'_>,
        train: &mut Send,
        stats: &mut DriverStats,
    ) {
        let count = self.cut(train);
        let (mut sent, mut suspect) = (0, None);
        while sent < count {
            match send_uninterrupted(socket, &mut self.headers[sent..count]) {
                Ok(more) => {
                    sent += more;
                    if let Some(source) = suspect.take() {
                        stats.note_source_refused(source);
                    }
                }
                Err(errno) => {
                    if let Some(source) = train.forget_source(errno) {
                        suspect = Some(source);
                        for header in &mut self.headers[sent..count] {
                            header.msg_hdr.msg_control = std::ptr::null_mut();
                            header.msg_hdr.msg_controllen = 0;
                        }
                        continue;
                    }
                    // The rest of the train would meet the same fate, and half a train is
                    // worth little to whoever waits for all of it.
                    match refusal(errno) {
                        Refusal::Backpressure => stats.tx_backpressure += 1,
                        Refusal::TooBig => stats.note_too_big(train.to),
                        Refusal::Offload | Refusal::Other => stats.tx_errors += 1,
                    }
                    break;
                }
            }
        }
        self.offloaded &= sent == 0;
    }

    /// Describes each datagram of `train` in `headers`; returns their number.
    fn cut(&mut self, train: &mut Send) -> usize {
        let segment = usize::from(train.segment);
        let (mut datagrams, mut pieces, mut room) = (0, 0, 0);
        let whole = train.addressed(None);
        for span in train.gather.spans() {
            let (mut base, mut left) = (span.iov_base.cast::<u8>(), span.iov_len);
            while left > 0 {
                if room == 0 {
                    room = segment;
                    let header = &mut self.headers[datagrams].msg_hdr;
                    *header = whole;
                    header.msg_iov = &raw mut self.iovecs[pieces];
                    datagrams += 1;
                }
                let len = left.min(room);
                self.iovecs[pieces] = libc::iovec {
                    iov_base: base.cast(),
                    iov_len: len,
                };
                self.headers[datagrams - 1].msg_hdr.msg_iovlen += 1;
                pieces += 1;
                base = base.wrapping_add(len);
                left -= len;
                room -= len;
            }
        }
        datagrams
    }
}

/// [`send_messages`], again when a signal came in between; fails with the error's number.
fn send_uninterrupted(socket: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> Result<usize, i32> {
    loop {
        match send_messages(socket, headers) {
            Ok(sent) => return Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.raw_os_error().unwrap_or_default()),
        }
    }
}

/// `sendmmsg` without waiting: how many of `headers` the kernel took.
pub(crate) fn send_messages(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let count = u32::try_from(headers.len()).unwrap_or(u32::MAX);
    // SAFETY: `headers` are `count` initialised headers. Their names, controls and iovecs point
    // into operations that outlive this call (they are borrowed by, or owned by, the callers
    // `Segmentation` and `EpollDriver`), and their data into slots that are kept by references
    // until `finish`. The kernel is done with all of them when the call returns.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT as _,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

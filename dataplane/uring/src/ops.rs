//! Operations in flight: the memory that a queued `sendmsg` or `writev` refers to.
//!
//! One operation is one train or one TUN write. The slab is allocated once; an operation keeps its
//! place until it completes, so the pointers inside its `msghdr` stay valid.

use hyphae_wire::Endpoint;

use crate::cmsg::{self, NAME_LEN, SEGMENT_CONTROL_LEN};
use crate::pool::Pool;
use crate::{
    BufferId, SEGMENTS_MAX, SPANS_MAX, SendError, Span, TRAIN_BYTES_MAX, TUN_HEADER_LEN,
};

/// One operation. `iov[0]` is the virtio-net header of a TUN write, else unused.
pub(crate) struct Op {
    iov: [libc::iovec; SPANS_MAX + 1],
    count: usize,
    header: [u8; TUN_HEADER_LEN],
    name: [u8; NAME_LEN],
    control: ControlBytes,
    message: libc::msghdr,
    buffers: [BufferId; SPANS_MAX],
    pub(crate) is_send: bool,
}

/// `cmsghdr` wants the alignment of `usize`.
#[repr(C, align(8))]
struct ControlBytes([u8; SEGMENT_CONTROL_LEN]);

/// All operations of one driver.
pub(crate) struct Ops {
    ops: Box<[Op]>,
    free: Vec<u16>,
    ipv4_socket: bool,
    /// The kernel cannot segment on this socket (EIO): trains are sent one by one.
    pub(crate) segmentation_off: bool,
}

// SAFETY: the raw pointers inside point into the slab itself and into the driver's pool, which move
// together with the driver; nothing about them belongs to a thread.
unsafe impl Send for Ops {}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

impl Ops {
    pub(crate) fn new(count: u16, ipv4_socket: bool) -> Self {
        let op = || Op {
            iov: [EMPTY; SPANS_MAX + 1],
            count: 0,
            header: [0; TUN_HEADER_LEN],
            name: [0; NAME_LEN],
            control: ControlBytes([0; SEGMENT_CONTROL_LEN]),
            // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and zero lengths.
            message: unsafe { std::mem::zeroed() },
            buffers: [BufferId(0); SPANS_MAX],
            is_send: false,
        };
        Self {
            ops: (0..count).map(|_| op()).collect(),
            free: (0..count).rev().collect(),
            ipv4_socket,
            segmentation_off: false,
        }
    }

    /// Prepares a send; the operation holds one reference of every span's buffer.
    pub(crate) fn send(
        &mut self,
        pool: &mut Pool,
        to: &Endpoint,
        segment: u32,
        spans: &[Span],
    ) -> Result<u16, SendError> {
        let total: u32 = spans.iter().map(|span| span.len).sum();
        let segments = total.div_ceil(segment.max(1)) as usize;
        let fits = segment > 0 && total > 0 && total <= TRAIN_BYTES_MAX && segments <= SEGMENTS_MAX;
        let segment16 = u16::try_from(segment).unwrap_or(u16::MAX);
        if !fits || (segments > 1 && u32::from(segment16) != segment) {
            return Err(SendError::Shape);
        }
        let id = self.take(pool, spans)?;
        let ipv4 = self.ipv4_socket;
        let op = &mut self.ops[usize::from(id)];
        op.is_send = true;
        let name_len = cmsg::store_name(to, ipv4, &mut op.name);
        // SAFETY: all-zero bytes are a valid `msghdr`.
        op.message = unsafe { std::mem::zeroed() };
        op.message.msg_name = op.name.as_mut_ptr().cast();
        // At most NAME_LEN.
        op.message.msg_namelen = name_len as libc::socklen_t;
        op.message.msg_iov = op.iov[1..].as_mut_ptr();
        op.message.msg_iovlen = op.count;
        if segments > 1 {
            op.control.0 = cmsg::segment_control(segment16);
            op.message.msg_control = op.control.0.as_mut_ptr().cast();
            op.message.msg_controllen = SEGMENT_CONTROL_LEN;
        }
        Ok(id)
    }

    /// Prepares a TUN write, likewise.
    pub(crate) fn write(
        &mut self,
        pool: &mut Pool,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<u16, SendError> {
        let id = self.take(pool, spans)?;
        let op = &mut self.ops[usize::from(id)];
        op.is_send = false;
        op.header = *header;
        op.iov[0] =
            libc::iovec { iov_base: op.header.as_mut_ptr().cast(), iov_len: TUN_HEADER_LEN };
        Ok(id)
    }

    fn take(&mut self, pool: &mut Pool, spans: &[Span]) -> Result<u16, SendError> {
        if spans.is_empty() || spans.len() > SPANS_MAX {
            return Err(SendError::Shape);
        }
        let id = self.free.pop().ok_or(SendError::Full)?;
        let op = &mut self.ops[usize::from(id)];
        op.count = spans.len();
        for (n, span) in spans.iter().enumerate() {
            let iov_base = pool.address(*span).cast();
            op.iov[n + 1] = libc::iovec { iov_base, iov_len: span.len as usize };
            op.buffers[n] = span.buffer;
            pool.retain(span.buffer);
        }
        Ok(id)
    }

    /// The message of a send; valid until the operation is done.
    pub(crate) fn message(&self, id: u16) -> *const libc::msghdr {
        &raw const self.ops[usize::from(id)].message
    }

    /// The vectors of a TUN write; valid until the operation is done.
    pub(crate) fn vectors(&self, id: u16) -> (*const libc::iovec, u32) {
        let op = &self.ops[usize::from(id)];
        // At most SPANS_MAX + 1.
        (op.iov.as_ptr(), (op.count + 1) as u32)
    }

    pub(crate) fn is_send(&self, id: u16) -> bool {
        self.ops[usize::from(id)].is_send
    }

    /// The kernel is done with the operation. Calls `freed` for receive buffers that became free.
    pub(crate) fn finish(&mut self, pool: &mut Pool, id: u16, mut freed: impl FnMut(BufferId)) {
        let op = &mut self.ops[usize::from(id)];
        for buffer in &op.buffers[..op.count] {
            if pool.release(*buffer) {
                freed(*buffer);
            }
        }
        op.count = 0;
        self.free.push(id);
    }
}

/// Cuts spans that hold whole datagrams into single ones: what is sent where segmentation is off.
pub(crate) fn singles(segment: u32, spans: &[Span]) -> impl Iterator<Item = Span> {
    spans.iter().flat_map(move |span| {
        (0..span.len.div_ceil(segment)).map(move |n| Span {
            buffer: span.buffer,
            offset: span.offset + n * segment,
            len: segment.min(span.len - n * segment),
        })
    })
}

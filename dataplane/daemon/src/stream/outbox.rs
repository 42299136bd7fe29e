//! What waits to be written to one connection: bounded, so that a slow receiver hurts only itself.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use bytes::BytesMut;
use hyphae_wire::FrameKind;
use tokio::sync::Notify;

use super::framing::append;

/// Bytes that may wait for one connection, beside what the kernel holds.
pub(crate) const QUEUE_BYTES: usize = 256 * 1024;
/// What probes and handshakes may take on top: a connection full of transit frames must not look
/// dead.
const CONTROL_BYTES: usize = 16 * 1024;
/// A larger buffer is given back when the connection rests.
const KEPT_BYTES: usize = 64 * 1024;

/// Frames for one connection, ready to be written.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: RefCell<BytesMut>,
    frames: Cell<u64>,
    sealed_at: Cell<Option<Instant>>,
    closed: Cell<bool>,
    /// There is something to write, or the end has come.
    ready: Notify,
    /// Everything is written.
    empty: Notify,
    writing: Cell<bool>,
}

impl Outbox {
    /// Queues a frame; false when there is no room. The newest gives way: those before it are on
    /// their way, and the ends of a flow learn soonest from a gap behind them.
    pub(crate) fn push(&self, frame: &[u8], now: Instant) -> bool {
        let kind = frame.first().copied().and_then(FrameKind::from_code);
        let transit = kind == Some(FrameKind::Transit);
        let max = QUEUE_BYTES + if transit { 0 } else { CONTROL_BYTES };
        let mut bytes = self.bytes.borrow_mut();
        if self.closed.get() || bytes.len() + frame.len() > max || !append(&mut bytes, frame) {
            return false;
        }
        self.frames.set(self.frames.get() + 1);
        if transit || kind == Some(FrameKind::LinkLocal) {
            self.sealed_at.set(Some(now));
        }
        // A permit is kept when nobody waits.
        self.ready.notify_one();
        true
    }

    /// When a sealed frame was last sent: only a lane of ours that leads here makes any.
    pub(crate) fn sealed_at(&self) -> Option<Instant> {
        self.sealed_at.get()
    }

    /// Waits for something to write and takes all of it; `spare` is written out and used again.
    /// `None` at the end.
    pub(crate) async fn take(&self, mut spare: BytesMut) -> Option<BytesMut> {
        spare.clear();
        self.writing.set(false);
        loop {
            if self.closed.get() {
                return None;
            }
            if !self.bytes.borrow().is_empty() {
                self.frames.set(0);
                self.writing.set(true);
                return Some(self.bytes.replace(spare));
            }
            if spare.capacity() > KEPT_BYTES {
                spare = BytesMut::new();
            }
            self.empty.notify_waiters();
            self.ready.notified().await;
        }
    }

    /// Takes nothing more and ends whoever writes. Returns how many frames were not taken.
    pub(crate) fn close(&self) -> u64 {
        self.closed.set(true);
        self.bytes.borrow_mut().clear();
        self.ready.notify_one();
        self.empty.notify_waiters();
        self.frames.take()
    }

    /// Waits until everything is handed to the kernel.
    pub(crate) async fn written(&self) {
        while !self.closed.get() && (self.writing.get() || !self.bytes.borrow().is_empty()) {
            self.empty.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn frame(kind: FrameKind, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        frame[0] = kind.code();
        frame
    }

    #[test]
    fn a_full_queue_takes_control_frames_but_no_transit() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let transit = frame(FrameKind::Transit, 1400);
        let mut taken = 0;
        while outbox.push(&transit, now) {
            taken += 1;
        }
        assert!(taken * (1400 + 2) <= QUEUE_BYTES && taken * (1400 + 2) > QUEUE_BYTES - 3000);
        let probe = frame(FrameKind::LinkLocal, 64);
        let mut probes = 0;
        while outbox.push(&probe, now) {
            probes += 1;
        }
        assert!((200..400).contains(&probes), "{probes}");
        assert!(!outbox.push(&transit, now));
        assert_eq!(outbox.close(), taken as u64 + probes);
    }

    #[test]
    fn only_sealed_frames_show_a_session() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        assert!(outbox.push(&frame(FrameKind::HandshakeResponse, 100), now));
        assert_eq!(outbox.sealed_at(), None);
        assert!(outbox.push(&frame(FrameKind::LinkLocal, 100), now));
        assert_eq!(outbox.sealed_at(), Some(now));
    }

    #[test]
    fn what_was_queued_leaves_in_one_piece_and_nothing_after_the_end() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            for _ in 0..3 {
                assert!(outbox.push(&frame(FrameKind::Transit, 100), now));
            }
            let all = outbox.take(BytesMut::new()).await.unwrap();
            assert_eq!(all.len(), 3 * 102);
            assert!(outbox.push(&frame(FrameKind::Transit, 100), now));
            assert_eq!(outbox.close(), 1);
            assert!(!outbox.push(&frame(FrameKind::Transit, 100), now));
            assert!(outbox.take(all).await.is_none());
        });
    }
}

//! The driver's in-memory twin: events go in by hand, sends and TUN writes come out as bytes.
//! For tests of what stands on a driver.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use hyphae_wire::Endpoint;

use crate::pool::Pool;
use crate::{
    BUFFER_BYTES, BufferId, Driver, DriverStats, Event, SendError, Span, TUN_HEADER_LEN,
};

/// A train that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Where to.
    pub to: Endpoint,
    /// Segment size asked for.
    pub segment: u32,
    /// All bytes.
    pub bytes: Vec<u8>,
}

/// A driver without a kernel.
pub struct Memory {
    pool: Pool,
    idle: Vec<BufferId>,
    ready: VecDeque<Event>,
    stats: DriverStats,
    /// Trains sent, oldest first.
    pub sent: VecDeque<Sent>,
    /// TUN writes, virtio-net header first, oldest first.
    pub written: VecDeque<Vec<u8>>,
}

impl Memory {
    /// A driver with this many buffers of either kind.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(receive: u16, transmit: u16) -> io::Result<Self> {
        Ok(Self {
            pool: Pool::new(receive, transmit)?,
            idle: (0..receive).rev().map(BufferId).collect(),
            ready: VecDeque::new(),
            stats: DriverStats::default(),
            sent: VecDeque::new(),
            written: VecDeque::new(),
        })
    }

    /// Receive buffers that nobody uses.
    pub fn idle_buffers(&self) -> usize {
        self.idle.len()
    }

    /// Lets a train arrive; false when no buffer is free.
    pub fn arrive(&mut self, from: Endpoint, segment: u32, bytes: &[u8]) -> bool {
        let Some(span) = self.fill(bytes) else { return false };
        self.ready.push_back(Event::Datagrams { span, segment, from });
        true
    }

    /// Lets a packet of the host arrive, virtio-net header first; false when no buffer is free.
    pub fn arrive_tun(&mut self, bytes: &[u8]) -> bool {
        let Some(span) = self.fill(bytes) else { return false };
        self.ready.push_back(Event::Tun { span });
        true
    }

    fn fill(&mut self, bytes: &[u8]) -> Option<Span> {
        let len = u32::try_from(bytes.len()).ok().filter(|len| *len <= BUFFER_BYTES)?;
        let Some(buffer) = self.idle.pop() else {
            self.stats.buffer_exhausted += 1;
            return None;
        };
        self.pool.retain(buffer);
        let span = Span { buffer, offset: 0, len };
        self.pool.bytes(span).copy_from_slice(bytes);
        Some(span)
    }

    fn gather(&mut self, spans: &[Span]) -> Vec<u8> {
        spans.iter().flat_map(|span| self.pool.bytes(*span).to_vec()).collect()
    }
}

impl Driver for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self) -> io::Result<()> {
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
        let bytes = self.gather(spans);
        self.sent.push_back(Sent { to: *to, segment, bytes });
        Ok(())
    }

    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        let bytes = [&header[..], &self.gather(spans)].concat();
        self.written.push_back(bytes);
        Ok(())
    }

    fn stats(&self) -> &DriverStats {
        &self.stats
    }
}

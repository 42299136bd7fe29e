//! What both drivers do alike before and beside their own way of talking to the kernel.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::address::Family;
use crate::driver::{BufferId, DriverStats, EVENTS_PER_TURN, Event, TUN_HEADER_LEN, TUN_SLOTS};
use crate::open::{DriverParts, OpenError};
use crate::pool::{Pool, length};
use crate::tun::set_nonblocking;
use crate::udp::local_address;

/// Slots of either class: the entries of a buffer ring, a power of two below 65,536.
const BUFFERS_MAX: u16 = 32_768;
/// Failed receives in a row after which the socket is beyond help.
const FAILURES_MAX: u32 = 1_000;

/// Checks `parts`, makes their descriptors what a driver needs and maps the buffers.
pub(crate) fn prepare(parts: &DriverParts, slot_bytes: usize) -> Result<(Family, Pool), OpenError> {
    let (receive, transmit) = (parts.receive_buffers, parts.transmit_buffers);
    if !(1..=BUFFERS_MAX).contains(&receive) || !(1..=BUFFERS_MAX).contains(&transmit) {
        return Err(OpenError::Count { receive, transmit });
    }
    let call = |call| move |source| OpenError::Call { call, source };
    let family = match local_address(parts.socket.as_fd()).map_err(call("getsockname"))? {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    set_nonblocking(parts.doorbell.as_fd()).map_err(call("fcntl on the doorbell"))?;
    if let Some(tun) = &parts.tun {
        set_nonblocking(tun.as_fd()).map_err(call("fcntl on the TUN device"))?;
    }
    let tun_slots = if parts.tun.is_some() { TUN_SLOTS } else { 0 };
    let slots = [receive, tun_slots, transmit]
        .into_iter()
        .map(usize::from)
        .sum::<usize>();
    let pool = Pool::new(slot_bytes, receive, tun_slots, transmit).map_err(|source| {
        OpenError::Memory {
            bytes: slots * slot_bytes,
            source,
        }
    })?;
    Ok((family, pool))
}

/// Events that wait for the worker, and how many of them it may still have in this turn.
pub(crate) struct Ready {
    /// As long as there are slots that an event can name: it never grows.
    events: VecDeque<Event>,
    budget: u32,
}

impl Ready {
    pub(crate) fn new(parts: &DriverParts) -> Self {
        let capacity = usize::from(parts.receive_buffers) + usize::from(TUN_SLOTS);
        Self {
            events: VecDeque::with_capacity(capacity),
            budget: 0,
        }
    }

    pub(crate) fn begin_turn(&mut self) {
        self.budget = EVENTS_PER_TURN.into();
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(crate) fn next(&mut self) -> Option<Event> {
        if self.budget == 0 {
            return None;
        }
        let event = self.events.pop_front()?;
        self.budget -= 1;
        Some(event)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }
}

/// Failed receives in a row. One is counted and forgotten; a thousand mean that trying again is
/// only a way to burn a core.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    in_a_row: u32,
    last: i32,
}

impl Failures {
    pub(crate) fn note(&mut self, errno: i32, stats: &mut DriverStats) {
        stats.rx_errors += 1;
        self.in_a_row += 1;
        self.last = errno;
    }

    pub(crate) fn forget(&mut self) {
        self.in_a_row = 0;
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        if self.in_a_row < FAILURES_MAX {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(self.last))
    }
}

/// The event of a TUN read of `len` bytes into a slot of `room` bytes, if it can be a whole packet.
/// One that fills the slot to the brim was cut short.
pub(crate) fn tun_event(buffer: BufferId, len: usize, room: usize) -> Option<Event> {
    let whole = (TUN_HEADER_LEN + 1..room).contains(&len);
    whole.then(|| Event::Tun {
        buffer,
        offset: 0,
        len: length(len),
    })
}

/// Clears the doorbell; counts it if it had been rung.
pub(crate) fn clear_doorbell(doorbell: BorrowedFd<'_>, stats: &mut DriverStats) {
    if rustix::io::read(doorbell, &mut [0u8; 8]).is_ok() {
        stats.doorbells += 1;
    }
}

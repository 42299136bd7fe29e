//! In-memory twin of the drivers, for tests of a worker without a kernel.
//!
//! [`pair`] gives the driver and the [`Outside`] of it: what plays the network, the host and the
//! control plane. The outside may live on another thread; `wait` sleeps and wakes like the real
//! ones. Limits, references and refusals are those of the real drivers. Unlike them it allocates.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyphae_wire::{AddressPair, Endpoint, LocalAddress};

use crate::driver::{
    BufferId, Driver, DriverStats, EVENTS_PER_TURN, Event, SPANS_MAX, SendError, Span,
    TUN_HEADER_LEN, TUN_SLOTS,
};
use crate::pool::{Pool, SLOT_BYTES};
use crate::train::{check_spans, check_train};

/// A train that the driver was asked to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Destination.
    pub to: Endpoint,
    /// The address that it is to leave from.
    pub local: LocalAddress,
    /// Bytes of each datagram but the last.
    pub segment: u16,
    /// Bytes of all datagrams together.
    pub bytes: Vec<u8>,
}

/// A packet that the driver was asked to write to the TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunWrite {
    /// The virtio-net header.
    pub header: [u8; TUN_HEADER_LEN],
    /// The packet.
    pub packet: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    arriving: VecDeque<Arriving>,
    rung: bool,
    sent: Vec<Sent>,
    written: Vec<TunWrite>,
    /// Trains that are accepted before the driver says it is full.
    send_room: Option<usize>,
}

enum Arriving {
    Datagrams {
        addresses: AddressPair,
        segment: u32,
        bytes: Vec<u8>,
    },
    Tun {
        bytes: Vec<u8>,
    },
}

type Link = Arc<(Mutex<Shared>, Condvar)>;

fn lock(link: &Link) -> MutexGuard<'_, Shared> {
    // Every change under the lock is complete in itself, so a panic elsewhere leaves no half state.
    link.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver with a TUN device and its outside.
///
/// # Errors
/// When the buffers cannot be mapped.
pub fn pair(receive_buffers: u16, transmit_buffers: u16) -> io::Result<(MemoryDriver, Outside)> {
    let link = Link::default();
    let pool = Pool::new(SLOT_BYTES, receive_buffers, TUN_SLOTS, transmit_buffers)?;
    let driver = MemoryDriver {
        free_receive: pool.receive_slots(),
        pool,
        link: Arc::clone(&link),
        budget: 0,
        stats: DriverStats::default(),
    };
    Ok((driver, Outside { link }))
}

/// The other side of a [`MemoryDriver`].
#[derive(Clone)]
pub struct Outside {
    link: Link,
}

impl Outside {
    /// A train arrives: datagrams of `segment` bytes, the last maybe shorter.
    ///
    /// # Panics
    /// When it is empty or larger than a slot: no kernel hands out such a thing.
    pub fn push_datagrams(&self, from: impl Into<AddressPair>, segment: u32, bytes: &[u8]) {
        assert!(
            segment > 0 && (1..=SLOT_BYTES).contains(&bytes.len()),
            "no possible train"
        );
        let segment = segment.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.push(Arriving::Datagrams {
            addresses: from.into(),
            segment,
            bytes: bytes.to_vec(),
        });
    }

    /// The host sends a packet.
    ///
    /// # Panics
    /// When it is empty or larger than a slot.
    pub fn push_tun(&self, header: &[u8; TUN_HEADER_LEN], packet: &[u8]) {
        let possible = 1..=SLOT_BYTES - TUN_HEADER_LEN;
        assert!(possible.contains(&packet.len()), "no possible packet");
        self.push(Arriving::Tun {
            bytes: [header.as_slice(), packet].concat(),
        });
    }

    /// Rings the doorbell.
    pub fn ring(&self) {
        lock(&self.link).rung = true;
        self.link.1.notify_one();
    }

    /// Takes what was sent so far.
    pub fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut lock(&self.link).sent)
    }

    /// Takes what was written to the TUN device so far.
    pub fn take_tun_writes(&self) -> Vec<TunWrite> {
        std::mem::take(&mut lock(&self.link).written)
    }

    /// Accepts only so many more trains, then refuses with [`SendError::Full`]; `None` = all.
    pub fn limit_sends(&self, room: Option<usize>) {
        lock(&self.link).send_room = room;
    }

    fn push(&self, arriving: Arriving) {
        lock(&self.link).arriving.push_back(arriving);
        self.link.1.notify_one();
    }
}

/// Driver without a kernel; see [`pair`].
pub struct MemoryDriver {
    pool: Pool,
    free_receive: Vec<BufferId>,
    link: Link,
    budget: u32,
    stats: DriverStats,
}

impl MemoryDriver {
    /// References that users hold, of all buffers together: zero when none has leaked.
    pub fn references(&self) -> u64 {
        self.pool.references()
    }

    fn gather(&mut self, spans: &[Span]) -> Vec<u8> {
        spans
            .iter()
            .flat_map(|&span| self.spans(span).to_vec())
            .collect()
    }
}

impl Driver for MemoryDriver {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.budget = EVENTS_PER_TURN.into();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut shared = lock(&self.link);
        let mut slept = false;
        while shared.arriving.is_empty() && !shared.rung {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            slept = true;
            let wake = &self.link.1;
            shared = match left {
                Some(left) => {
                    wake.wait_timeout(shared, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => wake.wait(shared).unwrap_or_else(PoisonError::into_inner),
            };
        }
        self.stats.wakeups += u64::from(slept);
        self.stats.doorbells += u64::from(std::mem::take(&mut shared.rung));
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        if self.budget == 0 {
            return None;
        }
        let mut shared = lock(&self.link);
        let arriving = shared.arriving.pop_front()?;
        let buffer = match &arriving {
            Arriving::Datagrams { .. } => self.free_receive.pop(),
            Arriving::Tun { .. } => self.pool.lend_tun(),
        };
        let Some(buffer) = buffer else {
            self.stats.buffer_exhausted += 1;
            shared.arriving.push_front(arriving);
            return None;
        };
        drop(shared);
        self.budget -= 1;
        self.pool.take(buffer);
        let (Arriving::Datagrams { bytes, .. } | Arriving::Tun { bytes }) = &arriving;
        self.pool.bytes(buffer)[..bytes.len()].copy_from_slice(bytes);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Some(match arriving {
            Arriving::Datagrams {
                addresses, segment, ..
            } => Event::Datagrams {
                buffer,
                offset: 0,
                len,
                segment,
                from: addresses.remote,
                local: addresses.local,
            },
            Arriving::Tun { .. } => Event::Tun {
                buffer,
                offset: 0,
                len,
            },
        })
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
        let to = to.into();
        check_train(&self.pool, segment, spans)?;
        if spans.len() > SPANS_MAX {
            return Err(SendError::Size);
        }
        let bytes = self.gather(spans);
        let mut shared = lock(&self.link);
        if let Some(room) = &mut shared.send_room {
            *room = room.checked_sub(1).ok_or(SendError::Full)?;
        }
        shared.sent.push(Sent {
            to: to.remote,
            local: to.local,
            segment,
            bytes,
        });
        Ok(())
    }

    fn write_tun(
        &mut self,
        header: &[u8; TUN_HEADER_LEN],
        spans: &[Span],
    ) -> Result<(), SendError> {
        if check_spans(&self.pool, spans)? == 0 || spans.len() > SPANS_MAX {
            return Err(SendError::Size);
        }
        let packet = self.gather(spans);
        lock(&self.link).written.push(TunWrite {
            header: *header,
            packet,
        });
        Ok(())
    }

    /// A device in memory is never deleted.
    fn resume_tun(&mut self) {}

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn buffers(&self) -> (u16, u16) {
        self.pool.usage()
    }

    fn stats(&self) -> &DriverStats {
        &self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twin_keeps_the_drivers_contract() {
        let (mut driver, outside) = pair(1, 1).unwrap();
        let from = Endpoint::default().with_port(7);
        outside.push_datagrams(from, 4, b"abcdefghij");
        outside.push_tun(&[1; TUN_HEADER_LEN], b"packet");
        driver.wait(None).unwrap();
        let Some(Event::Datagrams {
            buffer,
            offset,
            len,
            segment: 4,
            ..
        }) = driver.next()
        else {
            panic!("no train")
        };
        let span = Span {
            buffer,
            offset,
            len,
        };
        driver.send(from, 4, &[span]).unwrap();
        let expected = Sent {
            to: from,
            local: LocalAddress::UNSET,
            segment: 4,
            bytes: b"abcdefghij".to_vec(),
        };
        assert_eq!(outside.take_sent(), [expected]);
        let Some(Event::Tun {
            buffer: packet,
            offset,
            len,
        }) = driver.next()
        else {
            panic!("no packet")
        };
        let packet_span = Span {
            buffer: packet,
            offset: offset + 10,
            len: len - 10,
        };
        driver
            .write_tun(&[2; TUN_HEADER_LEN], &[packet_span])
            .unwrap();
        assert_eq!(outside.take_tun_writes()[0].packet, b"packet");

        outside.push_datagrams(from, 4, b"abc");
        assert_eq!(driver.next(), None);
        assert_eq!(driver.stats().buffer_exhausted, 1);
        driver.release(buffer);
        driver.release(packet);
        assert!(matches!(
            driver.next(),
            Some(Event::Datagrams {
                len: 3,
                segment: 3,
                ..
            })
        ));

        outside.limit_sends(Some(0));
        assert_eq!(driver.send(from, 4, &[span]), Err(SendError::Full));
        driver.release(buffer);
        assert_eq!(driver.send(from, 4, &[span]), Err(SendError::Span));
        assert_eq!(driver.references(), 0);
    }

    #[test]
    fn a_ring_from_another_thread_ends_the_wait() {
        let (mut driver, outside) = pair(1, 1).unwrap();
        let ringer = std::thread::spawn(move || outside.ring());
        driver.wait(None).unwrap();
        ringer.join().unwrap();
        assert_eq!(driver.stats().doorbells, 1);
        driver.wait(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(driver.next(), None);
    }
}

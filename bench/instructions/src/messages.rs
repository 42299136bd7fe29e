//! Two engines of the message bus, wired to each other.

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyphae_bus::topics::Topics;
use hyphae_bus::{Bus, Config, Destination, Event, Outgoing, Topic};
use hyphae_time::Nanos;
use hyphae_wire::frame::MTU_DEFAULT;

use hyphae_wire::PublicKey;

use crate::NOW;
use crate::records::key;

/// A sender, and a receiver that accepts and reads every message at once.
pub struct Messengers {
    buses: [Bus; 2],
    keys: [PublicKey; 2],
    now: Nanos,
    topic: Topic,
    received: u64,
    packets: u64,
}

impl Messengers {
    /// Both engines; sessions are established on request.
    ///
    /// # Errors
    /// When the topic is invalid.
    pub fn new() -> anyhow::Result<Self> {
        let keys = [key(1), key(2)];
        let bus = |n: usize| Bus::new(Config::new(keys[n]), Topics::default(), [0x5a; 32]);
        Ok(Self {
            buses: [bus(0), bus(1)],
            keys,
            now: NOW,
            topic: "bench".parse().context("a topic")?,
            received: 0,
            packets: 0,
        })
    }

    /// Sends `count` messages together and exchanges packets until none are left; returns the number of packets.
    ///
    /// # Errors
    /// When they do not arrive.
    #[inline(never)]
    pub fn exchange(&mut self, payload: &Bytes, count: u64) -> anyhow::Result<u64> {
        let (received, packets) = (self.received, self.packets);
        self.now = Nanos(self.now.0 + 20_000);
        for _ in 0..count {
            let message = Outgoing {
                destination: Destination::Key(self.keys[1]),
                topic: self.topic.clone(),
                payload: payload.clone(),
                digest: None,
                try_for: None,
                reply_within: None,
                failure: None,
            };
            self.buses[0].push(self.now, message)?;
        }
        loop {
            while self.turn(0) | self.turn(1) {}
            if self.received == received + count {
                break;
            }
            // Delayed acks and back-pressure need timers.
            let due = self.buses.iter().filter_map(Bus::poll_timeout).min();
            let due = due.context("a message in flight has a deadline")?;
            ensure!(
                due.since(self.now).as_secs() < 1,
                "the message does not arrive"
            );
            self.now = self.now.max(due);
            let now = self.now;
            self.buses
                .iter_mut()
                .for_each(|bus| bus.handle_timeout(now));
        }
        Ok(self.packets - packets)
    }

    /// Drains one side; false if it was idle.
    fn turn(&mut self, n: usize) -> bool {
        let mut busy = false;
        while let Some(event) = self.buses[n].poll_event() {
            busy = true;
            match event {
                Event::Deliver(inbound) => {
                    self.received += 1;
                    self.buses[n].accepted(self.now, inbound.key());
                    self.buses[n].mark_read(self.now, inbound.key());
                }
                Event::NeedSession(address) => {
                    let other = self.keys[1 - n];
                    self.buses[n].session_up(self.now, address, other, MTU_DEFAULT.into());
                }
                Event::Finished { .. } | Event::ReplyTimeout(_) => {}
            }
        }
        while let Some(transmit) = self.buses[n].poll_transmit(self.now) {
            busy = true;
            self.packets += 1;
            let from = self.keys[n];
            let to = &mut self.buses[1 - n];
            to.handle_packet(self.now, from, from.address(), &transmit.payload);
        }
        busy
    }
}

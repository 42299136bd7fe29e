//! The loop of one worker: control records, handoff, driver events, flush, sleep.
//!
//! Everything here belongs to one thread. A turn takes bounded amounts from every source, so none
//! of them can starve the others; buffers that a turn receives stay referenced until the turn
//! ends, so trains and TUN writes may gather spans of them meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyphae_driver::{BufferId, Driver, Event, Span};
use hyphae_forward::Engine;
use hyphae_forward::host::Coalescer;
use hyphae_shm::StatsWriter;
use hyphae_shm::stats::{Counter, DropReason};
use hyphae_time::{Nanos, monotonic};
use hyphae_wire::report::DATAGRAM_BASE;

use hyphae_wire::AddressPair;

use crate::control::Control;
use crate::device::Watch;
use crate::handoff::Handoff;
use crate::output::{Arena, Output};
use crate::polling::Polling;
use crate::stream::StreamOutlet;
use crate::vigil::Pulse;

/// Frames taken over per other worker in one turn.
const HANDOFF_BUDGET: usize = 64;
/// Longest sleep: how late an expiry that nothing else announces may be noticed.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// Sleep while a snapshot waits for room.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(1);
/// How often expiries are looked for.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// A turn with more trains and TUN packets is followed by a look for others.
const LIGHT_EVENTS: usize = 4;
/// Work that has been waited for less than that was there already.
const REST: Duration = Duration::from_micros(10);

/// How often the control plane hears that the kernel refuses datagrams as too large.
const TOO_BIG_AGAIN: Duration = Duration::from_millis(100);

/// One worker and all it owns.
pub(crate) struct Worker<D: Driver> {
    pub(crate) driver: D,
    pub(crate) engine: Engine,
    pub(crate) control: Control,
    pub(crate) handoff: Handoff,
    pub(crate) stats: StatsWriter,
    pub(crate) turn: Turn,
    pub(crate) verdicts: Vec<hyphae_forward::Verdict>,
    pub(crate) stop: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
    pub(crate) housekeeping: Nanos,
    /// A corrupt program ring is counted once.
    pub(crate) detached: bool,
    /// Refusals of the kernel that were told, and when the next may be.
    too_big_told: (u64, Nanos),
    /// Refusals of source addresses that the engine knows of.
    sources_refused: u64,
    /// Time not asleep, up to the last sleep, and since when it is awake.
    busy: Duration,
    awake_since: Nanos,
    /// Frames received, and bytes sent, by the end of the last turn.
    received: u64,
    sent: u64,
    /// The last turn left little to the kernel, and the last sleep was one.
    light: bool,
    rested: bool,
    device: Watch,
    polling: Polling,
}

/// What a worker is made of, beside its driver.
pub(crate) struct WorkerParts {
    pub(crate) engine: Engine,
    pub(crate) control: Control,
    pub(crate) handoff: Handoff,
    pub(crate) stream: StreamOutlet,
    pub(crate) stats: StatsWriter,
    pub(crate) udp_segmentation: bool,
    pub(crate) device: Watch,
    pub(crate) polling: Polling,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What a turn gathers and lets go of at its end.
pub(crate) struct Turn {
    pub(crate) output: Output,
    pub(crate) arena: Arena,
    pub(crate) coalescer: Coalescer,
    /// Buffers referenced until the turn ends.
    pub(crate) held: Vec<BufferId>,
}

impl<D: Driver> Worker<D> {
    pub(crate) fn new(driver: D, parts: WorkerParts) -> Self {
        let WorkerParts {
            engine,
            control,
            handoff,
            stream,
            stats,
            udp_segmentation,
            device,
            polling,
            stop,
            pulse,
        } = parts;
        let turn = Turn {
            output: Output::new(stream),
            arena: Arena::new(),
            coalescer: Coalescer::new(udp_segmentation),
            held: Vec::with_capacity(256),
        };
        Self {
            driver,
            engine,
            control,
            handoff,
            stats,
            turn,
            verdicts: Vec::with_capacity(1024),
            stop,
            pulse,
            housekeeping: Nanos(0),
            detached: false,
            too_big_told: (0, Nanos(0)),
            sources_refused: 0,
            busy: Duration::ZERO,
            awake_since: monotonic(),
            received: 0,
            sent: 0,
            light: false,
            rested: false,
            device,
            polling,
        }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// When the driver cannot wait or submit any more: nothing a worker could mend.
    pub(crate) fn run(&mut self) -> std::io::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.pulse.beat();
            let busy = self.turn(monotonic());
            // After little work there is hardly more: what it leaves to the kernel is submitted by the
            // same call that sleeps.
            let done = self.light && self.rested && self.polling.is_off();
            if busy && !done {
                self.driver.wait(Some(Duration::ZERO))?;
            } else if busy || !self.poll()? {
                self.sleep()?;
            }
        }
        self.driver.submit()
    }

    /// One turn; true when there was something to do, so that there may be more.
    pub(crate) fn turn(&mut self, now: Nanos) -> bool {
        let mut busy = self.take_program(now);
        busy |= self.take_handoffs(now);
        while let Some(event) = self.driver.next() {
            busy = true;
            match event {
                Event::Datagrams {
                    buffer,
                    offset,
                    len,
                    segment,
                    from,
                    local,
                } => {
                    self.turn.held.push(buffer);
                    self.receive(
                        now,
                        &AddressPair {
                            remote: from,
                            local,
                        },
                        Span {
                            buffer,
                            offset,
                            len,
                        },
                        segment,
                    );
                }
                Event::Tun {
                    buffer,
                    offset,
                    len,
                } => {
                    self.turn.held.push(buffer);
                    self.host_packet(
                        now,
                        Span {
                            buffer,
                            offset,
                            len,
                        },
                    );
                }
            }
        }
        busy |= self.take_wholes(now);
        while let Some(ready) = self.engine.next_ready() {
            busy = true;
            self.send_ready(now, &ready);
        }
        self.send_errors(now);
        if now >= self.housekeeping {
            self.housekeeping = now + HOUSEKEEPING;
            self.engine.handle_timeout(now);
        }
        self.device.poll(&mut self.driver);
        let stats = self.driver.stats();
        if let Some(to) = stats.too_big_to
            && stats.tx_too_big > self.too_big_told.0
            && now >= self.too_big_told.1
        {
            self.too_big_told = (stats.tx_too_big, now + TOO_BIG_AGAIN);
            self.engine.note_too_big(&to);
        }
        if let Some(local) = stats.refused_source
            && stats.tx_source_refused > self.sources_refused
        {
            self.sources_refused = stats.tx_source_refused;
            self.engine.forget_source(&local);
        }
        self.report(now);
        if busy {
            self.finish();
        }
        busy
    }

    /// Sends what the turn gathered and lets its buffers go.
    fn finish(&mut self) {
        self.flush_host();
        self.turn.output.flush(&mut self.driver);
        let sent = self.turn.output.sent.bytes;
        // What a link may refuse as too large must be known before a sleep.
        self.light = self.turn.held.len() <= LIGHT_EVENTS
            && sent - std::mem::replace(&mut self.sent, sent) <= u64::from(DATAGRAM_BASE);
        self.turn.arena.reset();
        for buffer in self.turn.held.drain(..) {
            self.driver.release(buffer);
        }
        let received = self.engine.counters.total(Counter::UnderlayRxPackets);
        let before = std::mem::replace(&mut self.received, received);
        self.engine.counters.add(Counter::Turns, 1);
        self.engine
            .counters
            .observe(Counter::Turns1, received - before);
        self.publish();
    }

    /// Looks for work for as long as that is allowed; true when there was some. The time of looking does
    /// not count as busy.
    fn poll(&mut self) -> std::io::Result<bool> {
        let begun = monotonic();
        let budget = self.polling.budget(begun);
        if budget.is_zero() {
            return Ok(false);
        }
        let (mut found, mut now) = (false, begun);
        while !found && now.since(begun) < budget && !self.stop.load(Ordering::Relaxed) {
            let offered = monotonic();
            std::thread::yield_now();
            let last = std::mem::replace(&mut now, monotonic());
            // Before a turn that finds work publishes it: what has gone by since the last look was no work.
            self.awake_since = self.awake_since + now.since(last);
            if self.polling.gave_way(now, now.since(offered)) {
                break;
            }
            self.driver.wait(Some(Duration::ZERO))?;
            found = self.turn(now);
        }
        self.polling.note(found);
        let counters = &mut self.engine.counters;
        counters.add(Counter::Polls, 1);
        counters.add(Counter::PollsFound, u64::from(found));
        Ok(found)
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        let before = monotonic();
        self.busy += before.since(self.awake_since);
        let idle = self.control.sleep() && self.handoff.sleep();
        let timeout = match (idle, self.control.snapshot.is_some()) {
            (false, _) => Duration::ZERO,
            (true, true) => SNAPSHOT_RETRY,
            (true, false) => self.engine.idle_for().unwrap_or(SLEEP_MAX),
        };
        let result = self.driver.wait(Some(timeout));
        self.awake_since = monotonic();
        self.rested = self.awake_since.since(before) >= REST;
        self.control.wake();
        self.handoff.wake();
        result
    }

    fn take_handoffs(&mut self, now: Nanos) -> bool {
        let mut handoff = std::mem::take(&mut self.handoff);
        let mut scratch = std::mem::take(&mut self.control.scratch);
        let any = handoff.take(HANDOFF_BUDGET, &mut scratch, |taken| {
            self.take_handoff(now, taken)
        });
        self.control.scratch = scratch;
        // A frame that would have to be handed on a second time is lost and counted: that takes a
        // peer that sends to another worker's port than it was told.
        self.handoff = handoff;
        any
    }

    /// Makes counters and traffic visible.
    pub(crate) fn publish(&mut self) {
        let driver = *self.driver.stats();
        let sent = self.turn.output.sent;
        let stream_refused = std::mem::take(&mut self.turn.output.sent.stream_refused);
        let counters = &mut self.engine.counters;
        counters.drop_many(DropReason::StreamQueue, stream_refused);
        for (counter, total) in [
            (Counter::BufferExhausted, driver.buffer_exhausted),
            (Counter::SocketOverruns, driver.socket_overruns),
            (Counter::RxTruncated, driver.rx_truncated),
            (Counter::RxErrors, driver.rx_errors),
            (Counter::TxErrors, driver.tx_errors),
            (
                Counter::TxBackpressure,
                driver.tx_backpressure + sent.refused,
            ),
            (Counter::TxTooBig, driver.tx_too_big),
            (Counter::TxSourceRefused, driver.tx_source_refused),
            (Counter::TunErrors, driver.tun_errors),
            (Counter::Wakeups, driver.wakeups),
            (Counter::UnderlayTxTrains, sent.trains),
            (Counter::UnderlayTxPackets, sent.packets),
            (Counter::UnderlayTxBytes, sent.bytes),
        ] {
            counters.set(counter, total);
        }
        counters.set_buckets(Counter::TxTrains1, sent.by_length);
        let (used, all) = self.driver.buffers();
        counters.set(Counter::Buffers, all.into());
        counters.set(Counter::BuffersUsed, used.into());
        let (stats, now) = (&mut self.stats, monotonic());
        let busy = self.busy + now.since(self.awake_since);
        // 584 years.
        counters.set(Counter::BusyNanoseconds, busy.as_nanos() as u64);
        self.engine.drain_traffic(|peer, traffic| {
            if traffic.rx_packets > 0 {
                stats.add_rx(peer, traffic.rx_packets, traffic.rx_bytes, now);
            }
            if traffic.tx_packets > 0 {
                stats.add_tx(peer, traffic.tx_packets, traffic.tx_bytes);
            }
        });
        self.stats.publish(self.engine.counters.all());
    }

    /// A span of an event's buffer.
    pub(crate) fn part(span: Span, offset: u32, len: u32) -> Span {
        Span {
            buffer: span.buffer,
            offset: span.offset + offset,
            len,
        }
    }
}

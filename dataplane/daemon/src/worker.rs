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
use hyphae_forward::host::{Coalescer, TUN_HEADER_LEN};
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
use crate::watchdog::Heartbeat;

/// Records taken per handoff ring in one turn.
const HANDOFF_BUDGET: usize = 64;
/// Longest sleep: how late an expiry that nothing else announces may be noticed.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// Sleep while a snapshot waits for room.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(1);
/// Interval of the engine's timeouts.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// A turn with more trains and TUN packets than this is followed by a poll for others.
const LIGHT_EVENTS: usize = 4;
/// A wait shorter than this was no sleep: work had arrived before it.
const SLEEP_MIN: Duration = Duration::from_micros(10);
/// Interval of reports that the kernel refuses datagrams as too large.
const TOO_BIG_INTERVAL: Duration = Duration::from_millis(100);

/// A worker's engine and its connections to the rest of the process; the driver is opened on the
/// worker's own thread.
pub(crate) struct WorkerContext {
    pub(crate) engine: Engine,
    pub(crate) control: Control,
    pub(crate) handoff: Handoff,
    pub(crate) stats: StatsWriter,
    pub(crate) device: Watch,
    pub(crate) polling: Polling,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) heartbeat: Arc<Heartbeat>,
}

/// One worker and all it owns.
pub(crate) struct Worker<D: Driver> {
    pub(crate) driver: D,
    pub(crate) context: WorkerContext,
    pub(crate) turn: Turn,
    pub(crate) verdicts: Vec<hyphae_forward::Verdict>,
    housekeeping: Nanos,
    /// The program ring is corrupt, which is counted once.
    pub(crate) detached: bool,
    /// Refusals of the kernel reported so far, and the time of the next report.
    too_big_reported: (u64, Nanos),
    /// Refusals of source addresses applied to the engine.
    sources_refused: u64,
    /// Time awake up to the last sleep, and the end of that sleep.
    busy: Duration,
    awake_since: Nanos,
    /// Frames received, and bytes sent, by the end of the last turn.
    received: u64,
    sent: u64,
    /// The last turn left little to the kernel, and the worker slept before it.
    light: bool,
    rested: bool,
}

/// What a turn gathers; released at its end.
pub(crate) struct Turn {
    pub(crate) output: Output,
    pub(crate) arena: Arena,
    pub(crate) coalescer: Coalescer,
    /// Buffers referenced until the turn ends.
    pub(crate) held: Vec<BufferId>,
}

impl Turn {
    pub(crate) fn new(stream: StreamOutlet, udp_segmentation: bool) -> Self {
        Self {
            output: Output::new(stream),
            arena: Arena::new(),
            coalescer: Coalescer::new(udp_segmentation),
            held: Vec::with_capacity(256),
        }
    }

    /// `len` free bytes in a buffer of this turn; `None` when no buffer is free.
    pub(crate) fn space(&mut self, driver: &mut impl Driver, len: u32) -> Option<Span> {
        self.arena.space(driver, len, &mut self.held)
    }
}

impl<D: Driver> Worker<D> {
    pub(crate) fn new(driver: D, context: WorkerContext, turn: Turn) -> Self {
        Self {
            driver,
            context,
            turn,
            verdicts: Vec::with_capacity(1024),
            housekeeping: Nanos(0),
            detached: false,
            too_big_reported: (0, Nanos(0)),
            sources_refused: 0,
            busy: Duration::ZERO,
            awake_since: monotonic(),
            received: 0,
            sent: 0,
            light: false,
            rested: false,
        }
    }

    /// Runs until `stop` is set.
    ///
    /// # Errors
    /// When the driver cannot wait or submit any more, which a worker cannot fix.
    pub(crate) fn run(&mut self) -> std::io::Result<()> {
        while !self.context.stop.load(Ordering::Relaxed) {
            self.context.heartbeat.beat();
            let busy = self.turn(monotonic());
            // After little work more is unlikely: what it leaves to the kernel is submitted by the
            // same call that sleeps.
            let done = self.light && self.rested && self.context.polling.is_off();
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
        let mut busy = self.apply_program(now);
        busy |= self.take_handoffs(now);
        while let Some(event) = self.driver.next() {
            busy = true;
            self.handle_event(now, event);
        }
        busy |= self.receive_reassembled(now);
        while let Some(ready) = self.context.engine.next_ready() {
            busy = true;
            self.send_ready(now, &ready);
        }
        self.send_reports(now);
        self.write_host_errors();
        if now >= self.housekeeping {
            self.housekeeping = now + HOUSEKEEPING;
            self.context.engine.handle_timeout(now);
        }
        self.context.device.poll(&mut self.driver);
        self.note_refusals(now);
        self.publish_rings();
        if busy {
            self.finish();
        }
        busy
    }

    fn handle_event(&mut self, now: Nanos, event: Event) {
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
                let from = AddressPair {
                    remote: from,
                    local,
                };
                let span = Span {
                    buffer,
                    offset,
                    len,
                };
                self.receive(now, &from, span, segment);
            }
            Event::Tun {
                buffer,
                offset,
                len,
            } => {
                self.turn.held.push(buffer);
                let counters = &mut self.context.engine.counters;
                counters.add(Counter::TunRxReads, 1);
                let bytes = u64::from(len).saturating_sub(TUN_HEADER_LEN as u64);
                counters.add(Counter::TunRxBytes, bytes);
                let span = Span {
                    buffer,
                    offset,
                    len,
                };
                self.host_packet(now, span);
            }
        }
    }

    /// Passes refusals of the kernel on to the engine: datagrams too large, source addresses removed.
    fn note_refusals(&mut self, now: Nanos) {
        let stats = self.driver.stats();
        if let Some(to) = stats.too_big_to
            && stats.tx_too_big > self.too_big_reported.0
            && now >= self.too_big_reported.1
        {
            self.too_big_reported = (stats.tx_too_big, now + TOO_BIG_INTERVAL);
            self.context.engine.note_too_big(&to);
        }
        if let Some(local) = stats.refused_source
            && stats.tx_source_refused > self.sources_refused
        {
            self.sources_refused = stats.tx_source_refused;
            self.context.engine.forget_source(&local);
        }
    }

    /// Sends what the turn gathered and releases its buffers.
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
        let received = self
            .context
            .engine
            .counters
            .total(Counter::UnderlayRxPackets);
        let before = std::mem::replace(&mut self.received, received);
        self.context.engine.counters.add(Counter::Turns, 1);
        self.context
            .engine
            .counters
            .observe(Counter::Turns1, received - before);
        self.publish();
    }

    /// Polls for work within the polling budget; true when there was some. Time of polls that find nothing does
    /// not count as busy.
    fn poll(&mut self) -> std::io::Result<bool> {
        let begun = monotonic();
        let budget = self.context.polling.budget(begun);
        if budget.is_zero() {
            return Ok(false);
        }
        let (mut found, mut now) = (false, begun);
        while !found && now.since(begun) < budget && !self.context.stop.load(Ordering::Relaxed) {
            let offered = monotonic();
            std::thread::yield_now();
            let last = std::mem::replace(&mut now, monotonic());
            // Before a turn that finds work publishes it: the time since the last poll was no work.
            self.awake_since = self.awake_since + now.since(last);
            if self.context.polling.gave_way(now, now.since(offered)) {
                break;
            }
            self.driver.wait(Some(Duration::ZERO))?;
            found = self.turn(now);
        }
        self.context.polling.note(found);
        let counters = &mut self.context.engine.counters;
        counters.add(Counter::Polls, 1);
        counters.add(Counter::PollsFound, u64::from(found));
        Ok(found)
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        let before = monotonic();
        self.busy += before.since(self.awake_since);
        let idle = self.context.control.sleep() && self.context.handoff.inlets.sleep();
        let timeout = match (idle, self.context.control.snapshot.is_some()) {
            (false, _) => Duration::ZERO,
            (true, true) => SNAPSHOT_RETRY,
            (true, false) => self.context.engine.idle_for().unwrap_or(SLEEP_MAX),
        };
        let result = self.driver.wait(Some(timeout));
        self.awake_since = monotonic();
        self.rested = self.awake_since.since(before) >= SLEEP_MIN;
        self.context.control.wake();
        self.context.handoff.inlets.wake();
        result
    }

    fn take_handoffs(&mut self, now: Nanos) -> bool {
        let mut inlets = std::mem::take(&mut self.context.handoff.inlets);
        let mut scratch = std::mem::take(&mut self.context.control.scratch);
        let any = inlets.take(HANDOFF_BUDGET, &mut scratch, |handed| {
            self.execute_handed(now, handed);
        });
        self.context.control.scratch = scratch;
        self.context.handoff.inlets = inlets;
        any
    }

    /// Publishes counters and traffic.
    pub(crate) fn publish(&mut self) {
        let driver = *self.driver.stats();
        let sent = self.turn.output.sent;
        let stream_refused = std::mem::take(&mut self.turn.output.sent.stream_refused);
        let counters = &mut self.context.engine.counters;
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
        let (stats, now) = (&mut self.context.stats, monotonic());
        let busy = self.busy + now.since(self.awake_since);
        // 584 years.
        counters.set(Counter::BusyNanoseconds, busy.as_nanos() as u64);
        self.context.engine.drain_traffic(|peer, traffic| {
            if traffic.rx_packets > 0 {
                stats.add_rx(peer, traffic.rx_packets, traffic.rx_bytes, now);
            }
            if traffic.tx_packets > 0 {
                stats.add_tx(peer, traffic.tx_packets, traffic.tx_bytes);
            }
        });
        self.context
            .stats
            .publish(self.context.engine.counters.all());
    }

    /// A part of a span.
    pub(crate) fn part(span: Span, offset: u32, len: u32) -> Span {
        Span {
            buffer: span.buffer,
            offset: span.offset + offset,
            len,
        }
    }
}

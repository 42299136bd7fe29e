//! The path to one node: packets in flight, round-trip time, congestion window.
//!
//! All messages to a node share one window, one round-trip estimate and one packet number space, so a thousand
//! small messages get the same share as a long one. Loss detection follows RFC 9002: a packet is lost when a packet
//! sent three later, or 9/8 of a round trip later, is acknowledged. Without any ack, a probe timeout retransmits the
//! oldest packets. The window grows by slow start, then by one packet per round trip. It shrinks to 70 % at most once
//! per round trip, when losses exceed the tolerated random loss: 2 % of the bytes (LossThresh in draft-ietf-ccwg-bbr),
//! in bursts of up to [`LOSS_BURST`] packets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::config::RETRANSMISSION_DELAY;
use crate::transfers::TransferRef;

/// Packet reordering threshold, RFC 9002.
const REORDER_MAX: u64 = 3;
/// Initial window, packets.
const WINDOW_INITIAL_PACKETS: usize = 10;
/// Bound of the initial window, bytes, if that is more than two packets (RFC 9002, section 7.2).
const WINDOW_INITIAL_MAX: usize = 14_720;
const WINDOW_MIN_PACKETS: usize = 2;
/// Maximum ack delay of receivers: they delay acks by up to half of it while they wait for their disk.
const ACK_DELAY_MAX: Duration = Duration::from_millis(10);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Consecutive probe timeouts that reset the window: persistent congestion.
const PERSISTENT_TIMEOUTS: u32 = 3;
/// Acknowledged bytes per byte of tolerated random loss.
const LOSS_TOLERATED: usize = 50;
/// Bound of a burst of tolerated loss, packets.
const LOSS_BURST: usize = 8;
/// Messages awaiting their final status plus packets in flight. Less than [`crate::Config::incoming_per_peer_max`] of
/// receivers, so that a slow disk slows the sender down and causes no refusals.
const UNFINISHED_MAX: usize = 12_288;
/// Chunks of one message per turn.
pub(crate) const MESSAGE_QUANTUM: u32 = 8;

/// A packet in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) of: TransferRef,
    pub(crate) chunk: u32,
    pub(crate) bytes: usize,
    pub(crate) at: Nanos,
}

/// Newly acknowledged packets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acked {
    bytes: usize,
    /// When the last of them was sent.
    latest: Nanos,
}

impl Acked {
    /// Adds a packet, which leaves the path.
    pub(crate) fn add(&mut self, path: &mut Path, sequence: u64) {
        if let Some(flight) = path.remove(sequence) {
            self.bytes += flight.bytes;
            self.latest = self.latest.max(flight.at);
        }
    }
}

pub(crate) struct Path {
    pub(crate) address: OverlayAddress,
    /// Key of the destination, while there is a session.
    pub(crate) session: Option<PublicKey>,
    /// Requests for a session since the last one.
    pub(crate) session_attempts: u32,
    /// Unfinished messages.
    pub(crate) messages: usize,
    /// Of those, the ones awaiting their final status, by the number of their last opening packet.
    awaiting_status: BTreeMap<u64, TransferRef>,
    /// Messages with chunks to send, in the order of their turns. Finished ones stay until their turn.
    pub(crate) ready: VecDeque<TransferRef>,
    /// Messages under back-pressure, and some that were.
    pub(crate) deferred: Vec<TransferRef>,
    /// It is in the engine's list of active paths.
    pub(crate) active: bool,
    /// Chunks sent in the current turn.
    pub(crate) turn: u32,
    /// Packets by number from `oldest` on, `None` once acknowledged or lost. The first is in flight.
    flights: VecDeque<Option<Flight>>,
    oldest: u64,
    /// Bytes in flight.
    bytes: usize,
    /// Number of the last packet.
    sequence: u64,
    /// Time of the path timer.
    pub(crate) timer_at: Nanos,
    largest_acked: Option<u64>,
    /// When the last packet was sent, or the last probe timeout.
    sent_at: Nanos,
    /// Smoothed round-trip time and its variation, RFC 6298.
    srtt: Option<Duration>,
    rttvar: Duration,
    latest_rtt: Duration,
    /// Consecutive probe timeouts.
    timeouts: u32,
    /// Probes that may exceed the window.
    pub(crate) probes: u32,
    /// Congestion window, bytes.
    window: usize,
    slow_start_threshold: usize,
    window_max: usize,
    /// Path MTU: bytes of the largest packet.
    packet: usize,
    /// Start of the last recovery period; losses of earlier packets do not shrink the window again.
    recovery_from: Nanos,
    /// Bytes of loss still tolerated before the window shrinks.
    tolerance: usize,
}

impl Path {
    /// A path whose packets are numbered after `sequence`. The numbers of an earlier path to the same node must not be
    /// reused: that node repeats acks.
    pub(crate) fn new(
        address: OverlayAddress,
        sequence: u64,
        packet: usize,
        window_max: usize,
    ) -> Self {
        Self {
            address,
            session: None,
            session_attempts: 0,
            messages: 0,
            awaiting_status: BTreeMap::new(),
            ready: VecDeque::new(),
            deferred: Vec::new(),
            active: false,
            turn: 0,
            flights: VecDeque::new(),
            oldest: 1,
            bytes: 0,
            sequence,
            timer_at: Nanos::NEVER,
            largest_acked: None,
            sent_at: Nanos(0),
            srtt: None,
            rttvar: Duration::ZERO,
            latest_rtt: Duration::ZERO,
            timeouts: 0,
            probes: 0,
            window: (WINDOW_INITIAL_PACKETS * packet)
                .min(WINDOW_INITIAL_MAX)
                .max(WINDOW_MIN_PACKETS * packet),
            slow_start_threshold: usize::MAX,
            window_max,
            packet,
            recovery_from: Nanos(0),
            tolerance: LOSS_BURST * packet,
        }
    }

    /// Path MTU as far as known.
    pub(crate) fn packet(&self) -> usize {
        self.packet
    }

    /// Sets the path MTU.
    pub(crate) fn set_packet(&mut self, packet: usize) {
        self.packet = packet;
        self.window = self.window.max(WINDOW_MIN_PACKETS * packet);
    }

    /// Ends the turn of the first ready message.
    pub(crate) fn end_turn(&mut self) {
        self.turn = 0;
        self.ready.pop_front();
    }

    /// Whether another packet may be sent.
    pub(crate) fn has_room(&self) -> bool {
        self.session.is_some()
            && self.awaiting_status.len() + self.flights.len() < UNFINISHED_MAX
            && (self.probes > 0 || self.bytes == 0 || self.bytes + self.packet <= self.window)
    }

    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn on_sent(&mut self, sequence: u64, flight: Flight) {
        self.bytes += flight.bytes;
        self.sent_at = flight.at;
        self.probes = self.probes.saturating_sub(1);
        if self.flights.is_empty() {
            self.oldest = sequence;
        }
        // Queries take numbers, too.
        while self
            .place(sequence)
            .is_some_and(|place| place > self.flights.len())
        {
            self.flights.push_back(None);
        }
        self.flights.push_back(Some(flight));
    }

    fn place(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.oldest)?).ok()
    }

    /// A packet in flight.
    pub(crate) fn flight(&self, sequence: u64) -> Option<&Flight> {
        self.flights.get(self.place(sequence)?)?.as_ref()
    }

    /// Messages that do not await their final status, and some finished ones.
    pub(crate) fn unfinished(&self) -> BTreeSet<TransferRef> {
        let flying = self.flights.iter().flatten().map(|flight| &flight.of);
        let waiting = self.ready.iter().chain(&self.deferred);
        waiting.chain(flying).copied().collect()
    }

    fn first_flight(&self) -> Option<(u64, &Flight)> {
        let first = self.flights.front()?.as_ref();
        first.map(|flight| (self.oldest, flight))
    }

    /// Removes a packet without an effect on the window.
    pub(crate) fn remove(&mut self, sequence: u64) -> Option<Flight> {
        let place = self.place(sequence)?;
        let flight = self.flights.get_mut(place)?.take()?;
        self.bytes -= flight.bytes;
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.oldest += 1;
        }
        Some(flight)
    }

    /// A message awaits its final status.
    pub(crate) fn await_status(&mut self, opened_by: u64, of: TransferRef) {
        self.awaiting_status.insert(opened_by, of);
    }

    /// It does not await its final status any more.
    pub(crate) fn status_known(&mut self, opened_by: u64) {
        self.awaiting_status.remove(&opened_by);
    }

    /// Messages that await their final status, by opening packet.
    pub(crate) fn awaiting_status(
        &self,
        first: u64,
        end: u64,
    ) -> impl Iterator<Item = TransferRef> {
        let found = self.awaiting_status.range(first..end.max(first));
        found.map(|(_, of)| *of)
    }

    /// The part of a range of packet numbers that may be in flight.
    pub(crate) fn in_flight(&self, first: u64, end: u64) -> std::ops::Range<u64> {
        let count = u64::try_from(self.flights.len()).unwrap_or(u64::MAX);
        first.max(self.oldest)..end.min(self.oldest.saturating_add(count))
    }

    /// Updates the round-trip estimate: a packet sent at `sent_at` was acknowledged after `ack_delay` at the receiver.
    pub(crate) fn on_ack(
        &mut self,
        now: Nanos,
        sequence: u64,
        sent_at: Nanos,
        ack_delay: Duration,
    ) {
        self.largest_acked = self.largest_acked.max(Some(sequence));
        self.timeouts = 0;
        let sample = now.since(sent_at).saturating_sub(ack_delay);
        self.latest_rtt = sample;
        // RFC 6298, section 2.
        match self.srtt {
            None => {
                self.srtt = Some(sample);
                self.rttvar = sample / 2;
            }
            Some(smoothed) => {
                self.rttvar = (self.rttvar * 3 + smoothed.abs_diff(sample)) / 4;
                self.srtt = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// Packets are acknowledged.
    pub(crate) fn on_acked(&mut self, sequences: impl IntoIterator<Item = u64>) {
        let mut acked = Acked::default();
        for sequence in sequences {
            acked.add(self, sequence);
        }
        self.grow_window(acked);
    }

    /// Grows the window.
    pub(crate) fn grow_window(&mut self, acked: Acked) {
        let Acked { bytes, latest } = acked;
        let tolerance = self.tolerance + bytes / LOSS_TOLERATED;
        self.tolerance = tolerance.min(LOSS_BURST * self.packet);
        // Application-limited: the window was not tested.
        let filled = self.bytes + bytes + 2 * self.packet >= self.window;
        if latest <= self.recovery_from || !filled || bytes == 0 {
            return;
        }
        self.window += if self.window < self.slow_start_threshold {
            bytes
        } else {
            (self.packet * bytes / self.window).max(1)
        };
        self.window = self.window.min(self.window_max);
    }

    /// Removes lost packets, in order, and shrinks the window.
    pub(crate) fn detect_losses(&mut self, now: Nanos) -> Vec<(u64, Flight)> {
        let Some(largest_acked) = self.largest_acked else {
            return Vec::new();
        };
        let loss_delay = self.loss_delay();
        let mut lost = Vec::new();
        while let Some((sequence, flight)) = self.first_flight()
            && sequence < largest_acked
            && (sequence + REORDER_MAX <= largest_acked || flight.at + loss_delay <= now)
        {
            lost.extend(self.remove(sequence).map(|flight| (sequence, flight)));
        }
        let counts = lost.iter().filter(|(_, it)| it.at > self.recovery_from);
        let bytes: usize = counts.map(|(_, flight)| flight.bytes).sum();
        if bytes <= self.tolerance {
            self.tolerance -= bytes;
        } else {
            self.tolerance = 0;
            self.recovery_from = now;
            let floor = WINDOW_MIN_PACKETS * self.packet;
            self.window = (self.window / 10 * 7).max(floor);
            self.slow_start_threshold = self.window;
        }
        lost
    }

    /// After a probe timeout, removes the two oldest packets, to be retransmitted regardless of the window.
    pub(crate) fn take_probes(&mut self, now: Nanos) -> Vec<(u64, Flight)> {
        if self.timeout_at() > now || self.flights.is_empty() {
            return Vec::new();
        }
        self.timeouts += 1;
        self.sent_at = now;
        if self.timeouts == PERSISTENT_TIMEOUTS {
            self.slow_start_threshold = (self.window / 2).max(WINDOW_MIN_PACKETS * self.packet);
            self.window = WINDOW_MIN_PACKETS * self.packet;
            self.recovery_from = now;
        }
        self.probes = 2;
        let mut taken = Vec::new();
        while taken.len() < 2
            && let Some((sequence, _)) = self.first_flight()
        {
            taken.extend(self.remove(sequence).map(|flight| (sequence, flight)));
        }
        taken
    }

    /// Deadline of loss detection or probe timeout.
    pub(crate) fn deadline(&self) -> Nanos {
        let Some((sequence, flight)) = self.first_flight() else {
            return Nanos::NEVER;
        };
        let late = Some(sequence) < self.largest_acked;
        let lost = if late {
            flight.at + self.loss_delay()
        } else {
            Nanos::NEVER
        };
        lost.min(self.timeout_at())
    }

    fn timeout_at(&self) -> Nanos {
        self.sent_at + self.backed_off_timeout()
    }

    fn loss_delay(&self) -> Duration {
        let rtt = self.srtt.unwrap_or_default().max(self.latest_rtt);
        (rtt * 9 / 8).max(Duration::from_millis(1))
    }

    /// Probe timeout without back-off.
    pub(crate) fn timeout(&self) -> Duration {
        self.srtt.map_or(RETRANSMISSION_DELAY, |smoothed| {
            (smoothed + self.rttvar * 4).max(TIMEOUT_MIN) + ACK_DELAY_MAX
        })
    }

    fn backed_off_timeout(&self) -> Duration {
        (self.timeout() * (1 << self.timeouts.min(10))).min(TIMEOUT_MAX)
    }

    /// The session has ended: removes all packets in flight, with no effect on the window of the next session.
    pub(crate) fn reset(&mut self) -> Vec<(u64, Flight)> {
        self.session = None;
        self.timeouts = 0;
        self.probes = 0;
        self.bytes = 0;
        let flights = (self.oldest..).zip(std::mem::take(&mut self.flights));
        flights
            .filter_map(|(sequence, flight)| Some((sequence, flight?)))
            .collect()
    }
}

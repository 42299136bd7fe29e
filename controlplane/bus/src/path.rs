//! The way to one node: what is on it, how much may be, and how long it takes.
//!
//! All messages to a node share one window, one round-trip time and one numbering of packets, so a
//! thousand small messages are as considerate as a big one. Losses are found as QUIC does
//! (RFC 9002): a packet is lost when one sent three later, or clearly earlier than a round trip
//! ago, has been answered; when nothing is answered at all, a timer sends the oldest ones again.
//! The window grows by slow start, then by one packet per round trip, and shrinks to 70 % once per
//! round trip with losses that are more than the way loses by itself: up to 2 % of the bytes, as BBR has it
//! (LossThresh in draft-ietf-ccwg-bbr), and a few at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyphae_time::Nanos;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::config::RETRANSMISSION_DELAY;
use crate::sends::SendRef;

/// A packet is lost when one that was sent this many later has been answered.
const REORDER_MAX: u64 = 3;
/// Packets that may go before anything is known about the way.
const WINDOW_INITIAL_PACKETS: usize = 10;
/// Bytes of them, unless two are more (RFC 9002, section 7.2).
const WINDOW_INITIAL_MAX: usize = 14_720;
const WINDOW_MIN_PACKETS: usize = 2;
/// A receiver may wait for its disk before it answers, half of this and no longer, and has other things to do.
const ANSWER_SLACK: Duration = Duration::from_millis(10);
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Timeouts in a row after which the window is as small as it gets.
const TIMEOUTS_PERSISTENT: u32 = 3;
/// Of so many bytes that arrive, one may be lost without being taken for a queue that has overflowed.
const LOSS_TOLERATED: usize = 50;
/// Packets that may be lost so at once.
const LOSS_BURST: usize = 8;
/// Messages on a path that wait for their verdicts, and packets on the way: fewer than the messages that
/// receivers let one peer have under way.
const UNDECIDED_MAX: usize = 12_288;
/// Chunks of one message before the next message gets its turn.
pub(crate) const TURN: u32 = 8;

/// A chunk on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) send: SendRef,
    pub(crate) chunk: u32,
    pub(crate) bytes: usize,
    pub(crate) at: Nanos,
}

/// What arrived at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Landing {
    pub(crate) bytes: usize,
    pub(crate) latest: Nanos,
}

impl Landing {
    /// Takes a packet off the way.
    pub(crate) fn take(&mut self, path: &mut Path, sequence: u64) {
        if let Some(flight) = path.take(sequence) {
            self.bytes += flight.bytes;
            self.latest = self.latest.max(flight.at);
        }
    }
}

pub(crate) struct Path {
    pub(crate) address: OverlayAddress,
    /// Key of the node at its other end, while there is a session.
    pub(crate) session: Option<PublicKey>,
    /// Attempts to get a session since there was one.
    pub(crate) needs: u32,
    /// Messages on it.
    pub(crate) messages: usize,
    /// Of those: there, and waiting for their verdicts, by the number of the packet that opened them last.
    undecided: BTreeMap<u64, SendRef>,
    /// Messages with something to send, in the order of their turns. Those that are finished stay until
    /// their turn.
    pub(crate) ready: VecDeque<SendRef>,
    /// Messages that wait for room at the receiver, and some that did.
    pub(crate) held: Vec<SendRef>,
    /// It is in the engine's list of paths with something to send.
    pub(crate) active: bool,
    /// Chunks sent in the turn of the first ready message.
    pub(crate) turn: u32,
    /// Packets on their way, by number from `oldest` on. The first, if there is one, is on its way.
    flights: VecDeque<Option<Flight>>,
    oldest: u64,
    pub(crate) bytes: usize,
    sequence: u64,
    /// When it is looked at, at the latest.
    pub(crate) alarm: Nanos,
    answered: Option<u64>,
    sent_at: Nanos,
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
    timeouts: u32,
    /// Packets that may go in spite of a full window, to learn whether anything arrives.
    pub(crate) probes: u32,
    window: usize,
    threshold: usize,
    window_max: usize,
    /// Bytes of the largest packet that it carries.
    packet: usize,
    recovery_from: Nanos,
    /// Bytes that may be lost before the window shrinks.
    tolerance: usize,
}

impl Path {
    /// A path on which the first packet has the number after `sequence`. Not one that had been used before
    /// by a path to the same node: the node may tell of packets of that one again.
    pub(crate) fn new(
        address: OverlayAddress,
        sequence: u64,
        packet: usize,
        window_max: usize,
    ) -> Self {
        Self {
            address,
            session: None,
            needs: 0,
            messages: 0,
            undecided: BTreeMap::new(),
            ready: VecDeque::new(),
            held: Vec::new(),
            active: false,
            turn: 0,
            flights: VecDeque::new(),
            oldest: 1,
            bytes: 0,
            sequence,
            alarm: Nanos::NEVER,
            answered: None,
            sent_at: Nanos(0),
            smoothed: None,
            variation: Duration::ZERO,
            latest: Duration::ZERO,
            timeouts: 0,
            probes: 0,
            window: (WINDOW_INITIAL_PACKETS * packet)
                .min(WINDOW_INITIAL_MAX)
                .max(WINDOW_MIN_PACKETS * packet),
            threshold: usize::MAX,
            window_max,
            packet,
            recovery_from: Nanos(0),
            tolerance: LOSS_BURST * packet,
        }
    }

    /// Bytes of the largest packet that it carries, as far as known.
    pub(crate) fn packet(&self) -> usize {
        self.packet
    }

    /// It carries packets of this size.
    pub(crate) fn set_packet(&mut self, packet: usize) {
        self.packet = packet;
        self.window = self.window.max(WINDOW_MIN_PACKETS * packet);
    }

    /// The first of the queue leaves it; the next one gets a full turn.
    pub(crate) fn leave(&mut self) {
        self.turn = 0;
        self.ready.pop_front();
    }

    /// Whether another packet may go.
    pub(crate) fn has_room(&self) -> bool {
        self.session.is_some()
            && self.undecided.len() + self.flights.len() < UNDECIDED_MAX
            && (self.probes > 0 || self.bytes == 0 || self.bytes + self.packet <= self.window)
    }

    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn sent(&mut self, sequence: u64, flight: Flight) {
        self.bytes += flight.bytes;
        self.sent_at = flight.at;
        self.probes = self.probes.saturating_sub(1);
        if self.flights.is_empty() {
            self.oldest = sequence;
        }
        // Packets without a chunk have numbers, too.
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

    /// The message that a packet on its way belongs to.
    pub(crate) fn flight(&self, sequence: u64) -> Option<&Flight> {
        self.flights.get(self.place(sequence)?)?.as_ref()
    }

    /// Messages on it, but for those that wait for their verdicts; some that are finished.
    pub(crate) fn unfinished(&self) -> BTreeSet<SendRef> {
        let flying = self.flights.iter().flatten().map(|flight| &flight.send);
        let waiting = self.ready.iter().chain(&self.held);
        waiting.chain(flying).copied().collect()
    }

    fn first_flight(&self) -> Option<(u64, &Flight)> {
        let first = self.flights.front()?.as_ref();
        first.map(|flight| (self.oldest, flight))
    }

    /// Takes a packet off the way without judging it.
    pub(crate) fn take(&mut self, sequence: u64) -> Option<Flight> {
        let place = self.place(sequence)?;
        let flight = self.flights.get_mut(place)?.take()?;
        self.bytes -= flight.bytes;
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.oldest += 1;
        }
        Some(flight)
    }

    /// A message is there and waits for its verdict.
    pub(crate) fn wait_for_verdict(&mut self, opened_by: u64, send: SendRef) {
        self.undecided.insert(opened_by, send);
    }

    /// It does not wait any more.
    pub(crate) fn verdict(&mut self, opened_by: u64) {
        self.undecided.remove(&opened_by);
    }

    /// Messages that wait for their verdicts, of packets of these numbers.
    pub(crate) fn there(&self, first: u64, end: u64) -> impl Iterator<Item = SendRef> {
        let found = self.undecided.range(first..end.max(first));
        found.map(|(_, send)| *send)
    }

    /// Those of some numbers that may be on their way.
    pub(crate) fn among(&self, first: u64, end: u64) -> std::ops::Range<u64> {
        let count = u64::try_from(self.flights.len()).unwrap_or(u64::MAX);
        first.max(self.oldest)..end.min(self.oldest.saturating_add(count))
    }

    /// The answer to a packet that was sent at `sent_at` has come, after it had waited at the other end
    /// for this long: learn from it.
    pub(crate) fn answered(&mut self, now: Nanos, sequence: u64, sent_at: Nanos, waited: Duration) {
        self.answered = self.answered.max(Some(sequence));
        self.timeouts = 0;
        let sample = now.since(sent_at).saturating_sub(waited);
        self.latest = sample;
        // RFC 6298.
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// These packets have arrived.
    pub(crate) fn land(&mut self, sequences: impl IntoIterator<Item = u64>) {
        let mut landing = Landing::default();
        for sequence in sequences {
            landing.take(self, sequence);
        }
        self.arrived(landing.bytes, landing.latest);
    }

    /// Bytes that were sent at `at` at the latest have arrived.
    pub(crate) fn arrived(&mut self, bytes: usize, at: Nanos) {
        let tolerance = self.tolerance + bytes / LOSS_TOLERATED;
        self.tolerance = tolerance.min(LOSS_BURST * self.packet);
        // A window that was not filled says nothing about a bigger one.
        let filled = self.bytes + bytes + 2 * self.packet >= self.window;
        if at <= self.recovery_from || !filled || bytes == 0 {
            return;
        }
        self.window += if self.window < self.threshold {
            bytes
        } else {
            (self.packet * bytes / self.window).max(1)
        };
        self.window = self.window.min(self.window_max);
    }

    /// Takes what is lost off the way, in order.
    pub(crate) fn take_lost(&mut self, now: Nanos) -> Vec<(u64, Flight)> {
        let Some(answered) = self.answered else {
            return Vec::new();
        };
        let patience = self.patience();
        let mut lost = Vec::new();
        while let Some((sequence, flight)) = self.first_flight()
            && sequence < answered
            && (sequence + REORDER_MAX <= answered || flight.at + patience <= now)
        {
            lost.extend(self.take(sequence).map(|flight| (sequence, flight)));
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
            self.threshold = self.window;
        }
        lost
    }

    /// Nothing has been answered for too long: takes the two oldest off the way, to be sent again
    /// whatever the window says.
    pub(crate) fn take_timed_out(&mut self, now: Nanos) -> Vec<(u64, Flight)> {
        if self.timeout_at() > now || self.flights.is_empty() {
            return Vec::new();
        }
        self.timeouts += 1;
        self.sent_at = now;
        if self.timeouts == TIMEOUTS_PERSISTENT {
            self.threshold = (self.window / 2).max(WINDOW_MIN_PACKETS * self.packet);
            self.window = WINDOW_MIN_PACKETS * self.packet;
            self.recovery_from = now;
        }
        self.probes = 2;
        let mut taken = Vec::new();
        while taken.len() < 2
            && let Some((sequence, _)) = self.first_flight()
        {
            taken.extend(self.take(sequence).map(|flight| (sequence, flight)));
        }
        taken
    }

    /// When something has to be judged again.
    pub(crate) fn deadline(&self) -> Nanos {
        let Some((sequence, flight)) = self.first_flight() else {
            return Nanos::NEVER;
        };
        let late = Some(sequence) < self.answered;
        let lost = if late {
            flight.at + self.patience()
        } else {
            Nanos::NEVER
        };
        lost.min(self.timeout_at())
    }

    fn timeout_at(&self) -> Nanos {
        self.sent_at + self.backed_off()
    }

    fn patience(&self) -> Duration {
        let rtt = self.smoothed.unwrap_or_default().max(self.latest);
        (rtt * 9 / 8).max(Duration::from_millis(1))
    }

    /// Time after which an answer is overdue.
    pub(crate) fn timeout(&self) -> Duration {
        self.smoothed.map_or(RETRANSMISSION_DELAY, |smoothed| {
            (smoothed + self.variation * 4).max(TIMEOUT_MIN) + ANSWER_SLACK
        })
    }

    fn backed_off(&self) -> Duration {
        (self.timeout() * (1 << self.timeouts.min(10))).min(TIMEOUT_MAX)
    }

    /// The session is gone: what was on the way is, too, and says nothing about the next session.
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

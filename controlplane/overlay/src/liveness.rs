//! Measurements of the other end: silence, round-trip time, loss, pings.

use std::collections::VecDeque;
use std::time::Duration;

use hyphae_time::Nanos;

/// Time between fast probes.
pub(crate) const PROBE_FAST: Duration = Duration::from_millis(250);
/// The same on a path so long that answers need more.
const PROBE_FAST_MAX: Duration = Duration::from_secs(2);

/// Timeout of a ping.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Unanswered probes after which a new handshake begins.
pub(crate) const MISSED_MAX: u32 = 2;
/// Probe numbers stored to recognise late answers.
const OUTSTANDING_MAX: usize = 8;
/// Silence after which a ping makes a new session and is sent again.
pub(crate) const PING_RETRY: Duration = Duration::from_secs(2);

/// Probes and their answers.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    /// When the next probe goes out; also the deadline of the previous one while it is unanswered.
    pub(crate) probe_at: Nanos,
    /// Unanswered probes, oldest first.
    pub(crate) outstanding: VecDeque<(u64, Nanos)>,
    pub(crate) missed: u32,
    /// Probes sent, to space what is not done each time.
    pub(crate) count: u64,
    pub(crate) heard: Nanos,
    pub(crate) rtt: Rtt,
    pub(crate) loss: Loss,
    /// Frames of this engine to the peer (links).
    pub(crate) own_sent: u64,
    /// The last reading of the workers' counters: when, and frames sent that were not ours.
    pub(crate) reading: Option<(Nanos, u64)>,
    /// Start of silence while frames were sent.
    pub(crate) unanswered: Option<Nanos>,
    /// Silence under traffic has exceeded its limit: probes are sent fast.
    pub(crate) urgent: bool,
}

/// Smoothed share of probes that stayed unanswered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss(Option<u16>);

impl Loss {
    pub(crate) fn sample(&mut self, lost: bool) {
        let sample = if lost { 1000 } else { 0 };
        self.0 = Some(self.0.map_or(sample, |smoothed| {
            // Rounded towards the sample, so that it reaches both ends.
            let rounding = if lost { 15 } else { 0 };
            (smoothed * 15 + sample + rounding) / 16
        }));
    }

    pub(crate) fn permille(self) -> Option<u16> {
        self.0
    }
}

/// Smoothed round-trip time (RFC 6298, without its timeout).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt(Option<Duration>);

impl Rtt {
    pub(crate) fn sample(&mut self, rtt: Duration) {
        self.0 = Some(self.0.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
    }

    pub(crate) fn smoothed(self) -> Option<Duration> {
        self.0
    }
}

/// A ping that waits for a session or for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    /// The caller's number.
    pub(crate) id: u64,
    /// Probe number and time, once sent.
    pub(crate) probe: Option<(u64, Nanos)>,
    pub(crate) asked: Nanos,
    /// Time at which silence triggers a new session.
    pub(crate) retry_at: Nanos,
}

impl Liveness {
    /// Records an authentic frame.
    pub(crate) fn alive(&mut self, at: Nanos) {
        if at > self.heard {
            self.heard = at;
            self.urgent = false;
            self.unanswered = None;
        }
    }

    /// Time for which frames were sent without any received.
    pub(crate) fn unanswered_for(&self, now: Nanos) -> Duration {
        self.unanswered
            .map_or(Duration::ZERO, |since| now.since(since.max(self.heard)))
    }

    /// Time between fast probes: long enough for an answer.
    pub(crate) fn probe_fast(&self) -> Duration {
        let rtt = self.rtt.smoothed().unwrap_or_default();
        (rtt * 2).clamp(PROBE_FAST, PROBE_FAST_MAX)
    }

    /// Starts again with a confirmed session.
    pub(crate) fn restart(&mut self, now: Nanos, probe_at: Nanos) {
        self.missed = 0;
        self.outstanding.clear();
        self.alive(now);
        self.probe_at = probe_at;
    }

    /// Stops probing.
    pub(crate) fn stop(&mut self) {
        self.missed = 0;
        self.outstanding.clear();
        self.probe_at = Nanos::NEVER;
    }

    /// The previous probe is overdue.
    pub(crate) fn count_missed(&mut self) {
        if !self.outstanding.is_empty() {
            self.missed += 1;
            self.loss.sample(true);
        }
        self.count += 1;
    }

    /// Probe `id` was sent; it counts as missed after `wait`.
    pub(crate) fn sent(&mut self, now: Nanos, id: Option<u64>, wait: Duration) {
        self.outstanding.extend(id.map(|id| (id, now)));
        if self.outstanding.len() > OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.probe_at = now + wait;
    }

    /// The answer to probe `id` came; the next probe is due at `next`.
    pub(crate) fn answered(&mut self, id: u64, received: Nanos, next: Nanos) {
        let sent = self.outstanding.iter().find(|(known, _)| *known == id);
        if let Some((_, sent)) = sent.copied() {
            self.rtt.sample(received.since(sent));
            self.loss.sample(false);
            self.outstanding.clear();
            self.missed = 0;
            self.probe_at = next;
        }
    }
}

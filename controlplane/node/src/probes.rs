//! Pings and traces that wait for an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_time::Nanos;

use super::request::{NoAnswer, Reply, TraceAnswer};

/// A ping or trace, with the channel of its reply.
pub(super) enum Probe {
    Ping(Reply<Result<Duration, NoAnswer>>),
    Trace(Reply<Result<TraceAnswer, NoAnswer>>),
}

/// Probes without an answer yet, by id.
#[derive(Default)]
pub(super) struct Probes {
    waiting: BTreeMap<u64, (Nanos, Probe)>,
    last_id: u64,
}

impl Probes {
    /// Waits for the answer to a probe until `deadline`; returns the id of the probe.
    pub(super) fn start(&mut self, deadline: Nanos, probe: Probe) -> u64 {
        self.last_id += 1;
        self.waiting.insert(self.last_id, (deadline, probe));
        self.last_id
    }

    pub(super) fn ping_answered(&mut self, id: u64, rtt: Duration) {
        if let Some((_, Probe::Ping(reply))) = self.waiting.remove(&id) {
            // The caller may have disconnected.
            drop(reply.send(Ok(rtt)));
        }
    }

    pub(super) fn trace_answered(&mut self, id: u64, answer: TraceAnswer) {
        if let Some((_, Probe::Trace(reply))) = self.waiting.remove(&id) {
            // The caller may have disconnected.
            drop(reply.send(Ok(answer)));
        }
    }

    /// Fails the probes whose deadline has passed.
    pub(super) fn expire(&mut self, now: Nanos) {
        let late = self.waiting.iter().filter(|(_, (at, _))| *at <= now);
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        for (_, probe) in late.iter().filter_map(|id| self.waiting.remove(id)) {
            // The caller may have disconnected.
            match probe {
                Probe::Ping(reply) => drop(reply.send(Err(NoAnswer))),
                Probe::Trace(reply) => drop(reply.send(Err(NoAnswer))),
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Nanos> {
        self.waiting.values().map(|(deadline, _)| *deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn a_probe_expires_at_its_deadline_and_not_before() {
        let mut probes = Probes::default();
        let (ping, mut pinged) = oneshot::channel();
        let (trace, mut traced) = oneshot::channel();
        probes.start(Nanos(20), Probe::Ping(ping));
        probes.start(Nanos(10), Probe::Trace(trace));
        assert_eq!(probes.poll_timeout(), Some(Nanos(10)));
        probes.expire(Nanos(9));
        assert!(traced.try_recv().is_err());
        probes.expire(Nanos(10));
        assert!(matches!(traced.try_recv(), Ok(Err(NoAnswer))));
        assert_eq!(probes.poll_timeout(), Some(Nanos(20)));
        probes.expire(Nanos(20));
        assert!(matches!(pinged.try_recv(), Ok(Err(NoAnswer))));
        assert_eq!(probes.poll_timeout(), None);
    }

    #[test]
    fn an_answer_completes_its_probe_once() {
        let mut probes = Probes::default();
        let (ping, mut pinged) = oneshot::channel();
        let id = probes.start(Nanos(20), Probe::Ping(ping));
        probes.ping_answered(id + 1, Duration::from_millis(1));
        assert!(pinged.try_recv().is_err());
        probes.ping_answered(id, Duration::from_millis(2));
        probes.ping_answered(id, Duration::from_millis(3));
        assert_eq!(
            pinged.try_recv().unwrap().unwrap(),
            Duration::from_millis(2)
        );
        assert_eq!(probes.poll_timeout(), None);
    }
}

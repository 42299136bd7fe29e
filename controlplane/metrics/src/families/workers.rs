//! The workers of the dataplane.

use hyphae_shm::StatsReader;
use hyphae_shm::stats::{COUNTERS, Counter, DropReason, FRAME_BUCKETS, counter_at, drop_at};
use hyphae_wire::Suite;

use crate::family::{Family, Head, Kind, Series, counter, gauge, histogram};

/// Number and counters of each worker.
pub(crate) struct Workers(Vec<(String, [u64; COUNTERS])>);

impl Workers {
    pub(crate) fn read(workers: &[StatsReader]) -> Self {
        let counters = workers.iter().map(StatsReader::counters).enumerate();
        Self(
            counters
                .map(|(n, totals)| (n.to_string(), totals))
                .collect(),
        )
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &[u64; COUNTERS])> {
        self.0
            .iter()
            .map(|(worker, totals)| (worker.as_str(), totals))
    }
}

/// Families other than the total of one counter.
pub(crate) const FAMILIES: &[Family<Workers>] = &[
    counter(
        "hyphae_dataplane_drops_total",
        &["worker", "reason"],
        "Packets dropped, by reason; each dropped packet has one",
        |from, it| {
            for (worker, totals) in from.iter() {
                for reason in DropReason::ALL {
                    it.set(&[worker, reason.name()], totals[drop_at(*reason)]);
                }
            }
        },
    ),
    counter(
        "hyphae_dataplane_aead_operations_total",
        &["worker", "operation", "suite"],
        "Seal and open operations",
        |from, it| {
            for (worker, totals) in from.iter() {
                for (operation, suite, counter) in [
                    ("seal", Suite::Aes256Gcm, Counter::SealedAes),
                    ("seal", Suite::ChaCha20Poly1305, Counter::SealedChaCha),
                    ("open", Suite::Aes256Gcm, Counter::OpenedAes),
                    ("open", Suite::ChaCha20Poly1305, Counter::OpenedChaCha),
                ] {
                    let total = totals[counter_at(counter)];
                    it.set(&[worker, operation, &suite.to_string()], total);
                }
            }
        },
    ),
    counter(
        "hyphae_dataplane_busy_seconds_total",
        &["worker"],
        "Time in which the worker did not sleep; its rate is the share of a core",
        |from, it| {
            for (worker, totals) in from.iter() {
                let nanoseconds = totals[counter_at(Counter::BusyNanoseconds)];
                it.set(&[worker], nanoseconds as f64 / 1e9);
            }
        },
    ),
    gauge(
        "hyphae_dataplane_buffers",
        &["worker"],
        "Packet buffers, 68 KiB each",
        |from, it| each(from, it, Counter::Buffers),
    ),
    gauge(
        "hyphae_dataplane_buffers_used",
        &["worker"],
        "Packet buffers in use at the end of the last turn",
        |from, it| each(from, it, Counter::BuffersUsed),
    ),
    histogram(
        "hyphae_dataplane_rx_train_frames",
        &["worker"],
        "Frames per train received from the underlay",
        |from, it| {
            let sums = (Counter::UnderlayRxPackets, Counter::UnderlayRxTrains);
            buckets(from, it, Counter::RxTrains1, sums);
        },
    ),
    histogram(
        "hyphae_dataplane_tx_train_frames",
        &["worker"],
        "Frames per train sent to the underlay",
        |from, it| {
            let sums = (Counter::UnderlayTxPackets, Counter::UnderlayTxTrains);
            buckets(from, it, Counter::TxTrains1, sums);
        },
    ),
    histogram(
        "hyphae_dataplane_turn_frames",
        &["worker"],
        "Frames received per turn of a worker that found work",
        |from, it| {
            let sums = (Counter::UnderlayRxPackets, Counter::Turns);
            buckets(from, it, Counter::Turns1, sums);
        },
    ),
];

/// Writes the families that are one counter's total.
pub(crate) fn render_totals(workers: &Workers, text: &mut String) {
    for (counter, head) in Counter::ALL.iter().filter_map(|c| Some((*c, total(*c)?))) {
        each(workers, &mut head.series(text), counter);
    }
}

/// A series per worker.
fn each(workers: &Workers, series: &mut Series<'_>, counter: Counter) {
    for (worker, totals) in workers.iter() {
        series.set(&[worker], totals[counter_at(counter)]);
    }
}

/// A histogram whose buckets the worker has counted, from the first of them on.
fn buckets(
    workers: &Workers,
    series: &mut Series<'_>,
    first: Counter,
    (sum, count): (Counter, Counter),
) {
    for (worker, totals) in workers.iter() {
        let (mut below, at) = (0, counter_at(first));
        let mut buckets = [0; FRAME_BUCKETS.len()];
        for (n, bucket) in buckets.iter_mut().enumerate() {
            below += totals[at + n];
            *bucket = below;
        }
        // The worker updates its counters while they are read.
        let count = totals[counter_at(count)].max(below);
        let bounds = FRAME_BUCKETS.iter().zip(buckets);
        series.histogram(worker, bounds, totals[counter_at(sum)], count);
    }
}

/// The family that is one counter's total; `None` where it is part of one in [`FAMILIES`].
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "all the others are a family each"
)]
pub(crate) fn total(counter: Counter) -> Option<Head<String>> {
    match counter {
        Counter::SealedAes
        | Counter::SealedChaCha
        | Counter::OpenedAes
        | Counter::OpenedChaCha
        | Counter::BusyNanoseconds
        | Counter::Buffers
        | Counter::BuffersUsed
        | Counter::RxTrains1
        | Counter::RxTrains4
        | Counter::RxTrains16
        | Counter::RxTrains64
        | Counter::TxTrains1
        | Counter::TxTrains4
        | Counter::TxTrains16
        | Counter::TxTrains64
        | Counter::Turns1
        | Counter::Turns4
        | Counter::Turns16
        | Counter::Turns64 => None,
        counter => Some(Head {
            name: format!("hyphae_dataplane_{}_total", counter.name()),
            kind: Kind::Counter,
            labels: &["worker"],
            help: counter.gloss(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_listed_also_without_workers() {
        let (workers, mut text) = (Workers::read(&[]), String::new());
        for family in FAMILIES {
            family.render(&workers, &mut text);
        }
        render_totals(&workers, &mut text);
        let totals = Counter::ALL.iter().filter_map(|counter| total(*counter));
        let names = FAMILIES.iter().map(|family| family.head.name.to_owned());
        for name in names.chain(totals.map(|head| head.name)) {
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
        assert!(text.lines().all(|line| line.starts_with('#')));
    }
}

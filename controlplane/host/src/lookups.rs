//! Schedule of lookups of names of peers. Sans-I/O.
//!
//! Names are resolved periodically, those of dead peers at retries, and those that may have changed at once. Bounds:
//! one lookup per name at a time, [`APART`] apart, and [`IN_FLIGHT_MAX`] in total, whatever requests them, so that the
//! cost of a resolver that hangs or a peer that flaps is limited.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_time::Nanos;

/// Shortest time between the starts of two lookups of one name.
pub const APART: Duration = Duration::from_secs(5);
/// Longest time between lookups of the name of a dead peer.
const APART_MAX: Duration = Duration::from_secs(30);
/// Concurrent lookups.
const IN_FLIGHT_MAX: usize = 8;

/// Host and port.
pub type Name = (String, u16);

#[derive(Clone, Copy, Debug)]
struct Entry {
    started: Option<Nanos>,
    in_flight: bool,
    /// Start of the next lookup.
    due: Option<Nanos>,
    /// Time to the next retry.
    pause: Duration,
}

/// Names with the state of their lookups.
#[derive(Debug, Default)]
pub struct LookupSchedule(BTreeMap<Name, Entry>);

impl LookupSchedule {
    fn entry(&mut self, name: Name) -> &mut Entry {
        self.0.entry(name).or_insert(Entry {
            started: None,
            in_flight: false,
            due: None,
            pause: APART,
        })
    }

    /// Schedules a lookup as soon as the bounds permit, after a change.
    pub fn want(&mut self, now: Nanos, name: Name) {
        let entry = self.entry(name);
        entry.pause = APART;
        let at = entry
            .started
            .map_or(now, |started| (started + APART).max(now));
        entry.due = Some(entry.due.map_or(at, |due| due.min(at)));
    }

    /// Schedules a lookup for a dead peer, after a growing interval.
    pub fn retry(&mut self, now: Nanos, name: Name) {
        let entry = self.entry(name);
        if entry.due.is_none() && !entry.in_flight {
            let pause = entry.pause;
            entry.pause = (2 * pause).min(APART_MAX);
            entry.due = Some(
                entry
                    .started
                    .map_or(now, |started| (started + pause).max(now)),
            );
        }
    }

    /// A lookup to start.
    pub fn poll(&mut self, now: Nanos) -> Option<Name> {
        if self.in_flight() >= IN_FLIGHT_MAX {
            return None;
        }
        let ready = |entry: &Entry| !entry.in_flight && entry.due.is_some_and(|due| due <= now);
        let (name, entry) = self.0.iter_mut().find(|(_, entry)| ready(entry))?;
        (entry.started, entry.in_flight, entry.due) = (Some(now), true, None);
        Some(name.clone())
    }

    fn in_flight(&self) -> usize {
        self.0.values().filter(|entry| entry.in_flight).count()
    }

    /// Earliest time at which `poll` may return one; [`Self::done`] may move it forward.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        if self.in_flight() >= IN_FLIGHT_MAX {
            return None;
        }
        let waiting = self.0.values().filter(|entry| !entry.in_flight);
        waiting.filter_map(|entry| entry.due).min()
    }

    /// A lookup has ended.
    pub fn done(&mut self, name: &Name) {
        if let Some(entry) = self.0.get_mut(name) {
            entry.in_flight = false;
        }
    }

    /// Removes all names but these.
    pub fn keep(&mut self, wanted: impl Fn(&Name) -> bool) {
        self.0.retain(|name, entry| entry.in_flight || wanted(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000_000);

    fn name(n: usize) -> Name {
        (format!("host{n:02}.example"), 9670)
    }

    fn after(seconds: u64) -> Nanos {
        START + Duration::from_secs(seconds)
    }

    #[test]
    fn a_name_is_looked_up_once_at_a_time_and_no_sooner_than_five_seconds_later() {
        let mut names = LookupSchedule::default();
        names.want(START, name(1));
        assert_eq!(names.poll(START), Some(name(1)));
        names.want(after(1), name(1));
        assert_eq!(names.poll(after(9)), None, "the first is not over");
        names.done(&name(1));
        assert_eq!(names.poll(after(4)), None);
        assert_eq!(names.poll_timeout(), Some(after(5)));
        assert_eq!(names.poll(after(5)), Some(name(1)));
        names.done(&name(1));
        assert_eq!(names.poll(after(60)), None, "no further request");
    }

    #[test]
    fn eight_lookups_run_at_a_time() {
        let mut names = LookupSchedule::default();
        (0..20).for_each(|n| names.want(START, name(n)));
        let begun: Vec<_> = std::iter::from_fn(|| names.poll(START)).collect();
        assert_eq!(begun, (0..8).map(name).collect::<Vec<_>>());
        assert_eq!(names.poll_timeout(), None);
        names.done(&name(3));
        assert_eq!(names.poll(START), Some(name(8)));
        assert_eq!(names.poll(START), None);
    }

    #[test]
    fn retries_of_a_dead_peer_back_off_until_something_changes() {
        let mut names = LookupSchedule::default();
        let mut asked = Vec::new();
        for second in 0..120 {
            names.retry(after(second), name(1));
            if names.poll(after(second)).is_some() {
                asked.push(second);
                names.done(&name(1));
            }
        }
        assert_eq!(asked, [0, 10, 30, 60, 90]);
        names.want(after(120), name(1));
        assert_eq!(names.poll(after(120)), Some(name(1)));
        names.done(&name(1));
        names.retry(after(120), name(1));
        assert_eq!(names.poll_timeout(), Some(after(125)));
    }
}

//! When the names of peers are looked up. Sans-I/O: it says which look-up to start, and is told when one is done.
//!
//! All names are looked up now and then, those of dead peers at retries, and all that may have changed at once. Whoever
//! asks how often: one look-up per name at a time, [`APART`] apart, and [`IN_FLIGHT_MAX`] in all, so that neither a
//! resolver that hangs nor a peer that flaps costs more.

use std::collections::BTreeMap;
use std::time::Duration;

use hyphae_time::Nanos;

/// Between the beginnings of two look-ups of one name.
pub const APART: Duration = Duration::from_secs(5);
/// Longest time between look-ups of the name of a dead peer.
const APART_MAX: Duration = Duration::from_secs(30);
/// Look-ups at a time.
const IN_FLIGHT_MAX: usize = 8;

/// Host and port.
pub type Name = (String, u16);

#[derive(Clone, Copy, Debug)]
struct Entry {
    asked: Option<Nanos>,
    in_flight: bool,
    /// When to begin the next look-up.
    due: Option<Nanos>,
    /// Time to the next retry.
    pause: Duration,
}

/// LookupSchedule and when they were looked up.
#[derive(Debug, Default)]
pub struct LookupSchedule(BTreeMap<Name, Entry>);

impl LookupSchedule {
    fn entry(&mut self, name: Name) -> &mut Entry {
        self.0.entry(name).or_insert(Entry {
            asked: None,
            in_flight: false,
            due: None,
            pause: APART,
        })
    }

    /// Looks a name up as soon as that may be: something has changed.
    pub fn want(&mut self, now: Nanos, name: Name) {
        let entry = self.entry(name);
        entry.pause = APART;
        let at = entry.asked.map_or(now, |asked| (asked + APART).max(now));
        entry.due = Some(entry.due.map_or(at, |due| due.min(at)));
    }

    /// The peer of this name is dead: looks it up after a pause that grows.
    pub fn retry(&mut self, now: Nanos, name: Name) {
        let entry = self.entry(name);
        if entry.due.is_none() && !entry.in_flight {
            let pause = entry.pause;
            entry.pause = (2 * pause).min(APART_MAX);
            entry.due = Some(entry.asked.map_or(now, |asked| (asked + pause).max(now)));
        }
    }

    /// A look-up to begin.
    pub fn poll(&mut self, now: Nanos) -> Option<Name> {
        if self.in_flight() >= IN_FLIGHT_MAX {
            return None;
        }
        let ready = |entry: &Entry| !entry.in_flight && entry.due.is_some_and(|due| due <= now);
        let (name, entry) = self.0.iter_mut().find(|(_, entry)| ready(entry))?;
        (entry.asked, entry.in_flight, entry.due) = (Some(now), true, None);
        Some(name.clone())
    }

    fn in_flight(&self) -> usize {
        self.0.values().filter(|entry| entry.in_flight).count()
    }

    /// When `poll` may have one; [`Self::done`] may make that sooner.
    pub fn poll_timeout(&self) -> Option<Nanos> {
        if self.in_flight() >= IN_FLIGHT_MAX {
            return None;
        }
        let waiting = self.0.values().filter(|entry| !entry.in_flight);
        waiting.filter_map(|entry| entry.due).min()
    }

    /// A look-up is over.
    pub fn done(&mut self, name: &Name) {
        if let Some(entry) = self.0.get_mut(name) {
            entry.in_flight = false;
        }
    }

    /// Forgets all names but these.
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
        assert_eq!(names.poll(after(60)), None, "nobody asked again");
    }

    #[test]
    fn eight_look_ups_are_made_at_a_time() {
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
    fn retries_of_a_dead_peer_come_more_and_more_seldom_until_something_changes() {
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

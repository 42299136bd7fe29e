//! What is taken from neighbours, and what is told to them.

use hyphae_time::Nanos;
use hyphae_wire::address::OVERLAY_RANGE;

use hyphae_wire::{Prefix, PublicKey};

use super::Speaker;

/// What a rule does with a route that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Takes or tells it.
    Accept,
    /// Leaves it out.
    Refuse,
}

/// One line of a filter. What is `None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Matches prefixes that lie in this one.
    pub prefix: Option<Prefix>,
    /// Matches announcements of this key.
    pub origin: Option<PublicKey>,
    /// Matches what comes from, or goes to, this neighbour.
    pub neighbour: Option<PublicKey>,
    /// What to do.
    pub action: Action,
}

impl Rule {
    /// Whether it matches a route, whoever the neighbour is.
    fn is_about(&self, prefix: Prefix, origin: &PublicKey) -> bool {
        self.prefix.is_none_or(|within| within.covers(prefix))
            && self.origin.is_none_or(|key| key == *origin)
    }
}

/// Rules; the first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// In order.
    pub rules: Vec<Rule>,
    /// When none matches.
    pub otherwise: Action,
}

impl Filter {
    /// Takes the overlay's own range, where a prefix names its owner, and nothing else: whoever
    /// wants another prefix says from whom.
    pub fn import_default() -> Self {
        let rule = Rule {
            prefix: Some(OVERLAY_RANGE),
            origin: None,
            neighbour: None,
            action: Action::Accept,
        };
        Self {
            rules: vec![rule],
            otherwise: Action::Refuse,
        }
    }

    /// Takes everything.
    pub const fn accept_all() -> Self {
        Self {
            rules: Vec::new(),
            otherwise: Action::Accept,
        }
    }

    /// Whether a route passes.
    pub fn accepts(&self, prefix: Prefix, origin: &PublicKey, neighbour: &PublicKey) -> bool {
        let matches = |rule: &&Rule| {
            rule.is_about(prefix, origin) && rule.neighbour.is_none_or(|key| key == *neighbour)
        };
        let action = self
            .rules
            .iter()
            .find(matches)
            .map_or(self.otherwise, |rule| rule.action);
        action == Action::Accept
    }

    /// Whether it may accept a route from, or to, any neighbour at all.
    pub(super) fn may_accept(&self, prefix: Prefix, origin: &PublicKey) -> bool {
        for rule in &self.rules {
            match (rule.action, rule.neighbour) {
                _ if !rule.is_about(prefix, origin) => {}
                (Action::Accept, _) => return true,
                (Action::Refuse, None) => return false,
                // Others remain.
                (Action::Refuse, Some(_)) => {}
            }
        }
        self.otherwise == Action::Accept
    }
}

impl Speaker {
    /// Replaces the filters: what is no longer taken or told ends, and neighbours are asked for what
    /// was refused before. Routes that both pass stay as they are.
    pub fn set_filters(&mut self, now: Nanos, import: Filter, export: Filter) {
        let taken = std::mem::replace(&mut self.config.import, import) != self.config.import;
        let told = std::mem::replace(&mut self.config.export, export) != self.config.export;
        if taken {
            self.drop_refused(now);
            self.ask_again(now);
        }
        if told {
            let own = self.own.keys().chain(self.table.keys());
            let all: Vec<Prefix> = own.copied().collect();
            self.tell_again(now, all.into_iter());
        }
    }

    /// Changes how many destinations may be known. None is dropped; those that found no room are asked
    /// for again.
    pub fn set_routes_max(&mut self, now: Nanos, max: usize) {
        let before = std::mem::replace(&mut self.config.routes_max, max);
        if max > before {
            self.ask_again(now);
        }
    }

    /// Routes of neighbours that the filter takes no longer.
    fn drop_refused(&mut self, now: Nanos) {
        let mut refused = Vec::new();
        for (prefix, destination) in &self.table {
            for candidate in destination.candidates() {
                let link = self.links.get(&candidate.link);
                let source = destination.source(candidate.router_id);
                let (Some(link), Some(source)) = (link, source) else {
                    continue;
                };
                if !self
                    .config
                    .import
                    .accepts(*prefix, &source.origin.key, &link.key)
                {
                    refused.push((*prefix, candidate.link));
                }
            }
        }
        for (prefix, link) in refused {
            self.drop_candidate(now, prefix, link);
        }
    }

    /// Neighbours tell everything again, as to a speaker that has taken over: nothing is withdrawn
    /// meanwhile, on either side.
    fn ask_again(&mut self, now: Nanos) {
        let links: Vec<u32> = self.links.keys().copied().collect();
        for link in links {
            self.open_again(now, link);
        }
    }
}

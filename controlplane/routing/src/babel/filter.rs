//! Import and export filters: which routes are accepted from neighbours and advertised to them.

use hyphae_time::Nanos;
use hyphae_wire::address::OVERLAY_RANGE;

use hyphae_wire::{Prefix, PublicKey};

use super::Speaker;

/// What a rule does with a route that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Accepts or advertises it.
    Accept,
    /// Discards it.
    Refuse,
}

/// One line of a filter. What is `None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Matches prefixes that lie in this one.
    pub prefix: Option<Prefix>,
    /// Matches announcements of this key.
    pub origin: Option<PublicKey>,
    /// Matches routes from, or to, this neighbour.
    pub neighbour: Option<PublicKey>,
    /// Action for matching routes.
    pub action: Action,
}

impl Rule {
    /// Whether it matches a route of some neighbour.
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
    /// Accepts only the overlay's own range, where a prefix names its owner. Other prefixes need a rule.
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

    /// Accepts everything.
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

    /// Whether it accepts a route from, or to, at least one neighbour.
    pub(super) fn may_accept(&self, prefix: Prefix, origin: &PublicKey) -> bool {
        for rule in &self.rules {
            match (rule.action, rule.neighbour) {
                _ if !rule.is_about(prefix, origin) => {}
                (Action::Accept, _) => return true,
                (Action::Refuse, None) => return false,
                // Other neighbours remain.
                (Action::Refuse, Some(_)) => {}
            }
        }
        self.otherwise == Action::Accept
    }
}

impl Speaker {
    /// Replaces the filters: routes that they no longer accept are removed or retracted, and neighbours are
    /// requested to send what was refused before. Other routes stay as they are.
    pub fn set_filters(&mut self, now: Nanos, import: Filter, export: Filter) {
        let import_changed =
            std::mem::replace(&mut self.config.import, import) != self.config.import;
        let export_changed =
            std::mem::replace(&mut self.config.export, export) != self.config.export;
        if import_changed {
            self.drop_filtered(now);
            self.request_tables(now);
        }
        if export_changed {
            let own = self.own.keys().chain(self.table.keys());
            let all: Vec<Prefix> = own.copied().collect();
            self.readvertise(now, all.into_iter());
        }
    }

    /// Changes how many destinations may be known. None is removed; those that were refused are requested again.
    pub fn set_routes_max(&mut self, now: Nanos, max: usize) {
        let before = std::mem::replace(&mut self.config.routes_max, max);
        if max > before {
            self.request_tables(now);
        }
    }

    /// Removes routes that the import filter no longer accepts.
    fn drop_filtered(&mut self, now: Nanos) {
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

    /// Requests the tables of all neighbours, as after a takeover: no route is withdrawn meanwhile, on either
    /// side.
    fn request_tables(&mut self, now: Nanos) {
        let links: Vec<u32> = self.links.keys().copied().collect();
        for link in links {
            self.reopen(now, link);
        }
    }
}

//! What is taken from neighbours, and what is told to them.

use hyphae_wire::address::OVERLAY_RANGE;
use hyphae_wire::{Prefix, PublicKey};

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
            rule.prefix.is_none_or(|within| within.covers(prefix))
                && rule.origin.is_none_or(|key| key == *origin)
                && rule.neighbour.is_none_or(|key| key == *neighbour)
        };
        let action = self
            .rules
            .iter()
            .find(matches)
            .map_or(self.otherwise, |rule| rule.action);
        action == Action::Accept
    }
}

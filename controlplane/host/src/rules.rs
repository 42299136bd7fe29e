//! Policy routing (ip-rule(8)) that excludes the node's own underlay traffic from routes to gateways.
//!
//! A prefix outside of the overlay may contain the underlay address of a peer; `2000::/3` contains nearly all. A route
//! for it in the main table would send the datagrams to that peer back into the device. These routes therefore have a
//! table of their own, and the dataplane marks its sockets. For each length L of their prefixes, longest first:
//!
//! ```text
//! p    from all lookup main suppress_prefixlength L-1              LAN routes of L bits or more win
//! p+1  not from all fwmark MARK lookup TABLE suppress_prefixlength L-1   else ours, of L bits or more
//! ```
//!
//! The result is the longest match over both tables, the host's own route first if two are equally long. Marked packets
//! use the main table only, with its default route. Rules have `protocol kernel`, because systemd-networkd deletes
//! unknown rules of other protocols.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::error::HostError;
use crate::kernel::{Kernel, TABLE_MAIN, does_not_exist, exists_already};

/// Tables of routes to gateways: this number, combined with the index of the device.
const TABLES: u32 = 0x4859_0000;
const TABLE_INDEX: u32 = 0xffff;
/// Priorities: 256 for each of 64 devices, before the main table (32766).
const PRIORITIES: u32 = 10_000;
const DEVICES: u32 = 64;
const EACH: u32 = 256;
/// Lengths with rules of their own, the shortest ones. Each adds two rules to every lookup of the host, and gateways
/// choose the lengths. Longer prefixes share the rules of the longest of these.
const LENGTHS_MAX: usize = 16;

/// The table of a device.
pub(crate) fn table(index: u32) -> u32 {
    TABLES | (index & TABLE_INDEX)
}

/// The attributes in which our rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) priority: u32,
    pub(crate) table: u32,
    /// Does not match packets with this mark.
    not_mark: Option<u32>,
    /// Ignores routes with prefixes of at most this length.
    pub(crate) suppress: u32,
}

/// Rules for routes with prefixes of these lengths.
pub(crate) fn wanted(index: u32, mark: u32, lengths: impl Iterator<Item = u8>) -> BTreeSet<Rule> {
    let lengths: BTreeSet<u8> = lengths.filter(|length| *length > 0).collect();
    let first = PRIORITIES + index % DEVICES * EACH;
    let rules = lengths.into_iter().take(LENGTHS_MAX).map(u32::from);
    rules
        .flat_map(|length| {
            let (priority, suppress) = (first + 2 * (128 - length) % EACH, length - 1);
            let own = Rule {
                priority,
                table: TABLE_MAIN,
                not_mark: None,
                suppress,
            };
            let overlay = Rule {
                priority: priority + 1,
                table: table(index),
                not_mark: Some(mark),
                suppress,
            };
            [own, overlay]
        })
        .collect()
}

/// Existing rules. A rule for the main table belongs to the devices of the rules after it: two devices whose indices
/// are equal modulo [`DEVICES`] share it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleSet {
    /// Of this device.
    pub(crate) ours: BTreeSet<Rule>,
    /// Ours that another device needs as well.
    pub(crate) shared: BTreeSet<Rule>,
    /// Of deleted devices only.
    pub(crate) dead: BTreeSet<Rule>,
}

impl RuleSet {
    /// `deleted`: tables of deleted devices.
    fn new(all: &[Rule], index: u32, deleted: &BTreeSet<u32>) -> Self {
        let (own, mut found) = (table(index), Self::default());
        for rule in all {
            let belongs = |after: &&Rule| {
                (after.priority, after.suppress) == (rule.priority + 1, rule.suppress)
            };
            let tables: BTreeSet<_> = match rule.table {
                TABLE_MAIN => all.iter().filter(belongs).map(|it| it.table).collect(),
                other => [other].into(),
            };
            let tables = tables.into_iter().filter(|table| is_ours(*table));
            let (dead, live): (BTreeSet<_>, BTreeSet<_>) =
                tables.partition(|table| deleted.contains(table));
            if live.contains(&own) {
                found.ours.insert(*rule);
                if live.len() > 1 {
                    found.shared.insert(*rule);
                }
            } else if live.is_empty() && !dead.is_empty() {
                found.dead.insert(*rule);
            }
        }
        found
    }
}

/// Whether a table is a device's.
fn is_ours(table: u32) -> bool {
    table & !TABLE_INDEX == TABLES
}

impl Kernel {
    /// Rules of the device with this index, and of deleted devices.
    pub(crate) async fn rules(&self, index: u32) -> Result<RuleSet, HostError> {
        let mut all = Vec::new();
        {
            let mut dump = std::pin::pin!(self.handle.rule().get(IpVersion::V6).execute());
            while let Some(message) = dump
                .try_next()
                .await
                .map_err(self.refused("list of rules"))?
            {
                all.extend(parse(&message));
            }
        }
        let tables = all.iter().map(|rule| rule.table);
        let others: BTreeSet<_> = tables
            .filter(|other| is_ours(*other) && *other != table(index))
            .collect();
        let mut deleted = BTreeSet::new();
        for other in others {
            if !self.link_exists(other & TABLE_INDEX).await? {
                deleted.insert(other);
            }
        }
        Ok(RuleSet::new(&all, index, &deleted))
    }

    /// Adds a rule. A rule that differs from it in flags only makes the kernel report EEXIST as well as the same rule:
    /// read [`Kernel::rules`] afterwards.
    pub(crate) async fn add_rule(&self, rule: Rule) -> Result<(), HostError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = message(rule);
        match request.execute().await {
            Err(error) if exists_already(&error) => Ok(()),
            other => other.map_err(self.refused("rule")),
        }
    }

    pub(crate) async fn delete_rule(&self, rule: Rule) -> Result<(), HostError> {
        match self.handle.rule().del(message(rule)).execute().await {
            Err(error) if does_not_exist(&error) => Ok(()),
            other => other.map_err(self.refused("rule")),
        }
    }
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::SuppressPrefixLen(rule.suppress),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    if let Some(mark) = rule.not_mark {
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    message
}

/// A rule that could be one of ours.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "attributes of rules are the kernel's and many"
)]
fn parse(message: &RuleMessage) -> Option<Rule> {
    let mut rule = Rule {
        priority: 0,
        table: message.header.table.into(),
        not_mark: None,
        suppress: u32::MAX,
    };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::SuppressPrefixLen(length) => rule.suppress = *length,
            RuleAttribute::FwMark(mark) => rule.not_mark = Some(*mark),
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Kernel,
            _ => {}
        }
    }
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    (ours && inverted == rule.not_mark.is_some() && rule.suppress != u32::MAX).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_prefixes_come_first_and_each_length_uses_the_main_table_before_ours() {
        let rules: Vec<_> = wanted(5, 150, [3, 48, 3, 64].into_iter())
            .into_iter()
            .collect();
        let seen: Vec<_> = rules
            .iter()
            .map(|rule| (rule.table == TABLE_MAIN, rule.suppress, rule.not_mark))
            .collect();
        let (main, ours) = (None, Some(150));
        let pair = |suppress| [(true, suppress, main), (false, suppress, ours)];
        assert_eq!(seen, [pair(63), pair(47), pair(2)].concat());
        assert!(rules.is_sorted_by(|a, b| a.priority < b.priority));
        assert!(rules.iter().all(|rule| rule.priority < 32_766));
    }

    #[test]
    fn a_gateway_that_announces_every_length_makes_a_bounded_number_of_rules() {
        let rules = wanted(5, 150, 1..=128);
        assert_eq!(rules.len(), 2 * LENGTHS_MAX);
        // The longest that has its own is the threshold for all that are longer.
        assert_eq!(rules.first().unwrap().suppress, 15);
    }

    #[test]
    fn devices_have_tables_and_priorities_of_their_own() {
        let of = |index| wanted(index, 150, [3].into_iter());
        assert!(of(5).is_disjoint(&of(6)));
        assert_ne!(table(5), table(6));
    }

    #[test]
    fn devices_that_share_priorities_preserve_the_rules_of_each_other() {
        let of = |index| wanted(index, 150, [3, 48].into_iter());
        let (one, two) = (of(5), of(5 + DEVICES));
        let common: BTreeSet<_> = one.intersection(&two).copied().collect();
        assert_eq!(common.len(), 2, "those for the main table");
        let both: Vec<_> = one.union(&two).copied().collect();
        let found = RuleSet::new(&both, 5, &BTreeSet::new());
        assert_eq!((&found.ours, &found.shared), (&one, &common));
        assert_eq!(found.dead, BTreeSet::new());
        // Beside a device that has none yet, all are the other's.
        let others: Vec<_> = two.iter().copied().collect();
        let none = RuleSet::new(&others, 5, &BTreeSet::new());
        assert_eq!(none, RuleSet::default());
        // Rules of a deleted device are dead unless the other one needs them.
        let deleted = [table(5 + DEVICES)].into();
        let found = RuleSet::new(&both, 5, &deleted);
        assert_eq!((found.ours, found.shared), (one, BTreeSet::new()));
        assert_eq!(found.dead, two.difference(&common).copied().collect());
        assert_eq!(RuleSet::new(&others, 5, &deleted).dead, two);
        // A rule for the main table that none of ours follows is foreign.
        let alone: Vec<_> = common.into_iter().collect();
        assert_eq!(RuleSet::new(&alone, 5, &deleted), RuleSet::default());
    }

    #[test]
    fn a_rule_is_recognised_by_its_attributes_in_the_kernel() {
        for rule in wanted(7, 150, [3, 48].into_iter()) {
            assert_eq!(parse(&message(rule)), Some(rule));
        }
        let mut foreign = message(*wanted(7, 150, [3].into_iter()).first().unwrap());
        foreign
            .attributes
            .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert_eq!(parse(&foreign), None);
    }
}

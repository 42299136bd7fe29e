//! Section `[routing]`.

use std::time::Duration;

use hyphae_routing::babel::{Action, Filter, Rule};
use hyphae_wire::address::OVERLAY_RANGE;
use hyphae_wire::{Prefix, PublicKey};
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, value};

/// Dynamic routing.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingConfig {
    /// Whether the protocol runs at all; without it there are only static routes.
    pub enabled: bool,
    /// Prefixes for which this node is a gateway.
    pub announce: Vec<Prefix>,
    /// Prefixes within which this host sends to other gateways.
    pub reach: Vec<Prefix>,
    /// Time between hellos of a link.
    pub hello: Duration,
    /// Next hops that one route may have.
    pub next_hops_max: usize,
    /// Destinations known at a time.
    pub routes_max: usize,
    /// What is taken from neighbours.
    pub import: Filter,
    /// Filter of routes advertised to neighbours.
    pub export: Filter,
}

/// Loopback and unspecified, IPv4-mapped, link-local, multicast (RFC 6890, RFC 4291).
const NOT_ROUTED: [&str; 4] = ["::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"];

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRouting {
    enabled: Option<bool>,
    announce: Vec<String>,
    reach: Vec<String>,
    hello_milliseconds: Option<u64>,
    next_hops_max: Option<usize>,
    routes_max: Option<usize>,
    import: Vec<RawRule>,
    export: Vec<RawRule>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    action: RawAction,
    prefix: Option<String>,
    origin: Option<String>,
    neighbour: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum RawAction {
    Accept,
    Refuse,
}

fn rules(key: &'static str, raw: &[RawRule]) -> Result<Vec<Rule>, ConfigError> {
    let parse = |rule: &RawRule| {
        let public = |text: &Option<String>| {
            text.as_deref()
                .map(|text| text.parse::<PublicKey>().map_err(|e| value(key, e)))
                .transpose()
        };
        let prefix = rule.prefix.as_deref().map(|text| text.parse::<Prefix>());
        Ok(Rule {
            prefix: prefix.transpose().map_err(|e| value(key, e))?,
            origin: public(&rule.origin)?,
            neighbour: public(&rule.neighbour)?,
            action: match rule.action {
                RawAction::Accept => Action::Accept,
                RawAction::Refuse => Action::Refuse,
            },
        })
    };
    raw.iter().map(parse).collect()
}

/// Prefixes that are, or may be, behind gateways.
fn gateways(key: &'static str, raw: &[String]) -> Result<Vec<Prefix>, ConfigError> {
    let parse = |text: &String| {
        let prefix: Prefix = text.parse().map_err(|e| value(key, e))?;
        if prefix.overlaps(OVERLAY_RANGE) {
            let message = format!(
                "{prefix} touches the overlay range {OVERLAY_RANGE}, where addresses belong to keys; \
                 only prefixes outside of it are behind gateways (for the internet: 2000::/3)"
            );
            return Err(value(key, message));
        }
        let mut not_routed = NOT_ROUTED.iter().filter_map(|text| text.parse().ok());
        if let Some(range) = not_routed.find(|range: &Prefix| prefix.overlaps(*range)) {
            let message = format!("{prefix} touches {range}, which no router passes on");
            return Err(value(key, message));
        }
        Ok(prefix)
    };
    raw.iter().map(parse).collect()
}

impl RoutingConfig {
    pub(crate) fn check(raw: &RawRouting) -> Result<Self, ConfigError> {
        let announce = gateways("routing.announce", &raw.announce)?;
        let reach = gateways("routing.reach", &raw.reach)?;
        let hello = raw.hello_milliseconds.unwrap_or(1000);
        if !(100..=60_000).contains(&hello) {
            return Err(value("routing.hello_milliseconds", "from 100 to 60000"));
        }
        let next_hops_max = raw.next_hops_max.unwrap_or(8);
        if !(1..=8).contains(&next_hops_max) {
            return Err(value("routing.next_hops_max", "from 1 to 8"));
        }
        let routes_max = raw.routes_max.unwrap_or(200_000);
        if !(1..=10_000_000).contains(&routes_max) {
            return Err(value("routing.routes_max", "from 1 to 10000000"));
        }
        // The operator's rules come before what holds without any.
        let mut import = Filter::import_default();
        let mut first = rules("routing.import", &raw.import)?;
        first.extend(reach.iter().map(|prefix| Rule {
            prefix: Some(*prefix),
            origin: None,
            neighbour: None,
            action: Action::Accept,
        }));
        first.append(&mut import.rules);
        import.rules = first;
        let mut export = Filter::accept_all();
        export.rules = rules("routing.export", &raw.export)?;
        Ok(Self {
            enabled: raw.enabled.unwrap_or(true),
            announce,
            reach,
            hello: Duration::from_millis(hello),
            next_hops_max,
            routes_max,
            import,
            export,
        })
    }
}

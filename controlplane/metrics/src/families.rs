//! Declarations of all families: name, type, labels, help, reader. The reference page is generated from them, and a
//! test compares it with a scrape.

mod bus;
mod node;
mod routing;
mod workers;

use std::collections::BTreeMap;

use super::family::Family;
use crate::reloads::ReloadCounts;
use hyphae_node::snapshot::Snapshot;
use hyphae_proxy::Side;
use workers::Workers;

/// Source of the families.
pub(crate) struct Source {
    pub(crate) node: Snapshot,
    /// Requests of socket proxies by side and outcome.
    pub(crate) proxies: BTreeMap<(Side, &'static str), u64>,
    pub(crate) reloads: ReloadCounts,
}

/// Renders all families but those of single peers and of calls.
pub(crate) fn render(source: &Source) -> String {
    fn all<Source>(families: &[Family<Source>], source: &Source, text: &mut String) {
        families
            .iter()
            .for_each(|family| family.render(source, text));
    }
    let mut text = String::new();
    all(node::FAMILIES, source, &mut text);
    all(bus::FAMILIES, source, &mut text);
    if let Some(routing) = &source.node.routing {
        all(routing::FAMILIES, routing, &mut text);
    }
    let workers = Workers::read(&source.node.workers);
    all(workers::FAMILIES, &workers, &mut text);
    workers::render_totals(&workers, &mut text);
    text
}

/// All families by section of the reference page.
#[cfg(test)]
pub(crate) fn sections() -> Vec<(&'static str, Vec<super::family::Head<String>>)> {
    use super::family::Head;
    use super::{calls, per_peer};

    fn owned<'a>(heads: impl Iterator<Item = &'a Head>) -> Vec<Head<String>> {
        let owned = |head: &Head| Head {
            name: head.name.to_owned(),
            kind: head.kind,
            labels: head.labels,
            help: head.help,
        };
        heads.map(owned).collect()
    }
    let mut of_workers = owned(workers::FAMILIES.iter().map(|family| &family.head));
    let counters = hyphae_shm::stats::Counter::ALL.iter();
    of_workers.extend(counters.filter_map(|counter| workers::total(*counter)));
    let peers = per_peer::FAMILIES.iter().map(|family| &family.head);
    vec![
        ("Node", owned(node::FAMILIES.iter().map(|f| &f.head))),
        (
            "Routing protocol",
            owned(routing::FAMILIES.iter().map(|f| &f.head)),
        ),
        ("Single peers", owned(peers.chain([&per_peer::LEFT_OUT]))),
        ("Workers of the dataplane", of_workers),
        ("Message bus", owned(bus::FAMILIES.iter().map(|f| &f.head))),
        ("Calls", owned([&calls::FAMILY].into_iter())),
    ]
}

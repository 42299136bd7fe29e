//! `hyphae route`.

use clap::Subcommand;
use hyphae_rpc::method::{Route, RouteParams, StaticRoute};
use serde_json::json;

use super::{NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// List the selected routes of all sources, and static routes that are not in use.
    #[command(
        after_help = "Examples:\n  hyphae route list\n  hyphae route list --fallback\n  hyphae route list --json"
    )]
    List {
        /// List routes that neighbours advertise and that are not selected instead.
        #[arg(long)]
        fallback: bool,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Add a static route: PREFIX with the node of this key or overlay address as next hop.
    #[command(after_help = "Examples:\n  hyphae route add 400:1:2:3::/64 KEY")]
    Add {
        /// Prefix within the overlay, such as 400:1:2:3::/64.
        prefix: String,
        /// Next hop: public key of a peer, or overlay address.
        via: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Remove a static route.
    #[command(after_help = "Examples:\n  hyphae route remove 400:1:2:3::/64")]
    Remove {
        /// Prefix.
        prefix: String,
        /// Only the route with this next hop.
        via: Option<String>,
        #[command(flatten)]
        node: NodeRef,
    },
}

pub(crate) fn run(command: RouteCommand, json: bool) -> anyhow::Result<()> {
    match command {
        RouteCommand::List { fallback, node } if fallback => list_fallback(&node, json),
        RouteCommand::List { node, .. } => list(&node, json),
        RouteCommand::Add { prefix, via, node } => {
            let params = RouteParams {
                prefix,
                via: Some(via),
            };
            output::changed(node.client().route_add(params)?, json)
        }
        RouteCommand::Remove { prefix, via, node } => output::changed(
            node.client().route_remove(RouteParams { prefix, via })?,
            json,
        ),
    }
}

fn list(node: &NodeRef, json: bool) -> anyhow::Result<()> {
    let client = node.client();
    let (selected, configured) = (client.get_selected_routes()?, client.route_list()?);
    if json {
        return output::document(&json!({ "selected": selected, "static": configured }));
    }
    let unused = configured.iter().filter(|route| !route.reachable);
    let rows: Vec<_> = selected
        .iter()
        .map(row)
        .chain(unused.map(unused_row))
        .collect();
    show(&rows)
}

fn list_fallback(node: &NodeRef, json: bool) -> anyhow::Result<()> {
    let routes = node.client().get_fallback_routes()?;
    if json {
        return output::document(&routes);
    }
    show(&routes.iter().map(row).collect::<Vec<_>>())
}

fn show(rows: &[Vec<String>]) -> anyhow::Result<()> {
    Ok(output::table(
        &["PREFIX", "NEXT HOP", "METRIC", "ORIGIN"],
        rows,
    )?)
}

fn row(route: &Route) -> Vec<String> {
    let next_hop = match route.next_hops.len().saturating_sub(1) {
        0 => route.next_hop.clone(),
        more => format!("{} (+{more})", route.next_hop),
    };
    let metric = route.metric.to_string();
    vec![route.subnet.clone(), next_hop, metric, route.origin.clone()]
}

fn unused_row(route: &StaticRoute) -> Vec<String> {
    let state = "static, next hop is down".to_owned();
    vec![
        route.prefix.clone(),
        route.via.clone(),
        "-".to_owned(),
        state,
    ]
}

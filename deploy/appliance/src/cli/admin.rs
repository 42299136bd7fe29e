//! `hyphae admin`: administration over the message bus.

use anyhow::Context;
use clap::{Args, Subcommand};
use hyphae_rpc::method::{BusCallParams, Destination, PatternsParams, PubkeyParams};
use serde_json::Value;

use super::{NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Keys that may administer this node over the bus.
    #[command(after_help = "Examples:\n  hyphae admin list")]
    List(NodeRef),
    /// Allow the holder of a key to administer this node.
    #[command(after_help = "Examples:\n  hyphae admin add KEY && hyphae admin patterns 'get*'")]
    Add {
        /// Public key.
        pubkey: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Revoke the administration rights of a key.
    #[command(after_help = "Examples:\n  hyphae admin remove KEY")]
    Remove {
        /// Public key.
        pubkey: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Show or set the methods that administrators may call; none by default.
    #[command(
        after_help = "Examples:\n  hyphae admin patterns\n  hyphae admin patterns 'get*' 'admin.*'\n  \
        hyphae admin patterns --clear"
    )]
    Patterns {
        /// Method names, with '*' as a wildcard. They replace the current patterns.
        #[arg(conflicts_with = "clear")]
        patterns: Vec<String>,
        /// Allow no method.
        #[arg(long)]
        clear: bool,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Call a method of another node over the bus.
    #[command(after_help = "Examples:\n  hyphae admin call KEY getInfo\n  \
        hyphae admin call 400:1234::1 addPeer '{\"endpoint\": \"udp://192.0.2.1:9670\"}' --timeout 10")]
    Call(CallArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct CallArgs {
    /// Overlay address or public key of the other node.
    destination: Destination,
    /// Method.
    method: String,
    /// Parameters, a JSON object or array.
    params: Option<String>,
    /// Seconds to wait for the answer [default: 30].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    #[command(flatten)]
    node: NodeRef,
}

pub(crate) fn run(command: AdminCommand, json: bool) -> anyhow::Result<()> {
    match command {
        AdminCommand::List(node) => lines(&node.client().admin_list()?, json),
        AdminCommand::Add { pubkey, node } => {
            output::changed(node.client().admin_add(PubkeyParams { pubkey })?, json)
        }
        AdminCommand::Remove { pubkey, node } => {
            output::changed(node.client().admin_remove(PubkeyParams { pubkey })?, json)
        }
        AdminCommand::Patterns {
            patterns,
            clear,
            node,
        } => {
            let client = node.client();
            if patterns.is_empty() && !clear {
                return lines(&client.admin_get_method_patterns()?, json);
            }
            output::changed(
                client.admin_set_method_patterns(PatternsParams { patterns })?,
                json,
            )
        }
        AdminCommand::Call(args) => call(args),
    }
}

fn lines(all: &[String], json: bool) -> anyhow::Result<()> {
    if json {
        return output::document(&all);
    }
    Ok(all.iter().try_for_each(output::line)?)
}

/// Prints the result of the other node; its error becomes the error of this command.
fn call(args: CallArgs) -> anyhow::Result<()> {
    let params = match &args.params {
        None => Value::Null,
        Some(text) => serde_json::from_str(text).context("parameters are not JSON")?,
    };
    let (dst_pubkey, dst_ip) = match args.destination {
        Destination::Pk(key) => (Some(key), None),
        Destination::Ip(ip) => (None, Some(ip)),
    };
    let response = args.node.client().admin_bus_call(BusCallParams {
        dst_pubkey,
        dst_ip,
        method: args.method,
        params,
        id: None,
        timeout_secs: args.timeout,
    })?;
    match response.error {
        Some(error) => Err(hyphae_rpc::ClientError::from(error).into()),
        None => output::document(&response.result.unwrap_or(Value::Null)),
    }
}

//! The file as serde reads it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::endpoint::{PeerUrl, RouteSpec};
use crate::peering::{RawDiscovery, RawNetwork, RawPeering};
use crate::routing::RawRouting;

/// The file as written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Raw {
    pub(crate) listen: Option<String>,
    pub(crate) peers: Vec<PeerUrl>,
    pub(crate) routes: Vec<RouteSpec>,
    pub(crate) mtu: Option<u16>,
    pub(crate) tun: RawTun,
    pub(crate) cores: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) poll_max_microseconds: Option<u64>,
    pub(crate) underlay_mark: Option<u32>,
    pub(crate) suite: Option<String>,
    pub(crate) metrics: Option<String>,
    pub(crate) metrics_peers_max: usize,
    pub(crate) rpc: RawRpc,
    pub(crate) admin: RawAdmin,
    pub(crate) log_level: Option<String>,
    pub(crate) log: RawLog,
    pub(crate) session: RawSession,
    pub(crate) network: RawNetwork,
    pub(crate) peering: RawPeering,
    pub(crate) discovery: RawDiscovery,
    pub(crate) inbox: RawInbox,
    pub(crate) stream: RawStream,
    pub(crate) routing: RawRouting,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRpc {
    pub(crate) listen: Option<String>,
    pub(crate) rest: Option<String>,
    pub(crate) allow_uids: Vec<u32>,
    pub(crate) allow_gids: Vec<u32>,
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawAdmin {
    pub(crate) bus_call: Option<bool>,
    pub(crate) socket_dirs: Option<Vec<PathBuf>>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLog {
    pub(crate) format: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTun {
    pub(crate) enabled: Option<bool>,
    pub(crate) name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawInbox {
    pub(crate) durable: Option<bool>,
    pub(crate) messages_max: Option<usize>,
    pub(crate) bytes_max: Option<usize>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSession {
    pub(crate) rekey_after_seconds: Option<u64>,
    pub(crate) keepalive_seconds: Option<u64>,
    pub(crate) dead_after_seconds: Option<u64>,
    pub(crate) lost_after_ms: Option<u64>,
    pub(crate) retry_max_seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawStream {
    pub(crate) listen: Option<bool>,
    pub(crate) fallback: Option<bool>,
    pub(crate) fallback_after_seconds: Option<u64>,
    pub(crate) upgrade_seconds: Option<u64>,
}

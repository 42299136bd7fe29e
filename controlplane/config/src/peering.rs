//! Settings of peering: private network, who may be a peer, limits, discovery.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use hyphae_overlay::Policy;
use hyphae_wire::PublicKey;
use hyphae_wire::network::NAME_MAX;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, value};

/// UDP port of discovery by default.
pub const DISCOVERY_PORT_DEFAULT: u16 = 9651;
/// Most peers that may be asked for. Their numbers go to 16,384, and some are left so that one which has
/// just left is not given to another at once.
pub(crate) const PEERS_MAX: usize = 16_000;
/// Most interfaces that may be named.
const INTERFACES_MAX: usize = 64;
/// Longest name of an interface (IFNAMSIZ without its end).
const INTERFACE_NAME_MAX: usize = 15;

/// Settings of peering, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PeeringConfig {
    /// Private network; `None` for the public one.
    pub network: Option<NetworkConfig>,
    /// Who may be a peer.
    pub policy: Policy,
    /// Names of keys, for log and lists.
    pub names: BTreeMap<PublicKey, String>,
    /// Most peers of all kinds.
    pub peers_max: usize,
    /// Handshakes of one address that may be unfinished at a time.
    pub handshakes_per_source_max: usize,
    /// Search for nodes on local networks.
    pub discovery: DiscoveryConfig,
}

/// A private network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name, the same on all members.
    pub name: String,
    /// File of its key.
    pub key_file: PathBuf,
}

/// Search for nodes on local networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryConfig {
    /// Where.
    pub mode: DiscoveryMode,
    /// UDP port.
    pub port: u16,
}

/// Where to search for nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoveryMode {
    /// On every interface with an IPv6 link-local address, but the overlay's own.
    All,
    /// Nowhere.
    Off,
    /// On these only.
    Interfaces(BTreeSet<String>),
}

impl FromStr for DiscoveryMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::Off),
            list => Self::interfaces(list.split(',').map(str::to_owned)),
        }
    }
}

impl DiscoveryMode {
    fn interfaces(names: impl Iterator<Item = String>) -> Result<Self, String> {
        let names: BTreeSet<_> = names.collect();
        for name in &names {
            let odd = |c: char| c == '/' || c.is_whitespace();
            if name.is_empty() || name.len() > INTERFACE_NAME_MAX || name.contains(odd) {
                return Err(format!("'{name}' is not the name of an interface"));
            }
        }
        if names.is_empty() {
            return Err("an empty list; use \"none\" to switch discovery off".to_owned());
        }
        if names.len() > INTERFACES_MAX {
            return Err(format!(
                "more than {INTERFACES_MAX} interfaces; use \"all\""
            ));
        }
        Ok(Self::Interfaces(names))
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawNetwork {
    name: Option<String>,
    key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawPeering {
    allow: Option<Vec<RawKey>>,
    deny: Vec<RawKey>,
    peers_max: Option<usize>,
    inbound_max: Option<usize>,
    inbound_per_source_max: Option<usize>,
    handshakes_per_source_max: Option<usize>,
}

/// A key, with or without a name.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum RawKey {
    Plain(String),
    Named(RawNamedKey),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawNamedKey {
    key: String,
    name: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawDiscovery {
    mode: Option<RawMode>,
    port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum RawMode {
    Word(String),
    List(Vec<String>),
}

pub(crate) fn check(
    network: RawNetwork,
    peering: RawPeering,
    discovery: RawDiscovery,
) -> Result<PeeringConfig, ConfigError> {
    let mut names = BTreeMap::new();
    let deny = keys("peering.deny", peering.deny, &mut names)?;
    let allow = match peering.allow {
        Some(list) => Some(keys("peering.allow", list, &mut names)?),
        None => None,
    };
    let limit = |key, given: Option<usize>, default, max| match given.unwrap_or(default) {
        given if (1..=max).contains(&given) => Ok(given),
        given => Err(value(
            key,
            format!("{given} is out of range; use 1 to {max}"),
        )),
    };
    let peers_max = limit("peering.peers_max", peering.peers_max, 1024, PEERS_MAX)?;
    let usual = Policy::default();
    let policy = Policy {
        allow,
        deny,
        inbound_max: match peering.inbound_max {
            // Nobody but configured peers.
            Some(0) => 0,
            given => limit("peering.inbound_max", given, usual.inbound_max, PEERS_MAX)?,
        },
        inbound_per_source_max: limit(
            "peering.inbound_per_source_max",
            peering.inbound_per_source_max,
            usual.inbound_per_source_max,
            PEERS_MAX,
        )?,
    };
    Ok(PeeringConfig {
        network: check_network(network.name, network.key_file)?,
        policy,
        names,
        peers_max,
        handshakes_per_source_max: limit(
            "peering.handshakes_per_source_max",
            peering.handshakes_per_source_max,
            32,
            256,
        )?,
        discovery: check_discovery(discovery)?,
    })
}

fn check_network(
    name: Option<String>,
    key_file: Option<PathBuf>,
) -> Result<Option<NetworkConfig>, ConfigError> {
    let (name, key_file) = match (name, key_file) {
        (None, None) => return Ok(None),
        (Some(name), Some(key_file)) => (name, key_file),
        (Some(_), None) => {
            let message =
                "a private network needs its key file too; `hyphae key network` makes one";
            return Err(value("network.key_file", message));
        }
        (None, Some(_)) => {
            return Err(value(
                "network.name",
                "a private network needs its name too",
            ));
        }
    };
    if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
        let message = format!("'{name}' is not a name of 1 to {NAME_MAX} bytes");
        return Err(value("network.name", message));
    }
    Ok(Some(NetworkConfig { name, key_file }))
}

fn check_discovery(raw: RawDiscovery) -> Result<DiscoveryConfig, ConfigError> {
    let mode = match raw.mode {
        Some(RawMode::Word(word)) => word.parse(),
        Some(RawMode::List(list)) => DiscoveryMode::interfaces(list.into_iter()),
        None => Ok(DiscoveryMode::All),
    };
    let port = raw.port.unwrap_or(DISCOVERY_PORT_DEFAULT);
    if port == 0 {
        return Err(value("discovery.port", "0 is no port; use 1 to 65535"));
    }
    Ok(DiscoveryConfig {
        mode: mode.map_err(|message| value("discovery.mode", message))?,
        port,
    })
}

fn keys(
    what: &'static str,
    list: Vec<RawKey>,
    names: &mut BTreeMap<PublicKey, String>,
) -> Result<BTreeSet<PublicKey>, ConfigError> {
    let mut keys = BTreeSet::new();
    for entry in list {
        let (text, name) = match entry {
            RawKey::Plain(text) => (text, None),
            RawKey::Named(RawNamedKey { key, name }) => (key, Some(name)),
        };
        let key: PublicKey = text.parse().map_err(|error| value(what, error))?;
        names.extend(name.map(|name| (key, name)));
        keys.insert(key);
    }
    Ok(keys)
}

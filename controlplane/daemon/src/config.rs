//! Configuration: one TOML file, flags on top.
//!
//! The file is read into a raw form that refuses unknown keys, then checked into [`Config`]. A flag
//! that is not given is `None` in [`Overrides`] and changes nothing.

mod peering;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyphae_wire::frame::MTU_DEFAULT;
use hyphae_wire::{Suite, SuiteSet};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

mod routing;

use crate::endpoint::{PeerUrl, RouteSpec};
use crate::inbox::Limits;
use routing::RawRouting;
pub use routing::RoutingConfig;

pub use peering::{
    DISCOVERY_PORT_DEFAULT, DiscoveryConfig, DiscoveryMode, NetworkConfig, PeeringConfig,
};

/// Underlay address by default: IPv6 and IPv4, port of the protocol.
pub const LISTEN_DEFAULT: &str = "[::]:9670";
/// JSON-RPC over TCP by default.
pub const RPC_DEFAULT: &str = "127.0.0.1:8990";
/// REST by default, where JSON-RPC over TCP is on.
pub const REST_DEFAULT: &str = "127.0.0.1:8989";
/// Metrics by default.
pub const METRICS_DEFAULT: &str = "127.0.0.1:9469";
/// Name of the TUN device by default.
pub const TUN_NAME_DEFAULT: &str = "hyphae0";

/// Settings of a node, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Underlay address of worker 0.
    pub listen: SocketAddr,
    /// Peers to keep connecting to.
    pub peers: Vec<PeerUrl>,
    /// Static routes.
    pub routes: Vec<RouteSpec>,
    /// Name of the TUN device; `None` for none.
    pub tun: Option<String>,
    /// Cores of the workers, as the dataplane reads it.
    pub cores: String,
    /// Driver, as the dataplane reads it.
    pub driver: String,
    /// Suites to offer; `None` leaves the choice to the hardware.
    pub suite: Option<Suite>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// How many peers may have metrics of their own.
    pub metrics_peers_max: usize,
    /// Where JSON-RPC is served over TCP.
    pub rpc: Option<SocketAddr>,
    /// Where REST is served over TCP.
    pub rest: Option<SocketAddr>,
    /// Who may use `rpc.sock`, beside the node's own user, root and the group of the socket file.
    pub rpc_allowed: Allowed,
    /// Whether `admin.busCall` is offered.
    pub bus_call: bool,
    /// Filter of log messages.
    pub log_level: String,
    /// Sessions.
    pub session: SessionConfig,
    /// Private network, who may be a peer, discovery.
    pub peering: PeeringConfig,
    /// Messages that wait to be read.
    pub inbox: InboxConfig,
    /// Stream links.
    pub stream: StreamConfig,
    /// Dynamic routing.
    pub routing: RoutingConfig,
}

/// Frames over TCP, where UDP does not pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamConfig {
    /// Accept them, on the port number of worker 0.
    pub listen: bool,
    /// Silence after which a peer given as `udp://` is tried over TCP too; `None` for never.
    pub fallback_after: Option<Duration>,
    /// While such a peer is connected over TCP, time between attempts over UDP.
    pub upgrade_every: Duration,
}

/// Room for messages that wait to be read; their senders wait when there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InboxConfig {
    /// On disk, so that what was acknowledged survives the process.
    pub durable: bool,
    /// Messages.
    pub messages_max: usize,
    /// Bytes.
    pub bytes_max: usize,
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups.
    pub gids: Vec<u32>,
}

impl Allowed {
    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

/// Life of sessions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionConfig {
    /// Age at which keys are renewed.
    pub rekey_after: Duration,
    /// Time between probes of a link.
    pub keepalive: Duration,
    /// Silence after which a peer is down.
    pub dead_after: Duration,
    /// The same for a peer to which frames are being sent.
    pub lost_after: Duration,
    /// Longest time between attempts at a peer that was never up.
    pub retry_max: Duration,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// File.
        path: PathBuf,
        /// How.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// File.
        path: PathBuf,
        /// Line, key and cause.
        message: String,
    },
    /// A value out of range or of the wrong form.
    #[error("{key}: {message}")]
    Value {
        /// Key or flag.
        key: &'static str,
        /// Cause and way out.
        message: String,
    },
}

/// The file as written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    listen: Option<String>,
    peers: Vec<PeerUrl>,
    routes: Vec<RouteSpec>,
    tun: RawTun,
    cores: Option<String>,
    driver: Option<String>,
    suite: Option<String>,
    metrics: Option<String>,
    metrics_peers_max: usize,
    #[serde(deserialize_with = "address_or_table")]
    rpc: RawRpc,
    admin: RawAdmin,
    log_level: Option<String>,
    session: RawSession,
    network: peering::RawNetwork,
    peering: peering::RawPeering,
    discovery: peering::RawDiscovery,
    inbox: RawInbox,
    stream: RawStream,
    routing: RawRouting,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawRpc {
    listen: Option<String>,
    rest: Option<String>,
    allow_uids: Vec<u32>,
    allow_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawAdmin {
    bus_call: Option<bool>,
}

/// `rpc = "127.0.0.1:8990"` is short for a table with `listen` only.
fn address_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RawRpc, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = RawRpc;

        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("ADDRESS:PORT, \"off\", or a table")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RawRpc, E> {
            Ok(RawRpc {
                listen: Some(text.to_owned()),
                ..RawRpc::default()
            })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawRpc, A::Error> {
            RawRpc::deserialize(serde::de::value::MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Either)
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawTun {
    enabled: Option<bool>,
    name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawInbox {
    durable: Option<bool>,
    messages_max: Option<usize>,
    bytes_max: Option<usize>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawSession {
    rekey_after_seconds: Option<u64>,
    keepalive_seconds: Option<u64>,
    dead_after_seconds: Option<u64>,
    lost_after_ms: Option<u64>,
    retry_max_seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawStream {
    listen: Option<bool>,
    fallback: Option<bool>,
    fallback_after_seconds: Option<u64>,
    upgrade_seconds: Option<u64>,
}

/// What was given on the command line; `None` and empty lists change nothing.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<String>,
    /// `--peer`, added to those of the file.
    pub peers: Vec<PeerUrl>,
    /// `--route`, added to those of the file.
    pub routes: Vec<RouteSpec>,
    /// `--tun-name`
    pub tun_name: Option<String>,
    /// `--no-tun`
    pub no_tun: bool,
    /// `--cores`
    pub cores: Option<String>,
    /// `--driver`
    pub driver: Option<String>,
    /// `--suite`
    pub suite: Option<String>,
    /// `--metrics`
    pub metrics: Option<String>,
    /// `--rpc`
    pub rpc: Option<String>,
    /// `--rest`
    pub rest: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--network`
    pub network: Option<String>,
    /// `--network-key`
    pub network_key: Option<PathBuf>,
    /// `--discovery`
    pub discovery: Option<String>,
}

impl Config {
    /// Reads a file, if one is named, and puts flags on top.
    ///
    /// # Errors
    /// With file, line, key and cause.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let raw = match path {
            None => Raw::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                let mut raw: Raw = toml::from_str(&text).map_err(|error| ConfigError::Parse {
                    path: path.to_owned(),
                    message: explain(&error),
                })?;
                peering::relative_to(path, &mut raw.network);
                raw
            }
        };
        Self::check(raw, overrides)
    }

    fn check(raw: Raw, over: Overrides) -> Result<Self, ConfigError> {
        let text = |flag: Option<String>, file: Option<String>, default: &str| {
            flag.or(file).unwrap_or_else(|| default.to_owned())
        };
        let listen = text(over.listen, raw.listen, LISTEN_DEFAULT);
        let tun_off = over.no_tun || (over.tun_name.is_none() && raw.tun.enabled == Some(false));
        let tun_name = text(over.tun_name, raw.tun.name, TUN_NAME_DEFAULT);
        let suite = match text(over.suite, raw.suite, "auto").as_str() {
            "auto" => None,
            name => Some(
                name.parse::<Suite>()
                    .map_err(|error| value("suite", error))?,
            ),
        };
        let mut peers = raw.peers;
        for peer in over.peers {
            if !peers.contains(&peer) {
                peers.push(peer);
            }
        }
        let rpc = optional_socket("rpc.listen", &text(over.rpc, raw.rpc.listen, RPC_DEFAULT))?;
        // Whoever switches the one off does not expect the other to listen.
        let rest_default = if rpc.is_some() { REST_DEFAULT } else { "off" };
        let rest = text(over.rest, raw.rpc.rest, rest_default);
        let routes = raw.routes.into_iter().chain(over.routes).collect();
        Ok(Self {
            listen: socket("listen", &listen)?,
            peers,
            routes,
            tun: (!tun_off).then_some(tun_name),
            cores: text(over.cores, raw.cores, "auto"),
            driver: text(over.driver, raw.driver, "auto"),
            suite,
            metrics: optional_socket("metrics", &text(over.metrics, raw.metrics, METRICS_DEFAULT))?,
            metrics_peers_max: raw.metrics_peers_max,
            rpc,
            rest: optional_socket("rpc.rest", &rest)?,
            rpc_allowed: Allowed {
                uids: raw.rpc.allow_uids,
                gids: raw.rpc.allow_gids,
            },
            bus_call: raw.admin.bus_call.unwrap_or(true),
            log_level: text(over.log_level, raw.log_level, "info"),
            session: SessionConfig::check(&raw.session)?,
            peering: peering::check(
                raw.network,
                raw.peering,
                raw.discovery,
                peering::PeeringOverrides {
                    network_name: over.network,
                    network_key_file: over.network_key,
                    discovery: over.discovery,
                },
            )?,
            inbox: InboxConfig::check(&raw.inbox)?,
            stream: StreamConfig::check(&raw.stream)?,
            routing: RoutingConfig::check(&raw.routing)?,
        })
    }

    /// Suites to offer on a machine with or without AES instructions.
    pub fn suites(&self, aes_hardware: bool) -> SuiteSet {
        match self.suite {
            Some(suite) => SuiteSet::only(suite),
            None if aes_hardware => SuiteSet::all(),
            None => SuiteSet::only(Suite::ChaCha20Poly1305),
        }
    }

    /// Largest inner packet.
    pub fn mtu(&self) -> u16 {
        MTU_DEFAULT
    }
}

impl InboxConfig {
    /// The same as the inbox counts it.
    pub fn limits(&self) -> Limits {
        Limits {
            messages_max: self.messages_max,
            bytes_max: self.bytes_max as u64,
            ..Limits::default()
        }
    }

    fn check(raw: &RawInbox) -> Result<Self, ConfigError> {
        let config = Self {
            durable: raw.durable.unwrap_or(true),
            messages_max: raw.messages_max.unwrap_or(65_536),
            bytes_max: raw.bytes_max.unwrap_or(256 << 20),
        };
        if config.messages_max == 0 {
            return Err(value(
                "inbox.messages_max",
                "0 would take no message at all; use 1 or more",
            ));
        }
        Ok(config)
    }
}

impl SessionConfig {
    fn check(raw: &RawSession) -> Result<Self, ConfigError> {
        let keepalive = seconds(
            "session.keepalive_seconds",
            raw.keepalive_seconds,
            5,
            1..=60,
        )?;
        let dead = seconds(
            "session.dead_after_seconds",
            raw.dead_after_seconds,
            15,
            2..=600,
        )?;
        if dead < keepalive * 2 {
            let message = "must be at least twice session.keepalive_seconds".to_owned();
            return Err(value("session.dead_after_seconds", message));
        }
        let lost = raw.lost_after_ms.unwrap_or(2500);
        if !(1000..=600_000).contains(&lost) {
            let message = format!("{lost} is out of range; use 1000 to 600000 milliseconds");
            return Err(value("session.lost_after_ms", message));
        }
        let retry = seconds(
            "session.retry_max_seconds",
            raw.retry_max_seconds,
            30,
            2..=3600,
        )?;
        let rekey = seconds(
            "session.rekey_after_seconds",
            raw.rekey_after_seconds,
            120,
            2..=120,
        )?;
        Ok(Self {
            rekey_after: rekey,
            keepalive,
            dead_after: dead,
            lost_after: Duration::from_millis(lost),
            retry_max: retry,
        })
    }
}

impl StreamConfig {
    fn check(raw: &RawStream) -> Result<Self, ConfigError> {
        let after = seconds(
            "stream.fallback_after_seconds",
            raw.fallback_after_seconds,
            3,
            0..=60,
        )?;
        Ok(Self {
            listen: raw.listen.unwrap_or(true),
            fallback_after: raw.fallback.unwrap_or(true).then_some(after),
            upgrade_every: seconds("stream.upgrade_seconds", raw.upgrade_seconds, 60, 1..=3600)?,
        })
    }
}

fn seconds(
    key: &'static str,
    given: Option<u64>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Duration, ConfigError> {
    let given = given.unwrap_or(default);
    if range.contains(&given) {
        return Ok(Duration::from_secs(given));
    }
    let (low, high) = range.into_inner();
    let message = format!("{given} is out of range; use {low} to {high} seconds");
    Err(value(key, message))
}

fn value(key: &'static str, message: impl ToString) -> ConfigError {
    ConfigError::Value {
        key,
        message: message.to_string(),
    }
}

fn socket(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        value(
            key,
            format!("'{text}' is not ADDRESS:PORT, such as 127.0.0.1:9670 or [::]:9670"),
        )
    })
}

fn optional_socket(key: &'static str, text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text == "off" {
        Ok(None)
    } else {
        socket(key, text).map(Some)
    }
}

/// The error of the parser, with the nearest key where one is unknown.
fn explain(error: &toml::de::Error) -> String {
    let text = error.to_string().trim_end().replace('\n', "\n  ");
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (Some(unknown), true) = (quoted.next(), message.starts_with("unknown field")) else {
        return text;
    };
    let nearest = quoted.min_by_key(|known| distance(unknown, known));
    match nearest.filter(|known| distance(unknown, known) <= 3) {
        Some(known) => format!("{text}\n  did you mean `{known}`?"),
        None => text,
    }
}

/// Edit distance of two short names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, overrides: Overrides) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), overrides)
    }

    #[test]
    fn a_flag_that_is_not_given_changes_nothing() {
        let text = "listen = \"127.0.0.1:1\"\nmetrics = \"off\"\nsuite = \"aes-256-gcm\"\n[tun]\nenabled = false\n";
        let config = load(text, Overrides::default()).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!((config.metrics, config.tun), (None, None));
        assert_eq!(config.suite, Some(Suite::Aes256Gcm));
        let flags = Overrides {
            listen: Some("127.0.0.1:2".into()),
            ..Overrides::default()
        };
        assert_eq!(load(text, flags).unwrap().listen.port(), 2);
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_suggestion() {
        let error = load("listn = \"[::]:1\"", Overrides::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 1") && error.contains("did you mean `listen`?"),
            "{error}"
        );
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (text, key) in [
            ("listen = \"9670\"", "listen"),
            ("suite = \"rot13\"", "suite"),
            ("[session]\nlost_after_ms = 10", "session.lost_after_ms"),
            ("[network]\nname = \"garden\"", "network.key_file"),
            ("[network]\nkey_file = \"k\"", "network.name"),
            ("[network]\nname = \"\"\nkey_file = \"k\"", "network.name"),
            ("[peering]\nallow = [\"12\"]", "peering.allow"),
            (
                "[peering]\ndeny = [{ key = \"12\", name = \"x\" }]",
                "peering.deny",
            ),
            ("[peering]\npeers_max = 0", "peering.peers_max"),
            ("[discovery]\nmode = \"a b\"", "discovery.mode"),
            ("[discovery]\nmode = []", "discovery.mode"),
            ("[discovery]\nport = 0", "discovery.port"),
            ("[stream]\nupgrade_seconds = 0", "stream.upgrade_seconds"),
            (
                "[session]\nrekey_after_seconds = 0",
                "session.rekey_after_seconds",
            ),
            (
                "[session]\nkeepalive_seconds = 10",
                "session.dead_after_seconds",
            ),
        ] {
            let error = load(text, Overrides::default()).unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn stream_links_can_be_switched_off_one_way_at_a_time() {
        let defaults = load("", Overrides::default()).unwrap().stream;
        assert!(defaults.listen && defaults.fallback_after.is_some());
        let text = "[stream]\nfallback = false\n";
        let stream = load(text, Overrides::default()).unwrap().stream;
        assert_eq!((stream.listen, stream.fallback_after), (true, None));
        let text = "[stream]\nlisten = false\n";
        let stream = load(text, Overrides::default()).unwrap().stream;
        assert_eq!(
            (stream.listen, stream.fallback_after),
            (false, defaults.fallback_after)
        );
    }

    #[test]
    fn rpc_is_an_address_or_a_table_and_takes_rest_along() {
        let plain = load("", Overrides::default()).unwrap();
        assert_eq!(
            (plain.rpc.unwrap().port(), plain.rest.unwrap().port()),
            (8990, 8989)
        );
        let off = load("rpc = \"off\"", Overrides::default()).unwrap();
        assert_eq!((off.rpc, off.rest), (None, None));
        let text = "[rpc]\nlisten = \"off\"\nrest = \"127.0.0.1:1\"\nallow_uids = [7]\n[admin]\nbus_call = false";
        let table = load(text, Overrides::default()).unwrap();
        assert_eq!((table.rpc, table.rest.unwrap().port()), (None, 1));
        assert_eq!((table.rpc_allowed.uids, table.bus_call), (vec![7], false));
        let error = load("[rpc]\nlisen = \"off\"", Overrides::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 2") && error.contains("did you mean `listen`?"),
            "{error}"
        );
    }

    #[test]
    fn lists_of_keys_take_names_and_an_empty_allow_list_lets_nobody_in() {
        let (one, two) = ("11".repeat(32), "22".repeat(32));
        let text = format!(
            "[peering]\nallow = [\"{one}\", {{ key = \"{two}\", name = \"attic\" }}]\n\
             inbound_max = 0\n[discovery]\nmode = [\"eth0\", \"eth1\"]\n\
             [network]\nname = \"garden\"\nkey_file = \"k\""
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let config = Config::load(Some(file.path()), Overrides::default());
        let peering = config.unwrap().peering;
        assert_eq!(peering.policy.allow.as_ref().unwrap().len(), 2);
        assert_eq!(peering.names[&two.parse().unwrap()], "attic");
        assert_eq!(peering.policy.inbound_max, 0);
        assert_eq!(peering.discovery.mode, "eth1,eth0".parse().unwrap());
        let key_file = peering.network.unwrap().key_file;
        assert_eq!(key_file, file.path().parent().unwrap().join("k"));
        let nobody = load("[peering]\nallow = []", Overrides::default()).unwrap();
        assert_eq!(nobody.peering.policy.allow, Some(Default::default()));
        let flags = Overrides {
            discovery: Some("none".into()),
            ..Overrides::default()
        };
        let mode = load(&text, flags).unwrap().peering.discovery.mode;
        assert_eq!(mode, DiscoveryMode::Off);
    }

    #[test]
    fn the_shipped_file_holds_the_defaults() {
        let text = include_str!("../../../deploy/default.toml");
        let shipped = load(text, Overrides::default()).unwrap();
        assert_eq!(shipped, Config::load(None, Overrides::default()).unwrap());
    }
}

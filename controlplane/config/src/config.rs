//! Settings of a node, checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyphae_wire::address::OVERLAY_RANGE;
use hyphae_wire::frame::MTU_DEFAULT;
use hyphae_wire::report::INNER_MTU_MIN;
use hyphae_wire::{Suite, SuiteSet};

use crate::endpoint::{PeerUrl, RouteSpec};
use crate::error::{ConfigError, value};
use crate::peering::{self, PeeringConfig};
use crate::raw::{Raw, RawInbox, RawRpc, RawSession, RawStream};
use crate::routing::RoutingConfig;

/// Underlay address by default: IPv6 and IPv4, port of the protocol.
pub const LISTEN_DEFAULT: &str = "[::]:9670";
/// Largest `mtu` that can be set: links of 9216 bytes carry it.
const MTU_MAX: u16 = 9000;
/// Sets no bit that kube-proxy, Calico, Tailscale or wg-quick use.
const UNDERLAY_MARK_DEFAULT: u32 = 150;
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
    /// Bytes of the largest packet of the overlay: of the host, and of messages.
    pub mtu: u16,
    /// Name of the TUN device; `None` for none.
    pub tun: Option<String>,
    /// Cores of the workers, as the dataplane reads it.
    pub cores: String,
    /// Driver, as the dataplane reads it.
    pub driver: String,
    /// Longest time for which a worker polls before it sleeps.
    pub poll_max: Duration,
    /// Mark of the underlay packets; 0 for none.
    pub underlay_mark: u32,
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
    /// File of the bearer token of callers that have no user on this host.
    pub rpc_token: Option<PathBuf>,
    /// Whether `admin.busCall` is offered.
    pub bus_call: bool,
    /// Directories below which remote administrators may name sockets.
    pub socket_dirs: Vec<PathBuf>,
    /// Filter of log messages.
    pub log_level: String,
    /// Their form.
    pub log_format: LogFormat,
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

/// Form of log messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object in each line.
    Json,
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

impl Config {
    pub(crate) fn check(raw: Raw) -> Result<Self, ConfigError> {
        let text =
            |given: Option<String>, default: &str| given.unwrap_or_else(|| default.to_owned());
        let listen = text(raw.listen, LISTEN_DEFAULT);
        let tun_name = text(raw.tun.name, TUN_NAME_DEFAULT);
        let suite = match text(raw.suite, "auto").as_str() {
            "auto" => None,
            name => Some(
                name.parse::<Suite>()
                    .map_err(|error| value("suite", error))?,
            ),
        };
        let (rpc, rest) = rpc_listeners(&raw.rpc)?;
        if let Some(route) = raw
            .routes
            .iter()
            .find(|route| !OVERLAY_RANGE.covers(route.prefix))
        {
            let message = format!("{route} is not part of the overlay range, {OVERLAY_RANGE}");
            return Err(value("routes", message));
        }
        Ok(Self {
            listen: socket("listen", &listen)?,
            peers: raw.peers,
            routes: raw.routes,
            mtu: in_range(
                "mtu",
                raw.mtu.unwrap_or(MTU_DEFAULT),
                INNER_MTU_MIN..=MTU_MAX,
                "bytes",
            )?,
            tun: raw.tun.enabled.unwrap_or(true).then_some(tun_name),
            cores: text(raw.cores, "auto"),
            driver: text(raw.driver, "auto"),
            poll_max: Duration::from_micros(in_range(
                "poll_max_microseconds",
                raw.poll_max_microseconds.unwrap_or(0),
                0..=1000,
                "microseconds",
            )?),
            underlay_mark: raw.underlay_mark.unwrap_or(UNDERLAY_MARK_DEFAULT),
            suite,
            metrics: optional_socket("metrics", &text(raw.metrics, METRICS_DEFAULT))?,
            metrics_peers_max: raw.metrics_peers_max,
            rpc,
            rest,
            rpc_allowed: Allowed {
                uids: raw.rpc.allow_uids,
                gids: raw.rpc.allow_gids,
            },
            rpc_token: raw.rpc.token_file,
            bus_call: raw.admin.bus_call.unwrap_or(true),
            socket_dirs: raw.admin.socket_dirs.unwrap_or_default(),
            log_level: text(raw.log_level, "info"),
            log_format: log_format(&text(raw.log.format, "text"))?,
            session: SessionConfig::check(&raw.session)?,
            peering: peering::check(raw.network, raw.peering, raw.discovery)?,
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
}

impl InboxConfig {
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
        let lost = in_range(
            "session.lost_after_ms",
            raw.lost_after_ms.unwrap_or(2500),
            1000..=600_000,
            "milliseconds",
        )?;
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
    in_range(key, given.unwrap_or(default), range, "seconds").map(Duration::from_secs)
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    given: T,
    range: std::ops::RangeInclusive<T>,
    unit: &str,
) -> Result<T, ConfigError> {
    if range.contains(&given) {
        return Ok(given);
    }
    let (low, high) = range.into_inner();
    let message = format!("{given} is out of range; use {low} to {high} {unit}");
    Err(value(key, message))
}

/// Addresses of JSON-RPC and REST over TCP.
fn rpc_listeners(raw: &RawRpc) -> Result<(Option<SocketAddr>, Option<SocketAddr>), ConfigError> {
    let address = |key, given: &Option<String>, default| {
        optional_socket(key, given.as_deref().unwrap_or(default))
    };
    let rpc = address("rpc.listen", &raw.listen, RPC_DEFAULT)?;
    // `listen = "off"` disables both unless the other one is set.
    let rest_default = if rpc.is_some() { REST_DEFAULT } else { "off" };
    let rest = address("rpc.rest", &raw.rest, rest_default)?;
    if raw.token_file.is_none() {
        on_loopback("rpc.listen", rpc)?;
        on_loopback("rpc.rest", rest)?;
    }
    Ok((rpc, rest))
}

fn log_format(name: &str) -> Result<LogFormat, ConfigError> {
    match name {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => {
            let message = format!("'{other}' is neither \"text\" nor \"json\"");
            Err(value("log.format", message))
        }
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

/// Beyond loopback the kernel does not know the caller's user.
fn on_loopback(key: &'static str, address: Option<SocketAddr>) -> Result<(), ConfigError> {
    match address {
        Some(address) if !address.ip().to_canonical().is_loopback() => {
            let message = format!(
                "{address} is reached from other hosts, whose users this one does not know: name the file \
                 of a bearer token with rpc.token_file, or listen on 127.0.0.1 or [::1]"
            );
            Err(value(key, message))
        }
        Some(_) | None => Ok(()),
    }
}

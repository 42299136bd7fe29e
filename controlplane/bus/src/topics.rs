//! Topics: who may send to them, and where they lead. The types here are those in topics.toml.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyphae_wire::{OverlayAddress, Prefix, PublicKey};
use serde::{Deserialize, Serialize};

use crate::{Destination, Topic};

/// The topic of administration over the bus. It can have no settings; who may use it is decided by
/// the authorizer of the calls that come in on it.
pub const ADMIN_TOPIC: &str = "mycelium.admin";

/// How long a forward socket may take to connect, read and answer, unless its topic says otherwise.
pub const SOCKET_REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// What becomes of messages of topics that are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAction {
    /// They are accepted.
    #[default]
    Accept,
    /// They are rejected.
    Reject,
}

impl DefaultAction {
    /// `Accept` or not.
    pub fn new(accept: bool) -> Self {
        if accept { Self::Accept } else { Self::Reject }
    }

    /// Whether it accepts.
    pub fn accepts(self) -> bool {
        self == Self::Accept
    }
}

/// How requests and answers are told apart on a topic's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// One request up to the end of the stream, one answer up to the end of the stream.
    #[default]
    Eof,
    /// HTTP/1.1 requests and responses.
    Http,
    /// JSON-RPC, one document per line.
    JsonLines,
}

/// On whose authority a socket's path is used: what that one may not reach, the node does not reach for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Authority {
    /// Root or the node's own user, or whoever may write topics.toml.
    #[default]
    Node,
    /// Another user of this host.
    User(u32),
    /// Another node, or whoever has the bearer token.
    Remote,
}

impl Authority {
    fn is_node(&self) -> bool {
        *self == Self::Node
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::Remote => f.write_str("remote"),
        }
    }
}

impl From<Authority> for String {
    fn from(authority: Authority) -> Self {
        authority.to_string()
    }
}

impl TryFrom<String> for Authority {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "node" => Ok(Self::Node),
            "remote" => Ok(Self::Remote),
            _ => text
                .strip_prefix("uid ")
                .and_then(|uid| uid.parse().ok())
                .map(Self::User)
                .ok_or("not one of \"node\", \"uid NUMBER\", \"remote\""),
        }
    }
}

/// A local socket whose connections lead to a topic of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundSocket {
    /// Path of the Unix socket.
    pub path: PathBuf,
    /// The node.
    pub dst: Destination,
    /// Who set it.
    #[serde(default, skip_serializing_if = "Authority::is_node")]
    pub set_by: Authority,
}

/// Settings of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicConfig {
    /// Sources by address.
    pub subnets: Vec<Prefix>,
    /// Sources by key.
    pub pubkeys: Vec<PublicKey>,
    /// Unix socket that gets the topic's messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_socket: Option<PathBuf>,
    /// Who set that.
    #[serde(skip_serializing_if = "Authority::is_node")]
    pub forward_set_by: Authority,
    /// Seconds that the forward socket may take; [`SOCKET_REPLY_TIMEOUT`] when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_timeout: Option<u64>,
    /// How the topic's sockets frame requests.
    pub framing: Framing,
    /// Whether connections to the forward socket are used for more than one request, where the framing allows
    /// that; with HTTP they are unless this says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
    /// Unix socket that leads to the same topic of another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_socket: Option<OutboundSocket>,
}

impl TopicConfig {
    /// Whether a connection to the forward socket is used for more than one request.
    pub fn keeps_connections(&self) -> bool {
        match self.framing {
            Framing::Eof => false,
            Framing::Http => self.keep_alive.unwrap_or(true),
            // A server may say things without being asked, which the next request would get.
            Framing::JsonLines => self.keep_alive.unwrap_or(false),
        }
    }

    /// How long the forward socket may take.
    pub fn socket_timeout(&self) -> Duration {
        self.reply_timeout
            .map_or(SOCKET_REPLY_TIMEOUT, Duration::from_secs)
    }
}

/// Whether a message may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It may.
    pub allowed: bool,
    /// What decided.
    pub class: TopicClass,
}

/// Topics as metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TopicClass {
    /// It has settings.
    Listed,
    /// It has none.
    Unlisted,
    /// It is that of administration.
    Reserved,
}

impl TopicClass {
    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Unlisted => "unlisted",
            Self::Reserved => "reserved",
        }
    }
}

/// All topics of a node: the content of topics.toml.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// For topics that are not listed.
    pub default_action: DefaultAction,
    /// Those that are.
    pub topics: BTreeMap<Topic, TopicConfig>,
}

impl Topics {
    /// Whether a message of this sender may come in. A listed topic takes what comes from one of
    /// its subnets or keys, so nothing when it has neither.
    pub fn access(&self, topic: &Topic, key: &PublicKey, address: OverlayAddress) -> Access {
        let (allowed, class) = if topic.is_admin() {
            // The authorizer answers every call on it, if only with a denial.
            (true, TopicClass::Reserved)
        } else if let Some(config) = self.topics.get(topic) {
            let listed = config.pubkeys.contains(key)
                || config.subnets.iter().any(|subnet| subnet.contains(address));
            (listed, TopicClass::Listed)
        } else {
            (self.default_action.accepts(), TopicClass::Unlisted)
        };
        Access { allowed, class }
    }

    /// The class of a topic.
    pub fn class(&self, topic: &Topic) -> TopicClass {
        if topic.is_admin() {
            TopicClass::Reserved
        } else if self.topics.contains_key(topic) {
            TopicClass::Listed
        } else {
            TopicClass::Unlisted
        }
    }
}

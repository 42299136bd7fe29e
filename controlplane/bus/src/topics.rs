//! Topics: access lists and sockets. These types are the content of topics.toml.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyphae_wire::{OverlayAddress, Prefix, PublicKey};
use serde::{Deserialize, Serialize};

use crate::{Destination, Topic};

/// Topic of administration over the bus. It cannot be configured; the authorizer of the calls decides on access.
pub const ADMIN_TOPIC: &str = "mycelium.admin";

/// Default timeout of a forward socket to connect, read and answer.
pub const SOCKET_REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Action on messages of topics that are not listed.
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

/// Framing of requests and answers on a topic's sockets.
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

/// Authority under which a socket's path is used: the node opens only paths that this authority may open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Authority {
    /// Root, the node's user, or a writer of topics.toml.
    #[default]
    Node,
    /// Another user of this host.
    User(u32),
    /// Another node, or a holder of the bearer token.
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

/// A local socket that is proxied to a topic of another node.
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
    /// Allowed sources by address.
    pub subnets: Vec<Prefix>,
    /// Allowed sources by key.
    pub pubkeys: Vec<PublicKey>,
    /// Unix socket that receives the topic's messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_socket: Option<PathBuf>,
    /// Who set that.
    #[serde(skip_serializing_if = "Authority::is_node")]
    pub forward_set_by: Authority,
    /// Timeout of the forward socket, seconds; default [`SOCKET_REPLY_TIMEOUT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_timeout: Option<u64>,
    /// Framing on the topic's sockets.
    pub framing: Framing,
    /// Whether connections to the forward socket are reused; default true for HTTP, false for other framings. Without
    /// effect for [`Framing::Eof`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
    /// Unix socket that is proxied to the same topic of another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound_socket: Option<OutboundSocket>,
}

impl TopicConfig {
    /// Whether connections to the forward socket are reused.
    pub fn keeps_connections(&self) -> bool {
        match self.framing {
            Framing::Eof => false,
            Framing::Http => self.keep_alive.unwrap_or(true),
            // An unsolicited notification of the server would be taken for the answer to the next request.
            Framing::JsonLines => self.keep_alive.unwrap_or(false),
        }
    }

    /// Timeout of the forward socket.
    pub fn socket_timeout(&self) -> Duration {
        self.reply_timeout
            .map_or(SOCKET_REPLY_TIMEOUT, Duration::from_secs)
    }
}

/// Access decision for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether the message is allowed.
    pub allowed: bool,
    /// Class of its topic.
    pub class: TopicClass,
}

/// Class of a topic in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TopicClass {
    /// Configured.
    Listed,
    /// Not configured.
    Unlisted,
    /// [`ADMIN_TOPIC`].
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
    /// Action for topics that are not listed.
    pub default_action: DefaultAction,
    /// Listed topics.
    pub topics: BTreeMap<Topic, TopicConfig>,
}

impl Topics {
    /// Decides on a message of this sender. A listed topic allows its subnets and keys, so nothing if it has neither.
    pub fn access(&self, topic: &Topic, key: &PublicKey, address: OverlayAddress) -> Access {
        let (allowed, class) = if topic.is_admin() {
            // The authorizer answers every call, also denied ones.
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

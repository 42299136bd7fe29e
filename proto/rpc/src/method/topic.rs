//! Topics: their sources and sockets. Topics are base64.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Destination;

/// Parameters of `setDefaultTopicAction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcceptParams {
    /// Whether messages on topics that are not listed are accepted.
    pub accept: bool,
}

/// Parameters of methods about one topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopicParams {
    /// Topic, base64.
    pub topic: String,
}

/// Parameters of `addTopicSource` and `removeTopicSource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopicSubnetParams {
    /// Topic, base64.
    pub topic: String,
    /// Source addresses, such as 400::/7.
    pub subnet: String,
}

/// Parameters of `addTopicPubkeySource` and `removeTopicPubkeySource`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopicPubkeyParams {
    /// Topic, base64.
    pub topic: String,
    /// Key of a sender, hex.
    pub pubkey: String,
}

/// Parameters of `setTopicForwardSocket`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardSocketParams {
    /// Topic, base64.
    pub topic: String,
    /// Unix socket that a local server listens on; absolute.
    pub socket_path: String,
    /// Framing of requests on the socket: "eof" (the default), "http" or "json-lines".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framing: Option<String>,
    /// Limit of connecting, writing and reading together, seconds; 5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_timeout: Option<u64>,
    /// Whether connections to the server are used for more than one request; by default with "http" only, and
    /// never with "eof". Requests of all senders share them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
}

/// Parameters of `setTopicOutboundSocket`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboundSocketParams {
    /// Topic, base64.
    pub topic: String,
    /// Destination of requests.
    pub dst: Destination,
    /// Unix socket that the node binds; absolute.
    pub path: String,
    /// Framing of requests on the socket: "eof" (the default), "http" or "json-lines".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framing: Option<String>,
}

/// Result of `getTopicSettings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopicSettings {
    /// Source addresses that may send.
    pub subnets: Vec<String>,
    /// Keys that may send, hex.
    pub pubkeys: Vec<String>,
    /// Unix socket that messages are forwarded to.
    pub forward_socket: Option<String>,
    /// Unix socket that the node binds, and the destination of its requests.
    pub outbound_socket: Option<OutboundSocket>,
    /// Framing of both sockets: "eof", "http" or "json-lines".
    pub framing: String,
    /// Limit of an exchange with the forward socket, seconds.
    pub reply_timeout_seconds: u64,
    /// Whether connections to the forward socket are used for more than one request.
    pub keep_alive: bool,
}

/// Result of `getTopicOutboundSocket`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboundSocket {
    /// Destination of requests.
    pub dst: Destination,
    /// Unix socket that the node binds.
    pub path: String,
}

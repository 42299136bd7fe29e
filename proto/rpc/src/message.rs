//! Requests, responses and errors (JSON-RPC 2.0 specification, sections 4 to 6).

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Error codes.
pub mod code {
    /// Not JSON.
    pub const PARSE: i64 = -32700;
    /// JSON, but not a request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// Parameters of the wrong shape.
    pub const INVALID_PARAMS: i64 = -32602;
    /// Internal error.
    pub const INTERNAL: i64 = -32603;
    /// The caller is not authorized.
    pub const DENIED: i64 = -32001;
    /// Too many calls wait already.
    pub const BUSY: i64 = -32002;
    /// Not an overlay address.
    pub const BAD_IP: i64 = -32007;
    /// The key of that address is not known.
    pub const NO_KEY: i64 = -32008;
    /// addPeer: not an endpoint.
    pub const BAD_ENDPOINT: i64 = -32009;
    /// addPeer: it exists.
    pub const PEER_EXISTS: i64 = -32010;
    /// deletePeer: not configured.
    pub const PEER_NOT_FOUND: i64 = -32011;
    /// deletePeer: not an endpoint.
    pub const BAD_ENDPOINT_DELETE: i64 = -32012;
    /// popMessage: not a topic.
    pub const BAD_TOPIC_FILTER: i64 = -32013;
    /// The message was refused: too long, no room, or rejected by the receiver.
    pub const PUSH_REFUSED: i64 = -32015;
    /// No reply within the wait.
    pub const REPLY_EMPTY: i64 = -32016;
    /// The wait for a reply ended early.
    pub const REPLY_CLOSED: i64 = -32017;
    /// pushMessageReply: not a message id.
    pub const BAD_ID: i64 = -32018;
    /// No message of that id is known.
    pub const NO_MESSAGE: i64 = -32019;
    /// getMessageInfo: not a message id.
    pub const BAD_INFO_ID: i64 = -32020;
    /// Not a topic, or the reserved one.
    pub const BAD_TOPIC: i64 = -32021;
    /// Not a public key.
    pub const BAD_KEY: i64 = -32022;
    /// Not a subnet; for route.add and route.remove also not a next hop.
    pub const BAD_SUBNET: i64 = -32023;
    /// route.remove: no such route.
    pub const ROUTE_NOT_FOUND: i64 = -32024;
    /// A path that cannot name a socket, or an unknown framing.
    pub const BAD_SOCKET: i64 = -32025;
    /// admin.setMethodPatterns: not a pattern.
    pub const BAD_PATTERN: i64 = -32026;
    /// The lease of a message has ended: it was acknowledged, or is in the inbox again.
    pub const LEASE_ENDED: i64 = -32027;
    /// The topic is not listed. `data.kind` is `topic_not_found`.
    pub const TOPIC_NOT_FOUND: i64 = -32030;
    /// The outbound socket could not be bound. Shares its code with [`TOPIC_NOT_FOUND`], as the contract requires;
    /// `data.kind` is `outbound_socket_bind_failed`.
    pub const OUTBOUND_BIND_FAILED: i64 = -32030;
    /// node.ping: no answer in time.
    pub const NO_ANSWER: i64 = -32040;
    /// node.drain: the node has no dynamic routing.
    pub const NOT_ROUTING: i64 = -32041;
    /// config.reload: the file is refused; nothing has changed.
    pub const CONFIG_REFUSED: i64 = -32042;
    /// node.shutdown: another program manages the processes; the message names the command that stops them.
    pub const NOT_STOPPED: i64 = -32043;
    /// A change could not be written to the state directory; it was not made.
    pub const PERSIST_FAILED: i64 = -32099;

    /// Description of a code; empty if it is not listed.
    pub fn gloss(code: i64) -> &'static str {
        match code {
            PARSE => "not JSON",
            INVALID_REQUEST => "not a JSON-RPC 2.0 request",
            METHOD_NOT_FOUND => "no such method",
            INVALID_PARAMS => "parameters of the wrong shape",
            INTERNAL => "something failed in the node",
            DENIED => "not allowed",
            BUSY => "too many calls wait already",
            BAD_IP => "not an overlay address",
            NO_KEY => "the key of that address is not known",
            BAD_ENDPOINT => "not an endpoint",
            PEER_EXISTS => "the peer exists",
            PEER_NOT_FOUND => "no such peer",
            BAD_ENDPOINT_DELETE => "not an endpoint",
            BAD_TOPIC_FILTER => "topic is not base64 or longer than 255 bytes",
            PUSH_REFUSED => "the message was not taken",
            REPLY_EMPTY => "no reply came",
            REPLY_CLOSED => "the wait for a reply ended early",
            BAD_ID => "not a message id",
            NO_MESSAGE => "no such message",
            BAD_INFO_ID => "not a message id",
            BAD_TOPIC => "topic is not base64, longer than 255 bytes, or reserved",
            BAD_KEY => "not a public key",
            BAD_SUBNET => "not a subnet",
            ROUTE_NOT_FOUND => "no such route",
            BAD_SOCKET => "not a socket path or framing",
            LEASE_ENDED => "the lease of the message has ended",
            BAD_PATTERN => "not a method pattern",
            TOPIC_NOT_FOUND => "topic_not_found or outbound_socket_bind_failed; data.kind tells",
            NO_ANSWER => "nobody answered in time",
            NOT_ROUTING => "the node has no dynamic routing",
            CONFIG_REFUSED => "the configuration is refused",
            NOT_STOPPED => "something else runs the processes of the node",
            PERSIST_FAILED => "not stored, so not changed",
            _ => "",
        }
    }
}

/// A call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// "2.0".
    pub jsonrpc: String,
    /// Name of the method.
    pub method: String,
    /// Parameters, by name or by position.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
    /// Number or string that the response repeats; a request without one is a notification.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub id: Option<Value>,
}

/// Distinguishes a member with the value null from a missing one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The answer to a call: a result or an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Response {
    /// "2.0".
    pub jsonrpc: String,
    /// The result of the method.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub result: Option<Value>,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Id of the request; null if it could not be read.
    pub id: Value,
}

impl Response {
    /// The response to a request of this id.
    pub fn new(id: Value, outcome: Result<Value, Error>) -> Self {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            jsonrpc: "2.0".to_owned(),
            result,
            error,
            id,
        }
    }
}

/// Error of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// One of [`code`].
    pub code: i64,
    /// One line of text.
    pub message: String,
    /// Details for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl Error {
    /// An error without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// Adds the kind of the error, which distinguishes errors that share a code.
    pub fn with_kind(self, kind: &str) -> Self {
        Self {
            data: Some(serde_json::json!({ "kind": kind })),
            ..self
        }
    }
}

//! Requests, responses and errors (JSON-RPC 2.0 specification, sections 4 to 6).

use serde::{Deserialize, Serialize};
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
    /// Something failed here.
    pub const INTERNAL: i64 = -32603;
    /// Not an overlay address.
    pub const BAD_IP: i64 = -32007;
    /// The key of that address is not known.
    pub const NO_KEY: i64 = -32008;
    /// addPeer: not an endpoint.
    pub const BAD_ENDPOINT: i64 = -32009;
    /// addPeer: there already.
    pub const PEER_EXISTS: i64 = -32010;
    /// deletePeer: not there.
    pub const PEER_NOT_FOUND: i64 = -32011;
    /// deletePeer: not an endpoint.
    pub const BAD_ENDPOINT_DELETE: i64 = -32012;
    /// route.add and route.remove: not a prefix or next hop, or one that cannot be.
    pub const BAD_ROUTE: i64 = -32023;
    /// route.remove: not there.
    pub const ROUTE_NOT_FOUND: i64 = -32024;
    /// node.ping: nobody answered in time.
    pub const NO_ANSWER: i64 = -32040;
    /// A change could not be written to the state directory; it was not made.
    pub const PERSIST_FAILED: i64 = -32099;
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
}

/// The answer to a call: a result or an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// "2.0".
    pub jsonrpc: String,
    /// What the method returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Of the request; null when it could not be read.
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

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// One of [`code`].
    pub code: i64,
    /// One line for people.
    pub message: String,
    /// More for programs.
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
}

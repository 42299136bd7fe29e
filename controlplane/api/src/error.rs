//! Map from errors of the control plane to errors of calls: the only place with their codes.

use std::fmt::Display;

use hyphae_bus::{AbortReason, MessageId, ReplyFailure};
use hyphae_rpc::message::{Error, code};
use hyphae_wire::Prefix;

use hyphae_store::stored::CommitError;

use hyphae_node::BusError;
use hyphae_node::request::{NoAnswer, PeerError};

/// An internal failure.
pub(super) fn internal(error: impl Display) -> Error {
    Error::new(code::INTERNAL, error.to_string())
}

/// Parameters of the right types, out of bounds.
pub(super) fn invalid(message: impl Display) -> Error {
    Error::new(code::INVALID_PARAMS, message.to_string())
}

/// A state file that cannot be read or written.
pub(super) fn not_stored(error: impl Display) -> Error {
    Error::new(code::PERSIST_FAILED, error.to_string())
}

/// A durable change that was not made.
pub(super) fn not_committed(error: CommitError) -> Error {
    match error {
        CommitError::Write(_) => not_stored(error),
        CommitError::Task(_) => internal(error),
    }
}

/// A reload that is refused.
pub(super) fn not_reloaded(error: impl Display) -> Error {
    let message = format!("not reloaded, all stays as it was: {error}");
    Error::new(code::CONFIG_REFUSED, message)
}

/// A prefix or next hop of a static route.
pub(super) fn bad_route(error: impl Display) -> Error {
    Error::new(code::BAD_SUBNET, error.to_string())
}

pub(super) fn no_route(prefix: Prefix) -> Error {
    let message = format!("no static route for {prefix}");
    Error::new(code::ROUTE_NOT_FOUND, message)
}

pub(super) fn peer(error: PeerError) -> Error {
    let code = match &error {
        PeerError::Exists(_) => code::PEER_EXISTS,
        PeerError::Inbound(_) | PeerError::NotConfigured(_) => code::PEER_NOT_FOUND,
    };
    Error::new(code, error.to_string())
}

pub(super) fn no_answer(error: NoAnswer) -> Error {
    Error::new(code::NO_ANSWER, error.to_string())
}

pub(super) fn not_routing() -> Error {
    let message = "this node has no dynamic routing ([routing] enabled = false), so its \
                   neighbours' routes are not its to change";
    Error::new(code::NOT_ROUTING, message)
}

pub(super) fn bus(error: BusError) -> Error {
    let code = match &error {
        BusError::Push(_) => code::PUSH_REFUSED,
        BusError::Busy => code::BUSY,
        BusError::Inbox(_) => code::PERSIST_FAILED,
        BusError::LeaseEnded(_) => code::LEASE_ENDED,
        BusError::OtherMessage(_) => code::INVALID_PARAMS,
        BusError::Stopping => code::REPLY_CLOSED,
    };
    Error::new(code, error.to_string())
}

/// The message was delivered, and the server behind its topic did not answer.
pub(super) fn unanswered(id: MessageId, failure: ReplyFailure) -> Error {
    let (kind, what) = match failure {
        ReplyFailure::Unanswered => ("unanswered", "no server of the other node answered it"),
        ReplyFailure::Late => (
            "timeout",
            "the server of the other node did not answer in time",
        ),
        ReplyFailure::TooLarge => ("answer_too_large", "the answer is longer than a message"),
    };
    Error::new(code::REPLY_EMPTY, format!("message {id}: {what}")).with_kind(kind)
}

pub(super) fn undelivered(id: MessageId, reason: AbortReason) -> Error {
    let message = format!("message {id} was not delivered: {reason}");
    Error::new(code::PUSH_REFUSED, message).with_kind(reason.name())
}

/// Use of the reserved topic.
pub(super) fn reserved(code: i64) -> Error {
    let message = format!(
        "{} is reserved for administration over the bus",
        hyphae_bus::topics::ADMIN_TOPIC
    );
    Error::new(code, message).with_kind("reserved_topic")
}

pub(super) fn topic_not_found() -> Error {
    Error::new(code::TOPIC_NOT_FOUND, "topic_not_found").with_kind("topic_not_found")
}

pub(super) fn bind_failed(cause: impl Display) -> Error {
    let kind = "outbound_socket_bind_failed";
    let mut error = Error::new(code::OUTBOUND_BIND_FAILED, kind).with_kind(kind);
    if let Some(serde_json::Value::Object(data)) = &mut error.data {
        data.insert("cause".to_owned(), cause.to_string().into());
    }
    error
}

/// A change over the bus that would remove the last administrator over the bus.
pub(super) fn lock_out(message: &str) -> Error {
    Error::new(code::DENIED, message).with_kind("lock_out")
}

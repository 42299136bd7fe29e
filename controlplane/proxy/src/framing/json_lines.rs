//! JSON-RPC 2.0, one value per line.
//!
//! A notification has no answer. Lines that a server sends before the answer (its own notifications)
//! are part of it.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use serde_json::{Value, json};

use super::{Answer, Expects, Failure, FrameError, Request, Step};

/// The relevant members of a request or response object.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default, deserialize_with = "present")]
    id: Option<Value>,
    method: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "present_result")]
    result: bool,
    error: Option<IgnoredAny>,
}

/// `null` is a valid id.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

fn present_result<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(from).map(|_| true)
}

impl Envelope {
    fn is_notification(&self) -> bool {
        self.method.is_some() && self.id.is_none()
    }

    fn is_response(&self) -> bool {
        self.method.is_none() && (self.result || self.error.is_some())
    }
}

fn is_array(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"[")
}

fn expects(line: &[u8]) -> Result<Expects, FrameError> {
    if is_array(line) {
        let all: Vec<Envelope> = serde_json::from_slice(line).map_err(|_| FrameError::NotJson)?;
        let empty = all.is_empty();
        let ids: Vec<_> = all
            .into_iter()
            .filter(|one| !one.is_notification())
            .map(|one| one.id.unwrap_or_default())
            .collect();
        return Ok(match (empty, ids.is_empty()) {
            // An empty batch is answered with one error.
            (true, _) => Expects::Single(Value::Null),
            (false, true) => Expects::Nothing,
            (false, false) => Expects::Batch(ids),
        });
    }
    let one: Envelope = serde_json::from_slice(line).map_err(|_| FrameError::NotJson)?;
    Ok(if one.is_notification() {
        Expects::Nothing
    } else {
        Expects::Single(one.id.unwrap_or_default())
    })
}

fn answers(line: &[u8], expects: &Expects) -> Result<bool, FrameError> {
    if is_array(line) {
        return Ok(matches!(expects, Expects::Batch(_)));
    }
    let one: Envelope = serde_json::from_slice(line).map_err(|_| FrameError::NotJson)?;
    if !one.is_response() {
        return Ok(false);
    }
    // A server that could not parse the request answers without its id.
    Ok(match (one.id, expects) {
        (None | Some(Value::Null), _) => true,
        (Some(id), Expects::Single(expected)) => id == *expected,
        (
            Some(_),
            Expects::Batch(_) | Expects::Nothing | Expects::UntilEof | Expects::Http { .. },
        ) => false,
    })
}

/// Finds lines.
#[derive(Debug, Default)]
pub(super) struct LineScan {
    /// Start of the current line.
    start: usize,
    searched: usize,
}

impl LineScan {
    /// The next line that is not blank: its bounds, line end included.
    fn line(
        &mut self,
        buffer: &[u8],
        max: usize,
    ) -> Result<Option<std::ops::Range<usize>>, FrameError> {
        loop {
            let from = self.searched.max(self.start);
            let found = buffer[from..].iter().position(|byte| *byte == b'\n');
            let end = found.map_or(buffer.len(), |at| from + at + 1);
            if end > max {
                return Err(FrameError::TooLarge);
            }
            self.searched = end;
            if found.is_none() {
                return Ok(None);
            }
            let start = std::mem::replace(&mut self.start, end);
            if !buffer[start..end].trim_ascii().is_empty() {
                return Ok(Some(start..end));
            }
        }
    }

    pub(super) fn request(
        &mut self,
        buffer: &mut BytesMut,
        ended: bool,
        max: usize,
    ) -> Result<Step, FrameError> {
        // Leading blank lines count toward the limit of the line only while they are buffered.
        if self.line(buffer, max)?.is_none() {
            if !ended {
                return Ok(Step::More);
            }
            if buffer.trim_ascii().is_empty() {
                return Ok(Step::End);
            }
            // The last line may lack its end; a server waits for one.
            buffer.extend_from_slice(b"\n");
            self.start = buffer.len();
        }
        let bytes = buffer.split_to(self.start);
        *self = Self::default();
        Ok(Step::Request(Request {
            expects: expects(&bytes)?,
            bytes: bytes.freeze(),
            last: ended && buffer.trim_ascii().is_empty(),
        }))
    }

    pub(super) fn answer(
        &mut self,
        buffer: &mut BytesMut,
        max: usize,
        expected: &Expects,
    ) -> Result<Option<Answer>, FrameError> {
        while let Some(line) = self.line(buffer, max)? {
            if answers(&buffer[line.clone()], expected)? {
                return Ok(Some(Answer {
                    bytes: buffer.split_to(line.end).freeze(),
                    persistent: true,
                }));
            }
        }
        Ok(None)
    }
}

/// The error object in place of a missing answer.
pub(super) fn refusal(failure: Failure, expects: Option<&Expects>) -> Option<Bytes> {
    let code = match failure {
        Failure::Frame(FrameError::NotJson) => -32700,
        Failure::Frame(_) => -32600,
        Failure::Unreachable
        | Failure::Rejected
        | Failure::Timeout
        | Failure::Unanswered
        | Failure::AnswerTooLarge
        | Failure::BadAnswer
        | Failure::Busy => -32000,
    };
    let error = json!({
        "code": code,
        "message": failure.message(),
        "data": { "kind": failure.kind() },
    });
    let response = |id: &Value| json!({ "jsonrpc": "2.0", "id": id, "error": error });
    let value = match expects {
        Some(Expects::Nothing) => return None,
        Some(Expects::Single(id)) => response(id),
        Some(Expects::Batch(ids)) => Value::Array(ids.iter().map(response).collect()),
        Some(Expects::UntilEof | Expects::Http { .. }) | None => response(&Value::Null),
    };
    Some(Bytes::from(format!("{value}\n")))
}

//! One request until the client half-closes, one answer until the server closes.

use bytes::BytesMut;

use super::{Answer, Expects, FrameError, Request, Step};

pub(super) fn request(buffer: &mut BytesMut, ended: bool, max: usize) -> Result<Step, FrameError> {
    if buffer.len() > max {
        return Err(FrameError::TooLarge);
    }
    if !ended {
        return Ok(Step::More);
    }
    // Connected and closed without a request.
    if buffer.is_empty() {
        return Ok(Step::End);
    }
    Ok(Step::Request(Request {
        bytes: buffer.split().freeze(),
        expects: Expects::UntilEof,
        last: true,
    }))
}

pub(super) fn answer(
    buffer: &mut BytesMut,
    ended: bool,
    max: usize,
) -> Result<Option<Answer>, FrameError> {
    if buffer.len() > max {
        return Err(FrameError::TooLarge);
    }
    Ok((ended && !buffer.is_empty()).then(|| Answer {
        bytes: buffer.split().freeze(),
        persistent: false,
    }))
}

//! Boundaries of requests and answers on a stream. Bytes in, requests and answers out; no I/O.
//!
//! Bytes are forwarded unmodified: a framing finds boundaries and refuses what two ends could parse differently. What
//! is too large is refused, never truncated.

mod eof;
mod http;
mod json_lines;
#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};
use serde_json::Value;

pub use http::CONTINUE;

pub use hyphae_bus::topics::Framing;

/// Largest request or answer: it has to fit one message.
pub const FRAME_MAX: usize = 64 << 20;
/// Largest head of an HTTP message, and largest trailer.
pub const HEAD_MAX: usize = 64 << 10;

/// Bytes of a stream that cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than one message carries.
    #[error("larger than the {FRAME_MAX} bytes that one message carries")]
    TooLarge,
    /// The head of an HTTP message has no end.
    #[error("the head is larger than {HEAD_MAX} bytes")]
    HeadTooLarge,
    /// Violates the framing.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A line that is no JSON.
    #[error("not JSON")]
    NotJson,
    /// Well-formed, but not expressible as one request with one answer.
    #[error("not supported over messages: {0}")]
    Unsupported(&'static str),
    /// The stream ended in the middle.
    #[error("the stream ended before the end of the frame")]
    Truncated,
    /// The stream ended without a byte.
    #[error("the stream ended without an answer")]
    Empty,
}

/// The answer that a request expects.
#[derive(Clone, Debug, PartialEq)]
pub enum Expects {
    /// Nothing: a notification.
    Nothing,
    /// All bytes until the other end closes.
    UntilEof,
    /// One HTTP response.
    Http {
        /// The request was HEAD, so the response has no body.
        head: bool,
    },
    /// The JSON-RPC response to an id.
    Single(Value),
    /// The array of responses to a batch.
    Batch(Vec<Value>),
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Unmodified.
    pub bytes: Bytes,
    /// The answer it expects.
    pub expects: Expects,
    /// No other request can follow on the stream.
    pub last: bool,
}

/// What [`Requests::poll`] found.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// The client waits for `100 Continue` before it sends the body.
    Continue,
    /// A request.
    Request(Request),
    /// The stream ended between requests.
    End,
}

/// Parser of requests on a stream.
#[derive(Debug)]
pub struct Requests {
    framing: Framing,
    buffer: BytesMut,
    ended: bool,
    max: usize,
    http: http::RequestScan,
    lines: json_lines::LineScan,
}

impl Requests {
    /// For the beginning of a stream; refuses requests of more than `max` bytes.
    pub fn new(framing: Framing, max: usize) -> Self {
        Self {
            framing,
            buffer: BytesMut::new(),
            ended: false,
            max,
            http: http::RequestScan::default(),
            lines: json_lines::LineScan::default(),
        }
    }

    /// Parses a message that is one request.
    ///
    /// # Errors
    /// When it is malformed, incomplete, or more than one.
    pub fn only(framing: Framing, message: &[u8]) -> Result<Request, FrameError> {
        let mut requests = Self::new(framing, FRAME_MAX);
        requests.feed(message);
        let request = loop {
            match requests.poll()? {
                Step::Request(request) => break request,
                Step::Continue => {}
                // The end of the stream completes it.
                Step::More if !requests.ended => requests.end(),
                Step::More | Step::End => return Err(FrameError::Truncated),
            }
        };
        requests.end();
        if requests.poll() == Ok(Step::End) {
            Ok(request)
        } else {
            Err(FrameError::Malformed("more than one request in a message"))
        }
    }

    /// Appends received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Marks the end of the stream.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Bytes buffered.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next step. After an error the stream is unusable, except after [`FrameError::NotJson`], which affects one
    /// line.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn poll(&mut self) -> Result<Step, FrameError> {
        match self.framing {
            Framing::Eof => eof::request(&mut self.buffer, self.ended, self.max),
            Framing::Http => self.http.poll(&mut self.buffer, self.ended, self.max),
            Framing::JsonLines => self.lines.request(&mut self.buffer, self.ended, self.max),
        }
    }
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Unmodified, but without interim `100 Continue` responses, because the client's end has sent its own.
    pub bytes: Bytes,
    /// The stream can carry another answer after this one.
    pub persistent: bool,
}

/// Finds the answer to one request on a stream.
#[derive(Debug)]
pub struct Answers {
    expects: Expects,
    buffer: BytesMut,
    ended: bool,
    max: usize,
    http: http::ResponseScan,
    lines: json_lines::LineScan,
}

impl Answers {
    /// For what a request expects; refuses answers of more than `max` bytes.
    pub fn new(expects: Expects, max: usize) -> Self {
        Self {
            expects,
            buffer: BytesMut::new(),
            ended: false,
            max,
            http: http::ResponseScan::default(),
            lines: json_lines::LineScan::default(),
        }
    }

    /// Parses a message that is one answer.
    ///
    /// # Errors
    /// When it is malformed, incomplete, or has bytes after its end.
    pub fn only(expects: Expects, message: &[u8]) -> Result<Answer, FrameError> {
        let mut answers = Self::new(expects, FRAME_MAX);
        answers.feed(message);
        answers.end();
        let answer = answers.poll()?.ok_or(FrameError::Truncated)?;
        if answers.buffer.is_empty() {
            Ok(answer)
        } else {
            Err(FrameError::Malformed("bytes after the end of the answer"))
        }
    }

    /// Appends received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Marks the end of the stream.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether no bytes follow what was found.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The answer, once complete.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn poll(&mut self) -> Result<Option<Answer>, FrameError> {
        let (buffer, ended, max) = (&mut self.buffer, self.ended, self.max);
        let answer = match &self.expects {
            Expects::Nothing => Some(Answer {
                bytes: Bytes::new(),
                persistent: true,
            }),
            Expects::UntilEof => eof::answer(buffer, ended, max)?,
            Expects::Http { head } => self.http.poll(buffer, ended, max, *head)?,
            Expects::Single(_) | Expects::Batch(_) => {
                self.lines.answer(buffer, max, &self.expects)?
            }
        };
        match answer {
            None if ended && self.buffer.is_empty() => Err(FrameError::Empty),
            None if ended => Err(FrameError::Truncated),
            answer => Ok(answer),
        }
    }
}

/// Why a program receives an error instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request cannot be forwarded.
    Frame(FrameError),
    /// The other node cannot be reached.
    Unreachable,
    /// The other node refuses messages of this node on this topic.
    Rejected,
    /// No answer in time.
    Timeout,
    /// The server at the other node gave no answer.
    Unanswered,
    /// Its answer is longer than a message.
    AnswerTooLarge,
    /// The answer violates the framing.
    BadAnswer,
    /// This node is overloaded.
    Busy,
}

impl Failure {
    /// For log lines, labels and programs.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Frame(FrameError::TooLarge | FrameError::HeadTooLarge) => "too_large",
            Self::Frame(FrameError::Unsupported(_)) => "unsupported",
            Self::Frame(_) => "malformed",
            Self::Unreachable => "unreachable",
            Self::Rejected => "rejected",
            Self::Timeout => "timeout",
            Self::Unanswered => "unanswered",
            Self::AnswerTooLarge => "answer_too_large",
            Self::BadAnswer => "bad_answer",
            Self::Busy => "busy",
        }
    }

    /// One sentence for the client.
    pub fn message(self) -> String {
        match self {
            Self::Frame(error) => error.to_string(),
            Self::Unreachable => "the other node could not be reached".to_owned(),
            Self::Rejected => "the other node does not accept messages from here".to_owned(),
            Self::Timeout => "no answer in time".to_owned(),
            Self::Unanswered => "no server of the other node answered".to_owned(),
            Self::AnswerTooLarge => "the answer is longer than a message".to_owned(),
            Self::BadAnswer => "the answer of the other end is not well-formed".to_owned(),
            Self::Busy => "too many requests at once".to_owned(),
        }
    }

    /// Error answer in the framing; `None` where closing the connection is the error.
    pub fn answer(self, framing: Framing, expects: Option<&Expects>) -> Option<Bytes> {
        match framing {
            Framing::Eof => None,
            Framing::Http => Some(http::refusal(self, expects)),
            Framing::JsonLines => json_lines::refusal(self, expects),
        }
    }
}

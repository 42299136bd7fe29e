//! HTTP/1.1 messages, one at a time (RFC 9112).
//!
//! Strict where two readers could disagree about an end: bare LF, both lengths, lengths that differ and
//! codings other than `chunked` at the end of a request are refused (request smuggling).

use bytes::{Buf, Bytes, BytesMut};

use super::{Answer, Expects, Failure, FrameError, HEAD_MAX, Request, Step};

/// Fields of one head.
const FIELDS_MAX: usize = 256;
/// Line with the size of a chunk, with extensions.
const CHUNK_LINE_MAX: usize = 4096;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// What the fields of a head say about framing.
#[derive(Debug, Default)]
struct Fields {
    length: Option<usize>,
    /// Transfer codings are named; true when the last one is `chunked`.
    chunked: Option<bool>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    websocket: bool,
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, FrameError> {
        let mut fields = Self::default();
        for header in headers {
            let is = |name| header.name.eq_ignore_ascii_case(name);
            let mut named = tokens(header.value);
            if is("content-length") {
                let digits = header.value.trim_ascii();
                let length = std::str::from_utf8(digits)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| text.parse().ok())
                    .ok_or(FrameError::Malformed("Content-Length"))?;
                if fields.length.is_some_and(|other| other != length) {
                    return Err(FrameError::Malformed("two different Content-Length fields"));
                }
                fields.length = Some(length);
            } else if is("transfer-encoding") {
                for coding in named {
                    if fields.chunked == Some(true) {
                        return Err(FrameError::Malformed("a transfer coding after chunked"));
                    }
                    fields.chunked = Some(coding.eq_ignore_ascii_case(b"chunked"));
                }
            } else if is("connection") {
                for token in named {
                    fields.close |= token.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if is("expect") {
                fields.expects_continue |=
                    named.any(|token| token.eq_ignore_ascii_case(b"100-continue"));
            } else if is("upgrade") {
                fields.websocket |= named.any(|token| token.eq_ignore_ascii_case(b"websocket"));
            }
        }
        if fields.length.is_some() && fields.chunked.is_some() {
            let both = "both Content-Length and Transfer-Encoding";
            return Err(FrameError::Malformed(both));
        }
        Ok(fields)
    }

    fn persistent(&self, version: u8) -> bool {
        !self.close && (version >= 1 || self.keep_alive)
    }
}

/// Length of the head that starts at `start`, once its end is there.
fn find_head(
    buffer: &[u8],
    start: usize,
    searched: &mut usize,
) -> Result<Option<usize>, FrameError> {
    let from = (*searched).max(start);
    let window = &buffer[from..buffer.len().min(start + HEAD_MAX)];
    let found = window.windows(4).position(|bytes| bytes == HEAD_END);
    match found {
        Some(at) => Ok(Some(from + at + HEAD_END.len() - start)),
        None if buffer.len() - start >= HEAD_MAX => Err(FrameError::HeadTooLarge),
        None => {
            *searched = buffer.len().saturating_sub(HEAD_END.len() - 1).max(start);
            Ok(None)
        }
    }
}

/// Where a body ends.
#[derive(Debug)]
enum Body {
    /// At this offset.
    Until(usize),
    /// With the stream.
    Eof,
    /// Chunks; what comes at the offset `at`.
    Chunked { at: usize, part: Part },
}

#[derive(Debug)]
enum Part {
    Size,
    Data { end: usize },
    Trailer { start: usize },
}

fn line_end(buffer: &[u8], at: usize, max: usize) -> Result<Option<usize>, FrameError> {
    let window = &buffer[at..buffer.len().min(at + max)];
    match window.windows(2).position(|bytes| bytes == b"\r\n") {
        Some(found) => Ok(Some(at + found)),
        None if window.len() == max => Err(FrameError::Malformed("a line of the body is too long")),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<usize, FrameError> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    std::str::from_utf8(digits.trim_ascii_end())
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|text| usize::from_str_radix(text, 16).ok())
        .ok_or(FrameError::Malformed("size of a chunk"))
}

impl Body {
    fn of(fields: &Fields, head_end: usize, without: Self, max: usize) -> Result<Self, FrameError> {
        match (fields.chunked, fields.length) {
            (Some(true), _) => Ok(Self::Chunked {
                at: head_end,
                part: Part::Size,
            }),
            (Some(false), _) => Ok(Self::Eof),
            (None, Some(length)) => match head_end.checked_add(length) {
                Some(end) if end <= max => Ok(Self::Until(end)),
                _ => Err(FrameError::TooLarge),
            },
            (None, None) => Ok(without),
        }
    }

    /// Offset of the end, once it is there.
    fn end(&mut self, buffer: &[u8], ended: bool, max: usize) -> Result<Option<usize>, FrameError> {
        match self {
            Self::Until(end) => Ok((buffer.len() >= *end).then_some(*end)),
            Self::Eof if buffer.len() > max => Err(FrameError::TooLarge),
            Self::Eof => Ok(ended.then_some(buffer.len())),
            Self::Chunked { at, part } => chunks(at, part, buffer, max),
        }
    }
}

fn chunks(
    at: &mut usize,
    part: &mut Part,
    buffer: &[u8],
    max: usize,
) -> Result<Option<usize>, FrameError> {
    loop {
        if *at > max {
            return Err(FrameError::TooLarge);
        }
        match *part {
            Part::Size => {
                let Some(end) = line_end(buffer, *at, CHUNK_LINE_MAX)? else {
                    return Ok(None);
                };
                let size = chunk_size(&buffer[*at..end])?;
                *at = end + 2;
                *part = if size == 0 {
                    Part::Trailer { start: *at }
                } else {
                    let end = size.checked_add(*at + 2).filter(|end| *end <= max);
                    Part::Data {
                        end: end.ok_or(FrameError::TooLarge)?,
                    }
                };
            }
            Part::Data { end } => {
                if buffer.len() < end {
                    return Ok(None);
                }
                if &buffer[end - 2..end] != b"\r\n" {
                    return Err(FrameError::Malformed("a chunk is longer than it says"));
                }
                *at = end;
                *part = Part::Size;
            }
            Part::Trailer { start } => {
                let room = (start + HEAD_MAX).saturating_sub(*at);
                let Some(end) = line_end(buffer, *at, room)? else {
                    return Ok(None);
                };
                let empty = end == *at;
                *at = end + 2;
                if empty {
                    return Ok(Some(*at));
                }
            }
        }
    }
}

/// Finds requests.
#[derive(Debug, Default)]
pub(super) struct RequestScan {
    searched: usize,
    found: Option<(Body, Expects, bool)>,
}

impl RequestScan {
    pub(super) fn poll(
        &mut self,
        buffer: &mut BytesMut,
        ended: bool,
        max: usize,
    ) -> Result<Step, FrameError> {
        if self.found.is_none() {
            // Empty lines before a request are to be ignored (RFC 9112, 2.2).
            while self.searched == 0 && buffer.starts_with(b"\r\n") {
                buffer.advance(2);
            }
            let Some(len) = find_head(buffer, 0, &mut self.searched)? else {
                return match (ended, buffer.is_empty()) {
                    (false, _) => Ok(Step::More),
                    (true, true) => Ok(Step::End),
                    (true, false) => Err(FrameError::Truncated),
                };
            };
            let (found, waits) = parse_request(&buffer[..len], max)?;
            let body_came = buffer.len() > len;
            self.found = Some(found);
            if waits && !body_came {
                return Ok(Step::Continue);
            }
        }
        let Some((body, expects, last)) = &mut self.found else {
            return Ok(Step::More);
        };
        match body.end(buffer, ended, max)? {
            Some(end) => {
                let request = Request {
                    bytes: buffer.split_to(end).freeze(),
                    expects: expects.clone(),
                    last: *last,
                };
                *self = Self::default();
                Ok(Step::Request(request))
            }
            None if ended => Err(FrameError::Truncated),
            None => Ok(Step::More),
        }
    }
}

type FoundRequest = (Body, Expects, bool);

fn parse_request(head: &[u8], max: usize) -> Result<(FoundRequest, bool), FrameError> {
    let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    // A parser that sees the end elsewhere took a bare LF for a line end.
    if !matches!(request.parse(head), Ok(httparse::Status::Complete(len)) if len == head.len()) {
        return Err(FrameError::Malformed("head of an HTTP request"));
    }
    let fields = Fields::read(request.headers)?;
    let version = request.version.unwrap_or(0);
    if fields.chunked == Some(false) || (fields.chunked.is_some() && version == 0) {
        return Err(FrameError::Malformed("Transfer-Encoding of a request"));
    }
    let method = request.method.unwrap_or_default();
    if method == "CONNECT" {
        return Err(FrameError::Unsupported("CONNECT"));
    }
    if fields.websocket {
        return Err(FrameError::Unsupported("WebSocket"));
    }
    let body = Body::of(&fields, head.len(), Body::Until(head.len()), max)?;
    let empty = matches!(body, Body::Until(end) if end == head.len());
    let waits = fields.expects_continue && version >= 1 && !empty;
    let expects = Expects::Http {
        head: method == "HEAD",
    };
    Ok(((body, expects, !fields.persistent(version)), waits))
}

/// Finds the response to one request.
#[derive(Debug, Default)]
pub(super) struct ResponseScan {
    /// Where the head starts that is being looked at; before it, interim responses.
    start: usize,
    searched: usize,
    found: Option<(Body, bool)>,
}

impl ResponseScan {
    pub(super) fn poll(
        &mut self,
        buffer: &mut BytesMut,
        ended: bool,
        max: usize,
        head: bool,
    ) -> Result<Option<Answer>, FrameError> {
        while self.found.is_none() {
            let Some(len) = find_head(buffer, self.start, &mut self.searched)? else {
                return Ok(None);
            };
            let end = self.start + len;
            if end > max {
                return Err(FrameError::TooLarge);
            }
            match parse_response(&buffer[self.start..end], end, head, max)? {
                Response::Final(body, persistent) => self.found = Some((body, persistent)),
                Response::Continue => {
                    // Answered at the asking end, before the body was sent.
                    let rest = buffer.split_off(end);
                    buffer.truncate(self.start);
                    buffer.unsplit(rest);
                    self.searched = self.start;
                }
                Response::Interim => {
                    self.start = end;
                    self.searched = end;
                }
            }
        }
        let Some((body, persistent)) = &mut self.found else {
            return Ok(None);
        };
        let persistent = *persistent && !matches!(body, Body::Eof);
        Ok(body.end(buffer, ended, max)?.map(|end| Answer {
            bytes: buffer.split_to(end).freeze(),
            persistent,
        }))
    }
}

enum Response {
    Final(Body, bool),
    Continue,
    Interim,
}

fn parse_response(
    bytes: &[u8],
    end: usize,
    head: bool,
    max: usize,
) -> Result<Response, FrameError> {
    let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    if !matches!(response.parse(bytes), Ok(httparse::Status::Complete(len)) if len == bytes.len()) {
        return Err(FrameError::Malformed("head of an HTTP response"));
    }
    let fields = Fields::read(response.headers)?;
    let persistent = fields.persistent(response.version.unwrap_or(0));
    let body = match response.code.unwrap_or(0) {
        100 => return Ok(Response::Continue),
        101 => return Err(FrameError::Unsupported("switching protocols")),
        102..=199 => return Ok(Response::Interim),
        204 | 304 => Body::Until(end),
        _ if head => Body::Until(end),
        _ => Body::of(&fields, end, Body::Eof, max)?,
    };
    Ok(Response::Final(body, persistent))
}

/// The interim response that makes a client send its body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The response that stands for an answer that did not come; the connection closes after it.
pub(super) fn refusal(failure: Failure, expects: Option<&Expects>) -> Bytes {
    let status = match failure {
        Failure::Frame(FrameError::TooLarge) => "413 Content Too Large",
        Failure::Frame(FrameError::HeadTooLarge) => "431 Request Header Fields Too Large",
        Failure::Frame(FrameError::Unsupported(_)) => "501 Not Implemented",
        Failure::Frame(
            FrameError::Malformed(_)
            | FrameError::NotJson
            | FrameError::Truncated
            | FrameError::Empty,
        ) => "400 Bad Request",
        Failure::Unreachable | Failure::Rejected | Failure::BadAnswer => "502 Bad Gateway",
        Failure::Timeout => "504 Gateway Timeout",
        Failure::Busy => "503 Service Unavailable",
    };
    let body = format!("{}\n", failure.message());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    let without_body = matches!(expects, Some(Expects::Http { head: true }));
    Bytes::from(if without_body { head } else { head + &body })
}

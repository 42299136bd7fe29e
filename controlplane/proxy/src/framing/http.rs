//! HTTP/1.1 messages, one at a time (RFC 9112).
//!
//! Bytes are forwarded unchanged, so bytes that two parsers could interpret differently are refused (request
//! smuggling). One grammar applies to heads, chunk lines and trailers: lines end in CRLF; a bare CR or LF, any other
//! control character, a folded line (obs-fold) and whitespace before the colon are refused, as are two lengths, a
//! length beside chunks, and a transfer coding other than exactly `chunked`.

use bytes::{Buf, Bytes, BytesMut};

use super::{Answer, Expects, Failure, FrameError, HEAD_MAX, Request, Step};

/// Largest number of fields of a head, and of a trailer.
const FIELDS_MAX: usize = 256;
/// Longest line with the size of a chunk and its extensions, bytes.
const CHUNK_LINE_MAX: usize = 4096;
/// Most digits of the size of a chunk.
const CHUNK_DIGITS_MAX: usize = 16;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// The fields of a head that determine framing.
#[derive(Debug, Default)]
struct Fields {
    length: Option<usize>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    websocket: bool,
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// `tchar` of RFC 9110, 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(fits)
}

/// Whether it has no bare CR or LF, and no other control character but the tab.
fn check_bytes(text: &[u8]) -> Result<(), FrameError> {
    let mut rest = text;
    while let Some(at) = rest
        .iter()
        .position(|b| b.is_ascii_control() && *b != b'\t')
    {
        if !rest[at..].starts_with(b"\r\n") {
            let what = "a control character, or a bare CR or LF";
            return Err(FrameError::Malformed(what));
        }
        rest = &rest[at + 2..];
    }
    Ok(())
}

/// The lines of a head, each of which ends in CRLF.
fn lines(head: &[u8]) -> Result<impl Iterator<Item = &[u8]>, FrameError> {
    check_bytes(head)?;
    let lines = head.split(|byte| *byte == b'\n');
    Ok(lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)))
}

/// Name and value of a field line.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), FrameError> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) =
        line.split_at(colon.ok_or(FrameError::Malformed("a line without a colon"))?);
    // Leading whitespace folds a line; whitespace before the colon is part of the name for some parsers.
    if !is_token(name) {
        return Err(FrameError::Malformed("name of a field"));
    }
    Ok((name, value[1..].trim_ascii()))
}

impl Fields {
    fn read<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Self, FrameError> {
        let (mut fields, mut hosts, mut count) = (Self::default(), 0, 0);
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = field(line)?;
            count += 1;
            if count > FIELDS_MAX {
                return Err(FrameError::HeadTooLarge);
            }
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            let has = |token: &[u8]| tokens(value).any(|other| other.eq_ignore_ascii_case(token));
            if is("content-length") {
                let length = std::str::from_utf8(value)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| text.parse().ok())
                    .ok_or(FrameError::Malformed("Content-Length"))?;
                if fields.length.replace(length).is_some() {
                    return Err(FrameError::Malformed("two Content-Length fields"));
                }
            } else if is("transfer-encoding") {
                if fields.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FrameError::Malformed("Transfer-Encoding is not 'chunked'"));
                }
                fields.chunked = true;
            } else if is("connection") {
                fields.close |= has(b"close");
                fields.keep_alive |= has(b"keep-alive");
            } else if is("expect") {
                fields.expects_continue |= has(b"100-continue");
            } else if is("upgrade") {
                fields.websocket |= has(b"websocket");
            } else if is("host") {
                hosts += 1;
            }
        }
        if fields.length.is_some() && fields.chunked {
            let both = "both Content-Length and Transfer-Encoding";
            return Err(FrameError::Malformed(both));
        }
        if hosts > 1 {
            return Err(FrameError::Malformed("two Host fields"));
        }
        Ok(fields)
    }

    fn persistent(&self, version: u8) -> bool {
        !self.close && (version >= 1 || self.keep_alive)
    }
}

/// Minor version, 0 or 1.
fn version(text: &[u8]) -> Option<u8> {
    match text {
        b"HTTP/1.1" => Some(1),
        b"HTTP/1.0" => Some(0),
        _ => None,
    }
}

/// Length of the head that starts at `start`, once it is complete.
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

/// End of a body.
#[derive(Debug)]
enum Body {
    /// At this offset.
    Until(usize),
    /// At the end of the stream.
    Eof,
    /// Chunks; the state at the offset `at`.
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

/// Reads the size of a chunk and checks its extensions (RFC 9112, 7.1.1).
fn chunk_size(line: &[u8]) -> Result<usize, FrameError> {
    check_bytes(line)?;
    let hex = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let (digits, mut rest) = line.split_at(hex.count());
    let size = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.len() <= CHUNK_DIGITS_MAX)
        .and_then(|text| usize::from_str_radix(text, 16).ok())
        .ok_or(FrameError::Malformed("size of a chunk"))?;
    while !rest.is_empty() {
        let extension = rest.trim_ascii_start().strip_prefix(b";");
        rest = extension
            .and_then(after_extension)
            .ok_or(FrameError::Malformed("extension of a chunk"))?;
    }
    Ok(size)
}

/// The rest after `name`, `name=token` or `name="text"`. An unclosed quote is refused: some parsers continue it in the
/// next line.
fn after_extension(text: &[u8]) -> Option<&[u8]> {
    let token = |text: &[u8]| text.iter().take_while(|byte| is_token(&[**byte])).count();
    let text = text.trim_ascii_start();
    let (name, rest) = text.split_at(token(text));
    if name.is_empty() {
        return None;
    }
    let Some(value) = rest.trim_ascii_start().strip_prefix(b"=") else {
        return Some(rest);
    };
    let value = value.trim_ascii_start();
    let Some(mut quoted) = value.strip_prefix(b"\"") else {
        let len = token(value);
        return (len > 0).then(|| &value[len..]);
    };
    loop {
        quoted = match quoted {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', _, rest @ ..] | [_, rest @ ..] => rest,
            [] => return None,
        };
    }
}

/// Checks a line of a trailer; fields that determine framing are not valid there.
fn check_trailer(line: &[u8]) -> Result<(), FrameError> {
    check_bytes(line)?;
    let (name, _) = field(line)?;
    let framing = ["content-length", "transfer-encoding"];
    if framing
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
    {
        return Err(FrameError::Malformed("a field about framing in a trailer"));
    }
    Ok(())
}

impl Body {
    fn of(fields: &Fields, head_end: usize, without: Self, max: usize) -> Result<Self, FrameError> {
        match (fields.chunked, fields.length) {
            (true, _) => Ok(Self::Chunked {
                at: head_end,
                part: Part::Size,
            }),
            (false, Some(length)) => match head_end.checked_add(length) {
                Some(end) if end <= max => Ok(Self::Until(end)),
                _ => Err(FrameError::TooLarge),
            },
            (false, None) => Ok(without),
        }
    }

    /// Offset of the end, once received.
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
                let line = &buffer[*at..end];
                *at = end + 2;
                if line.is_empty() {
                    return Ok(Some(*at));
                }
                check_trailer(line)?;
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
            // Empty lines before a request are ignored (RFC 9112, 2.2).
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
    let mut lines = lines(head)?;
    let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ');
    let (method, target, text) = (words.next(), words.next(), words.next());
    let (Some(method), Some(version), None) = (method, text.and_then(version), words.next()) else {
        return Err(FrameError::Malformed("request line"));
    };
    if !is_token(method) || target.is_none_or(|target| target.is_empty() || target.contains(&b'\t'))
    {
        return Err(FrameError::Malformed("request line"));
    }
    let fields = Fields::read(lines)?;
    if fields.chunked && version == 0 {
        return Err(FrameError::Malformed("Transfer-Encoding with HTTP/1.0"));
    }
    if method.eq_ignore_ascii_case(b"CONNECT") {
        return Err(FrameError::Unsupported("CONNECT"));
    }
    if fields.websocket {
        return Err(FrameError::Unsupported("WebSocket"));
    }
    let body = Body::of(&fields, head.len(), Body::Until(head.len()), max)?;
    let empty = matches!(body, Body::Until(end) if end == head.len());
    let waits = fields.expects_continue && version >= 1 && !empty;
    let expects = Expects::Http {
        head: method == b"HEAD",
    };
    Ok(((body, expects, !fields.persistent(version)), waits))
}

/// Finds the response to one request.
#[derive(Debug, Default)]
pub(super) struct ResponseScan {
    /// Start of the current head; interim responses precede it.
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
                    // The client's end has sent one before the body.
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
    let mut lines = lines(bytes)?;
    let line = lines.next().unwrap_or_default();
    // Version, code and reason, which may be empty and have spaces.
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let version = words.next().and_then(version);
    let code = words
        .next()
        .filter(|code| code.len() == 3 && code.iter().all(u8::is_ascii_digit));
    let (Some(version), Some(code)) = (version, code) else {
        return Err(FrameError::Malformed("status line"));
    };
    let fields = Fields::read(lines)?;
    let persistent = fields.persistent(version);
    if fields.chunked && version == 0 {
        return Err(FrameError::Malformed("Transfer-Encoding with HTTP/1.0"));
    }
    let bodiless = code[0] == b'1' || code == b"204";
    if bodiless && (fields.chunked || fields.length.is_some_and(|length| length > 0)) {
        return Err(FrameError::Malformed("a body where the status has none"));
    }
    let body = match code {
        b"100" => return Ok(Response::Continue),
        b"101" => return Err(FrameError::Unsupported("switching protocols")),
        [b'1', ..] => return Ok(Response::Interim),
        [b'2'..=b'9', ..] if bodiless || head || code == b"304" => Body::Until(end),
        [b'2'..=b'9', ..] => Body::of(&fields, end, Body::Eof, max)?,
        _ => return Err(FrameError::Malformed("status line")),
    };
    Ok(Response::Final(body, persistent))
}

/// The interim response that requests the body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The response in place of a missing answer; the connection closes after it.
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
        Failure::Unreachable
        | Failure::Rejected
        | Failure::Unanswered
        | Failure::AnswerTooLarge
        | Failure::BadAnswer => "502 Bad Gateway",
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

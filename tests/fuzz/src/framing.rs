//! Where requests and answers of socket proxies end.

use hyphae_proxy::framing::{Answers, Expects, Framing, Requests, Step};
use serde_json::json;

/// First byte: framing, direction and how the rest is fed; the rest is a message.
pub fn framing(data: &[u8]) {
    let Some((&how, message)) = data.split_first() else {
        return;
    };
    let step = usize::from(how >> 3) + 1;
    match how & 7 {
        0 => http(request(Framing::Http, message, step), message),
        1 => http(
            answer(&Expects::Http { head: false }, message, step),
            message,
        ),
        2 => _ = answer(&Expects::Http { head: true }, message, step),
        3 => _ = request(Framing::JsonLines, message, step),
        4 => _ = answer(&Expects::Single(json!(1)), message, step),
        5 => _ = answer(&Expects::Batch(vec![json!(1)]), message, step),
        6 => _ = request(Framing::Eof, message, step),
        _ => _ = answer(&Expects::UntilEof, message, step),
    }
}

/// The message as it is passed on, if it is; the same, however it was cut.
fn request(framing: Framing, message: &[u8], step: usize) -> Option<Vec<u8>> {
    let whole = Requests::only(framing, message).ok();
    let mut scan = Requests::new(framing, message.len());
    let mut found = Vec::new();
    let mut pieces = message.chunks(step);
    loop {
        match scan.poll() {
            Ok(Step::Request(request)) => found.push(request),
            Ok(Step::Continue) => {}
            Ok(Step::More) => match pieces.next() {
                Some(piece) => scan.feed(piece),
                None => scan.end(),
            },
            Ok(Step::End) => break,
            Err(_) => {
                // The last line may lack its end, which is then made.
                assert!(whole.is_none() || framing == Framing::JsonLines);
                break;
            }
        }
    }
    let whole = whole?;
    if framing != Framing::JsonLines {
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].bytes, whole.bytes);
        assert_eq!(found[0].expects, whole.expects);
    }
    Some(whole.bytes.to_vec())
}

fn answer(expects: &Expects, message: &[u8], step: usize) -> Option<Vec<u8>> {
    let whole = Answers::only(expects.clone(), message).ok();
    let mut scan = Answers::new(expects.clone(), message.len());
    let mut found = None;
    for piece in message.chunks(step) {
        scan.feed(piece);
        match scan.poll() {
            Ok(None) => {}
            Ok(answer) => {
                found = answer;
                break;
            }
            Err(_) => break,
        }
    }
    if found.is_none() {
        scan.end();
        found = scan.poll().ok().flatten();
    }
    let whole = whole?;
    assert_eq!(found.map(|found| found.bytes), Some(whole.bytes.clone()));
    Some(whole.bytes.to_vec())
}

/// A reader that forgives sees the end of what is passed on in the same place.
fn http(passed: Option<Vec<u8>>, message: &[u8]) {
    let Some(passed) = passed else { return };
    let mut rest = &passed[..];
    loop {
        let (body, interim) = forgiving(&mut rest);
        match body {
            Some(Body::Eof) => return,
            Some(Body::Bytes(len)) => {
                assert!(rest.len() >= len, "{message:?}");
                rest = &rest[len..];
            }
            None => {}
        }
        if !interim {
            break;
        }
    }
    assert!(rest.is_empty(), "bytes after the end: {message:?}");
}

enum Body {
    Bytes(usize),
    Eof,
}

fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (line, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
    *rest = after;
    line.trim_ascii_end()
}

/// Takes a head, and chunks: any LF ends a line, names may have spaces around them, the last of several fields
/// counts. Returns the body that is left to be read, and whether another head follows.
fn forgiving(rest: &mut &[u8]) -> (Option<Body>, bool) {
    let mut first = line(rest);
    while first.is_empty() && !rest.is_empty() {
        first = line(rest);
    }
    let (mut length, mut chunked) = (None, false);
    loop {
        let field = line(rest);
        if field.is_empty() {
            break;
        }
        let mut halves = field.splitn(2, |byte| *byte == b':');
        let name = halves.next().unwrap_or_default().trim_ascii();
        let value = String::from_utf8_lossy(halves.next().unwrap_or_default().trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = value.parse().ok();
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            chunked = value.to_ascii_lowercase().contains("chunked");
        }
    }
    let is_answer = first.starts_with(b"HTTP/");
    let code = first.get(9..12).filter(|_| is_answer).unwrap_or_default();
    if code.starts_with(b"1") {
        return (None, true);
    }
    if code == b"204" || code == b"304" {
        return (None, false);
    }
    if !chunked {
        let open = if is_answer { Some(Body::Eof) } else { None };
        return (length.map(Body::Bytes).or(open), false);
    }
    loop {
        let size = line(rest);
        let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit());
        let digits: String = digits.map(|byte| char::from(*byte)).collect();
        match usize::from_str_radix(&digits, 16) {
            Ok(0) => break,
            Ok(size) => {
                *rest = rest.get(size..).unwrap_or_default();
                assert!(line(rest).is_empty(), "a chunk ends where it says");
            }
            Err(_) => panic!("size of a chunk that was passed on: {size:?}"),
        }
    }
    while !line(rest).is_empty() {}
    (None, false)
}

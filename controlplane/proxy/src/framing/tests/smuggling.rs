//! Forms by which one message is made into two (or two into one) where readers disagree, in requests
//! and in answers. The fuzz target `framing` looks for more of them.

use super::*;

/// Of both directions, after the first line of a head.
const HEADS: &[&str] = &[
    // Lengths and codings.
    "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "Content-Length: 3, 3\r\n\r\nabc",
    "Content-Length: +3\r\n\r\nabc",
    "Content-Length: 0x3\r\n\r\nabc",
    "Content-Length: 3 3\r\n\r\nabc",
    "Content-Length: -1\r\n\r\nabc",
    "Content-Length:\r\n\r\nabc",
    "Content-Length: 99999999999999999999\r\n\r\nabc",
    "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    // Lines.
    "A: b\nContent-Length: 3\r\n\r\nabc",
    "A: b\rContent-Length: 3\r\n\r\nabc",
    "A: b\n\r\n\r\n",
    "A: b\r\r\n\r\n",
    "A: b\n\nGET /other HTTP/1.1\r\n\r\n",
    "A: b\r\n\nGET /other HTTP/1.1\r\n\r\n",
    "A: b\0c\r\n\r\n",
    "A: b\x7fc\r\n\r\n",
    "A: b\r\n c\r\n\r\n",
    "A: b\r\n\tc\r\n\r\n",
    " Content-Length: 3\r\n\r\nabc",
    "Content-Length : 3\r\n\r\nabc",
    "Content-Length\t: 3\r\n\r\nabc",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "Content-Length\r\n\r\n",
    ": 3\r\n\r\n",
    "Con tent: 3\r\n\r\n",
    "Host: a\r\nHost: b\r\n\r\n",
];

/// Chunks and what follows them, after a head that announces them.
const CHUNKS: &[&str] = &[
    "0x3\r\nabc\r\n0\r\n\r\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    " 3\r\nabc\r\n0\r\n\r\n",
    "3 \r\nabc\r\n0\r\n\r\n",
    "\r\nabc\r\n0\r\n\r\n",
    ";a\r\nabc\r\n0\r\n\r\n",
    "10000000000000003\r\nabc\r\n0\r\n\r\n",
    "00000000000000003\r\nabc\r\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "3\rabc\r\n0\r\n\r\n",
    // Extensions.
    "3;\r\nabc\r\n0\r\n\r\n",
    "3;a\nb\r\nabc\r\n0\r\n\r\n",
    "3;a\rb\r\nabc\r\n0\r\n\r\n",
    "3;a=b\0\r\nabc\r\n0\r\n\r\n",
    "3;a=\"\r\nabc\r\n0\r\n\r\n",
    "3;a=\"\\\"\r\nabc\r\n0\r\n\r\n",
    "3;a=\"b\nc\"\r\nabc\r\n0\r\n\r\n",
    "3;a=\r\nabc\r\n0\r\n\r\n",
    "3;a b\r\nabc\r\n0\r\n\r\n",
    "3 a\r\nabc\r\n0\r\n\r\n",
    "0;\n\r\n\r\n",
    // Trailers.
    "0\r\nA: b\n\nGET /other HTTP/1.1\nX: y\r\n\r\n",
    "0\r\nA: b\r\r\n\r\n",
    "0\r\n\nGET /other HTTP/1.1\r\n\r\n",
    "0\r\nA: b\0\r\n\r\n",
    "0\r\nA: b\r\n c\r\n\r\n",
    "0\r\nA : b\r\n\r\n",
    "0\r\nGET /other HTTP/1.1\r\n\r\n",
    "0\r\nContent-Length: 3\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
];

fn refused(text: &str) {
    // In one piece and byte by byte.
    let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    for pieces in [&[text.as_bytes()][..], &single] {
        if text.starts_with("HTTP") {
            let found = answer(&Expects::Http { head: false }, pieces, true);
            assert!(
                matches!(found, Err(FrameError::Malformed(_))),
                "{text:?}: {found:?}"
            );
        } else {
            let (found, error) = requests(Framing::Http, pieces, FRAME_MAX);
            assert!(
                found.is_empty() && matches!(error, Some(FrameError::Malformed(_))),
                "{text:?}: {found:?} {error:?}"
            );
        }
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused_in_both_directions() {
    let chunks = CHUNKS
        .iter()
        .map(|chunks| format!("Transfer-Encoding: chunked\r\n\r\n{chunks}"));
    for rest in HEADS.iter().map(|head| (*head).to_owned()).chain(chunks) {
        refused(&format!("POST / HTTP/1.1\r\n{rest}"));
        refused(&format!("HTTP/1.1 200 OK\r\n{rest}"));
    }
}

#[test]
fn first_lines_that_readers_split_differently_are_refused() {
    for line in [
        "nonsense",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\t HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /",
        "G:T / HTTP/1.1",
        "GET / HTTP/1.1\nA: b",
        "GET / HTTP/1.1\rA: b",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 099 OK",
        "HTTP/2 200 OK",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1 200 O\nK",
    ] {
        refused(&format!("{line}\r\n\r\n"));
    }
}

#[test]
fn chunks_in_a_version_without_them_are_refused() {
    let rest = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused(&format!("POST / HTTP/1.0\r\n{rest}"));
    refused(&format!("HTTP/1.0 200 OK\r\n{rest}"));
}

#[test]
fn a_body_where_the_status_has_none_is_refused() {
    for status in ["100 Continue", "103 Early Hints", "204 No Content"] {
        for field in ["Content-Length: 3", "Transfer-Encoding: chunked"] {
            refused(&format!("HTTP/1.1 {status}\r\n{field}\r\n\r\nabc"));
        }
    }
    // A body all the same: the connection carries nothing more, and a message of it is refused.
    for status in ["204 No Content", "304 Not Modified"] {
        let text = format!("HTTP/1.1 {status}\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
        let one = Answers::only(Expects::Http { head: false }, text.as_bytes());
        assert!(matches!(one, Err(FrameError::Malformed(_))), "{one:?}");
    }
}

#[test]
fn tunnels_are_refused_as_not_supported() {
    for text in [
        "CONNECT x:1 HTTP/1.1\r\n\r\n",
        "connect x:1 HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n",
    ] {
        let (_, error) = requests(Framing::Http, &[text.as_bytes()], FRAME_MAX);
        assert!(matches!(error, Some(FrameError::Unsupported(_))), "{text}");
    }
    let switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n";
    let found = answer(&Expects::Http { head: false }, &[switching], false);
    assert!(
        matches!(found, Err(FrameError::Unsupported(_))),
        "{found:?}"
    );
}

#[test]
fn what_the_grammar_allows_passes_as_it_came() {
    for rest in [
        "A:b\r\nB:\r\nC: \tx y\t z\u{e9} \r\nContent-Length:3 \r\n\r\nabc",
        "transfer-encoding:\tCHUNKED \r\n\r\n3\r\na\nb\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3;a;b=c;d=\"e;\\\" f\" ; g = h\r\n\r\n\n\r\n00;z\r\nT: u\r\n\r\n",
    ] {
        let request = format!("PO-ST /a?b=%20;c HTTP/1.1\r\n{rest}");
        let found = Requests::only(Framing::Http, request.as_bytes());
        assert_eq!(found.map(|found| found.bytes), Ok(Bytes::from(request)));
        for status in ["200 OK", "200 ", "200", "599 a b c"] {
            let text = format!("HTTP/1.1 {status}\r\n{rest}");
            let found = Answers::only(Expects::Http { head: false }, text.as_bytes());
            assert_eq!(found.map(|found| found.bytes), Ok(Bytes::from(text)));
        }
    }
}

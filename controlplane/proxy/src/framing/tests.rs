mod smuggling;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Everything on a stream, fed in pieces.
fn requests(framing: Framing, pieces: &[&[u8]], max: usize) -> (Vec<Request>, Option<FrameError>) {
    let mut scan = Requests::new(framing, max);
    let mut found = Vec::new();
    for n in 0..=pieces.len() {
        match pieces.get(n) {
            Some(piece) => scan.feed(piece),
            None => scan.end(),
        }
        loop {
            match scan.poll() {
                Ok(Step::Request(request)) => found.push(request),
                Ok(Step::Continue) => {}
                Ok(Step::More | Step::End) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn answer(expects: &Expects, pieces: &[&[u8]], end: bool) -> Result<Option<Answer>, FrameError> {
    let mut scan = Answers::new(expects.clone(), FRAME_MAX);
    for piece in pieces {
        scan.feed(piece);
        if let Some(answer) = scan.poll()? {
            return Ok(Some(answer));
        }
    }
    if end {
        scan.end();
    }
    scan.poll()
}

/// Divides bytes at fractions of their length.
fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<_> = places.iter().map(|p| p.index(bytes.len() + 1)).collect();
    at.sort_unstable();
    let mut from = 0;
    let mut pieces = Vec::new();
    for place in at.into_iter().chain([bytes.len()]) {
        pieces.push(&bytes[from..place]);
        from = place;
    }
    pieces
}

fn http_request() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..300);
    (0..4u8, body, 1..50usize).prop_map(|(kind, body, chunk)| match kind {
        0 => b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        1 => b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        2 => {
            let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
            [head.into_bytes(), body].concat()
        }
        _ => {
            let mut all = b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for part in body.chunks(chunk) {
                all.extend(format!("{:X};ext=1\r\n", part.len()).bytes());
                all.extend(part);
                all.extend(b"\r\n");
            }
            all.extend(b"0\r\nTrailer: 1\r\n\r\n");
            all
        }
    })
}

fn json_line() -> impl Strategy<Value = Vec<u8>> {
    (0..4u8, any::<u32>(), "[a-z\u{e9} \\\\\"]{0,40}").prop_map(|(kind, id, text)| {
        let one = json!({ "jsonrpc": "2.0", "id": id, "method": "m", "params": [text] });
        let note = json!({ "jsonrpc": "2.0", "method": "n", "params": { "text": text } });
        let value = match kind {
            0 => one,
            1 => note,
            2 => json!([one, note]),
            _ => json!([note]),
        };
        format!("{value}\n").into_bytes()
    })
}

proptest! {
    #[test]
    fn http_requests_are_found_however_they_are_cut(
        sent in prop::collection::vec(http_request(), 1..6),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let stream = sent.concat();
        let (found, error) = requests(Framing::Http, &cut(&stream, &places), FRAME_MAX);
        prop_assert_eq!(error, None);
        let bytes: Vec<_> = found.iter().map(|request| request.bytes.to_vec()).collect();
        prop_assert_eq!(bytes, sent);
    }

    #[test]
    fn lines_are_found_however_they_are_cut(
        sent in prop::collection::vec(json_line(), 1..6),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let stream = sent.concat();
        let (found, error) = requests(Framing::JsonLines, &cut(&stream, &places), FRAME_MAX);
        prop_assert_eq!(error, None);
        let bytes: Vec<_> = found.iter().map(|request| request.bytes.to_vec()).collect();
        prop_assert_eq!(bytes, sent);
    }

    #[test]
    fn no_bytes_make_a_scan_fail_otherwise_than_by_an_error(
        stream in prop::collection::vec(any::<u8>(), 0..400),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    ) {
        for framing in [Framing::Eof, Framing::Http, Framing::JsonLines] {
            let whole = requests(framing, &[&stream], FRAME_MAX);
            prop_assert_eq!(&requests(framing, &cut(&stream, &places), FRAME_MAX).0, &whole.0);
        }
        for expects in [Expects::Http { head: false }, Expects::Single(json!(1)), Expects::UntilEof] {
            let whole = answer(&expects, &[&stream], true);
            prop_assert_eq!(answer(&expects, &cut(&stream, &places), true).ok(), whole.ok());
        }
    }

    #[test]
    fn a_chunked_response_ends_where_it_ends(
        body in prop::collection::vec(any::<u8>(), 0..500),
        chunk in 1..60usize,
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut all = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".to_vec();
        all.extend(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for part in body.chunks(chunk) {
            all.extend(format!("{:x}\r\n", part.len()).bytes());
            all.extend(part);
            all.extend(b"\r\n");
        }
        all.extend(b"0\r\n\r\n");
        let found = answer(&Expects::Http { head: false }, &cut(&all, &places), false).unwrap();
        prop_assert_eq!(found, Some(Answer { bytes: all.into(), persistent: true }));
    }
}

#[test]
fn eof_takes_everything_until_the_end() {
    let (found, error) = requests(Framing::Eof, &[b"one\n", b"two"], 7);
    assert_eq!((found.len(), error), (1, None));
    assert_eq!(&found[0].bytes[..], b"one\ntwo");
    assert!(found[0].last);
    assert_eq!(requests(Framing::Eof, &[], 7), (vec![], None));
    assert_eq!(
        requests(Framing::Eof, &[b"12345678"], 7).1,
        Some(FrameError::TooLarge)
    );
    let taken = answer(&Expects::UntilEof, &[b"an", b"swer"], true).unwrap();
    assert_eq!(&taken.unwrap().bytes[..], b"answer");
    assert_eq!(
        answer(&Expects::UntilEof, &[], true),
        Err(FrameError::Empty)
    );
}

#[test]
fn http_responses_end_by_their_own_rules() {
    let get = Expects::Http { head: false };
    let head = Expects::Http { head: true };
    let ends = |expects: &Expects, text: &str| {
        answer(expects, &[text.as_bytes()], false).map(|found| found.map(|a| a.persistent))
    };
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n";
    assert_eq!(ends(&get, &format!("{ok}\r\nab")), Ok(Some(true)));
    assert_eq!(ends(&get, &format!("{ok}\r\na")), Ok(None));
    assert_eq!(ends(&head, &format!("{ok}\r\n")), Ok(Some(true)));
    assert_eq!(
        ends(&get, &format!("{ok}Connection: x, Close\r\n\r\nab")),
        Ok(Some(false))
    );
    for bare in [
        "204 No Content\r\nContent-Length: 0",
        "304 Not Modified\r\nContent-Length: 9",
    ] {
        let text = format!("HTTP/1.1 {bare}\r\n\r\n");
        assert_eq!(ends(&get, &text), Ok(Some(true)), "{bare}");
    }
    let old = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n";
    assert_eq!(ends(&get, &format!("{old}\r\n")), Ok(Some(false)));
    let persistent = format!("{old}Connection: keep-alive\r\n\r\n");
    assert_eq!(ends(&get, &persistent), Ok(Some(true)));
    // Neither a length nor chunks: the end of the stream is the end of the body.
    let open = b"HTTP/1.1 200 OK\r\n\r\nbody".as_slice();
    assert_eq!(answer(&get, &[open], false), Ok(None));
    let ended = answer(&get, &[open], true).unwrap().unwrap();
    assert_eq!((&ended.bytes[..], ended.persistent), (open, false));
    let cut = answer(&get, &[ok.as_bytes(), b"\r\na"], true);
    assert_eq!(cut, Err(FrameError::Truncated));
    assert_eq!(answer(&get, &[], true), Err(FrameError::Empty));
    let switching = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
    assert!(matches!(
        ends(&get, switching),
        Err(FrameError::Unsupported(_))
    ));
    assert!(matches!(
        Answers::only(get, format!("{ok}\r\nabEXTRA").as_bytes()),
        Err(FrameError::Malformed(_))
    ));
}

#[test]
fn interim_continue_is_left_out_and_hints_stay() {
    let stream = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n\
        HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
    let expected =
        b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
    for step in [1, 7, 400] {
        let pieces: Vec<_> = stream.chunks(step).collect();
        let found = answer(&Expects::Http { head: false }, &pieces, false)
            .unwrap()
            .unwrap();
        assert_eq!(&found.bytes[..], expected);
    }
}

#[test]
fn a_client_that_waits_for_continue_is_answered_once() {
    let mut scan = Requests::new(Framing::Http, FRAME_MAX);
    scan.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(scan.poll(), Ok(Step::Continue));
    assert_eq!(scan.poll(), Ok(Step::More));
    scan.feed(b"abc");
    assert!(matches!(scan.poll(), Ok(Step::Request(_))));
    // Refused by its head, before the body is sent.
    let mut scan = Requests::new(Framing::Http, FRAME_MAX);
    let head = format!(
        "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        FRAME_MAX
    );
    scan.feed(head.as_bytes());
    assert_eq!(scan.poll(), Err(FrameError::TooLarge));
}

#[test]
fn limits_refuse_and_never_truncate() {
    let long = [
        b"GET / HTTP/1.1\r\nA: ".as_slice(),
        &vec![b'a'; HEAD_MAX],
        b"\r\n\r\n",
    ]
    .concat();
    assert_eq!(
        requests(Framing::Http, &[&long], FRAME_MAX),
        (vec![], Some(FrameError::HeadTooLarge))
    );
    let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (size, expected) in [
        (
            "fffffffffffffffff",
            FrameError::Malformed("size of a chunk"),
        ),
        ("ffffffffffffffff", FrameError::TooLarge),
        ("4000000", FrameError::TooLarge),
    ] {
        let stream = [chunked, format!("{size}\r\n").as_bytes()].concat();
        let (_, error) = requests(Framing::Http, &[&stream], FRAME_MAX);
        assert_eq!(error, Some(expected), "{size}");
    }
    let line = [b"{\"id\":1,\"a\":\"".as_slice(), &[b'a'; 100], b"\"}\n"].concat();
    assert_eq!(
        requests(Framing::JsonLines, &[&line], line.len()).0.len(),
        1
    );
    assert_eq!(
        requests(Framing::JsonLines, &[&line], line.len() - 1),
        (vec![], Some(FrameError::TooLarge))
    );
    // Also without a line end, and without waiting for one.
    assert_eq!(
        requests(Framing::JsonLines, &[&line[..20]], 10).1,
        Some(FrameError::TooLarge)
    );
}

#[test]
fn a_message_is_one_request() {
    let get = b"GET / HTTP/1.1\r\n\r\n".as_slice();
    assert!(Requests::only(Framing::Http, get).is_ok());
    let two = [get, get].concat();
    assert!(matches!(
        Requests::only(Framing::Http, &two),
        Err(FrameError::Malformed(_))
    ));
    assert_eq!(
        Requests::only(Framing::Http, &get[..10]),
        Err(FrameError::Truncated)
    );
    assert_eq!(
        Requests::only(Framing::Eof, b""),
        Err(FrameError::Truncated)
    );
    let line = Requests::only(Framing::JsonLines, b"{\"id\":1,\"method\":\"m\"}").unwrap();
    assert_eq!(line.bytes.last(), Some(&b'\n'), "a server waits for it");
}

#[test]
fn the_answer_is_the_one_with_the_id() {
    let call = |line: &str| {
        let request = Requests::only(Framing::JsonLines, line.as_bytes()).unwrap();
        request.expects
    };
    assert_eq!(call("{\"method\":\"m\"}"), Expects::Nothing);
    assert_eq!(
        call("{\"method\":\"m\",\"id\":null}"),
        Expects::Single(Value::Null)
    );
    assert_eq!(call("[]"), Expects::Single(Value::Null));
    assert_eq!(call("[{\"method\":\"m\"}]"), Expects::Nothing);
    let one = call("{\"method\":\"m\",\"id\":\"7\"}");
    assert_eq!(one, Expects::Single(json!("7")));
    let note = "{\"jsonrpc\":\"2.0\",\"method\":\"progress\",\"params\":[50]}\n";
    let other = "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":1}\n";
    let result = "{\"jsonrpc\":\"2.0\",\"id\":\"7\",\"result\":null}\n";
    let stream = [note, other, result, note].concat();
    let found = answer(&one, &[stream.as_bytes()], false).unwrap().unwrap();
    assert_eq!(found.bytes, [note, other, result].concat());
    let refused = "{\"id\":null,\"error\":{\"code\":-32700,\"message\":\"m\"}}\n";
    let found = answer(&one, &[refused.as_bytes()], false).unwrap();
    assert_eq!(found.unwrap().bytes, refused);
    let batch = call("[{\"method\":\"m\",\"id\":1},{\"method\":\"n\"}]");
    assert_eq!(batch, Expects::Batch(vec![json!(1)]));
    assert_eq!(answer(&batch, &[other.as_bytes()], false), Ok(None));
    let array = "[{\"id\":1,\"result\":2}]\n";
    assert!(
        answer(&batch, &[array.as_bytes()], false)
            .unwrap()
            .is_some()
    );
}

#[test]
fn a_line_that_is_no_json_does_not_affect_others() {
    let mut scan = Requests::new(Framing::JsonLines, FRAME_MAX);
    scan.feed(b"not json\n{\"method\":\"m\",\"id\":1}\n");
    assert_eq!(scan.poll(), Err(FrameError::NotJson));
    assert!(matches!(scan.poll(), Ok(Step::Request(_))));
}

#[test]
fn errors_are_in_the_framing() {
    let get = Expects::Http { head: false };
    for (failure, status) in [
        (Failure::Unreachable, "502"),
        (Failure::Rejected, "502"),
        (Failure::Unanswered, "502"),
        (Failure::AnswerTooLarge, "502"),
        (Failure::BadAnswer, "502"),
        (Failure::Timeout, "504"),
        (Failure::Busy, "503"),
        (Failure::Frame(FrameError::TooLarge), "413"),
        (Failure::Frame(FrameError::HeadTooLarge), "431"),
        (Failure::Frame(FrameError::Malformed("x")), "400"),
    ] {
        let bytes = failure.answer(Framing::Http, Some(&get)).unwrap();
        assert!(
            bytes.starts_with(format!("HTTP/1.1 {status} ").as_bytes()),
            "{bytes:?}"
        );
        let parsed = Answers::only(get.clone(), &bytes).unwrap();
        assert!(!parsed.persistent);
        let head = Expects::Http { head: true };
        let bare = failure.answer(Framing::Http, Some(&head)).unwrap();
        assert!(bare.ends_with(b"\r\n\r\n"));
        assert_eq!(failure.answer(Framing::Eof, None), None);
    }
    let lines = |expects: &Expects| Failure::Timeout.answer(Framing::JsonLines, Some(expects));
    assert_eq!(lines(&Expects::Nothing), None);
    let single: Value =
        serde_json::from_slice(&lines(&Expects::Single(json!("a"))).unwrap()).unwrap();
    assert_eq!(
        (&single["id"], &single["error"]["data"]["kind"]),
        (&json!("a"), &json!("timeout"))
    );
    let batch = lines(&Expects::Batch(vec![json!(1), json!(2)])).unwrap();
    let batch: Vec<Value> = serde_json::from_slice(&batch).unwrap();
    assert_eq!((batch.len(), &batch[1]["id"]), (2, &json!(2)));
    let broken = Failure::Frame(FrameError::NotJson).answer(Framing::JsonLines, None);
    let broken: Value = serde_json::from_slice(&broken.unwrap()).unwrap();
    assert_eq!(
        (&broken["id"], &broken["error"]["code"]),
        (&Value::Null, &json!(-32700))
    );
}

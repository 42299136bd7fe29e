//! Echo servers and their clients over Unix sockets, one pair per framing. Neither knows of a node.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

use super::mesh::TIMEOUT;

pub(crate) const FRAMINGS: [&str; 3] = ["eof", "http", "json-lines"];

/// Holds requests until a round of them is there at once.
#[derive(Clone)]
struct Gate(Arc<(Mutex<usize>, Condvar)>, usize);

impl Gate {
    fn pass(&self) {
        let (arrived, changed) = &*self.0;
        let mut count = arrived.lock().unwrap();
        let round = *count / self.1;
        *count += 1;
        changed.notify_all();
        let full = |count: &mut usize| *count / self.1 <= round;
        let (_count, waited) = changed.wait_timeout_while(count, TIMEOUT, full).unwrap();
        assert!(!waited.timed_out(), "{} requests at once", self.1);
    }
}

/// Serves a socket for as long as the test runs. No request is answered before `together` are there.
pub(crate) fn echo(path: &Path, framing: &'static str, together: usize) {
    let listener = UnixListener::bind(path).unwrap();
    let gate = Gate(Arc::default(), together);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, gate) = (stream.unwrap(), gate.clone());
            std::thread::spawn(move || match framing {
                "eof" => echo_eof(stream, &gate),
                "http" => echo_http(&stream, &gate),
                _ => echo_json(&stream, &gate),
            });
        }
    });
}

fn echo_eof(mut stream: UnixStream, gate: &Gate) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    gate.pass();
    stream.write_all(&bytes).unwrap();
}

fn echo_http(stream: &UnixStream, gate: &Gate) {
    let mut reader = BufReader::new(stream);
    while let Some(body) = http_body(&mut reader) {
        gate.pass();
        let mut writer = stream;
        writer.write_all(&http("HTTP/1.1 200 OK", &body)).unwrap();
    }
}

fn echo_json(stream: &UnixStream, gate: &Gate) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 0 {
        gate.pass();
        let request: Value = serde_json::from_str(&line).unwrap();
        let mut writer = stream;
        writer.write_all(json_answer(&request).as_bytes()).unwrap();
        line.clear();
    }
}

fn json_answer(request: &Value) -> String {
    let answer = json!({ "jsonrpc": "2.0", "result": request["params"], "id": request["id"] });
    format!("{answer}\n")
}

/// A request or response with a body.
fn http(first: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{first}\r\nHost: echo\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Reads one request or response; its body.
fn http_body(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if reader.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Some(body)
}

/// Sends `requests` over one connection where the framing allows it, and checks every byte that comes
/// back.
pub(crate) fn ask(path: &Path, framing: &str, requests: &[Vec<u8>]) {
    match framing {
        "eof" => requests.iter().for_each(|request| ask_eof(path, request)),
        "http" => ask_http(path, requests),
        _ => ask_json(path, requests),
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(2 * TIMEOUT)).unwrap();
    stream
}

fn ask_eof(path: &Path, request: &[u8]) {
    let mut stream = connect(path);
    stream.write_all(request).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(
        answer == request,
        "{} bytes came back as {}",
        request.len(),
        answer.len()
    );
}

fn ask_http(path: &Path, requests: &[Vec<u8>]) {
    let stream = connect(path);
    for request in requests {
        let mut writer = &stream;
        writer
            .write_all(&http("POST /echo HTTP/1.1", request))
            .unwrap();
        // Head and body, as the server wrote them.
        let expected = http("HTTP/1.1 200 OK", request);
        let mut answer = vec![0; expected.len()];
        (&stream).read_exact(&mut answer).unwrap();
        assert!(
            answer == expected,
            "{}",
            String::from_utf8_lossy(&answer[..60])
        );
    }
}

fn ask_json(path: &Path, requests: &[Vec<u8>]) {
    let stream = connect(path);
    let mut reader = BufReader::new(&stream);
    for (n, request) in requests.iter().enumerate() {
        let hex: String = request.iter().map(|byte| format!("{byte:02x}")).collect();
        let request = json!({ "jsonrpc": "2.0", "method": "echo", "params": [hex], "id": n });
        let mut writer = &stream;
        writer.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        assert_eq!(answer, json_answer(&request));
    }
}

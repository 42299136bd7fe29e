//! Covers: the client over both transports, and the examples, which run against a scripted node. The tests of the
//! command line use the client with real nodes.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;

use hyphae_rpc::{Client, ClientError, Error, Request, Response, code};
use serde_json::{Value, json};

/// Answers one HTTP request; returns the call.
fn answer(
    mut stream: impl Read + Write,
    result: impl FnOnce(&Request) -> Result<Value, Error>,
) -> Request {
    let mut reader = BufReader::new(&mut stream);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request: Request = serde_json::from_slice(&body).unwrap();
    let response = Response::new(request.id.clone().unwrap(), result(&request));
    let body = serde_json::to_vec(&response).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream
        .write_all(&[head.as_bytes(), &body].concat())
        .unwrap();
    request
}

fn scripted(request: &Request) -> Result<Value, Error> {
    let key = "11".repeat(32);
    match request.method.as_str() {
        "getInfo" => Ok(json!({
            "nodeSubnet": "400::/64", "nodeIp": "400::1", "nodePubkey": key, "nodeStartTime": 1,
        })),
        "pushMessage" => Ok(json!({ "id": "0123456789abcdef" })),
        "popMessage" => Ok(json!({
            "id": "0123456789abcdef", "srcIp": "400::1", "srcPk": key, "dstIp": "400::1", "dstPk": key,
            "topic": "ZXhhbXBsZQ==", "payload": "aGVsbG8=",
        })),
        "getMessageInfo" => Ok(json!({
            "dst": "400::1", "state": { "sending": { "pending": 0, "sent": 1, "acked": 0 } },
            "created": 1, "deadline": 2, "msgLen": 5,
        })),
        "addTopic" | "addTopicPubkeySource" | "removeTopic" => Ok(json!(true)),
        "getTopicPubkeySources" => Ok(json!([key])),
        "getTopicSources" => Err(Error::new(code::TOPIC_NOT_FOUND, "topic_not_found")),
        "admin.busCall" => Ok(json!({ "jsonrpc": "2.0", "id": 1, "result": [{ "peer": 1 }] })),
        other => panic!("{other} is not in the script"),
    }
}

/// Answers one call from the script. The method is recorded before the answer, since an example may end right after its
/// last answer.
fn play(stream: impl Read + Write, called: &mpsc::Sender<String>) {
    answer(stream, |request| {
        called.send(request.method.clone()).unwrap();
        scripted(request)
    });
}

/// Runs an example until it ends; the methods that it called.
fn run(
    example: &str,
    arguments: &[&str],
    serve: impl FnOnce(mpsc::Sender<String>) + Send + 'static,
) -> (Output, Vec<String>) {
    let (sender, called) = mpsc::channel();
    thread::spawn(move || serve(sender));
    let test = std::env::current_exe().unwrap();
    let directory: PathBuf = test.parent().unwrap().parent().unwrap().join("examples");
    let output = Command::new(directory.join(example))
        .args(arguments)
        .output()
        .unwrap();
    (output, called.try_iter().collect())
}

fn over_unix(example: &str, more: &[&str]) -> (Output, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rpc.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut arguments = vec![path.to_str().unwrap()];
    arguments.extend(more);
    run(example, &arguments, move |sender| {
        for stream in listener.incoming() {
            play(stream.unwrap(), &sender);
        }
    })
}

#[test]
fn echo_sends_and_receives() {
    let (output, called) = over_unix("echo", &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.starts_with("hello from 400::1"),
        "{text}"
    );
    assert_eq!(
        called,
        ["getInfo", "pushMessage", "popMessage", "getMessageInfo"]
    );
}

#[test]
fn topics_works_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (output, called) = run("topics", &[&address], move |sender| {
        for stream in listener.incoming() {
            play(stream.unwrap(), &sender);
        }
    });
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.ends_with("removed\n"),
        "{text}"
    );
    assert_eq!(called.len(), 6);
}

#[test]
fn remote_admin_calls_over_the_bus() {
    let (output, called) = over_unix("remote_admin", &[&"11".repeat(32)]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "[{\"peer\":1}]\n"
    );
    assert_eq!(called, ["admin.busCall"]);
}

#[test]
fn a_refusal_keeps_its_code_and_an_absent_node_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = thread::spawn(move || {
        let refuse = |_: &Request| Err(Error::new(code::DENIED, "no").with_kind("lock_out"));
        answer(listener.accept().unwrap().0, refuse)
    });
    let error = Client::http(address).admin_list().unwrap_err();
    serving.join().unwrap();
    assert!(
        matches!(error, ClientError::Call(error) if error.code == code::DENIED
        && error.data == Some(json!({ "kind": "lock_out" })))
    );
    let nowhere = tempfile::tempdir().unwrap().path().join("rpc.sock");
    let error = Client::new(&nowhere).admin_list().unwrap_err();
    let named = nowhere.to_str().unwrap();
    assert!(
        matches!(&error, ClientError::Absent { place, .. } if place == named),
        "{error}"
    );
}

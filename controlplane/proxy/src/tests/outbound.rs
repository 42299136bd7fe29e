use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use hyphae_files::BindError;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::*;
use crate::framing::{FRAME_MAX, FrameError};
use crate::outbound::Outbound;
use crate::{Gate, GateError, Side, Stats};

struct Lab {
    directory: TempDir,
    outbound: Outbound<Fake>,
    stats: Stats,
    events: mpsc::UnboundedReceiver<Sent>,
}

impl Lab {
    fn new(
        framing: Framing,
        answer: impl Fn(Outgoing) -> Answered + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client, events) = Fake::new(answer);
        let stats = Stats::default();
        let outbound = Outbound::new(
            client,
            settings(config(framing, None, TIMEOUT_S)),
            stats.clone(),
            Gate::of_test(&[]),
        );
        let lab = Self {
            directory,
            outbound,
            stats,
            events,
        };
        lab.outbound
            .bind(&topic(), &lab.path(), Authority::Node)
            .unwrap();
        lab
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    /// Sends, finishes, and reads to the end.
    async fn ask(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    }
}

/// Waits until an outcome is counted, which is after the client has received it.
async fn counted(stats: &Stats, outcome: &'static str) {
    counted_times(stats, outcome, 1).await;
}

async fn counted_times(stats: &Stats, outcome: &'static str, times: u64) {
    let count = || stats.count(Side::Outbound, outcome);
    until(outcome, || count() >= times).await;
    assert_eq!(count(), times, "{outcome}");
}

fn respond(body: &[u8]) -> Bytes {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat().into()
}

#[tokio::test]
async fn every_connection_gets_its_own_reply() {
    let lab = Lab::new(Framing::Eof, |message| {
        Box::pin(async move {
            // The later the request, the sooner the answer.
            let number = u64::from(message.payload[0]);
            tokio::time::sleep(Duration::from_millis(64 - number)).await;
            Ok([b"re ", &message.payload[..]].concat().into())
        })
    });
    let mut asks = Vec::new();
    for number in 0..64u8 {
        let mut stream = lab.connect().await;
        asks.push(async move {
            stream.write_all(&[number; 100]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [b"re ".as_slice(), &[number; 100]].concat());
        });
    }
    let mut running: Vec<_> = asks.into_iter().map(tokio::spawn).collect();
    for ask in running.drain(..) {
        ask.await.unwrap();
    }
    counted_times(&lab.stats, "answered", 64).await;
    // Connected and closed: no request.
    assert_eq!(lab.ask(b"").await, b"");
    assert_eq!(lab.stats.count(Side::Outbound, "answered"), 64);
}

#[tokio::test]
async fn http_answers_come_in_the_order_of_pipelined_requests() {
    let lab = Lab::new(Framing::Http, |message| {
        Box::pin(async move {
            let first = message.payload.starts_with(b"GET /1");
            tokio::time::sleep(Duration::from_millis(if first { 30 } else { 0 })).await;
            let line = message.payload.split(|byte| *byte == b' ').nth(1).unwrap();
            Ok(respond(line))
        })
    });
    let mut stream = lab.connect().await;
    let requests = "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nConnection: close\r\n\r\n";
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(
        answer,
        [respond(b"/1"), respond(b"/2"), respond(b"/3")].concat()
    );
    until("nothing is held for a connection that ended", || {
        lab.outbound.bytes_left() == 256 << 20
    })
    .await;
}

#[tokio::test]
async fn a_body_is_sent_after_continue() {
    let lab = Lab::new(Framing::Http, |message| {
        let body = message.payload.len();
        ready(Ok(respond(body.to_string().as_bytes())))
    });
    let mut stream = lab.connect().await;
    let head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, respond((head.len() + 3).to_string().as_bytes()));
}

#[tokio::test]
async fn lines_share_a_connection() {
    let mut lab = Lab::new(Framing::JsonLines, |message| {
        let call: Value = serde_json::from_slice(&message.payload).unwrap();
        let answer = json!({ "jsonrpc": "2.0", "id": call["id"], "result": call["params"] });
        ready(Ok(format!("{answer}\n").into()))
    });
    let mut lines = BufReader::new(lab.connect().await);
    let mut line = String::new();
    for id in 0..20 {
        let call = json!({ "jsonrpc": "2.0", "id": id, "method": "m", "params": [id * id] });
        let note_line = json!({ "jsonrpc": "2.0", "method": "note" });
        let sent = format!("{note_line}\n{call}\n");
        lines.get_mut().write_all(sent.as_bytes()).await.unwrap();
        line.clear();
        lines.read_line(&mut line).await.unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["result"], json!([id * id]));
        let note = lab.events.recv().await;
        assert_eq!(note, Some(Sent::Message(format!("{note_line}\n").into())));
    }
    lines.get_mut().write_all(b"no json\n").await.unwrap();
    line.clear();
    lines.read_line(&mut line).await.unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(answer["error"]["code"], json!(-32700));
    counted_times(&lab.stats, "answered", 40).await;
}

#[tokio::test]
async fn failures_are_reported_in_the_framing() {
    for (failure, status) in [
        (Failure::Unreachable, "502"),
        (Failure::Rejected, "502"),
        (Failure::Timeout, "504"),
        (Failure::Busy, "503"),
    ] {
        let lab = Lab::new(Framing::Http, move |_| ready(Err(failure)));
        let answer = lab
            .ask(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
            .await;
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "then it closes");
        counted(&lab.stats, failure.kind()).await;

        let lab = Lab::new(Framing::JsonLines, move |_| ready(Err(failure)));
        let answer = lab.ask(b"{\"id\":\"x\",\"method\":\"m\"}\n").await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["id"], json!("x"));
        assert_eq!(answer["error"]["data"]["kind"], json!(failure.kind()));

        let lab = Lab::new(Framing::Eof, move |_| ready(Err(failure)));
        assert_eq!(lab.ask(b"request").await, b"");
        counted(&lab.stats, failure.kind()).await;
    }
    // A malformed reply is not forwarded, nor are bytes after its end.
    for reply in [b"garbage".to_vec(), [respond(b"a"), respond(b"b")].concat()] {
        let lab = Lab::new(Framing::Http, move |_| ready(Ok(reply.clone().into())));
        let text = lab.ask(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(text.starts_with(b"HTTP/1.1 502 "));
        counted(&lab.stats, "bad_answer").await;
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_while_it_arrives() {
    let lab = Lab::new(Framing::Http, |_| panic!("it must not be sent"));
    let mut stream = lab.connect().await;
    let head = format!("POST / HTTP/1.1\r\nContent-Length: {FRAME_MAX}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let body = vec![0; 300_000];
    stream.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413 "));
    counted(&lab.stats, Failure::Frame(FrameError::TooLarge).kind()).await;
}

#[tokio::test]
async fn a_client_that_disconnects_cancels_its_request() {
    let (sender, started) = oneshot::channel::<oneshot::Receiver<()>>();
    let sender = std::sync::Mutex::new(Some(sender));
    let lab = Lab::new(Framing::Eof, move |_| {
        let (alive, cancelled) = oneshot::channel();
        if let Some(sender) = sender.lock().unwrap().take() {
            sender.send(cancelled).unwrap();
        }
        Box::pin(async move {
            let _alive: oneshot::Sender<()> = alive;
            std::future::pending().await
        })
    });
    let mut stream = lab.connect().await;
    stream.write_all(b"request").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut cancelled = started.await.unwrap();
    // A half-closed connection still waits for its answer.
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut cancelled).await;
    assert!(waits.is_err());
    drop(stream);
    assert!(cancelled.await.is_err(), "the request was cancelled");
    counted(&lab.stats, "client_gone").await;
    until("nothing is held for it", || {
        lab.outbound.bytes_left() == 256 << 20
    })
    .await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let lab = Lab::new(Framing::Eof, |message| ready(Ok(message.payload)));
    let mode = fs::metadata(lab.path()).unwrap().permissions().mode();
    // The umask of the test may reduce it.
    assert_eq!(mode & 0o777 & !0o660, 0);
    let again = lab.outbound.bind(&topic(), &lab.path(), Authority::Node);
    assert!(
        matches!(again, Err(GateError::Bind(BindError::Live(_)))),
        "ours"
    );

    let other = lab.directory.path().join("other");
    let live = UnixListener::bind(&other).unwrap();
    let stolen = lab.outbound.bind(&topic(), &other, Authority::Node);
    assert!(
        matches!(stolen, Err(GateError::Bind(BindError::Live(_)))),
        "served"
    );
    connect(&other);
    drop(live);
    assert!(other.exists(), "stale");
    lab.outbound
        .bind(&topic(), &other, Authority::Node)
        .unwrap();
    connect(&other);
    assert!(lab.outbound.unbind(&other) && !lab.outbound.unbind(&other));
    assert!(!other.exists());

    let file = lab.directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let refused = lab.outbound.bind(&topic(), &file, Authority::Node);
    assert!(matches!(
        refused,
        Err(GateError::Bind(BindError::NotASocket(_)))
    ));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let link = lab.directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let refused = lab.outbound.bind(&topic(), &link, Authority::Node);
    assert!(matches!(
        refused,
        Err(GateError::Bind(BindError::NotASocket(_)))
    ));
    let long = lab.directory.path().join("x".repeat(120));
    let refused = lab.outbound.bind(&topic(), &long, Authority::Node);
    assert!(matches!(
        refused,
        Err(GateError::Bind(BindError::TooLong(_)))
    ));
    let absent = lab.directory.path().join("absent/socket");
    let refused = lab
        .outbound
        .bind(&topic(), &absent, Authority::Node)
        .unwrap_err();
    assert!(refused.to_string().contains("absent/socket"));
    fs::remove_file(&link).unwrap();
    fs::remove_file(&file).unwrap();

    // A foreign socket at our path stays.
    fs::remove_file(lab.path()).unwrap();
    let successor = UnixListener::bind(lab.path()).unwrap();
    let (directory, path) = (lab.directory.path().to_owned(), lab.path());
    drop(lab.outbound);
    connect(&path);
    drop(successor);
    let left: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, [path], "no lock file and no socket of ours");
}

#[tokio::test]
async fn connections_end_with_their_socket() {
    let lab = Lab::new(Framing::Http, |_| Box::pin(std::future::pending()));
    let mut stream = lab.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut resting = lab.connect().await;
    // Both have been accepted once the request of a third one has arrived.
    assert!(lab.outbound.unbind(&lab.path()));
    for stream in [&mut stream, &mut resting] {
        let mut answer = Vec::new();
        // The connection may end with what the client sent unread.
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"");
    }
}

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::*;
use crate::forward::Forward;
use crate::outbound::Outbound;
use crate::{Gate, Side, Stats};
use hyphae_store::inbox::{Inbox, Limits, ONE};

/// Requests that a server receives.
const AT_ONCE: usize = 64;

struct Lab {
    settings: Settings,
    directory: TempDir,
    messages: mpsc::Sender<Inbound>,
    sent: mpsc::UnboundedReceiver<Sent>,
    inbox: Inbox,
    stats: Stats,
}

impl Lab {
    fn new(framing: Framing, limits: Limits) -> Self {
        Self::with(framing, limits, TIMEOUT_S)
    }

    /// With a reply timeout in seconds.
    fn with(framing: Framing, limits: Limits, reply_timeout: u64) -> Self {
        Self::of(limits, |path| config(framing, Some(path), reply_timeout))
    }

    /// With these settings of the topic, whose server is at a path.
    fn of(limits: Limits, config: impl FnOnce(PathBuf) -> TopicConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(config(directory.path().join("server")));
        let (client, sent) = Fake::new(|_| panic!("no request"));
        let inbox = Inbox::in_memory(limits).unwrap();
        let stats = Stats::default();
        let forward = Forward::new(
            client,
            Arc::clone(&settings),
            inbox.clone(),
            stats.clone(),
            Gate::of_test(&[]),
        );
        let (messages, receiver) = mpsc::channel(16);
        tokio::spawn(forward.run(receiver));
        Self {
            settings,
            directory,
            messages,
            sent,
            inbox,
            stats,
        }
    }

    /// Runs a server: each connection gets one call.
    fn serve<F: Future<Output = ()> + Send + 'static>(
        &self,
        mut serve: impl FnMut(UnixStream) -> F + Send + 'static,
    ) {
        let listener = UnixListener::bind(self.directory.path().join("server")).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    }

    async fn send(&self, message: Inbound) {
        self.messages.send(message).await.unwrap();
    }

    /// The answer to a message, after its receipt.
    async fn reply(&mut self, message: &Inbound) -> Bytes {
        let key = message.key();
        assert_eq!(self.sent.recv().await, Some(Sent::Settled(key, Ok(()))));
        let Some(Sent::Answer(answered, payload)) = self.sent.recv().await else {
            panic!("an answer");
        };
        assert_eq!(answered, key);
        payload
    }

    /// Waits until an outcome is counted `times` times, and not more often.
    async fn counted(&self, outcome: &'static str, times: u64) {
        let count = || self.stats.count(Side::Forward, outcome);
        until(outcome, || count() >= times).await;
        assert_eq!(count(), times, "{outcome}");
    }

    /// The message that a failure left in the inbox.
    async fn fallen_back(&mut self, message: &Inbound, cause: &'static str) {
        let key = message.key();
        assert_eq!(self.sent.recv().await, Some(Sent::Settled(key, Ok(()))));
        let mut changed = self.inbox.changed();
        let taken = loop {
            if let Some(taken) = self.inbox.take(None, ONE).await.unwrap() {
                break taken;
            }
            changed.changed().await.unwrap();
        };
        assert_eq!(
            taken.confirm().await.unwrap(),
            std::slice::from_ref(message)
        );
        let failure = match cause {
            "timeout" => ReplyFailure::Late,
            _ => ReplyFailure::Unanswered,
        };
        assert_eq!(self.sent.recv().await, Some(Sent::Failed(key, failure)));
        self.counted(cause, 1).await;
    }
}

#[tokio::test]
async fn the_answer_of_the_server_is_the_reply() {
    let mut lab = Lab::new(Framing::Eof, Limits::default());
    lab.serve(|mut stream| async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        request.reverse();
        stream.write_all(&request).await.unwrap();
    });
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for (id, payload) in [(1, b"abc".to_vec()), (2, large)] {
        let message = inbound(id, payload.clone());
        lab.send(message.clone()).await;
        let reversed: Vec<u8> = payload.into_iter().rev().collect();
        assert!(lab.reply(&message).await == reversed);
        until("the inbox has let it go", || lab.inbox.depth() == (0, 0)).await;
    }
    // A duplicate is acknowledged only.
    let message = inbound(1, b"abc".to_vec());
    lab.send(message.clone()).await;
    let settled = Sent::Settled(message.key(), Ok(()));
    assert_eq!(lab.sent.recv().await, Some(settled));
    lab.counted("duplicate", 1).await;
    lab.counted("answered", 2).await;
}

#[tokio::test]
async fn a_message_is_acknowledged_before_a_slow_server_answers() {
    let mut lab = Lab::new(Framing::Eof, Limits::default());
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = Arc::clone(&go);
    lab.serve(move |mut stream| {
        let wait = Arc::clone(&wait);
        async move {
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            wait.notified().await;
            stream.write_all(b"late").await.unwrap();
        }
    });
    let message = inbound(1, &b"x"[..]);
    lab.send(message.clone()).await;
    let settled = Sent::Settled(message.key(), Ok(()));
    assert_eq!(lab.sent.recv().await, Some(settled));
    go.notify_one();
    let answer = Sent::Answer(message.key(), Bytes::from_static(b"late"));
    assert_eq!(lab.sent.recv().await, Some(answer));
    lab.counted("answered", 1).await;
}

/// Behaviour of a server of lines, besides answering.
#[derive(Clone, Copy, PartialEq)]
enum Habit {
    None,
    /// It closes after each answer.
    Closes,
    /// It sends another line after each answer.
    Talks,
}

/// Number of connections for three consecutive requests.
async fn connections(habit: Habit, config: impl FnOnce(PathBuf) -> TopicConfig) -> usize {
    let mut lab = Lab::of(Limits::default(), config);
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let (done, mut dones) = mpsc::unbounded_channel();
    lab.serve(move |stream| {
        count.fetch_add(1, Ordering::Relaxed);
        let done = done.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 0 {
                let http = line.starts_with("GET");
                if http {
                    while line != "\r\n" {
                        line.clear();
                        stream.read_line(&mut line).await.unwrap();
                    }
                }
                let answer = match http {
                    true => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                    false => "{\"id\":1,\"result\":true}\n",
                };
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                line.clear();
                if habit == Habit::Talks {
                    let more = b"{\"method\":\"by the way\"}\n";
                    stream.get_mut().write_all(more).await.unwrap();
                }
                if habit == Habit::Closes {
                    break;
                }
                done.send(()).unwrap();
            }
            drop(stream);
            let _ = done.send(());
        }
    });
    let http = (lab.settings)(&topic()).unwrap().framing == Framing::Http;
    for id in 0..3 {
        let (asked, expected) = match http {
            true => ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", &b"ok"[..]),
            false => (
                "{\"id\":1,\"method\":\"m\"}\n",
                &b"{\"id\":1,\"result\":true}\n"[..],
            ),
        };
        let message = inbound(id, asked);
        lab.send(message.clone()).await;
        assert!(lab.reply(&message).await.ends_with(expected));
        // The server has acted after its answer.
        dones.recv().await.unwrap();
    }
    connections.load(Ordering::Relaxed)
}

#[tokio::test]
async fn connections_carry_several_requests_where_that_is_safe() {
    let of = |framing, keep_alive| {
        move |path| TopicConfig {
            keep_alive,
            ..config(framing, Some(path), TIMEOUT_S)
        }
    };
    assert_eq!(connections(Habit::None, of(Framing::Http, None)).await, 1);
    assert_eq!(
        connections(Habit::None, of(Framing::Http, Some(false))).await,
        3
    );
    assert_eq!(
        connections(Habit::None, of(Framing::JsonLines, None)).await,
        3
    );
    let lines = of(Framing::JsonLines, Some(true));
    assert_eq!(connections(Habit::None, lines).await, 1);
    // A connection is not used again after the server has closed it or sent anything unsolicited.
    assert_eq!(connections(Habit::Closes, lines).await, 3);
    assert_eq!(connections(Habit::Talks, lines).await, 3);
}

#[tokio::test]
async fn no_connection_carries_requests_of_two_senders() {
    for keep_alive in [None, Some(true)] {
        let mut lab = Lab::of(Limits::default(), |path| TopicConfig {
            keep_alive,
            ..config(Framing::Http, Some(path), TIMEOUT_S)
        });
        let mut connections = 0;
        lab.serve(move |mut stream| {
            connections += 1;
            async move {
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{connections}");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            }
        });
        for (id, (sender, connection)) in (0..).zip([(1, b'1'), (2, b'2'), (1, b'1'), (2, b'2')]) {
            let mut message = inbound(id, &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]);
            message.source_key = PublicKey([sender; 32]);
            lab.send(message.clone()).await;
            assert_eq!(lab.reply(&message).await.last(), Some(&connection));
        }
    }
}

#[tokio::test]
async fn servers_that_do_not_wait_for_the_end_of_a_request_work() {
    let mut lab = Lab::new(Framing::Http, Limits::default());
    lab.serve(|mut stream| async move {
        // Reads a head only, answers, and keeps the connection open.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    });
    let message = inbound(1, &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]);
    lab.send(message.clone()).await;
    assert_eq!(
        &lab.reply(&message).await[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    );

    let mut lab = Lab::new(Framing::JsonLines, Limits::default());
    let (notes, mut noted) = mpsc::unbounded_channel();
    lab.serve(move |stream| {
        let notes = notes.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 0 {
                let call: Value = serde_json::from_str(&line).unwrap();
                match call.get("id") {
                    Some(id) => {
                        let answer = json!({ "jsonrpc": "2.0", "id": id, "result": true });
                        let answer = format!("{answer}\n");
                        stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                    }
                    None => notes.send(call).unwrap(),
                }
                line.clear();
            }
        }
    });
    let message = inbound(1, &b"{\"id\":5,\"method\":\"m\"}"[..]);
    lab.send(message.clone()).await;
    let answer: Value = serde_json::from_slice(&lab.reply(&message).await).unwrap();
    assert_eq!(answer["id"], json!(5));
    let note = inbound(2, &b"{\"method\":\"note\"}"[..]);
    lab.send(note.clone()).await;
    assert_eq!(noted.recv().await, Some(json!({ "method": "note" })));
    let event = [lab.sent.recv().await, lab.sent.recv().await];
    let settled = Sent::Settled(note.key(), Ok(()));
    assert_eq!(
        event,
        [Some(settled), Some(Sent::Read(note.key()))],
        "no reply to a notification"
    );
    until("the inbox has let it go", || lab.inbox.depth().0 == 0).await;
}

#[tokio::test]
async fn failures_leave_the_message_in_the_inbox_and_are_counted() {
    let mut lab = Lab::new(Framing::Eof, Limits::default());
    let message = inbound(1, &b"nobody there"[..]);
    lab.send(message.clone()).await;
    lab.fallen_back(&message, "connect").await;
    lab.serve(|mut stream| async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
    });
    let message = inbound(2, &b"silence"[..]);
    lab.send(message.clone()).await;
    lab.fallen_back(&message, "empty").await;

    let mut lab = Lab::with(Framing::Eof, Limits::default(), 1);
    lab.serve(|stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    });
    let message = inbound(1, &b"never"[..]);
    lab.send(message.clone()).await;
    lab.fallen_back(&message, "timeout").await;

    let mut lab = Lab::new(Framing::Http, Limits::default());
    lab.serve(|mut stream| async move {
        stream.write_all(b"SSH-2.0-server\r\n\r\n").await.unwrap();
    });
    let message = inbound(1, &b"GET / HTTP/1.1\r\n\r\n"[..]);
    lab.send(message.clone()).await;
    lab.fallen_back(&message, "bad_answer").await;
    let message = inbound(2, &b"no request at all"[..]);
    lab.send(message.clone()).await;
    lab.fallen_back(&message, "malformed").await;
}

#[tokio::test]
async fn a_sender_is_notified_at_once_of_an_answer_that_is_too_long() {
    let mut lab = Lab::new(Framing::Http, Limits::default());
    lab.serve(|mut stream| async move {
        let long = [b"HTTP/1.1 200 OK\r\nA: ".as_slice(), &[b'a'; 70_000]].concat();
        // The reader closes early.
        let _ = stream.write_all(&long).await;
    });
    let message = inbound(1, &b"GET / HTTP/1.1\r\n\r\n"[..]);
    let key = message.key();
    lab.send(message).await;
    assert_eq!(lab.sent.recv().await, Some(Sent::Settled(key, Ok(()))));
    let failed = Sent::Failed(key, ReplyFailure::TooLarge);
    assert_eq!(lab.sent.recv().await, Some(failed));
}

#[tokio::test]
async fn a_path_is_not_used_beyond_the_authority_of_its_setter() {
    let other_user = rustix::process::geteuid().as_raw() + 1;
    let mut lab = Lab::of(Limits::default(), |path| TopicConfig {
        forward_set_by: Authority::User(other_user),
        ..config(Framing::Eof, Some(path), TIMEOUT_S)
    });
    let (sent, mut nothing) = mpsc::unbounded_channel();
    lab.serve(move |mut stream| {
        let sent = sent.clone();
        async move {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            sent.send(request).unwrap();
        }
    });
    let message = inbound(1, &b"secret"[..]);
    lab.send(message.clone()).await;
    lab.fallen_back(&message, "denied").await;
    assert!(nothing.try_recv().is_err(), "no connection was made");
}

#[tokio::test]
async fn a_full_inbox_defers_before_the_server_gets_the_request() {
    let limits = Limits {
        messages_max: 0,
        ..Limits::default()
    };
    let mut lab = Lab::new(Framing::Eof, limits);
    lab.serve(|_| async { panic!("the server must not be asked") });
    let message = inbound(1, &b"x"[..]);
    lab.send(message.clone()).await;
    let full = Sent::Settled(message.key(), Err(Refuse::Full));
    assert_eq!(lab.sent.recv().await, Some(full));
    lab.counted("pushed_back", 1).await;
}

#[tokio::test]
async fn a_server_gets_no_more_requests_at_once_than_its_limit() {
    let mut lab = Lab::new(Framing::Eof, Limits::default());
    let (now, most) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(0));
    let seen = most.subscribe();
    lab.serve(move |mut stream| {
        let (now, most) = (Arc::clone(&now), most.clone());
        async move {
            let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.send_modify(|most| *most = at_once.max(*most));
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            // No answer before the limit of concurrent requests is reached.
            let mut most = most.subscribe();
            most.wait_for(|most| *most >= AT_ONCE).await.unwrap();
            // Time for further requests, if the limit were not kept.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            now.fetch_sub(1, Ordering::SeqCst);
            stream.write_all(&request).await.unwrap();
        }
    });
    for id in 0..300 {
        lab.send(inbound(id, id.to_string())).await;
    }
    let mut replies = 0;
    while replies < 300 {
        if let Some(Sent::Answer(key, payload)) = lab.sent.recv().await {
            let id = u64::from_le_bytes(key.id.0);
            assert_eq!(payload, id.to_string());
            replies += 1;
        }
    }
    assert_eq!(*seen.borrow(), AT_ONCE);
}

#[tokio::test]
async fn a_program_gets_byte_for_byte_what_the_server_answers() {
    let far = Lab::new(Framing::Http, Limits::default());
    far.serve(|stream| async move {
        let mut stream = BufReader::new(stream);
        let (mut line, mut path) = (String::new(), None);
        while stream.read_line(&mut line).await.unwrap() > 2 {
            path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
            line.clear();
        }
        let path = path.unwrap();
        let answer = format!(
            "HTTP/1.1 200 Fine\r\nx-odd:  spaces\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{path}\r\n0\r\nT: r\r\n\r\n",
            path.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let Lab {
        messages,
        mut sent,
        directory,
        ..
    } = far;
    let waiting: Arc<std::sync::Mutex<std::collections::BTreeMap<MessageId, _>>> = Arc::default();
    let answering = Arc::clone(&waiting);
    tokio::spawn(async move {
        while let Some(event) = sent.recv().await {
            if let Sent::Answer(key, payload) = event {
                let waiting: Option<tokio::sync::oneshot::Sender<Bytes>> =
                    answering.lock().unwrap().remove(&key.id);
                waiting.unwrap().send(payload).unwrap();
            }
        }
    });
    let next = AtomicUsize::new(0);
    let (client, _sent) = Fake::new(move |message| {
        let id = next.fetch_add(1, Ordering::SeqCst) as u64;
        let message = inbound(id, message.payload);
        let (done, answer) = tokio::sync::oneshot::channel();
        waiting.lock().unwrap().insert(message.id, done);
        let messages = messages.clone();
        Box::pin(async move {
            messages.send(message).await.unwrap();
            Ok(answer.await.unwrap())
        })
    });
    let outbound = Outbound::new(
        client,
        settings(config(Framing::Http, None, TIMEOUT_S)),
        Stats::default(),
        Gate::of_test(&[]),
    );
    let path = directory.path().join("outbound");
    outbound.bind(&topic(), &path, Authority::Node).unwrap();
    let ask = |number: usize| {
        let path = path.clone();
        async move {
            let mut stream = UnixStream::connect(path).await.unwrap();
            for turn in 0..3 {
                let target = format!("/{number}/{turn}");
                let request = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let expected = format!(
                    "HTTP/1.1 200 Fine\r\nx-odd:  spaces\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{target}\r\n0\r\nT: r\r\n\r\n",
                    target.len()
                );
                let mut answer = vec![0; expected.len()];
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), expected);
            }
        }
    };
    let asks: Vec<_> = (0..64).map(|number| tokio::spawn(ask(number))).collect();
    for ask in asks {
        ask.await.unwrap();
    }
}

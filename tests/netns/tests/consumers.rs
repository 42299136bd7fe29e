//! Covers: consumers of messages that go away. They hang up while they wait, finish sending, stop reading their
//! output, or crash with a lease. One real node, as an ordinary user, which sends to itself; that a message waits
//! for room at its sender is tested in the control plane.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::node::Node;
use common::{TIMEOUT, binary, eventually, scrape_at};
use hyphae_rpc::method::{
    Destination, ExtendMessagesParams, InboxList, IncomingMessage, ListMessagesParams,
    MessageIdParams, MessageState, OutgoingMessage, PopMessagesParams, PushMessageParams,
    PushMessageReplyParams, PushMessageResult, TokensParams,
};
use hyphae_rpc::{Base64, Client, ClientError, code};
use serde_json::{Value, json};

/// A node that sends messages to itself.
struct Consumed {
    node: Node,
    key: String,
}

impl Consumed {
    fn start() -> Self {
        let node = Node::start();
        let key = node.client().get_info().unwrap().node_pubkey;
        Self { node, key }
    }

    fn restart(&mut self) {
        self.node.kill();
        self.node.run();
    }

    fn socket(&self) -> PathBuf {
        self.node.socket()
    }

    fn client(&self) -> Client {
        self.node.client()
    }

    fn message(&self, payload: &[u8]) -> OutgoingMessage {
        OutgoingMessage {
            dst: Destination::Pk(self.key.clone()),
            topic: None,
            payload: Base64(payload.to_vec()),
        }
    }

    /// Sends a message that is in the inbox when this returns.
    fn send(&self, payload: &[u8]) -> String {
        let pushed = self.client().push_message(PushMessageParams {
            message: self.message(payload),
            reply_timeout: None,
            wait: None,
        });
        let PushMessageResult::Id { id } = pushed.unwrap() else {
            panic!("no reply was asked for");
        };
        eventually("the message is received", TIMEOUT, || {
            self.state(&id) != MessageState::Pending
                && !matches!(self.state(&id), MessageState::Sending { .. })
        });
        id
    }

    fn state(&self, id: &str) -> MessageState {
        let params = MessageIdParams { id: id.to_owned() };
        self.client().get_message_info(params).unwrap().state
    }

    fn list(&self) -> InboxList {
        let params = ListMessagesParams::default();
        self.client().list_messages(params).unwrap()
    }

    fn pop(&self, lease: Option<u64>, timeout: Option<u64>) -> Vec<IncomingMessage> {
        let popped = self.client().pop_messages(PopMessagesParams {
            count: 10,
            timeout,
            topic: None,
            attach: None,
            lease,
        });
        popped.unwrap()
    }

    /// Calls that wait for a message.
    fn waiting(&self) -> u64 {
        let [.., metrics] = self.node.listeners;
        let text = scrape_at(&metrics.to_string());
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("hyphae_inbox_waiting "));
        line.unwrap().trim().parse().unwrap()
    }

    fn command(&self, line: &str) -> Output {
        let script = line.replace("hyphae", binary().to_str().unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let directory = self.node.directory.path();
        command.env("HYPHAE_SOCKET_DIR", directory.join("run"));
        command.output().unwrap()
    }
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn call(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

/// A connection that can be closed.
trait Closes: Write {}
impl<T: Write> Closes for T {}

/// Makes a connection, and what to write to it.
type Connects<'a> = dyn Fn() -> (Box<dyn Closes>, String) + 'a;

#[test]
fn a_client_that_hangs_up_while_it_waits_takes_nothing() {
    let node = Consumed::start();
    let wait = json!({ "timeout": 600 });
    let many = json!({ "count": 5, "timeout": 600 });
    let leased = json!({ "count": 5, "timeout": 600, "lease": 60 });
    let peek = json!({ "timeout": 600, "peek": true });
    let rest = "GET /api/v1/messages?timeout=600 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let [rpc, rest_place, _] = node.node.listeners;
    let unix = || Box::new(UnixStream::connect(node.socket()).unwrap()) as Box<dyn Closes>;
    let tcp = |at| Box::new(TcpStream::connect(at).unwrap()) as Box<dyn Closes>;
    let lines = |method: &str, params: &Value| (unix(), call(method, params) + "\n");
    let batch = format!(
        "[{},{}]\n",
        call("popMessages", &many),
        call("getInfo", &json!({}))
    );
    let clients: Vec<(&str, Box<Connects<'_>>)> = vec![
        ("popMessages", Box::new(|| lines("popMessages", &many))),
        ("popMessage", Box::new(|| lines("popMessage", &wait))),
        ("a lease", Box::new(|| lines("popMessages", &leased))),
        ("a peek", Box::new(|| lines("popMessage", &peek))),
        ("a batch", Box::new(|| (unix(), batch.clone()))),
        (
            "HTTP on the socket",
            Box::new(|| (unix(), post("/rpc", &call("popMessage", &wait)))),
        ),
        (
            "HTTP",
            Box::new(|| (tcp(rpc), post("/rpc", &call("popMessages", &many)))),
        ),
        ("REST", Box::new(|| (tcp(rest_place), rest.to_owned()))),
    ];
    for (what, connect) in &clients {
        for _ in 0..4 {
            let (mut client, request) = connect();
            client.write_all(request.as_bytes()).unwrap();
            eventually(what, TIMEOUT, || node.waiting() == 1);
            drop(client);
            eventually(what, TIMEOUT, || node.waiting() == 0);
            let id = node.send(b"x");
            assert_eq!(node.state(&id), MessageState::Received, "{what}");
            let popped = node.pop(None, None);
            assert_eq!(popped.len(), 1, "{what}: it is still there");
            assert_eq!((&popped[0].id, popped[0].deliveries), (&id, None), "{what}");
            eventually("its sender hears of it", TIMEOUT, || {
                node.state(&id) == MessageState::Read
            });
        }
    }
    eventually("the inbox is empty", TIMEOUT, || node.list().total == 0);
}

#[test]
fn a_client_that_has_only_finished_sending_gets_its_answer() {
    let node = Consumed::start();
    let lines = call("popMessages", &json!({ "count": 5, "timeout": 600 }));
    for request in [post("/rpc", &lines), lines] {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        eventually("it waits", TIMEOUT, || node.waiting() == 1);
        let id = node.send(b"x");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // Over HTTP the body is the last line.
        let answer = answer.lines().next_back().unwrap();
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["result"][0]["id"], *id, "{answer}");
        eventually("its sender receives the acknowledgement", TIMEOUT, || {
            node.state(&id) == MessageState::Read
        });
    }
    assert_eq!(node.list().total, 0);
}

/// Over HTTP the answer is longer than the buffers of a connection, and its reader closes before it has all of it.
#[test]
fn a_long_message_whose_reader_closes_in_the_middle_stays() {
    let node = Consumed::start();
    let payload = vec![7; 30 << 20];
    let id = node.send(&payload);
    let request = call("popMessage", &json!({}));
    for http in [false, true] {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        let request = if http {
            post("/rpc", &request)
        } else {
            format!("{request}\n")
        };
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(node.list().handed_out, 1);
        drop(stream);
        eventually("it goes back", TIMEOUT, || node.list().handed_out == 0);
        assert_eq!(node.state(&id), MessageState::Received);
    }
    let popped = node.pop(None, None);
    assert!(popped[0].payload.0 == payload && popped[0].deliveries == Some(3));
}

fn refused(result: Result<impl Sized, ClientError>) -> i64 {
    match result {
        Err(ClientError::Call(error)) => error.code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was refused"),
    }
}

#[test]
fn a_lease_hides_a_message_until_it_is_acknowledged_returned_or_over() {
    let node = Consumed::start();
    let client = node.client();
    let id = node.send(b"x");
    let of = |message: &IncomingMessage| TokensParams {
        tokens: vec![message.lease.clone().unwrap()],
    };
    let first = node.pop(Some(60), None).remove(0);
    assert_eq!((&first.id, first.deliveries), (&id, Some(1)));
    assert!(node.pop(Some(60), None).is_empty() && node.pop(None, None).is_empty());
    let list = node.list();
    assert_eq!((list.total, list.handed_out, list.bytes), (1, 1, 1));
    assert!(list.messages[0].handed_out && list.messages[0].id == id);
    // Given back, it is there at once; the old token is of no use any more.
    assert_eq!(
        client.return_messages(of(&first)).unwrap().done,
        of(&first).tokens
    );
    let second = node.pop(Some(1), None).remove(0);
    assert_eq!((&second.id, second.deliveries), (&id, Some(2)));
    assert_eq!(refused(client.ack_messages(of(&first))), code::LEASE_ENDED);
    assert_eq!(
        refused(client.return_messages(of(&first))),
        code::LEASE_ENDED
    );
    // Over, it comes to whoever waits.
    let third = node.pop(Some(1), Some(60)).remove(0);
    assert_eq!((&third.id, third.deliveries), (&id, Some(3)));
    assert_eq!(refused(client.ack_messages(of(&second))), code::LEASE_ENDED);
    // Extended, it stays hidden longer than it would have.
    let extend = |message: &IncomingMessage| ExtendMessagesParams {
        tokens: of(message).tokens,
        lease: 600,
    };
    client.extend_messages(extend(&third)).unwrap();
    assert_eq!(
        refused(client.extend_messages(extend(&second))),
        code::LEASE_ENDED
    );
    assert!(node.pop(None, Some(2)).is_empty());
    assert_eq!(
        node.state(&id),
        MessageState::Received,
        "not read before the acknowledgement"
    );
    let both = TokensParams {
        tokens: [of(&second).tokens, of(&third).tokens].concat(),
    };
    let acked = client.ack_messages(both).unwrap();
    assert_eq!(
        (acked.done, acked.ended),
        (of(&third).tokens, of(&second).tokens)
    );
    eventually("its sender hears of it", TIMEOUT, || {
        node.state(&id) == MessageState::Read
    });
    assert_eq!(node.list().total, 0);
    for lease in [0, 3601] {
        let params = json!({ "count": 1, "lease": lease });
        let answer = client.call::<Value>("popMessages", params);
        assert_eq!(refused(answer), code::INVALID_PARAMS);
    }
    let unread = json!({ "tokens": ["x"] });
    assert_eq!(
        refused(client.call::<Value>("ackMessages", unread)),
        code::INVALID_PARAMS
    );
}

#[test]
fn a_reply_acknowledges_what_it_answers_and_a_late_one_is_not_sent() {
    let node = Consumed::start();
    let client = node.client();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            node.client().push_message(PushMessageParams {
                message: node.message(b"question"),
                reply_timeout: Some(60),
                wait: Some(60),
            })
        });
        let late = node.pop(Some(1), Some(60)).remove(0);
        let question = node.pop(Some(60), Some(60)).remove(0);
        let reply = |of: &IncomingMessage, id: &str| PushMessageReplyParams {
            id: id.to_owned(),
            message: node.message(b"answer"),
            ack: of.lease.clone(),
        };
        let id = &question.id;
        assert_eq!(
            refused(client.push_message_reply(reply(&late, id))),
            code::LEASE_ENDED
        );
        let other = refused(client.push_message_reply(reply(&question, "0000000000000000")));
        assert_eq!(other, code::INVALID_PARAMS);
        assert!(client.push_message_reply(reply(&question, id)).unwrap());
        let PushMessageResult::Reply(answer) = asking.join().unwrap().unwrap() else {
            panic!("an answer came");
        };
        assert_eq!(answer.payload.0, b"answer");
        assert_eq!(node.list().total, 0);
    });
}

#[test]
fn a_leased_message_is_there_again_after_a_kill_and_its_deliveries_are_counted() {
    let mut node = Consumed::start();
    let id = node.send(b"x");
    for round in 1..4 {
        let leased = node.pop(Some(3600), None).remove(0);
        assert_eq!((&leased.id, leased.deliveries), (&id, Some(round)));
        node.restart();
        let tokens = vec![leased.lease.unwrap()];
        let late = node.client().ack_messages(TokensParams { tokens });
        assert_eq!(refused(late), code::LEASE_ENDED);
        let list = node.list();
        assert_eq!((list.total, list.handed_out), (1, 0));
        assert_eq!(list.messages[0].deliveries, round);
    }
    assert_eq!(node.pop(None, None)[0].deliveries, Some(4));
    eventually("the inbox is empty", TIMEOUT, || node.list().total == 0);
}

#[test]
fn the_command_line_takes_a_message_only_when_it_was_written_out() {
    let node = Consumed::start();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let first = node.send(b"ab");
    for how in ["--raw", "--json", ""] {
        let full = node.command(&format!("hyphae message receive {how} >/dev/full"));
        assert!(!full.status.success(), "{how}");
        let list = node.list();
        assert_eq!(
            (list.total, list.handed_out),
            (1, 0),
            "{how}: it is there at once"
        );
    }
    let second = node.send(b"cd");
    let listed = text(&node.command("hyphae message list").stdout);
    assert!(
        listed.contains(&first) && listed.contains(&second),
        "{listed}"
    );
    assert!(listed.contains("2 messages, 4 bytes; 0 leased"), "{listed}");
    let counted = node.command("hyphae message list --count 0 --json");
    let counted: InboxList = serde_json::from_slice(&counted.stdout).unwrap();
    assert_eq!((counted.total, counted.messages.len()), (2, 0));

    let followed = node.command("hyphae message receive --follow --raw | head -c 2");
    assert_eq!(text(&followed.stdout), "ab");
    let list = node.list();
    assert_eq!((list.total, list.handed_out), (1, 0));
    assert_eq!(list.messages[0].id, second);
    let info = |id: &str| text(&node.command(&format!("hyphae message info {id}")).stdout);
    assert!(info(&first).contains("state    read"), "{}", info(&first));
    assert!(
        info(&second).contains("state    received"),
        "{}",
        info(&second)
    );
    assert!(
        !node
            .command("hyphae message info 0000000000000000")
            .status
            .success()
    );

    let last = node.command("hyphae message receive --raw");
    assert_eq!(text(&last.stdout), "cd");
    assert_eq!(node.list().total, 0);
    assert!(node.list().messages.is_empty());
    let waited = node.command("hyphae message receive --timeout 1");
    assert!(!waited.status.success(), "nothing is left");
}

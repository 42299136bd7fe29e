//! Covers: messages over one connection to `rpc.sock`: in batches, as bytes behind lines, long ones. Methods one by
//! one are in `rpc.rs`. Runs as an ordinary user.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::BTreeSet;

use common::TIMEOUT;
use common::node::{Lines, Node, request};
use hyphae_rpc::method::{
    AttachedMessage, Destination, IncomingMessage, OutgoingMessage, PopMessageParams,
    PopMessagesParams, PushMessageParams, PushMessageResult,
};
use hyphae_rpc::{Answers, Base64, Connection, code};
use serde_json::{Value, json};

fn call(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": method, "method": method, "params": params })
}

#[test]
fn many_messages_pass_in_batches_over_one_connection() {
    let node = Node::start();
    let key = node.client().get_info().unwrap().node_pubkey;
    let socket = node.directory.path().join("run/rpc.sock");
    let mut connection = Connection::open(socket, TIMEOUT).unwrap();
    let message = |n: usize, dst: &str| PushMessageParams {
        message: OutgoingMessage {
            dst: Destination::Pk(dst.to_owned()),
            topic: None,
            payload: Base64::from(n.to_string()),
        },
        reply_timeout: None,
        wait: None,
    };
    // Two batches under way at once, asked for in the other order; one call of them is wrong.
    let mut first: Vec<_> = (0..600).map(|n| message(n, &key)).collect();
    first.insert(300, message(0, "no key"));
    let second: Vec<_> = (600..1000).map(|n| message(n, &key)).collect();
    let first = connection.send("pushMessage", &first).unwrap();
    let second = connection.send("pushMessage", &second).unwrap();
    let mut ids = BTreeSet::new();
    let mut note = |answers: Answers<PushMessageResult>| -> Vec<_> {
        let refused = answers
            .iter()
            .enumerate()
            .filter_map(|(at, answer)| match answer {
                Ok(PushMessageResult::Id { id }) => {
                    assert!(ids.insert(id.clone()));
                    None
                }
                Ok(PushMessageResult::Reply(_)) => panic!("no reply was asked for"),
                Err(error) => Some((at, error.code)),
            });
        refused.collect()
    };
    assert_eq!(note(connection.receive(second).unwrap()), []);
    let refused = note(connection.receive(first).unwrap());
    assert_eq!(refused, [(300, code::BAD_KEY)]);
    assert_eq!(ids.len(), 1000);
    let mut numbers = Vec::new();
    while numbers.len() < 1000 {
        let popped = node.client().pop_messages(PopMessagesParams {
            count: 300,
            timeout: Some(60),
            topic: None,
            attach: None,
            lease: None,
        });
        let popped = popped.unwrap();
        assert!((1..=300).contains(&popped.len()), "{}", popped.len());
        let text = |message: IncomingMessage| String::from_utf8(message.payload.0).unwrap();
        numbers.extend(
            popped
                .into_iter()
                .map(|one| text(one).parse::<usize>().unwrap()),
        );
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    // The inbox is empty; an answer without messages is no error.
    let pop = |count| PopMessagesParams {
        count,
        timeout: None,
        topic: None,
        attach: None,
        lease: None,
    };
    assert_eq!(node.client().pop_messages(pop(5)).unwrap(), []);
    assert!(node.client().pop_messages(pop(0)).is_err());
}

#[test]
fn messages_pass_as_bytes_behind_lines() {
    let node = Node::start();
    let key = node.client().get_info().unwrap().node_pubkey;
    let socket = node.directory.path().join("run/rpc.sock");
    let mut connection = Connection::open(&socket, TIMEOUT).unwrap();
    let to = Destination::Pk(key.clone());
    let bytes = |n: usize, len: usize| vec![n.to_le_bytes()[0]; len];
    // Two under way at once, some empty, and one that is long.
    let short: Vec<_> = (0..300).map(|n| bytes(n, n % 7)).collect();
    let long = [bytes(7, 5 << 20)];
    let first = connection.send_messages(&to, Some(b"t"), &short).unwrap();
    let second = connection.send_messages(&to, None, &long).unwrap();
    let mut ids = BTreeSet::new();
    for (batch, count) in [(second, 1), (first, 300)] {
        let sent = connection.sent_messages(batch).unwrap();
        assert_eq!((sent.ids.len(), sent.refused), (count, None));
        ids.extend(sent.ids);
    }
    let ask = PopMessagesParams {
        count: 1000,
        timeout: Some(20),
        topic: None,
        attach: None,
        lease: None,
    };
    let (mut short, mut came) = (short, Vec::new());
    while came.len() < 301 {
        let asked = connection.take_messages(ask.clone()).unwrap();
        came.extend(connection.taken_messages(asked).unwrap());
    }
    assert_eq!(
        came.iter()
            .map(|(m, _)| m.id.clone())
            .collect::<BTreeSet<_>>(),
        ids
    );
    assert!(came.iter().all(|(message, _)| message.src_pk == key));
    let topic = |message: &AttachedMessage| message.topic.clone().map(|topic| topic.0);
    let (of_topic, others): (Vec<_>, Vec<_>) = came
        .into_iter()
        .partition(|(m, _)| topic(m) == Some(b"t".to_vec()));
    assert_eq!(
        others
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect::<Vec<_>>(),
        long
    );
    let mut of_topic: Vec<_> = of_topic.into_iter().map(|(_, bytes)| bytes).collect();
    of_topic.sort();
    short.sort();
    assert_eq!(of_topic, short);

    // What does not fit together is refused, and the connection goes on behind the bytes.
    let mut lines = Lines::connect(&node);
    let push = |attached: Value| json!({ "dst": { "pk": key }, "attached": attached });
    for (method, params) in [
        ("pushMessages", push(json!([1, 2]))),
        ("pushMessages", push(json!([5]))),
        ("pushMessages", push(json!([u64::MAX, 5]))),
        ("pushMessages", push(json!(["4"]))),
        ("pushMessages", push(json!([]))),
        ("pushMessage", push(json!([4]))),
        ("getInfo", json!({})),
    ] {
        let answer = lines.ask(&format!("+4 {}\n{{\"\n", call(method, &params)));
        assert!(
            answer["error"]["code"].is_i64(),
            "{method} {params}: {answer}"
        );
    }
    let none = lines.ask(&call("pushMessages", &push(json!([]))).to_string());
    assert_eq!(none["error"]["code"], code::INVALID_PARAMS);
    let good = lines.ask(&format!(
        "+4 {}\n\n\n\n",
        call("pushMessages", &push(json!([4])))
    ));
    assert_eq!(good["result"]["ids"].as_array().unwrap().len(), 1);
    // More than a message can have ends the connection: nobody could find the next line.
    let over = lines.ask(&format!("+{} {}", 65 << 20, call("getInfo", &json!({}))));
    assert_eq!(over["error"]["code"], code::INVALID_REQUEST);
    // Attached payloads have no place in a batch, or behind HTTP.
    let pop = call("popMessages", &json!({ "count": 1, "attach": true })).to_string();
    let (status, body) = node.http(0, &request("POST", "/rpc", &pop));
    let refused: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(refused["error"]["code"], code::INVALID_PARAMS);
}

#[test]
fn long_messages_pass_and_other_long_requests_do_not() {
    let node = Node::start();
    let client = node.client();
    let key = client.get_info().unwrap().node_pubkey;
    let payload: Vec<u8> = (0u32..3 << 20)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let send = |payload: Vec<u8>| {
        client.push_message(PushMessageParams {
            message: OutgoingMessage {
                dst: Destination::Pk(key.clone()),
                topic: None,
                payload: Base64(payload),
            },
            reply_timeout: None,
            wait: None,
        })
    };
    send(payload.clone()).unwrap();
    let params = PopMessageParams {
        timeout: Some(60),
        ..PopMessageParams::default()
    };
    assert_eq!(
        client.pop_message(params).unwrap().unwrap().payload.0,
        payload
    );
    let pad = "x".repeat(2 << 20);
    let body = call("addTopic", &json!({ "topic": pad })).to_string();
    let (_, answer) = node.http(0, &request("POST", "/rpc", &body));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["error"]["code"], code::INVALID_REQUEST);
    assert_eq!(
        Lines::connect(&node).ask(&body)["error"]["code"],
        code::INVALID_REQUEST
    );
    let head = "POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 200000000\r\nConnection: close\r\n\r\n";
    assert_eq!(node.http(0, head).0, 413);
}

//! Replies: access, deadlines, acknowledgement.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{CLEAN, Net, ROUGH, key, message, payload};
use hyphae_bus::{AbortReason, MessageId, MessageState, PushError, Rejection, ReplyFailure};

const MINUTE: Duration = Duration::from_secs(60);

fn ask(net: &mut Net, within: Duration) -> MessageId {
    let mut question = message(key(2), "q", "question");
    question.reply_within = Some(within);
    net.push(0, question)
}

fn answer(net: &mut Net, node: usize, id: MessageId, size: usize) {
    let now = net.now;
    let reply = message(key(1), "", payload(size, 1));
    net.nodes[node].bus.reply(now, id, reply).unwrap();
    net.drain(node);
}

fn reason(net: &Net, node: usize, id: MessageId) -> Option<AbortReason> {
    net.nodes[node].bus.info(id).unwrap().reason
}

#[test]
fn a_reply_has_the_id_of_its_message_and_is_delivered_once() {
    for seed in 0..20 {
        let mut net = Net::new(2, seed, ROUGH);
        let id = ask(&mut net, MINUTE);
        net.run_while(MINUTE, |net| net.nodes[1].inbox.is_empty());
        answer(&mut net, 1, id, 100_000);
        net.run_while(MINUTE, |net| net.nodes[0].inbox.is_empty());
        net.run_for(MINUTE * 5);
        let reply = &net.nodes[0].inbox[0];
        assert_eq!(
            (reply.id, reply.reply, reply.source_key),
            (id, true, key(2))
        );
        assert_eq!(reply.payload, payload(100_000, 1));
        assert_eq!(net.nodes[0].inbox.len(), 1);
        net.check_once();
        // In time: no timeout.
        assert!(net.nodes[0].timeouts.is_empty());
        let again = net.nodes[1]
            .bus
            .reply(net.now, id, message(key(1), "", "again"));
        assert_eq!(again, Err(PushError::Answered(id)));
    }
}

#[test]
fn only_a_reply_carries_a_failure() {
    let mut net = Net::new(2, 1, ROUGH);
    let id = ask(&mut net, MINUTE);
    net.run_while(MINUTE, |net| net.nodes[1].inbox.is_empty());
    let failed = |to| hyphae_bus::Outgoing {
        failure: Some(ReplyFailure::Late),
        ..message(key(to), "", "")
    };
    net.nodes[1].bus.reply(net.now, id, failed(1)).unwrap();
    net.drain(1);
    net.run_while(MINUTE, |net| net.nodes[0].inbox.is_empty());
    assert_eq!(net.nodes[0].inbox[0].failure, Some(ReplyFailure::Late));
    net.push(0, failed(2));
    net.run_while(MINUTE, |net| net.nodes[1].inbox.len() < 2);
    let failures = net.nodes[1].inbox.iter().map(|message| message.failure);
    assert!(failures.eq([None, None]));
}

#[test]
fn request_and_reply_take_four_packets_and_one_round_trip() {
    let mut net = Net::new(2, 1, CLEAN);
    // Sessions of both directions.
    net.push(0, message(key(2), "", "x"));
    net.push(1, message(key(1), "", "x"));
    net.run_for(MINUTE);
    let (start, packets) = (net.now, net.packets);
    let id = ask(&mut net, MINUTE);
    net.run_while(MINUTE, |net| net.nodes[1].inbox.len() < 2);
    answer(&mut net, 1, id, 10);
    net.run_while(MINUTE, |net| net.nodes[0].inbox.len() < 2);
    assert_eq!(net.now.since(start), CLEAN.delay * 2);
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.packets - packets, 4);
}

#[test]
fn consecutive_requests_cost_one_packet_each_way() {
    for link in [CLEAN, ROUGH] {
        let mut net = Net::new(2, 1, link);
        net.nodes[1].answers = true;
        net.push(0, message(key(2), "", "x"));
        net.push(1, message(key(1), "", "x"));
        net.run_for(MINUTE);
        let packets = net.packets;
        for round in 2..52 {
            let id = ask(&mut net, MINUTE);
            net.run_while(MINUTE, |net| net.nodes[1].inbox.len() < round);
            answer(&mut net, 1, id, 10);
            net.run_while(MINUTE, |net| net.nodes[0].inbox.len() < round);
        }
        if link.loss_percent == 0 {
            assert_eq!(net.packets - packets, 100);
        }
        // The last reply is acknowledged without further packets to piggyback on.
        net.run_while(MINUTE, |net| net.nodes[1].bus.stats().outgoing > 0);
        if link.loss_percent == 0 {
            assert_eq!(net.packets - packets, 101);
        }
        assert_eq!(
            net.nodes[0].bus.stats().retransmissions > 0,
            link.loss_percent > 0
        );
        net.run_for(MINUTE);
        net.check_once();
    }
}

#[test]
fn delayed_acks_precede_retransmissions() {
    let mut net = Net::new(2, 1, CLEAN);
    net.nodes[1].answers = true;
    net.push(0, message(key(2), "", "x"));
    net.run_for(MINUTE);
    // One, and more than the limit of delayed acks.
    for count in [1, 100] {
        let asked: Vec<_> = (0..count).map(|_| ask(&mut net, MINUTE)).collect();
        let waits = |net: &Net| net.state(0, *asked.last().unwrap()) != MessageState::Received;
        let took = net.run_while(MINUTE, waits);
        assert!(
            took <= CLEAN.delay * 2 + Duration::from_millis(5),
            "{took:?}"
        );
    }
    assert_eq!(net.nodes[0].bus.stats().retransmissions, 0);
}

#[test]
fn unsolicited_replies_are_rejected() {
    let mut net = Net::new(3, 2, CLEAN);
    // Unknown id.
    let id = MessageId([7; 8]);
    answer(&mut net, 1, id, 10);
    net.run_for(MINUTE);
    let unasked = Some(AbortReason::Rejected(Rejection::Unasked));
    assert_eq!(reason(&net, 1, id), unasked);
    // A message without an expected reply.
    let id = net.push(0, message(key(2), "", "x"));
    net.run_for(MINUTE);
    answer(&mut net, 1, id, 10);
    net.run_for(MINUTE);
    assert_eq!(reason(&net, 1, id), unasked);
    // Another node than the destination.
    let id = ask(&mut net, MINUTE);
    net.run_for(Duration::from_secs(1));
    answer(&mut net, 2, id, 10);
    net.run_for(Duration::from_secs(1));
    assert_eq!(reason(&net, 2, id), unasked);
    answer(&mut net, 1, id, 10);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.state(1, id), MessageState::Received);
    assert_eq!(net.nodes[0].inbox.len(), 1);
    let rejected: u64 = net.nodes[0].bus.stats().rejected.values().sum();
    assert_eq!(rejected, 3);
}

#[test]
fn pending_replies_expire_and_are_forgotten_a_minute_later() {
    let mut net = Net::new(2, 3, CLEAN);
    let id = ask(&mut net, Duration::from_secs(5));
    net.run_for(Duration::from_secs(6));
    assert_eq!(net.nodes[0].timeouts, [id]);
    answer(&mut net, 1, id, 10);
    net.run_for(Duration::from_secs(1));
    let late = Some(AbortReason::Rejected(Rejection::Late));
    assert_eq!(net.nodes[1].bus.info(id).unwrap().reason, late);
    // A rejected reply may be repeated; the request is forgotten by then.
    net.run_for(Duration::from_secs(60));
    answer(&mut net, 1, id, 10);
    net.run_for(Duration::from_secs(1));
    let unasked = Some(AbortReason::Rejected(Rejection::Unasked));
    assert_eq!(net.nodes[1].bus.info(id).unwrap().reason, unasked);
    assert_eq!(net.nodes[0].inbox.len(), 0);
    assert_eq!(net.next(), None);
}

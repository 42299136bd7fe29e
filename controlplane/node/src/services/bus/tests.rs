//! Covers the cleanup after callers that disconnect, and messages that wait for room. The engine is tested in its own
//! package, between nodes in tests/netns.

use std::time::Duration;

use hyphae_bus::{AbortReason, DeliveryKey, Destination, Outgoing, PushError, Topic};
use hyphae_wire::{OverlayAddress, PublicKey};

use super::leases::LeaseToken;
use super::*;
use crate::services::{Job, Session};
use hyphae_store::inbox::{Limits, ONE};

/// A bus that sends a number of messages concurrently; no node is reached.
fn service(
    outgoing_max: usize,
) -> (
    BusService,
    mpsc::Sender<BusRequest>,
    mpsc::Receiver<BusRequest>,
) {
    let (commands, receiver) = mpsc::channel(64);
    let limits = Limits {
        messages_max: 8,
        bytes_max: 1 << 20,
        completed_max: 8,
    };
    let inbox = Inbox::in_memory(limits).unwrap();
    let config = Config {
        outgoing_max,
        ..Config::new(PublicKey([1; 32]))
    };
    let parts = BusParts {
        config,
        seed: [7; 32],
        topics: Topics::default(),
        inbox,
        found: Found::default(),
    };
    let (service, _) = BusService::new(Nanos(1), parts);
    (service, commands, receiver)
}

fn message(to: u8, len: usize) -> Outgoing {
    Outgoing {
        destination: Destination::Key(PublicKey([to; 32])),
        topic: Topic::default(),
        payload: vec![0; len].into(),
        digest: None,
        try_for: None,
        reply_within: None,
        failure: None,
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_message_behind() {
    let (mut service, commands, mut receiver) = service(65_536);
    let (now, message) = (Nanos(1), message(2, 1000));
    let request = || {
        let (client, message) = (service.client(commands.clone()), message.clone());
        let wait = Duration::from_secs(300);
        tokio::spawn(async move { client.request_or_cancel(message, wait).await })
    };
    let (early, late) = (request(), request());

    // One is dropped before it has the id.
    let push = receiver.recv().await.unwrap();
    early.abort();
    assert!(early.await.unwrap_err().is_cancelled());
    service.handle_request(now, push);
    assert!(service.replies.is_empty());

    // The other while it waits.
    let push = receiver.recv().await.unwrap();
    service.handle_request(now, push);
    let id = *service.replies.keys().next().unwrap();
    tokio::task::yield_now().await;
    late.abort();
    assert!(late.await.unwrap_err().is_cancelled());
    let cancel = receiver.recv().await.unwrap();
    service.handle_request(now, cancel);
    assert!(service.replies.is_empty());
    let info = service.bus.info(id).unwrap();
    assert_eq!(info.state, MessageState::Aborted);
    assert_eq!(info.reason, Some(AbortReason::Cancelled));
}

const LONG: Duration = Duration::from_secs(3600);

/// Lets a message leave, and what waits take its place.
fn leaves(service: &mut BusService, id: MessageId) {
    service.handle_request(Nanos(1), BusRequest::Cancel(id));
    while service.poll_session(Nanos(1)).is_some() {}
}

#[tokio::test]
async fn messages_wait_for_room_in_order_and_whoever_hangs_up_withdraws_his() {
    let (mut service, commands, mut receiver) = service(2);
    let now = Nanos(1);
    let first = service.push(now, message(2, 1)).unwrap();
    let second = service.push(now, message(3, 1)).unwrap();
    let full = service.push(now, message(2, 1)).unwrap_err();
    assert!(matches!(
        full,
        PushError::QueueFull {
            messages: 2,
            bytes: 2
        }
    ));
    let wait = |to: u8, lens: &[usize], within: Duration| {
        let (client, messages) = (
            service.client(commands.clone()),
            lens.iter().map(|len| message(to, *len)),
        );
        let messages: Vec<_> = messages.collect();
        tokio::spawn(async move { client.push_waiting(messages, within).await.unwrap() })
    };
    let a = wait(2, &[10, 11], LONG);
    let gone = wait(2, &[12], LONG);
    let b = wait(2, &[13], LONG);
    let other = wait(3, &[14], LONG);
    for _ in 0..4 {
        service.handle_request(now, receiver.recv().await.unwrap());
    }
    assert_eq!(
        (service.waitlist.len(), service.waitlist.has(4)),
        (4, false)
    );
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    service.handle_request(now, receiver.recv().await.unwrap());
    assert_eq!(service.waitlist.len(), 3);
    // No later message overtakes them, even with room.
    assert!(service.push(now, message(2, 0)).is_err());

    let lens = |service: &BusService, ids: &[MessageId]| -> Vec<usize> {
        ids.iter()
            .map(|id| service.bus.info(*id).unwrap().len)
            .collect()
    };
    leaves(&mut service, first);
    // One of two: the next turn is that of the other node.
    assert_eq!(service.waitlist.get(0).unwrap().results.len(), 1);
    leaves(&mut service, second);
    let other: Vec<_> = other
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(lens(&service, &other), [14]);
    leaves(&mut service, other[0]);
    let a: Vec<_> = a.await.unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(lens(&service, &a), [10, 11]);
    leaves(&mut service, a[0]);
    let b: Vec<_> = b.await.unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(lens(&service, &b), [13]);
    assert!(service.waitlist.is_empty());
}

#[tokio::test]
async fn a_wait_for_room_ends_in_time_and_says_what_has_left() {
    let (mut service, commands, mut receiver) = service(1);
    let now = Nanos(1);
    let client = service.client(commands.clone());
    let within = Duration::from_millis(50);
    let waiting = tokio::spawn(async move {
        let messages = vec![message(2, 1), message(2, 2), message(2, 3)];
        client.push_waiting(messages, within).await.unwrap()
    });
    service.handle_request(now, receiver.recv().await.unwrap());
    // The wait is over.
    service.handle_request(now, receiver.recv().await.unwrap());
    let results = waiting.await.unwrap();
    assert!(results[0].is_ok() && results.len() == 3);
    assert!(
        results[1..]
            .iter()
            .all(|it| matches!(it, Err(PushError::QueueFull { .. })))
    );
    assert!(service.waitlist.is_empty());
}

#[tokio::test]
async fn a_request_waits_for_room_and_then_for_its_reply() {
    let (mut service, commands, mut receiver) = service(1);
    let now = Nanos(1);
    let first = service.push(now, message(2, 1)).unwrap();
    let ask = || {
        let client = service.client(commands.clone());
        tokio::spawn(async move { client.request_waiting(message(2, 2), LONG, LONG).await })
    };
    let (asking, gone) = (ask(), ask());
    for _ in 0..2 {
        service.handle_request(now, receiver.recv().await.unwrap());
    }
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    service.handle_request(now, receiver.recv().await.unwrap());
    leaves(&mut service, first);
    assert_eq!(service.replies.len(), 1);
    let id = *service.replies.keys().next().unwrap();
    service.outcome(id, ReplyOutcome::TimedOut);
    assert_eq!(asking.await.unwrap().unwrap(), (id, ReplyOutcome::TimedOut));
}

#[tokio::test]
async fn a_list_is_taken_up_to_the_first_that_is_not() {
    let (mut service, _commands, _receiver) = service(65_536);
    let messages = vec![message(2, 1), message(2, (64 << 20) + 1), message(2, 2)];
    let taken = service.push_all(Nanos(1), messages, true);
    assert!(taken[0].is_ok() && taken[1].is_err() && taken[1] == taken[2]);
    assert_eq!(service.bus.stats().outgoing, 1);
}

fn inbound(id: u8) -> Inbound {
    Inbound {
        id: MessageId([id; 8]),
        reply: false,
        source_key: PublicKey([2; 32]),
        source_address: PublicKey([2; 32]).address(),
        topic: Topic::default(),
        payload: b"x".to_vec().into(),
        digest: *blake3::hash(b"x").as_bytes(),
        failure: None,
    }
}

/// A bus with one message in its inbox.
async fn with_message(
    service: &mut BusService,
    commands: mpsc::Sender<BusRequest>,
) -> (Client, DeliveryKey) {
    let inbound = inbound(7);
    let key = inbound.key();
    assert!(service.inbox.put(inbound, false).await.is_ok());
    (service.client(commands), key)
}

#[tokio::test]
async fn a_message_whose_answer_was_not_written_goes_back() {
    let (mut service, commands, mut receiver) = service(1);
    let (client, key) = with_message(&mut service, commands).await;
    for lease in [None, Some(LONG)] {
        let handed = client.pop(None, ONE, None, lease).await.unwrap().unwrap();
        assert_eq!(handed.messages[0].1.token.is_some(), lease.is_some());
        assert!(client.pop(None, ONE, None, lease).await.unwrap().is_none());
        drop(handed);
    }
    let handed = client.pop(None, ONE, None, None).await.unwrap().unwrap();
    assert_eq!(handed.messages[0].1.deliveries, 3);
    assert_eq!(service.inbox.depth().0, 1, "until it was written");
    handed.delivery.written().await;
    assert_eq!(service.inbox.depth().0, 0);
    let BusRequest::Read(keys) = receiver.recv().await.unwrap() else {
        panic!("its sender learns that it was read");
    };
    assert_eq!(keys, [key]);
}

#[tokio::test]
async fn a_lease_ends_in_time_and_is_extended_or_given_up_before() {
    let (mut service, commands, mut receiver) = service(1);
    let (client, _) = with_message(&mut service, commands).await;
    let short = Duration::from_millis(200);
    let lease = async |time| {
        let handed = client
            .pop(None, ONE, Some(LONG), Some(time))
            .await
            .unwrap()
            .unwrap();
        let token = handed.messages[0].1.token.unwrap();
        handed.delivery.written().await;
        token
    };
    let began = tokio::time::Instant::now();
    let first = lease(short).await;
    let next = lease(LONG).await;
    assert!(began.elapsed() >= short);
    assert_eq!(client.extend(&[first, next], LONG), [first]);
    assert!(
        client
            .pop(None, ONE, Some(2 * short), None)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(client.release(&[first, next]), [first]);
    let last = lease(LONG).await;
    // Tokens of other leases cannot be derived.
    let number = |token: LeaseToken| u128::from_str_radix(&token.to_string(), 16).unwrap();
    let near = [number(next) + 1, number(last) - 1].map(|it| format!("{it:032x}").parse().unwrap());
    assert_eq!(client.acknowledge(&near).await.unwrap(), near);
    assert_eq!(client.acknowledge(&[next, last]).await.unwrap(), [next]);
    assert!(matches!(
        receiver.recv().await.unwrap(),
        BusRequest::Read(_)
    ));
    assert_eq!(service.inbox.depth().0, 0);
}

/// A node with room for so many datagrams, whose jobs wait.
#[derive(Default)]
struct FakeNode {
    session: Option<Session>,
    detached: bool,
    room: usize,
    sent: usize,
    wanted: Vec<OverlayAddress>,
    jobs: Vec<Job<BusRequest>>,
}

impl Context<BusRequest> for FakeNode {
    fn session(&mut self, _now: Nanos, address: OverlayAddress) -> Option<Session> {
        self.wanted.push(address);
        self.session
    }

    fn room(&mut self) -> RingRoom {
        match (self.detached, self.sent < self.room) {
            (true, _) => RingRoom::Detached,
            (false, true) => RingRoom::Free,
            (false, false) => RingRoom::Full,
        }
    }

    fn send(&mut self, service: hyphae_wire::Service, _to: OverlayAddress, _payload: &[u8]) {
        assert_eq!(service, hyphae_wire::Service::Message);
        self.sent += 1;
    }

    fn start(&mut self, job: Job<BusRequest>) -> Option<BusRequest> {
        self.jobs.push(job);
        None
    }
}

#[tokio::test]
async fn a_turn_sends_no_more_than_its_share_and_the_room() {
    let (mut service, _commands, _receiver) = service(65_536);
    let (now, key) = (Nanos(1), PublicKey([2; 32]));
    service.push(now, message(2, 100_000)).unwrap();
    let mut node = FakeNode {
        room: 100,
        ..FakeNode::default()
    };
    assert_eq!(
        service.turn(now, 3, &mut node),
        Turn::Idle,
        "no session yet"
    );
    assert_eq!(
        (node.wanted.as_slice(), node.sent),
        (&[key.address()][..], 0)
    );

    let (address, session) = (key.address(), Session { key, mtu: 1400 });
    service.handle(now, Input::SessionUp { address, session });
    assert_eq!(service.turn(now, 3, &mut node), Turn::More);
    assert_eq!(node.sent, 3);
    node.room = 3;
    assert_eq!(service.turn(now, 3, &mut node), Turn::Blocked);
    node.detached = true;
    assert_eq!(service.turn(now, 3, &mut node), Turn::Idle);
    assert_eq!(node.sent, 3);
    (node.room, node.detached) = (usize::MAX, false);
    assert_eq!(service.turn(now, 10_000, &mut node), Turn::Idle);
    assert!(node.sent > 3);
}

#[tokio::test]
async fn messages_of_one_turn_are_stored_by_one_job() {
    let (mut service, _commands, _receiver) = service(1);
    let now = Nanos(1);
    for id in 0..3 {
        service.deliver(now, inbound(id));
    }
    let mut node = FakeNode::default();
    service.turn(now, 1, &mut node);
    service.turn(now, 1, &mut node);
    assert_eq!((node.jobs.len(), service.storing.messages), (1, 3));
    let stored = node.jobs.remove(0).await;
    service.handle(now, Input::Request(stored));
    assert_eq!((service.inbox.depth().0, service.storing.messages), (3, 0));
}

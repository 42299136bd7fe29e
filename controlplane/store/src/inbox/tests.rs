//! Covers what one process sees. Kills, full disks and damage are in tests/inbox.rs of this package.

use bytes::Bytes;
use futures_util::FutureExt;
use hyphae_bus::{Inbound, MessageId, Room, Topic};
use hyphae_files::Directory;
use hyphae_wire::{OverlayAddress, PublicKey};

use super::*;

fn message(id: u64, topic: &str, payload: &[u8]) -> Inbound {
    let key = PublicKey([7; 32]);
    Inbound {
        id: MessageId(id.to_le_bytes()),
        reply: false,
        failure: None,
        source_key: key,
        source_address: OverlayAddress([4; 16]),
        topic: Topic::new(Bytes::copy_from_slice(topic.as_bytes())).unwrap(),
        payload: Bytes::copy_from_slice(payload),
        digest: *blake3::hash(payload).as_bytes(),
    }
}

fn topic(name: &str) -> Option<Topic> {
    Some(name.parse().unwrap())
}

async fn pop(inbox: &Inbox, of: Option<Topic>) -> Option<Inbound> {
    let taken = inbox.take(of, ONE).await.unwrap()?;
    taken.confirm().await.unwrap().pop()
}

#[tokio::test]
async fn what_was_put_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let piece = (1 << 20) - 4096;
    let lengths = [0, 1, 100, 5000, 200_000, 1 << 20, 2 * piece, 3_500_000];
    let long: Vec<u8> = (0..3_500_000u32).map(|n| (n % 251) as u8).collect();
    let sent: Vec<_> = lengths
        .iter()
        .zip(1..)
        .map(|(len, id)| message(id, "t", &long[..*len]))
        .collect();
    {
        let (inbox, found) =
            Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
        assert!(found.completed.is_empty());
        for message in &sent {
            let put = inbox.put(message.clone(), false).await.unwrap();
            assert!(matches!(put, Put::Stored(_)));
        }
        assert_eq!(pop(&inbox, None).await.as_ref(), sent.first());
    }
    let (inbox, found) = reopen(directory.path()).await;
    let keys: Vec<_> = sent.iter().map(Inbound::key).collect();
    assert_eq!(
        found.completed, keys,
        "ids are remembered, taken or not, in order"
    );
    let bytes: usize = lengths.iter().sum();
    assert_eq!(inbox.depth(), (7, bytes as u64));
    for message in &sent {
        let again = inbox.put(message.clone(), false).await.unwrap();
        assert_eq!(again, Put::Duplicate);
    }
    for message in &sent[1..] {
        assert_eq!(pop(&inbox, topic("t")).await.as_ref(), Some(message));
    }
    assert_eq!(pop(&inbox, None).await, None);
    assert_eq!(inbox.depth(), (0, 0));
    // Nothing of them is left: as many of the long ones again need no more room than the first.
    let size = || {
        std::fs::metadata(directory.path().join(INBOX_FILE))
            .unwrap()
            .len()
    };
    let before = size();
    for id in 100..120 {
        let message = message(id, "t", &long);
        inbox.put(message.clone(), false).await.unwrap();
        assert_eq!(pop(&inbox, None).await.as_ref(), Some(&message));
    }
    assert!(size() <= 2 * before, "{before} bytes became {}", size());
}

#[tokio::test]
async fn what_is_left_of_messages_that_were_written_together_stays_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (mut inbox, _) = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
    let of = |id: u64| {
        if id.is_multiple_of(10) {
            "left"
        } else {
            "taken"
        }
    };
    let sent: Vec<_> = (0..3000)
        .map(|id| message(id, of(id), &vec![id.to_le_bytes()[0]; 1000]))
        .collect();
    for put in inbox.put_all(sent.clone(), false).await {
        assert!(matches!(put, Ok(Put::Stored(_))));
    }
    let mut left: Vec<_> = sent.into_iter().rev().collect();
    let many = Room {
        messages: 700,
        bytes: usize::MAX,
    };
    while left.len() > 3 {
        let of = left
            .iter()
            .any(|message| message.topic.as_bytes() == b"taken");
        let of = if of { "taken" } else { "left" };
        let taken = inbox.take(topic(of), many).await.unwrap().unwrap();
        let taken = taken.confirm().await.unwrap();
        for message in &taken {
            let at = left.iter().rposition(|other| other.key() == message.key());
            assert_eq!(left.remove(at.unwrap()), *message);
        }
        assert_eq!(inbox.depth().0, left.len() as u64);
        drop(inbox);
        let found;
        (inbox, found) = reopen(directory.path()).await;
        assert_eq!((found.moved_aside, found.completed.len()), (None, 3000));
        assert_eq!(inbox.depth().0, left.len() as u64);
        if left.is_empty() {
            break;
        }
        // The next one is read after every opening, at its new place.
        let next = inbox.peek(None).await.unwrap().unwrap();
        assert_eq!(left.last(), Some(&next));
    }
    assert_eq!(pop(&inbox, None).await, None);
}

/// The thread of an inbox that was dropped closes the file when it sees that.
fn directory_of(directory: &std::path::Path) -> Directory {
    Directory::open(directory).unwrap()
}

async fn reopen(directory: &std::path::Path) -> (Inbox, Found) {
    loop {
        match Inbox::open(&directory_of(directory), Limits::default()) {
            Ok(open) => return open,
            Err(InboxError::InUse(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_message_that_was_handed_out_but_not_confirmed_stays() {
    let inbox = Inbox::in_memory(Limits::default()).unwrap();
    inbox.put(message(1, "a", b"1"), false).await.unwrap();
    inbox.put(message(2, "b", b"2"), false).await.unwrap();
    let taken = inbox.take(None, ONE).await.unwrap().unwrap();
    assert_eq!(&taken.messages[0].payload[..], b"1");
    assert!(
        inbox.take(topic("a"), ONE).await.unwrap().is_none(),
        "hidden"
    );
    let other = inbox.peek(None).await.unwrap().unwrap();
    assert_eq!(&other.payload[..], b"2");
    let mut changed = inbox.changed();
    changed.mark_unchanged();
    drop(taken);
    changed.changed().await.unwrap();
    assert_eq!(&pop(&inbox, topic("a")).await.unwrap().payload[..], b"1");
    // A caller that disconnects takes nothing.
    drop(inbox.take(None, ONE).now_or_never());
    let left = loop {
        if let Some(left) = pop(&inbox, None).await {
            break left;
        }
        changed.changed().await.unwrap();
    };
    assert_eq!(&left.payload[..], b"2");
}

#[tokio::test]
async fn a_hidden_message_is_visible_once_its_lease_is_dropped() {
    let inbox = Inbox::in_memory(Limits::default()).unwrap();
    let Put::Stored(number) = inbox.put(message(1, "a", b"1"), true).await.unwrap() else {
        panic!("stored");
    };
    assert!(inbox.peek(None).await.unwrap().is_none());
    assert_eq!(inbox.depth().0, 1);
    drop(inbox.lease(number));
    assert!(inbox.peek(topic("a")).await.unwrap().is_some());
    let Put::Stored(number) = inbox.put(message(2, "b", b"2"), true).await.unwrap() else {
        panic!("stored");
    };
    inbox.lease(number).confirm().await.unwrap();
    assert_eq!(inbox.depth().0, 1);
}

#[tokio::test]
async fn a_full_inbox_says_so_and_takes_again_when_there_is_room() {
    let limits = Limits {
        messages_max: 3,
        bytes_max: 10,
        completed_max: 4,
    };
    let inbox = Inbox::in_memory(limits).unwrap();
    for id in 1..=3 {
        inbox.put(message(id, "", b"ab"), false).await.unwrap();
    }
    let full = inbox.put(message(4, "", b""), false).await;
    assert!(matches!(full, Err(PutError::Full)), "by number");
    pop(&inbox, None).await.unwrap();
    let full = inbox.put(message(4, "", b"1234567"), false).await;
    assert!(matches!(full, Err(PutError::Full)), "by bytes");
    let put = inbox.put(message(4, "", b"123456"), false).await.unwrap();
    assert!(matches!(put, Put::Stored(_)));
    while pop(&inbox, None).await.is_some() {}
    // Four ids are remembered; the oldest is forgotten.
    inbox.put(message(5, "", b""), false).await.unwrap();
    let old = inbox.put(message(2, "", b""), false).await.unwrap();
    assert_eq!(old, Put::Duplicate);
    let oldest = inbox.put(message(1, "", b""), false).await.unwrap();
    assert!(matches!(oldest, Put::Stored(_)));
}

#[tokio::test]
async fn many_messages_share_a_sync() {
    let directory = tempfile::tempdir().unwrap();
    let (inbox, _) = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
    let mut numbers = Vec::new();
    // What comes while a sync is under way shares the next one. Where this thread is kept from running, a fast disk
    // may be done with each before the next comes, so it is tried more than once.
    let shared = 'tries: {
        for round in 0..20u64 {
            let before = inbox.commits();
            let puts = (0..500).map(|n| {
                let (inbox, message) = (inbox.clone(), message(500 * round + n, "t", b"x"));
                tokio::spawn(async move { inbox.put(message, false).await.unwrap() })
            });
            for put in puts.collect::<Vec<_>>() {
                let Put::Stored(number) = put.await.unwrap() else {
                    panic!("each id is new");
                };
                numbers.push(number);
            }
            let commits = inbox.commits() - before;
            eprintln!("{commits} syncs for 500 messages");
            if commits < 100 {
                break 'tries true;
            }
        }
        false
    };
    assert!(shared, "never less than 100 syncs for 500 messages");
    let all = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all);
    // The same id from the same sender, at the same time: one of them is the message.
    let twice = message(1_000_000, "t", b"x");
    let (a, b) = tokio::join!(inbox.put(twice.clone(), false), inbox.put(twice, false));
    let duplicates = [a.unwrap(), b.unwrap()];
    let count = duplicates.iter().filter(|put| **put == Put::Duplicate);
    assert_eq!(count.count(), 1);
}

#[test]
fn heads_are_written_as_documented_and_read_back() {
    let mut message = message(3, "topic \u{e9}", b"payload");
    for reply in [false, true] {
        message.reply = reply;
        let head = record::Head::of(&message);
        let bytes = head.encode();
        assert_eq!(bytes.len(), 97 + message.topic.as_bytes().len());
        assert_eq!(record::Head::decode(&bytes), Some(head.clone()));
        assert_eq!(head.message(message.payload.clone()), message);
        assert!(head.is_of(&message.payload) && !head.is_of(b"other"));
        assert_eq!(record::Head::decode(&bytes[..96]), None);
        let key = record::encode_key(&message.key());
        assert_eq!(record::decode_key(&key), message.key());
    }
}

#[tokio::test]
async fn a_list_counts_and_shows_the_oldest_without_taking_any() {
    let inbox = Inbox::in_memory(Limits::default()).unwrap();
    for id in 1..=6 {
        let of = if id % 2 == 0 { "even" } else { "odd" };
        inbox
            .put(
                message(id, of, &[0; 6][..usize::try_from(id).unwrap()]),
                false,
            )
            .await
            .unwrap();
    }
    let taken = inbox.take(topic("even"), ONE).await.unwrap().unwrap();
    let all = inbox.list(None, MessageNumber(0), 0).await.unwrap();
    assert_eq!((all.messages, all.bytes, all.handed_out), (6, 21, 1));
    assert!(all.entries.is_empty());
    let even = inbox
        .list(topic("even"), MessageNumber(0), 2)
        .await
        .unwrap();
    assert_eq!((even.messages, even.bytes, even.handed_out), (3, 12, 1));
    let lens = |listing: &Listing| listing.entries.iter().map(|e| e.len).collect::<Vec<_>>();
    assert_eq!(lens(&even), [2, 4]);
    assert!(even.entries[0].handed_out && even.entries[0].deliveries == 1);
    let rest = inbox
        .list(topic("even"), even.entries[1].number, 2)
        .await
        .unwrap();
    assert_eq!(lens(&rest), [6]);
    drop(taken);
    let back = inbox
        .list(topic("even"), MessageNumber(0), 1)
        .await
        .unwrap();
    assert_eq!((back.handed_out, back.entries[0].deliveries), (0, 1));
}

#[tokio::test]
async fn ids_of_one_sender_survive_a_flood_of_another_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits {
        completed_max: 60,
        ..Limits::default()
    };
    let of = |id: u64| Inbound {
        source_key: PublicKey([u8::from(id < 10); 32]),
        ..message(id, "t", b"x")
    };
    {
        let (inbox, _) = Inbox::open(&directory_of(directory.path()), limits).unwrap();
        for round in 0..40 {
            // The first batch is of both.
            let all = inbox.put_all((25 * round..25 * (round + 1)).map(of).collect(), false);
            assert!(
                all.await
                    .iter()
                    .all(|put| matches!(put, Ok(Put::Stored(_))))
            );
        }
    }
    let (inbox, found) = reopen(directory.path()).await;
    assert!((60..100).contains(&found.completed.len()), "rows go whole");
    for id in (0..10).chain(950..1000) {
        assert!(found.completed.contains(&of(id).key()), "{id}");
        assert_eq!(inbox.put(of(id), false).await.unwrap(), Put::Duplicate);
    }
    assert!(matches!(
        inbox.put(of(500), false).await,
        Ok(Put::Stored(_))
    ));
}

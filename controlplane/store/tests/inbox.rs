//! Covers: the inbox against kill -9 at random instants, a disk without room, a directory that cannot be
//! used, and damaged files. What one process sees is covered beside the code.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{Inbound, MessageId, Topic};
use hyphae_files::Directory;
use hyphae_store::inbox::{
    INBOX_FILE, Inbox, InboxError, Limits, MessageNumber, ONE, Put, PutError,
};
use hyphae_wire::{OverlayAddress, PublicKey};

/// Names the directory to the child that is to be killed, or limited.
const CHILD: &str = "HYPHAE_TEST_INBOX";
const KILLS: u64 = 50;

fn payload(id: u64) -> Vec<u8> {
    // Some are too long for a shelf.
    let len = if id % 64 == 9 {
        1_500_000
    } else {
        id * id % 9000
    };
    let len = usize::try_from(len).unwrap();
    id.to_le_bytes().iter().copied().cycle().take(len).collect()
}

fn message(id: u64) -> Inbound {
    Inbound {
        id: MessageId(id.to_le_bytes()),
        reply: false,
        failure: None,
        source_key: PublicKey([7; 32]),
        source_address: OverlayAddress([4; 16]),
        topic: Topic::new(Bytes::from_static(b"t")).unwrap(),
        payload: payload(id).into(),
        digest: *blake3::hash(&payload(id)).as_bytes(),
    }
}

fn id_of(message: &Inbound) -> u64 {
    let id = u64::from_le_bytes(message.id.0);
    assert_eq!(message.payload, payload(id), "whole and its own");
    id
}

fn directory_of(directory: &Path) -> Directory {
    Directory::open(directory).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// This test again, in a process of its own.
fn child(test: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, directory)
        .stdout(Stdio::piped());
    command
}

fn say(what: &str, id: u64) {
    let mut out = std::io::stdout().lock();
    // The parent may have stopped reading.
    let _ = out.write_all(format!("\n={what} {id}\n").as_bytes());
    let _ = out.flush();
}

/// Puts and takes until it is killed, and says what it knows to be done.
async fn work(directory: &Path) {
    let (inbox, _) = Inbox::open(&directory_of(directory), Limits::default()).unwrap();
    let first: u64 = std::fs::read_to_string(directory.join("first"))
        .unwrap()
        .parse()
        .unwrap();
    say("open", 0);
    let pushers = (0..8).map(|n| {
        let inbox = inbox.clone();
        tokio::spawn(async move {
            // A sender that heard nothing before the kill sends its last messages again.
            for id in (first.saturating_sub(80) + n..).step_by(8) {
                let put = inbox.put(message(id), false).await.unwrap();
                say(
                    if put == Put::Duplicate {
                        "again"
                    } else {
                        "kept"
                    },
                    id,
                );
            }
        })
    });
    let pushers: Vec<_> = pushers.collect();
    let mut changed = inbox.changed();
    loop {
        let Some(taken) = inbox.take(None, ONE).await.unwrap() else {
            changed.changed().await.unwrap();
            continue;
        };
        let id = id_of(&taken.messages[0]);
        say("taken", id);
        if id.is_multiple_of(7) {
            // Some are let go, and come again.
            drop(taken);
            let taken = inbox.take(None, ONE).await.unwrap().unwrap();
            let id = id_of(&taken.messages[0]);
            say("confirming", id);
            taken.confirm().await.unwrap();
            say("confirmed", id);
        } else {
            say("confirming", id);
            taken.confirm().await.unwrap();
            say("confirmed", id);
        }
        assert!(pushers.iter().all(|pusher| !pusher.is_finished()));
    }
}

/// Runs a child of a test and kills it after a random number of lines and some microseconds more: anywhere in a
/// transaction. `report` gets each line: what, and a number.
fn run_until_killed(
    name: &str,
    directory: &Path,
    random: &mut u64,
    mut report: impl FnMut(&str, u64),
) {
    let mut process = child(name, directory).spawn().unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    let after = *random % 120;
    let mut count = 0;
    for line in lines.map(Result::unwrap) {
        let Some((what, number)) = line.strip_prefix('=').and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        count += 1;
        if count == after + 1 {
            std::thread::sleep(Duration::from_micros(*random % 3000));
            process.kill().unwrap();
        }
        report(what, number.parse().unwrap());
    }
    process.wait().unwrap();
    assert!(count > after, "the child ended by itself");
}

#[test]
fn kill_9_at_any_instant_loses_nothing_and_repeats_nothing() {
    if let Some(directory) = std::env::var_os(CHILD) {
        runtime().block_on(work(Path::new(&directory)));
        return;
    }
    let name = "kill_9_at_any_instant_loses_nothing_and_repeats_nothing";
    let directory = tempfile::tempdir().unwrap();
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut random = seed | 1;
    let (mut kept, mut confirmed, mut doubtful) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut highest = 0;
    let mut kills = 0;
    // How much is kept between two kills is chance; enough has to be, in as many kills as it takes.
    while kills < KILLS || kept.len() <= 500 {
        kills += 1;
        assert!(kills <= 20 * KILLS, "only {} kept", kept.len());
        std::fs::write(directory.path().join("first"), (highest + 1).to_string()).unwrap();
        let mut confirming = None;
        run_until_killed(name, directory.path(), &mut random, |what, id| match what {
            "kept" => {
                assert!(kept.insert(id), "{id} was new twice");
                highest = highest.max(id);
            }
            // The kill came between the commit and the word of it.
            "again" => {
                kept.insert(id);
            }
            "taken" => assert!(
                !confirmed.contains(&id),
                "{id} came again after it was confirmed"
            ),
            "confirming" => confirming = Some(id),
            "confirmed" => {
                confirming = None;
                assert!(confirmed.insert(id), "{id} was confirmed twice");
            }
            _ => {}
        });
        doubtful.extend(confirming);
    }
    runtime().block_on(async {
        let (inbox, found) =
            Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
        assert_eq!(found.moved_aside, None);
        let mut left = BTreeSet::new();
        while let Some(taken) = inbox.take(None, ONE).await.unwrap() {
            let id = id_of(&taken.messages[0]);
            assert!(!confirmed.contains(&id), "{id} after it was confirmed");
            assert!(left.insert(id), "{id} is there twice");
            taken.confirm().await.unwrap();
        }
        let lost: Vec<_> = kept
            .iter()
            .filter(|id| !confirmed.contains(id) && !left.contains(id) && !doubtful.contains(id))
            .collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        eprintln!(
            "{} kept, {} confirmed, {} left",
            kept.len(),
            confirmed.len(),
            left.len()
        );
    });
}

/// Leases messages and acknowledges some until it is killed.
async fn lease(directory: &Path) {
    let (inbox, _) = loop {
        match Inbox::open(&directory_of(directory), Limits::default()) {
            Ok(open) => break open,
            // The thread that filled it, in the parent, closes it once its last handle is dropped.
            Err(InboxError::InUse(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    say("open", 0);
    let mut leases = Vec::new();
    loop {
        let Some(taken) = inbox.take_recorded(None, ONE).await.unwrap() else {
            // All are delivered: they return.
            leases.clear();
            continue;
        };
        let (messages, deliveries, lease) = taken.into_parts();
        let id = id_of(&messages[0]);
        say("leased", id << 32 | u64::from(deliveries[0]));
        if id.is_multiple_of(3) && deliveries[0] > 5 {
            say("confirming", id);
            lease.confirm().await.unwrap();
            say("confirmed", id);
        } else {
            leases.push(lease);
        }
    }
}

#[test]
fn kill_9_at_any_instant_returns_what_was_leased_and_keeps_the_count() {
    if let Some(directory) = std::env::var_os(CHILD) {
        runtime().block_on(lease(Path::new(&directory)));
        return;
    }
    let name = "kill_9_at_any_instant_returns_what_was_leased_and_keeps_the_count";
    let directory = tempfile::tempdir().unwrap();
    const COUNT: u64 = 30;
    runtime().block_on(async {
        let (inbox, _) = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
        for id in 1..=COUNT {
            inbox.put(message(id), false).await.unwrap();
        }
    });
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut random = seed | 1;
    // Deliveries of each, and the process that reported them last.
    let mut counts = BTreeMap::<u64, (u64, u64)>::new();
    let (mut confirmed, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
    for life in 1..=KILLS / 2 {
        run_until_killed(
            name,
            directory.path(),
            &mut random,
            |what, number| match what {
                "leased" => {
                    let (id, now) = (number >> 32, number & u64::from(u32::MAX));
                    assert!(!confirmed.contains(&id), "{id} after it was confirmed");
                    let (before, said) = counts.insert(id, (now, life)).unwrap_or((0, 1));
                    // A kill may come between what is written and what is said.
                    let most = before + 1 + life - said;
                    assert!(now > before && now <= most, "{id}: {before}, then {now}");
                }
                "confirming" => drop(doubtful.insert(number)),
                "confirmed" => assert!(confirmed.insert(number)),
                _ => {}
            },
        );
    }
    runtime().block_on(async {
        let (inbox, _) = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
        let list = inbox.list(None, MessageNumber(0), 100).await.unwrap();
        assert_eq!(list.handed_out, 0, "all were returned");
        let mut left = BTreeSet::new();
        for entry in &list.entries {
            let id = u64::from_le_bytes(entry.key.id.0);
            let (known, said) = counts.get(&id).copied().unwrap_or((0, 1));
            let now = u64::from(entry.deliveries);
            let most = known + 1 + KILLS / 2 - said;
            assert!(now >= known && now <= most, "{id}: {known}, then {now}");
            left.insert(id);
        }
        assert!(confirmed.is_disjoint(&left));
        let lost = (1..=COUNT).find(|id| !left.contains(id) && !doubtful.contains(id));
        assert_eq!(lost, None);
        eprintln!(
            "{} confirmed, {} left, {counts:?}",
            confirmed.len(),
            left.len()
        );
    });
}

/// Fills a disk that has room for a few messages, and goes on when there is more.
async fn fill(directory: &Path) {
    let (inbox, _) = Inbox::open(&directory_of(directory), Limits::default()).unwrap();
    let big = |id: u64| Inbound {
        payload: vec![0xa5; 300_000].into(),
        digest: *blake3::hash(&[0xa5; 300_000]).as_bytes(),
        ..message(id)
    };
    let mut kept = 0;
    let error = loop {
        match inbox.put(big(kept), false).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 1000, "there is a limit");
    };
    let text = error.to_string();
    assert!(
        matches!(error, PutError::Failed(_)),
        "not full by its own limits"
    );
    assert!(
        text.contains(INBOX_FILE) && text.contains("make room"),
        "{text}"
    );
    assert!(kept > 0 && inbox.failing());
    rustix::process::setrlimit(
        rustix::process::Resource::Fsize,
        rustix::process::Rlimit {
            current: None,
            maximum: None,
        },
    )
    .unwrap();
    // The same message is sent again and again, as its sender does.
    let again = async {
        loop {
            match inbox.put(big(kept), false).await {
                Ok(_) => break,
                Err(PutError::Failed(InboxError::Io { .. })) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, again).await.unwrap();
    assert!(!inbox.failing());
    for id in 0..=kept {
        let taken = inbox.take(None, ONE).await.unwrap().unwrap();
        assert_eq!(taken.messages[0], big(id), "nothing was lost");
        taken.confirm().await.unwrap();
    }
    assert!(inbox.take(None, ONE).await.unwrap().is_none());
}

#[test]
fn a_full_disk_acknowledges_nothing_and_loses_nothing() {
    if let Some(directory) = std::env::var_os(CHILD) {
        runtime().block_on(fill(Path::new(&directory)));
        return;
    }
    let name = "a_full_disk_acknowledges_nothing_and_loses_nothing";
    let directory = tempfile::tempdir().unwrap();
    let own = std::env::current_exe().unwrap();
    // 4 MiB, as a limit of the size of files, because that needs no privileges.
    let script = "trap '' XFSZ; ulimit -S -f 8192; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(own)
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for place in [file.as_path(), &directory.path().join("absent")] {
        let error = Directory::open(place).unwrap_err().to_string();
        assert!(error.contains(place.to_str().unwrap()), "{error}");
    }
    let (_inbox, _) = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
    let second = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap_err();
    assert!(matches!(second, InboxError::InUse(_)), "{second}");
}

#[test]
fn an_empty_file_is_no_empty_inbox_and_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(INBOX_FILE);
    std::fs::write(&file, "").unwrap();
    let (inbox, found) = Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
    let aside = found.moved_aside.unwrap();
    assert_eq!(std::fs::metadata(&aside).unwrap().len(), 0);
    let put = runtime().block_on(inbox.put(message(5), false)).unwrap();
    assert!(matches!(put, Put::Stored(_)), "it goes on");
    for path in [file, aside] {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn a_damaged_file_is_moved_aside_and_kept() {
    let source = tempfile::tempdir().unwrap();
    let sent: Vec<_> = (1..200).map(message).collect();
    runtime().block_on(async {
        let (inbox, _) = Inbox::open(&directory_of(source.path()), Limits::default()).unwrap();
        for message in &sent {
            inbox.put(message.clone(), false).await.unwrap();
        }
    });
    // The thread of the inbox ends by itself; the file is whole at every instant.
    let whole = std::fs::read(source.path().join(INBOX_FILE)).unwrap();
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut random = seed | 1;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 1).unwrap()
    };
    let (mut moved, mut intact, mut ended) = (0, 0, 0);
    for round in 0..60 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(INBOX_FILE);
        let mut bytes = whole.clone();
        match round % 4 {
            0 => bytes.truncate(next() % whole.len()),
            1 => {
                let at = next() % (bytes.len() - 4096);
                bytes[at..at + 4096].fill(0);
            }
            2 => {
                for _ in 0..200 {
                    let at = next() % bytes.len();
                    bytes[at] ^= 1 << (next() % 8);
                }
            }
            _ => bytes = b"something else\n".repeat(1 + next() % 900),
        }
        std::fs::write(&path, &bytes).unwrap();
        // The process may end over it, once: then the next start finds a new inbox.
        let open = || Inbox::open(&directory_of(directory.path()), Limits::default()).unwrap();
        let (inbox, found) = std::panic::catch_unwind(open).unwrap_or_else(|_| {
            ended += 1;
            assert!(!path.exists());
            open()
        });
        let mut files = std::fs::read_dir(directory.path()).unwrap();
        let aside = files.find_map(|file| {
            let path = file.unwrap().path();
            (path.file_name().unwrap() != INBOX_FILE).then_some(path)
        });
        assert!(found.moved_aside.is_none() || found.moved_aside == aside);
        runtime().block_on(async {
            let mut count = 0;
            while let Some(taken) = inbox.take(None, ONE).await.unwrap() {
                assert!(sent.contains(&taken.messages[0]), "only what was sent");
                taken.confirm().await.unwrap();
                count += 1;
            }
            match aside {
                None => intact += usize::from(count == sent.len()),
                Some(aside) => {
                    moved += 1;
                    assert_eq!(count, 0);
                    assert_eq!(std::fs::metadata(aside).unwrap().len(), bytes.len() as u64);
                    let put = inbox.put(message(5), false).await.unwrap();
                    assert!(matches!(put, Put::Stored(_)), "it goes on");
                }
            }
        });
    }
    eprintln!("{moved} moved aside, {ended} of them by a panic, {intact} unharmed");
    assert!(moved >= 15, "at least what is no inbox at all");
}

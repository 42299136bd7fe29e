//! What is refused as a segment, who may take which end, and what both mappings see. Rings themselves
//! are in ring/tests.rs, two processes in tests/processes.rs.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hyphae_time::Nanos;

use super::*;
use crate::stats::{Counter, DropReason, PeerStats, counter_at, drop_at};

const W0: WorkerId = WorkerId(0);
const W1: WorkerId = WorkerId(1);

fn segment() -> (Segment, OwnedFd) {
    Segment::create(Layout::new(2)).unwrap()
}

fn scratch() -> Vec<u8> {
    vec![0; RECORD_MAX]
}

fn pop(ring: &mut Consumer) -> Result<Option<(u16, Vec<u8>)>, crate::Corrupt> {
    let mut scratch = scratch();
    let popped = ring
        .pop(&mut scratch)?
        .map(|(code, len)| (code, scratch[..len].to_vec()));
    ring.release();
    Ok(popped)
}

/// A file with the header of a real segment after `change`, `size` bytes long, with `seals`.
fn forged(change: impl FnOnce(&mut [u64; 8]), size: u64, seals: SealFlags) -> OwnedFd {
    let (_segment, real) = segment();
    let mut bytes = [0; 64];
    rustix::io::pread(&real, &mut bytes, 0).unwrap();
    let (words, _) = bytes.as_chunks::<8>();
    let mut words: [u64; 8] = std::array::from_fn(|n| u64::from_ne_bytes(words[n]));
    change(&mut words);
    let fd = rustix::fs::memfd_create("forged", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::io::pwrite(&fd, words.map(u64::to_ne_bytes).as_flattened(), 0).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn total() -> u64 {
    Layout::new(2).total() as u64
}

fn refusal(fd: &OwnedFd) -> SegmentError {
    Segment::attach(fd).err().expect("it is refused")
}

#[test]
fn both_mappings_see_the_same_rings_whatever_their_number() {
    let (ours, fd) = segment();
    let theirs = Segment::attach(&fd).unwrap();
    assert_eq!(theirs.layout(), Layout::new(2));
    for worker in [W0, W1] {
        let (mut program, mut worker_end) = (
            theirs.program_producer(worker),
            ours.program_consumer(worker),
        );
        let (mut punt, mut control_end) =
            (ours.punt_producer(worker), theirs.punt_consumer(worker));
        assert_eq!(program.free_bytes(), 256 * 1024);
        assert_eq!(punt.free_bytes(), 1024 * 1024);
        program.push(worker.0, &[b"program"]).unwrap();
        punt.push(worker.0, &[b"punt"]).unwrap();
        assert!(!program.publish() && !punt.publish());
        assert_eq!(
            pop(&mut worker_end),
            Ok(Some((worker.0, b"program".to_vec())))
        );
        assert_eq!(
            pop(&mut control_end),
            Ok(Some((worker.0, b"punt".to_vec())))
        );
    }
}

#[test]
fn generations_count_attaches() {
    let (ours, fd) = segment();
    let theirs = Segment::attach(&fd).unwrap();
    assert_eq!(ours.generation(), 0);
    assert_eq!(ours.raise_generation(), 1);
    assert_eq!(theirs.generation(), 1);
    ours.header().generation.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(ours.raise_generation(), 0);
}

#[test]
fn statistics_are_seen_by_readers() {
    let (ours, fd) = segment();
    let reader = Segment::attach(&fd).unwrap().stats_reader(W1);
    let mut writer = ours.stats_writer(W1);
    let mut counters = [0; COUNTERS];
    counters[counter_at(Counter::Punts)] = 7;
    counters[drop_at(DropReason::NoBuffer)] = 9;
    writer.publish(&counters);
    assert_eq!(reader.counters(), counters);
    let last = PEERS_MAX - 1;
    writer.add_rx(last, 2, 300, Nanos(5));
    writer.add_rx(last, 1, 100, Nanos(6));
    writer.add_tx(last, 4, 50);
    let expected = PeerStats {
        rx_packets: 3,
        rx_bytes: 400,
        tx_packets: 4,
        tx_bytes: 50,
        last_rx: 6,
    };
    assert_eq!(reader.peer(last), expected);
    assert_eq!(reader.peer(0), PeerStats::default());
    assert_eq!(
        ours.stats_reader(W0).peer(last),
        PeerStats::default(),
        "another worker's"
    );
    for peer in [PEERS_MAX, u32::MAX] {
        writer.add_rx(peer, 1, 1, Nanos(1));
        writer.add_tx(peer, 1, 1);
        writer.clear_peer(peer);
        assert_eq!(reader.peer(peer), PeerStats::default());
    }
    writer.clear_peer(last);
    assert_eq!(reader.peer(last), PeerStats::default());
}

#[test]
fn an_end_has_one_holder_until_it_is_dropped() {
    let (segment, _fd) = segment();
    fn once<T>(take: impl Fn() -> T) {
        let held = take();
        assert!(
            catch_unwind(AssertUnwindSafe(&take)).is_err(),
            "a second take panics"
        );
        drop(held);
        drop(take());
    }
    once(|| segment.program_producer(W0));
    once(|| segment.program_consumer(W0));
    once(|| segment.punt_producer(W0));
    once(|| segment.punt_consumer(W1));
    once(|| segment.stats_writer(W1));
    assert!(catch_unwind(AssertUnwindSafe(|| segment.stats_reader(WorkerId(2)))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| segment.program_consumer(WorkerId(2)))).is_err());
}

#[test]
fn rings_outlive_the_segment_they_came_from() {
    let (segment, fd) = segment();
    let mut consumer = segment.program_consumer(W0);
    let reader = segment.stats_reader(W0);
    drop((segment, fd));
    assert_eq!(pop(&mut consumer), Ok(None));
    assert_eq!(reader.counters(), [0; COUNTERS]);
}

#[test]
fn the_owner_resets_corrupt_rings_for_the_next_process() {
    let (ours, fd) = segment();
    let mut consumer = ours.program_consumer(W1);
    let mut punt = ours.punt_producer(W1);
    let theirs = Segment::attach(&fd).unwrap();
    let indices = |part: usize| -> &AtomicU64 {
        // SAFETY: the first word of an index line of worker 1, an atomic (ring::Indices).
        unsafe { theirs.0.base.add(part).cast().as_ref() }
    };
    let [program_at, punt_at, ..] = theirs.layout().offsets(1);
    indices(program_at).store(3, Ordering::Relaxed);
    indices(punt_at + 128).store(3, Ordering::Relaxed);
    assert_eq!(pop(&mut consumer), Err(crate::Corrupt));
    assert_eq!(punt.free_bytes(), 0);
    assert!(punt.is_corrupt());
    consumer.reset();
    punt.reset();
    let mut program = theirs.program_producer(W1);
    let mut control_end = theirs.punt_consumer(W1);
    program.push(1, &[b"again"]).unwrap();
    punt.push(2, &[b"again"]).unwrap();
    let _ = (program.publish(), punt.publish());
    assert_eq!(pop(&mut consumer), Ok(Some((1, b"again".to_vec()))));
    assert_eq!(pop(&mut control_end), Ok(Some((2, b"again".to_vec()))));
    // Not while this process has the other end.
    let _producer = ours.program_producer(W1);
    assert!(catch_unwind(AssertUnwindSafe(|| consumer.reset())).is_err());
}

#[test]
fn a_forgery_of_everything_right_is_taken() {
    assert!(Segment::attach(&forged(|_| {}, total(), SEALS)).is_ok());
}

#[test]
fn another_cookie_is_refused() {
    let fd = forged(|words| words[0] ^= 1, total(), SEALS);
    assert!(matches!(refusal(&fd), SegmentError::Cookie));
}

#[test]
fn another_version_is_refused_and_named() {
    let fd = forged(|words| words[1] = 77, total(), SEALS);
    assert!(matches!(refusal(&fd), SegmentError::Version { found: 77 }));
    assert!(refusal(&fd).to_string().contains("77"));
}

#[test]
fn impossible_layouts_are_refused() {
    for (word, value) in [
        (2, 0),
        (2, 65),
        (2, 1 << 40),
        (3, 0),
        (3, 300_000),
        (4, 1 << 31),
        (4, 64),
    ] {
        let fd = forged(|words| words[word] = value, total(), SEALS);
        assert!(
            matches!(refusal(&fd), SegmentError::Layout(_)),
            "{word} {value}"
        );
    }
    for layout in [
        Layout::new(0),
        Layout::new(65),
        Layout {
            punt_bytes: 4096,
            ..Layout::new(1)
        },
    ] {
        assert!(matches!(
            Segment::create(layout),
            Err(SegmentError::Layout(_))
        ));
    }
}

#[test]
fn another_layout_hash_is_refused() {
    let fd = forged(|words| words[6] ^= 1 << 63, total(), SEALS);
    assert!(matches!(refusal(&fd), SegmentError::LayoutHash));
    // Possible sizes, but not those that the hash was made for.
    let fd = forged(|words| words[2] = 1, total(), SEALS);
    assert!(matches!(refusal(&fd), SegmentError::LayoutHash));
}

#[test]
fn another_size_is_refused() {
    for size in [64, 4096, total() - 4096, total() + 4096] {
        assert!(
            matches!(refusal(&forged(|_| {}, size, SEALS)), SegmentError::Seals),
            "{size}"
        );
    }
    let fd = forged(|words| words[5] -= 4096, total(), SEALS);
    assert!(matches!(refusal(&fd), SegmentError::Seals));
}

#[test]
fn missing_seals_are_refused() {
    for missing in [SealFlags::SHRINK, SealFlags::GROW] {
        let fd = forged(|_| {}, total(), SEALS - missing);
        assert!(matches!(refusal(&fd), SegmentError::Seals));
    }
    let fd = forged(|_| {}, total(), SealFlags::empty());
    assert!(matches!(refusal(&fd), SegmentError::Seals));
}

#[test]
fn other_files_are_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(
        refusal(&OwnedFd::from(null)),
        SegmentError::Cookie
    ));
    let bell = crate::Doorbell::new().unwrap();
    assert!(matches!(refusal(&bell.into_fd()), SegmentError::Cookie));
}

#[test]
fn a_segment_cannot_be_resized() {
    let (_segment, fd) = segment();
    assert_eq!(rustix::fs::ftruncate(&fd, 4096), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&fd, total() * 2), Err(Errno::PERM));
    assert_eq!(
        rustix::fs::fcntl_add_seals(fd.as_fd(), SealFlags::WRITE),
        Err(Errno::PERM)
    );
}

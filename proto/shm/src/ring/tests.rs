//! Rings against a model, against garbage, and between two threads. All orders of memory operations
//! are the loom model's subject; two processes are in tests/processes.rs.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const CAPACITY: u64 = 256;

fn config(cases: u32) -> ProptestConfig {
    let cases = if cfg!(miri) { 4 } else { cases };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn scratch() -> Vec<u8> {
    vec![0; RECORD_MAX]
}

fn pop(ring: &mut Consumer) -> Result<Option<(u16, Vec<u8>)>, Corrupt> {
    let mut scratch = scratch();
    Ok(ring
        .pop(&mut scratch)?
        .map(|(code, len)| (code, scratch[..len].to_vec())))
}

/// The bytes of a ring's data.
fn data(memory: &RingMemory) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory.capacity()).expect("a ring fits memory")];
    memory.read(0, &mut bytes);
    bytes
}

/// Pops until the ring is empty or corrupt; a ring yields no more than its data holds.
fn drain(ring: &mut Consumer) -> Result<usize, Corrupt> {
    let mut scratch = scratch();
    let mut bytes = 0;
    while let Some((_, len)) = ring.pop(&mut scratch)? {
        bytes += HEADER_LEN + len.next_multiple_of(8);
        assert!(
            bytes as u64 <= ring.memory.capacity(),
            "more than was published"
        );
    }
    Ok(bytes)
}

fn assert_sticky(ring: &mut Consumer) {
    assert!(ring.is_corrupt());
    let head = ring.memory.indices().head().load(Ordering::Relaxed);
    ring.release();
    assert_eq!(ring.memory.indices().head().load(Ordering::Relaxed), head);
    assert_eq!(pop(ring), Err(Corrupt));
    assert!(ring.sleep(), "a corrupt ring keeps nobody awake");
    assert_eq!(pop(ring), Err(Corrupt));
}

#[test]
fn records_arrive_once_published_and_not_before() {
    let (mut producer, mut consumer) = heap(64);
    producer.push(7, &[b"ab", b"", b"cde"]).unwrap();
    assert_eq!(pop(&mut consumer), Ok(None));
    assert!(!producer.publish(), "an awake consumer needs no doorbell");
    assert_eq!(pop(&mut consumer), Ok(Some((7, b"abcde".to_vec()))));
    assert_eq!(pop(&mut consumer), Ok(None));
}

#[test]
fn a_full_ring_refuses_and_writes_nothing_until_room_is_released() {
    let (mut producer, mut consumer) = heap(32);
    producer.push(1, &[&[1; 16]]).unwrap();
    assert_eq!(producer.push(2, &[&[2; 8]]), Err(PushError::Full));
    let _ = producer.publish();
    assert_eq!(pop(&mut consumer), Ok(Some((1, vec![1; 16]))));
    assert_eq!(producer.push(2, &[&[2; 8]]), Err(PushError::Full));
    assert_eq!(pop(&mut consumer), Ok(None));
    consumer.release();
    assert_eq!(producer.free_bytes(), 32);
    assert_eq!(
        producer.push(2, &[&[2; 24]]),
        Ok(()),
        "as large as the ring, over its end"
    );
    let _ = producer.publish();
    assert_eq!(pop(&mut consumer), Ok(Some((2, vec![2; 24]))));
    assert_eq!(producer.push(3, &[&[0; 25]]), Err(PushError::TooBig));
}

#[test]
fn the_largest_record_fits_and_a_larger_one_never_does() {
    let (mut producer, mut consumer) = heap(256 * 1024);
    let large = vec![9; RECORD_MAX + 1];
    assert_eq!(producer.push(1, &[&large]), Err(PushError::TooBig));
    for _ in 0..3 {
        producer.push(1, &[&large[1..]]).unwrap();
    }
    let _ = producer.publish();
    assert_eq!(
        drain(&mut consumer),
        Ok(3 * (HEADER_LEN + RECORD_MAX.next_multiple_of(8)))
    );
}

#[test]
fn the_doorbell_is_wanted_only_while_the_consumer_sleeps() {
    let (mut producer, mut consumer) = heap(64);
    assert!(consumer.sleep());
    producer.push(1, &[]).unwrap();
    assert!(producer.publish());
    consumer.wake();
    assert!(!producer.publish());
    assert!(!consumer.sleep(), "a record is there");
    assert!(!producer.publish(), "so it did not go to sleep");
    assert_eq!(pop(&mut consumer), Ok(Some((1, Vec::new()))));
    assert!(consumer.sleep());
}

#[test]
fn a_consumer_that_takes_over_is_awake() {
    let memory = RingMemory::heap(64);
    let mut producer = Producer::new(memory.clone());
    assert!(Consumer::new(memory.clone(), false).sleep());
    assert!(producer.publish());
    let _consumer = Consumer::new(memory, false);
    assert!(!producer.publish());
}

#[test]
fn a_ring_that_carries_keys_is_blank_once_read() {
    let memory = RingMemory::heap(64);
    let mut producer = Producer::new(memory.clone());
    let mut consumer = Consumer::new(memory.clone(), true);
    for len in [24, 40, 9] {
        producer.push(0xffff, &[&vec![0xff; len]]).unwrap();
        let _ = producer.publish();
        assert_eq!(pop(&mut consumer), Ok(Some((0xffff, vec![0xff; len]))));
        assert_eq!(data(&memory), [0; 64]);
        consumer.release();
    }
    // Dropped before it released: the next one must not take blanks for records.
    producer.push(1, &[&[1; 20]]).unwrap();
    producer.push(2, &[&[2; 2]]).unwrap();
    let _ = producer.publish();
    assert_eq!(pop(&mut consumer), Ok(Some((1, vec![1; 20]))));
    drop(consumer);
    let mut consumer = Consumer::new(memory.clone(), true);
    assert_eq!(pop(&mut consumer), Ok(Some((2, vec![2; 2]))));
    consumer.release();
    // A producer that died before it published.
    producer.push(3, &[&[3; 50]]).unwrap();
    drop(producer);
    let mut producer = Producer::new(memory.clone());
    producer.wipe_free();
    assert_eq!(data(&memory), [0; 64]);
    assert_eq!(pop(&mut consumer), Ok(None));
}

#[test]
fn positions_beyond_the_last_number_start_again_at_zero() {
    let memory = RingMemory::heap(64);
    let start = 0u64.wrapping_sub(32);
    memory.indices().head().store(start, Ordering::Relaxed);
    memory.indices().tail().store(start, Ordering::Relaxed);
    let mut producer = Producer::new(memory.clone());
    let mut consumer = Consumer::new(memory, true);
    for n in 0..20 {
        producer.push(n, &[&[1; 13]]).unwrap();
        let _ = producer.publish();
        assert_eq!(pop(&mut consumer), Ok(Some((n, vec![1; 13]))));
        consumer.release();
        assert_eq!(producer.free_bytes(), 64);
    }
}

#[test]
fn every_bit_of_a_header_may_flip() {
    let payload = [0xa5; 21];
    for bit in 0..64 {
        let memory = RingMemory::heap(128);
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory.clone(), false);
        producer.push(0x0102, &[&payload]).unwrap();
        let _ = producer.publish();
        let mut header = [0; HEADER_LEN];
        memory.read(0, &mut header);
        header[bit / 8] ^= 1 << (bit % 8);
        memory.write(0, &header);
        let result = pop(&mut consumer);
        match bit {
            // A length that still lies inside what is published is another record, not a detectable
            // fault: what it means is checked by who reads it.
            0 | 1 | 2 | 4 => assert!(matches!(result, Ok(Some((0x0102, _)))), "bit {bit}"),
            3 | 5..32 => assert_eq!(result, Err(Corrupt), "bit {bit}"),
            32..48 => {
                let code = 0x0102 ^ (1 << (bit - 32));
                assert_eq!(result, Ok(Some((code, payload.to_vec()))), "bit {bit}");
            }
            _ => assert_eq!(result, Err(Corrupt), "bit {bit}"),
        }
        if result.is_err() {
            assert_sticky(&mut consumer);
        } else {
            let _ = drain(&mut consumer);
        }
    }
}

#[test]
fn impossible_lengths_are_corrupt() {
    let over = u32::try_from(RECORD_MAX).unwrap() + 1;
    for len in [
        17,
        24,
        1000,
        over,
        over + 7,
        u32::MAX - 8,
        u32::MAX - 7,
        u32::MAX,
    ] {
        let memory = RingMemory::heap(256 * 1024);
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory.clone(), true);
        producer.push(1, &[&[1; 16]]).unwrap();
        if len >= over {
            // Published bytes that would be enough for it.
            (0..3).for_each(|_| producer.push(1, &[&[0; RECORD_MAX - 100]]).unwrap());
        }
        let _ = producer.publish();
        memory.write(0, &len.to_le_bytes());
        assert_eq!(pop(&mut consumer), Err(Corrupt), "{len}");
        assert_sticky(&mut consumer);
    }
}

#[test]
fn impossible_tails_are_corrupt() {
    for tail in [
        1,
        4,
        15,
        8,
        0,
        16 + CAPACITY + 8,
        24 + CAPACITY,
        1 << 63,
        u64::MAX,
        u64::MAX - 7,
    ] {
        let memory = RingMemory::heap(256);
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory.clone(), false);
        producer.push(1, &[&[1; 8]]).unwrap();
        let _ = producer.publish();
        assert_eq!(pop(&mut consumer), Ok(Some((1, vec![1; 8]))));
        memory.indices().tail().store(tail, Ordering::Relaxed);
        assert!(!consumer.sleep(), "it looks like news");
        assert_eq!(pop(&mut consumer), Err(Corrupt), "{tail}");
        assert_sticky(&mut consumer);
    }
}

#[test]
fn a_tail_over_what_is_not_released_is_corrupt() {
    let memory = RingMemory::heap(256);
    let mut producer = Producer::new(memory.clone());
    let mut consumer = Consumer::new(memory.clone(), false);
    producer.push(1, &[&[1; 8]]).unwrap();
    let _ = producer.publish();
    assert!(pop(&mut consumer).unwrap().is_some());
    memory
        .indices()
        .tail()
        .store(16 + CAPACITY, Ordering::Relaxed);
    assert_eq!(pop(&mut consumer), Err(Corrupt));
}

#[test]
fn impossible_heads_stop_the_producer_for_good() {
    for head in [1, 7, 24, CAPACITY, u64::MAX, u64::MAX - 7, 0] {
        let memory = RingMemory::heap(256);
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory.clone(), false);
        producer.push(1, &[&[1; 8]]).unwrap();
        let _ = producer.publish();
        assert!(pop(&mut consumer).unwrap().is_some());
        consumer.release();
        assert_eq!(producer.free_bytes(), 256);
        memory.indices().head().store(head, Ordering::Relaxed);
        assert_eq!(producer.free_bytes(), 0, "{head}");
        assert!(producer.is_corrupt());
        memory.indices().head().store(16, Ordering::Relaxed);
        assert_eq!(producer.push(1, &[]), Err(PushError::Corrupt));
        assert!(!producer.publish());
    }
}

#[test]
fn ends_that_take_over_impossible_indices_are_corrupt() {
    for (head, tail) in [(1, 8), (0, 4), (8, 0), (0, CAPACITY + 8), (u64::MAX - 6, 0)] {
        let memory = RingMemory::heap(256);
        memory.indices().head().store(head, Ordering::Relaxed);
        memory.indices().tail().store(tail, Ordering::Relaxed);
        let mut producer = Producer::new(memory.clone());
        assert_eq!(producer.push(1, &[]), Err(PushError::Corrupt));
        producer.wipe_free();
        let mut consumer = Consumer::new(memory, true);
        assert_eq!(pop(&mut consumer), Err(Corrupt));
        assert_sticky(&mut consumer);
    }
}

#[test]
#[should_panic(expected = "the other end is not in this process")]
fn a_ring_is_not_reset_under_its_other_end() {
    let (_producer, mut consumer) = heap(64);
    consumer.reset();
}

#[test]
fn two_threads_sleep_and_wake_without_losing_a_record() {
    let records: u16 = if cfg!(miri) { 60 } else { 20_000 };
    let (mut producer, mut consumer) = heap(256);
    let reader = std::thread::spawn(move || {
        let mut scratch = scratch();
        let mut next = 0;
        while next < records {
            if let Some((code, len)) = consumer.pop(&mut scratch).unwrap() {
                assert_eq!((code, len), (next, usize::from(next % 50)));
                assert!(
                    scratch[..len]
                        .iter()
                        .all(|byte| u16::from(*byte) == next & 0xff)
                );
                next += 1;
                continue;
            }
            consumer.release();
            if consumer.sleep() {
                std::thread::park();
                consumer.wake();
            }
        }
    });
    for n in 0..records {
        let payload = [n.to_le_bytes()[0]; 50];
        while producer
            .push(n, &[&payload[..usize::from(n % 50)]])
            .is_err()
        {
            if producer.publish() {
                reader.thread().unpark();
            }
            std::thread::yield_now();
        }
        if n % 7 == 0 && producer.publish() {
            reader.thread().unpark();
        }
    }
    if producer.publish() {
        reader.thread().unpark();
    }
    reader.join().unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Push(u16, Vec<u8>),
    Publish,
    Pop,
    Release,
    Sleep,
    /// The producer dies; another takes over.
    ReplaceProducer,
    /// The consumer dies without a farewell; another takes over.
    ReplaceConsumer,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u16>(), vec(any::<u8>(), 0..100)).prop_map(|(code, bytes)| Step::Push(code, bytes)),
        4 => Just(Step::Publish),
        6 => Just(Step::Pop),
        3 => Just(Step::Release),
        2 => Just(Step::Sleep),
        1 => Just(Step::ReplaceProducer),
        1 => Just(Step::ReplaceConsumer),
    ]
}

type Records = VecDeque<(u16, Vec<u8>)>;

fn bytes_of(records: &Records) -> usize {
    records
        .iter()
        .map(|(_, bytes)| (HEADER_LEN + bytes.len()).next_multiple_of(8))
        .sum()
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn a_ring_behaves_like_a_queue(
        capacity in prop_oneof![Just(64usize), Just(128), Just(256)],
        start in prop_oneof![Just(0u64), Just(0u64.wrapping_sub(64)), any::<u64>().prop_map(|n| n & !7)],
        steps in vec(step(), 1..120),
    ) {
        let memory = RingMemory::heap(capacity);
        memory.indices().head().store(start, Ordering::Relaxed);
        memory.indices().tail().store(start, Ordering::Relaxed);
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory.clone(), false);
        // The model: what is pushed, what is visible, what is popped but not released.
        let (mut pushed, mut visible, mut popped) = (Records::new(), Records::new(), Records::new());
        let mut asleep = false;
        for step in steps {
            let free = capacity - bytes_of(&pushed) - bytes_of(&visible) - bytes_of(&popped);
            match step {
                Step::Push(code, bytes) => {
                    let size = (HEADER_LEN + bytes.len()).next_multiple_of(8);
                    let (one, two) = bytes.split_at(bytes.len() / 3);
                    let expected = match size {
                        size if size > capacity => Err(PushError::TooBig),
                        size if size > free => Err(PushError::Full),
                        _ => Ok(()),
                    };
                    prop_assert_eq!(producer.push(code, &[one, two]), expected);
                    if expected.is_ok() {
                        pushed.push_back((code, bytes));
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(producer.publish(), asleep);
                    visible.append(&mut pushed);
                }
                Step::Pop => {
                    consumer.wake();
                    asleep = false;
                    let expected = visible.pop_front();
                    prop_assert_eq!(pop(&mut consumer), Ok(expected.clone()));
                    popped.extend(expected);
                }
                Step::Release => {
                    consumer.release();
                    popped.clear();
                }
                Step::Sleep => {
                    asleep = consumer.sleep();
                    prop_assert_eq!(asleep, visible.is_empty());
                }
                Step::ReplaceProducer => {
                    producer = Producer::new(memory.clone());
                    pushed.clear();
                }
                Step::ReplaceConsumer => {
                    let next = Consumer::new(memory.clone(), false);
                    // A killed one runs no destructor; this one is prevented from releasing.
                    let mut dead = std::mem::replace(&mut consumer, next);
                    dead.corrupt = true;
                    asleep = false;
                    popped.append(&mut visible);
                    visible = std::mem::take(&mut popped);
                }
            }
        }
        let free = capacity - bytes_of(&pushed) - bytes_of(&visible) - bytes_of(&popped);
        prop_assert_eq!(producer.free_bytes(), free);
    }

    #[test]
    fn garbage_is_popped_within_its_bounds_or_refused(
        mut bytes in vec(any::<u8>(), 256),
        small in any::<bool>(),
        head in any::<u64>(),
        used in prop_oneof![0..=CAPACITY, any::<u64>()],
        aligned in any::<bool>(),
        wipe in any::<bool>(),
    ) {
        if small {
            // Lengths that are often possible.
            bytes.chunks_exact_mut(8).for_each(|word| { word[0] &= 0x3f; word[1..4].fill(0); word[6..].fill(0); });
        }
        let mask = if aligned { !7 } else { !0 };
        let memory = RingMemory::heap(256);
        memory.write(0, &bytes);
        memory.indices().head().store(head & mask, Ordering::Relaxed);
        memory.indices().tail().store((head & mask).wrapping_add(used & mask), Ordering::Relaxed);
        let mut consumer = Consumer::new(memory.clone(), wipe);
        if drain(&mut consumer).is_err() {
            assert_sticky(&mut consumer);
        } else {
            consumer.release();
            prop_assert!(consumer.sleep());
        }
        let mut producer = Producer::new(memory);
        let free = producer.free_bytes();
        prop_assert!(free <= 256);
        while producer.push(1, &[&[0; 3]]).is_ok() {}
        let _ = producer.publish();
    }

    #[test]
    fn indices_that_change_all_the_time_never_panic(
        stores in vec((any::<bool>(), prop_oneof![any::<u64>(), 0..=2 * CAPACITY, (0..64u64).prop_map(|n| n * 8)]), 1..40),
    ) {
        let memory = RingMemory::heap(256);
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory.clone(), true);
        let mut scratch = scratch();
        for (tail, value) in stores {
            let indices = memory.indices();
            if tail { indices.tail() } else { indices.head() }.store(value, Ordering::Relaxed);
            let _ = producer.push(1, &[&[1; 20]]);
            let _ = producer.publish();
            let _ = consumer.pop(&mut scratch);
            if value % 3 == 0 {
                consumer.release();
            }
            let _ = consumer.sleep();
        }
    }
}

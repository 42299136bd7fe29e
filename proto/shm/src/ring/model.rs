//! The ring under loom: every order of memory operations that the language allows, for two threads.
//!
//! Ring bytes are loom cells, so a byte that one side touches while the other may is reported as a
//! race. The doorbell is a mutex and a condition variable, so a record that waits for a doorbell which
//! nobody rings is reported as a deadlock.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;

/// Counts rings until they are taken, like an eventfd.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Enough for every bug of this kind that is known; without a bound a run takes hours.
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

fn ring(capacity: usize, wipe: bool) -> (Producer, Consumer) {
    let memory = RingMemory::heap(capacity);
    (Producer::new(memory.clone()), Consumer::new(memory, wipe))
}

/// Pops what is there and checks that it continues the sequence.
fn take(consumer: &mut Consumer, scratch: &mut [u8], next: &mut u16) -> bool {
    let Some((code, len)) = consumer.pop(scratch).unwrap() else {
        return false;
    };
    assert_eq!((code, len), (*next, usize::from(*next)));
    assert!(scratch[..len].iter().all(|byte| u16::from(*byte) == *next));
    *next += 1;
    true
}

fn push(producer: &mut Producer, n: u16) -> Result<(), PushError> {
    let payload = [n.to_le_bytes()[0]; 8];
    producer.push(n, &[&payload[..usize::from(n)]])
}

#[test]
fn records_over_the_end_of_a_full_ring_arrive_whole() {
    model(|| {
        let (mut producer, mut consumer) = ring(32, true);
        let writer = thread::spawn(move || {
            for n in 1..=4 {
                while push(&mut producer, n).is_err() {
                    thread::yield_now();
                }
                let _ = producer.publish();
            }
        });
        let mut scratch = vec![0; RECORD_MAX];
        let mut next = 1;
        while next <= 4 {
            if take(&mut consumer, &mut scratch, &mut next) {
                consumer.release();
            } else {
                thread::yield_now();
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_sleeping_consumer_is_woken_for_every_record() {
    model(|| {
        let (mut producer, mut consumer) = ring(64, false);
        let bell = Arc::new(Bell::default());
        let theirs = Arc::clone(&bell);
        let writer = thread::spawn(move || {
            for n in 1..=2 {
                push(&mut producer, n).unwrap();
                if producer.publish() {
                    theirs.ring();
                }
            }
        });
        let mut scratch = vec![0; RECORD_MAX];
        let mut next = 1;
        while next <= 2 {
            if !take(&mut consumer, &mut scratch, &mut next) {
                consumer.release();
                if consumer.sleep() {
                    bell.wait();
                    consumer.wake();
                }
            }
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_batch_is_seen_whole_or_not_at_all() {
    model(|| {
        let (mut producer, mut consumer) = ring(64, false);
        let writer = thread::spawn(move || {
            push(&mut producer, 1).unwrap();
            push(&mut producer, 2).unwrap();
            let _ = producer.publish();
            // Dies with a record half done.
            push(&mut producer, 3).unwrap();
        });
        let mut scratch = vec![0; RECORD_MAX];
        let mut next = 1;
        while take(&mut consumer, &mut scratch, &mut next) {}
        assert!(next == 1 || next == 3);
        writer.join().unwrap();
        while take(&mut consumer, &mut scratch, &mut next) {}
        assert_eq!(next, 3);
    });
}

#[test]
fn a_producer_that_takes_over_continues_where_the_last_published() {
    model(|| {
        let memory = RingMemory::heap(32);
        let mut consumer = Consumer::new(memory.clone(), true);
        let writer = thread::spawn(move || {
            let mut first = Producer::new(memory.clone());
            push(&mut first, 1).unwrap();
            let _ = first.publish();
            let _ = push(&mut first, 8);
            drop(first);
            let mut second = Producer::new(memory);
            while push(&mut second, 2).is_err() {
                thread::yield_now();
            }
            let _ = second.publish();
        });
        let mut scratch = vec![0; RECORD_MAX];
        let mut next = 1;
        while next <= 2 {
            if take(&mut consumer, &mut scratch, &mut next) {
                consumer.release();
            } else {
                thread::yield_now();
            }
        }
        writer.join().unwrap();
    });
}

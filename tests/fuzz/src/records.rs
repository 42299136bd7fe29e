//! What the planes write into each other's rings.

use hyphae_shm::record::{Program, Punt};
use hyphae_shm::{RECORD_MAX, heap};

use crate::take;

/// A record: its code (two bytes), then its bytes. First through a ring, then by both parsers.
pub fn records(mut data: &[u8]) {
    let Some(code) = take(&mut data).map(u16::from_le_bytes) else {
        return;
    };
    let Some(read) = through_ring(code, data) else {
        return;
    };
    assert_eq!(read, data);
    if let Some(program) = Program::parse(code, &read) {
        let (again, fixed, tail) = program.parts();
        assert_eq!((again, [fixed, tail].concat()), (code, read.clone()));
        assert!(!format!("{program:?}").is_empty());
    }
    if let Some(punt) = Punt::parse(code, &read) {
        let (again, fixed, tail) = punt.parts();
        assert_eq!((again, [fixed, tail].concat()), (code, read.clone()));
        assert!(!format!("{punt:?}").is_empty());
    }
}

fn through_ring(code: u16, data: &[u8]) -> Option<Vec<u8>> {
    let (mut producer, mut consumer) = heap(1 << 18);
    let (head, tail) = data.split_at(data.len() / 2);
    producer.push(code, &[head, tail]).ok()?;
    let _ = producer.publish();
    let mut scratch = vec![0; RECORD_MAX];
    let popped = consumer.pop(&mut scratch);
    let Ok(Some((read, len))) = popped else {
        panic!("a pushed record is there: {popped:?}")
    };
    assert_eq!(read, code);
    let record = scratch[..len].to_vec();
    assert!(matches!(consumer.pop(&mut scratch), Ok(None)));
    Some(record)
}

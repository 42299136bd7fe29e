//! Frames in a stream of bytes: each behind its length.
//!
//! ```text
//! +----------+-----------------+----------+-------
//! | len u16  | frame, len long | len u16  | …          len is big-endian and does not count itself
//! +----------+-----------------+----------+-------
//! ```
//!
//! A stream cannot be read on after something that is no frame: there is no way to find the next.

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, BytesMut};
use hyphae_wire::frame::{LINK_HEADER_LEN, OVERHEAD, PAYLOAD_MAX};

/// Bytes before each frame.
pub(crate) const PREFIX_LEN: usize = size_of::<u16>();
/// Largest frame: what also fits a datagram, so that a relay can pass it on either way.
pub(crate) const FRAME_MAX: usize = PAYLOAD_MAX + OVERHEAD;

/// Sane lengths.
const LENGTHS: RangeInclusive<usize> = LINK_HEADER_LEN..=FRAME_MAX;
/// Codes that a frame can begin with, those of later versions included. Noticing at once that the
/// other end speaks another protocol is all that this is for; workers check frames themselves.
const KINDS: RangeInclusive<u8> = 1..=15;

/// What came is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Takes the whole frames at the front of `buffer`, in order. What remains is the beginning of the
/// next. Returns how many there were.
pub(crate) fn take_frames(
    buffer: &mut BytesMut,
    mut each: impl FnMut(&[u8]),
) -> Result<u64, Malformed> {
    let (mut at, mut taken) = (0, 0);
    let result = loop {
        let Some((prefix, rest)) = buffer[at..].split_first_chunk() else {
            break Ok(());
        };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if !LENGTHS.contains(&len) || rest.first().is_some_and(|kind| !KINDS.contains(kind)) {
            break Err(Malformed);
        }
        let Some(frame) = rest.get(..len) else {
            break Ok(());
        };
        each(frame);
        at += PREFIX_LEN + len;
        taken += 1;
    };
    buffer.advance(at);
    result.map(|()| taken)
}

/// Adds a frame to what is to be written; false when it has a length that no frame has.
pub(crate) fn append(buffer: &mut BytesMut, frame: &[u8]) -> bool {
    let Ok(len) = u16::try_from(frame.len()) else {
        return false;
    };
    if !LENGTHS.contains(&frame.len()) {
        return false;
    }
    buffer.put_u16(len);
    buffer.put_slice(frame);
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![0x5a; len];
        frame[0] = kind;
        frame
    }

    fn drain(buffer: &mut BytesMut) -> Result<Vec<Vec<u8>>, Malformed> {
        let mut frames = Vec::new();
        take_frames(buffer, |frame| frames.push(frame.to_vec()))?;
        Ok(frames)
    }

    #[test]
    fn the_length_is_big_endian_and_does_not_count_itself() {
        let mut buffer = BytesMut::new();
        assert!(append(&mut buffer, &frame(1, 0x102)));
        assert_eq!(&buffer[..3], &[1, 2, 1]);
        assert_eq!(buffer.len(), 2 + 0x102);
    }

    #[test]
    fn lengths_that_no_frame_has_are_refused_both_ways() {
        for len in [0, LINK_HEADER_LEN - 1, FRAME_MAX + 1, usize::from(u16::MAX)] {
            let mut buffer = BytesMut::new();
            assert!(!append(&mut buffer, &vec![1; len]), "{len}");
            assert!(buffer.is_empty());
            buffer.put_u16(u16::try_from(len).unwrap());
            assert_eq!(drain(&mut buffer), Err(Malformed), "{len}");
        }
        assert!(!append(&mut BytesMut::new(), &vec![1; 1 << 16]));
    }

    #[test]
    fn another_protocol_is_noticed_with_its_third_byte() {
        for greeting in ["GET / HTTP/1.1\r\n", "SSH-2.0-x\r\n"] {
            let mut buffer = BytesMut::from(&greeting.as_bytes()[..3]);
            assert_eq!(drain(&mut buffer), Err(Malformed), "{greeting:?}");
        }
    }

    #[test]
    fn frames_before_garbage_are_taken() {
        let mut buffer = BytesMut::new();
        append(&mut buffer, &frame(3, 40));
        buffer.put_slice(&[0, 1, 2]);
        let mut taken = 0;
        assert_eq!(take_frames(&mut buffer, |_| taken += 1), Err(Malformed));
        assert_eq!(taken, 1);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            lens in prop::collection::vec((1u8..8, LINK_HEADER_LEN..3000), 1..12),
            cuts in prop::collection::vec(1usize..700, 1..64),
        ) {
            let sent: Vec<_> = lens.iter().map(|(kind, len)| frame(*kind, *len)).collect();
            let mut stream = BytesMut::new();
            for frame in &sent {
                prop_assert!(append(&mut stream, frame));
            }
            let (mut received, mut buffer) = (Vec::new(), BytesMut::new());
            for cut in cuts.iter().cycle() {
                if stream.is_empty() {
                    break;
                }
                let part = stream.split_to((*cut).min(stream.len()));
                buffer.put_slice(&part);
                received.extend(drain(&mut buffer).unwrap());
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(received, sent);
        }

        #[test]
        fn anything_else_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let before = buffer.len();
            let mut taken = 0;
            let _ = take_frames(&mut buffer, |frame| taken += frame.len() + PREFIX_LEN);
            prop_assert_eq!(buffer.len() + taken, before);
        }
    }
}

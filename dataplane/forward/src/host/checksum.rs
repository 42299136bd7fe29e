//! The Internet checksum (RFC 1071): partial sums, and the sum of the pseudo-header (RFC 8200,
//! section 8.1). Sums here are folded but not complemented, as a partial checksum field holds them.

use zerocopy::IntoBytes;

use super::packet::Ipv6Header;

/// Sum of `bytes` as 16-bit big-endian words; an odd last byte counts as a word's first.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    // Words of 32 bits give the same folded sum as words of 16, because 2^16 is 1 modulo 2^16 - 1.
    let mut sum: u64 = words
        .by_ref()
        .map(|w| u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]])))
        .sum();
    let mut last = [0; 4];
    let rest = words.remainder();
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    sum
}

fn fold(mut sum: u64) -> u16 {
    loop {
        match u16::try_from(sum) {
            Ok(folded) => return folded,
            Err(_) => sum = (sum >> 16) + (sum & 0xffff),
        }
    }
}

/// Sum of the pseudo-header of a transport segment of `len` bytes, its header included.
pub(super) fn pseudo_header(header: &Ipv6Header, protocol: u8, len: u16) -> u16 {
    let addresses = sum(header.source.as_bytes()) + sum(header.destination.as_bytes());
    fold(addresses + u64::from(protocol) + u64::from(len))
}

/// A partial sum with `word` added.
pub(super) fn add(partial: u16, word: u16) -> u16 {
    fold(u64::from(partial) + u64::from(word))
}

/// A partial sum with `word` taken out.
pub(super) fn subtract(partial: u16, word: u16) -> u16 {
    add(partial, !word)
}

/// Completes a partial checksum at `at`, over everything from `start` on. Both lie inside, as the
/// caller has checked.
pub(super) fn complete(packet: &mut [u8], start: usize, at: usize) {
    let checksum = match !fold(sum(&packet[start..])) {
        // To UDP, zero says that there is no checksum; the two zeros of ones' complement are equal.
        0 => 0xffff,
        checksum => checksum,
    };
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_that_of_the_example_in_rfc_1071() {
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
            0xddf2
        );
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2])), 0xf201);
        assert_eq!(fold(sum(&[0xff; 65_535])), 0xff00);
    }

    #[test]
    fn what_is_taken_out_can_be_added_again() {
        for (sum, word) in [(0x1234, 0xffff), (0xffff, 0x1234), (1, 2), (0xfffe, 0xfffe)] {
            assert_eq!(add(subtract(sum, word), word), sum);
        }
    }

    #[test]
    fn completed_checksum_is_never_zero() {
        let mut packet = [0xed, 0xcb, 0x12, 0x34];
        complete(&mut packet, 0, 2);
        assert_eq!(packet, [0xed, 0xcb, 0xff, 0xff]);
    }
}

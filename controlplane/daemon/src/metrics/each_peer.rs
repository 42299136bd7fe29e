//! The families of single peers.
//!
//! Of many thousand peers, what the engines know is copied as it is, in one pass of the control plane's
//! thread; that neither sorts nor makes text. The rest is done elsewhere: choosing those that may have
//! families, reading their traffic from the segment, writing. A recorder is not used: it makes an
//! entry of its own for each series and sorts them again, which takes far longer than writing them.

use std::collections::BTreeSet;
use std::io::Write;

use hyphae_wire::PublicKey;

use super::families::{self, Family};
use crate::node::snapshot::{PeerLocation, PeerSnapshot};

/// Digits of a key by which the families name it: 64 bits are short, and nobody else's.
const SHORT: usize = 16;
/// Bytes of text that a peer takes, roughly.
const TEXT: usize = 640;

/// Bytes received from and sent to a peer.
pub(crate) type Traffic = [u64; 2];

/// Writes the families of `peers_max` of the peers: others only where those that are up leave room.
pub(crate) fn render(
    peers: &mut Vec<PeerSnapshot>,
    peers_max: usize,
    traffic: impl Fn(u32) -> Traffic,
    text: &mut Vec<u8>,
) {
    // Two entries with one key, neither connected, are one peer.
    let mut looked_for = BTreeSet::new();
    peers.retain(|peer| peer.number.is_some() || looked_for.insert(peer.key));
    let left_out = peers.len().saturating_sub(peers_max);
    if left_out > 0 {
        peers.select_nth_unstable_by_key(peers_max, |peer| (!peer.alive, peer.key));
        peers.truncate(peers_max);
    }
    text.reserve(peers.len() * TEXT);
    let lines: Vec<Line<'_>> = peers
        .iter()
        .map(|peer| Line {
            short: short(&peer.key),
            traffic: peer.number.map_or([0; 2], &traffic),
            peer,
        })
        .collect();
    for family in families::PEERS {
        let Family { name, help, .. } = family;
        head(text, family.kind.name(), name, help);
        match *name {
            "hyphae_peer_info" => lines.iter().for_each(|line| line.info(name, text)),
            "hyphae_peer_alive" => series(text, name, &lines, |text, line| {
                decimal(text, u64::from(line.peer.alive));
            }),
            "hyphae_peer_rtt_seconds" => {
                let known = lines.iter().filter_map(|line| Some((line, line.peer.rtt?)));
                for (line, rtt) in known {
                    line.start(name, text);
                    let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                    fraction::<6>(text, micros);
                    text.push(b'\n');
                }
            }
            "hyphae_peer_loss_ratio" => {
                let known = lines.iter();
                for (line, loss) in known.filter_map(|l| Some((l, l.peer.loss_permille?))) {
                    line.start(name, text);
                    fraction::<3>(text, loss.into());
                    text.push(b'\n');
                }
            }
            "hyphae_peer_receive_bytes_total" => {
                series(text, name, &lines, |text, line| {
                    decimal(text, line.traffic[0])
                });
            }
            "hyphae_peer_transmit_bytes_total" => {
                series(text, name, &lines, |text, line| {
                    decimal(text, line.traffic[1])
                });
            }
            // Of all of them; the last, and a test knows that there is no other.
            _ => {
                text.extend_from_slice(name.as_bytes());
                text.push(b' ');
                decimal(text, u64::try_from(left_out).unwrap_or(u64::MAX));
                text.push(b'\n');
            }
        }
    }
}

/// A peer while its lines are written.
struct Line<'a> {
    short: [u8; SHORT],
    traffic: Traffic,
    peer: &'a PeerSnapshot,
}

impl Line<'_> {
    /// `name{peer="short"} `
    fn start(&self, name: &str, text: &mut Vec<u8>) {
        self.labels(name, text);
        text.extend_from_slice(b"\"} ");
    }

    /// `name{peer="short`
    fn labels(&self, name: &str, text: &mut Vec<u8>) {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"{peer=\"");
        text.extend_from_slice(&self.short);
    }

    fn info(&self, name: &str, text: &mut Vec<u8>) {
        let peer = self.peer;
        self.labels(name, text);
        // Writing into memory does not fail.
        let _ = write!(text, "\",key=\"{}\",name=\"", peer.key);
        escape(text, peer.name.as_deref().unwrap_or_default());
        text.extend_from_slice(b"\",endpoint=\"");
        match &peer.location {
            PeerLocation::Endpoint(endpoint) => {
                let _ = write!(text, "{}", endpoint.to_socket_addr());
            }
            PeerLocation::Name(name) => escape(text, name),
        }
        text.extend_from_slice(b"\",type=\"");
        text.extend_from_slice(peer.kind.as_bytes());
        text.extend_from_slice(b"\"} 1\n");
    }
}

fn head(text: &mut Vec<u8>, kind: &str, name: &str, help: &str) {
    // Writing into memory does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A line per peer.
fn series(
    text: &mut Vec<u8>,
    name: &str,
    lines: &[Line<'_>],
    value: impl Fn(&mut Vec<u8>, &Line<'_>),
) {
    for line in lines {
        line.start(name, text);
        value(text, line);
        text.push(b'\n');
    }
}

fn short(key: &PublicKey) -> [u8; SHORT] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; SHORT];
    for (digits, byte) in text.chunks_exact_mut(2).zip(key.0) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// A whole number: what formatting does is a good part of the time that ten thousand take.
fn decimal(text: &mut Vec<u8>, mut value: u64) {
    let (mut digits, mut at) = ([0; 20], 20);
    loop {
        at -= 1;
        digits[at] = digit(value % 10);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

/// A number of which the last `DIGITS` digits stand behind the point.
fn fraction<const DIGITS: usize>(text: &mut Vec<u8>, value: u64) {
    let mut rest = value;
    let mut digits = [0; DIGITS];
    for place in digits.iter_mut().rev() {
        *place = digit(rest % 10);
        rest /= 10;
    }
    decimal(text, rest);
    let significant = digits.iter().rposition(|digit| *digit != b'0');
    if let Some(last) = significant {
        text.push(b'.');
        text.extend_from_slice(&digits[..=last]);
    }
}

fn digit(value: u64) -> u8 {
    // Below ten.
    b'0' + u8::try_from(value).unwrap_or(0)
}

/// A label's value in the text format.
fn escape(text: &mut Vec<u8>, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'\\' => text.extend_from_slice(b"\\\\"),
            b'"' => text.extend_from_slice(b"\\\""),
            b'\n' => text.extend_from_slice(b"\\n"),
            byte => text.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut text = Vec::new();
        write(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn numbers_are_written_as_formatting_does() {
        for value in [0, 7, 10, 1_000_000, 1_500, 999_999, u64::MAX] {
            assert_eq!(written(|text| decimal(text, value)), value.to_string());
            if value < 1 << 50 {
                let seconds = value as f64 / 1e6;
                assert_eq!(
                    written(|text| fraction::<6>(text, value)),
                    seconds.to_string()
                );
            }
        }
        assert_eq!(written(|text| fraction::<3>(text, 25)), "0.025");
        assert_eq!(written(|text| fraction::<3>(text, 1000)), "1");
    }
}

//! The families of single peers.
//!
//! The engine thread copies the state of all peers in one pass, without sorting or rendering. A blocking thread
//! selects the peers that have families, reads their traffic from the segment and renders the text. A recorder is not
//! used: it makes and sorts an entry per series, which takes far longer than rendering.

use std::collections::BTreeSet;
use std::io::Write;

use hyphae_wire::PublicKey;

use super::family::{Head, Kind};
use hyphae_node::snapshot::{PeerLocation, PeerSnapshot};

/// Hex digits of a key in labels: 64 bits are short and unique.
const SHORT: usize = 16;
/// Bytes of text per peer, roughly.
const TEXT: usize = 640;

/// Bytes received from and sent to a peer.
pub(crate) type Traffic = [u64; 2];

/// A family that has at most one series of each peer, and the function that writes it.
pub(super) struct PeerFamily {
    pub(super) head: Head,
    value: fn(&Line<'_>, &str, &mut Vec<u8>),
}

const fn family(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    value: fn(&Line<'_>, &str, &mut Vec<u8>),
) -> PeerFamily {
    let head = Head {
        name,
        kind,
        labels,
        help,
    };
    PeerFamily { head, value }
}

/// Families of each peer, where `metrics_peers_max` allows it.
pub(super) const FAMILIES: &[PeerFamily] = &[
    family(
        Kind::Gauge,
        "hyphae_peer_info",
        &["peer", "key", "name", "endpoint", "type"],
        "Always 1; maps the short name `peer` of the other families to the properties of the peer",
        |line, name, text| line.info(name, text),
    ),
    family(
        Kind::Gauge,
        "hyphae_peer_alive",
        &["peer"],
        "1 while the peer is up",
        |line, name, text| line.whole(name, u64::from(line.peer.alive), text),
    ),
    family(
        Kind::Gauge,
        "hyphae_peer_rtt_seconds",
        &["peer"],
        "Smoothed round-trip time",
        |line, name, text| {
            if let Some(rtt) = line.peer.rtt {
                let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                line.fraction::<6>(name, micros, text);
            }
        },
    ),
    family(
        Kind::Gauge,
        "hyphae_peer_loss_ratio",
        &["peer"],
        "Share of recent probes without an answer",
        |line, name, text| {
            if let Some(loss) = line.peer.loss_permille {
                line.fraction::<3>(name, loss.into(), text);
            }
        },
    ),
    family(
        Kind::Counter,
        "hyphae_peer_receive_bytes_total",
        &["peer"],
        "Bytes of frames received from the peer",
        |line, name, text| line.whole(name, line.traffic[0], text),
    ),
    family(
        Kind::Counter,
        "hyphae_peer_transmit_bytes_total",
        &["peer"],
        "Bytes of frames sent to the peer",
        |line, name, text| line.whole(name, line.traffic[1], text),
    ),
];

/// The family of peers without families.
pub(super) const LEFT_OUT: Head = Head {
    name: "hyphae_peers_left_out",
    kind: Kind::Gauge,
    labels: &[],
    help: "Peers that have no families of their own because metrics_peers_max is reached",
};

/// Writes the families of `peers_max` peers, those that are up first.
pub(crate) fn render(
    peers: &mut Vec<PeerSnapshot>,
    peers_max: usize,
    traffic: impl Fn(u32) -> Traffic,
    text: &mut Vec<u8>,
) {
    // Two entries with one key, neither connected, are one peer.
    let mut unconnected = BTreeSet::new();
    peers.retain(|peer| peer.number.is_some() || unconnected.insert(peer.key));
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
    for PeerFamily { head, value } in FAMILIES {
        start(text, head);
        for line in &lines {
            value(line, head.name, text);
        }
    }
    start(text, &LEFT_OUT);
    text.extend_from_slice(LEFT_OUT.name.as_bytes());
    text.push(b' ');
    decimal(text, u64::try_from(left_out).unwrap_or(u64::MAX));
    text.push(b'\n');
}

/// A peer while its lines are written.
pub(super) struct Line<'a> {
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

    /// A line with an integer.
    fn whole(&self, name: &str, value: u64, text: &mut Vec<u8>) {
        self.start(name, text);
        decimal(text, value);
        text.push(b'\n');
    }

    /// A line with a number of `DIGITS` decimal places.
    fn fraction<const DIGITS: usize>(&self, name: &str, value: u64, text: &mut Vec<u8>) {
        self.start(name, text);
        fraction::<DIGITS>(text, value);
        text.push(b'\n');
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

fn start(text: &mut Vec<u8>, head: &Head) {
    let Head { name, help, .. } = head;
    // Writing into memory does not fail.
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} {}",
        head.kind.name()
    );
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

/// An integer. Formatting would take a large part of the time for ten thousand peers.
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

/// A number of `DIGITS` decimal places.
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

//! Packets of the message bus: the payload of a frame of service [`crate::Service::Message`].
//!
//! ```text
//! +------+-------+--------+-------+---------+---------+------+
//! | kind | flags | status | topic | number  | sequence|  id  |   header, 24 bytes
//! |  u8  |  u8   |   u8   | len u8|   u32   |   u64   |  8   |
//! +------+-------+--------+-------+---------+---------+------+
//! open:  + length u32 | chunk length u16 | failure u16 | BLAKE3 32 | topic | chunk 0
//! data:  + chunk `number`
//! ack:   + up to ACK_RANGES_MAX ranges of chunks, first u32 | end u32
//! query, abort: the header alone
//! kept:  + up to KEPT_RANGES_MAX ranges of packets, first u32 | end u32, each counted from `sequence`; of
//!        the first `topic` ranges the messages are kept, of the others they are there
//! read:  + up to READS_MAX ids of messages; `sequence` numbers the receipt
//! read-ack: the header alone, with the `sequence` of the receipt
//!
//! several packets in one frame: kind 8 | for each: length u16 | packet
//! ```
//!
//! A message is cut into chunk 0, as long as what the opening packet has room for, and chunks of one
//! length after it, the last as long as the rest. `sequence` numbers the packets that a node sends to
//! another one; an ack carries that of the packet which it answers. In an ack `number` counts the
//! chunks from the first on that are there without a gap, and the ranges name those beyond. With
//! [`Status::Full`] it is the time in milliseconds after which to try again. Ranges are in order and apart.
//!
//! Most messages are one packet long. What became of those is said for many at once, by the numbers of
//! their packets: those that are received and kept, and those that are there and wait for that. `number`
//! is how many microseconds the last of them has waited for being told of. A *read* names messages by
//! their ids; in both the `id` of the header is zero.
//!
//! A reply has the id of the message that it answers, and [`FLAG_REPLY`] in every packet of either
//! direction that is about it, so that the two are never mistaken for each other.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

/// Bytes of the longest message.
pub const MESSAGE_MAX: usize = 64 << 20;
/// Bytes of the longest topic.
pub const TOPIC_MAX: usize = 255;
/// Bytes of the shortest chunk that a message of several may be cut into.
pub const CHUNK_MIN: usize = 512;
/// Ranges of one ack.
pub const ACK_RANGES_MAX: usize = 64;
/// Ranges of one *kept*.
pub const KEPT_RANGES_MAX: usize = 128;
/// The highest number of a packet or receipt; senders begin below half of it.
pub const SEQUENCE_MAX: u64 = u64::MAX >> 1;
/// Messages of one read receipt.
pub const READS_MAX: usize = 128;
/// [`MessageHeader::flags`]: the packet is about a reply.
pub const FLAG_REPLY: u8 = 1;
/// First byte of a payload that holds several packets, where else the [`MessageKind`] is.
pub const SEVERAL: u8 = 8;
/// Bytes before each of several packets.
pub const SEVERAL_EACH: usize = 2;
/// Bytes of a [`MessageHeader`].
pub const MESSAGE_HEADER_LEN: usize = size_of::<MessageHeader>();
/// Bytes before the topic in an opening packet.
pub const OPEN_HEADER_LEN: usize = MESSAGE_HEADER_LEN + size_of::<OpenBody>();
const _: () = assert!(MESSAGE_HEADER_LEN == 24 && OPEN_HEADER_LEN == 64);
const _: () = assert!(size_of::<AckRange>() == 8);

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Start of a message; all of it when it is short.
    Open,
    /// A later chunk.
    Data,
    /// What the receiver has of a message, or what became of it.
    Ack,
    /// Please acknowledge what you have.
    Query,
    /// These messages have been read.
    Read,
    /// The other end knows that they have been read.
    ReadAck,
    /// The sender has given up.
    Abort,
    /// The messages in these packets are kept.
    Kept,
}

impl MessageKind {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Data => 2,
            Self::Ack => 3,
            Self::Query => 4,
            Self::Read => 5,
            Self::ReadAck => 6,
            Self::Abort => 7,
            // 8 is SEVERAL.
            Self::Kept => 9,
        }
    }

    /// The kind of a code, if it is known.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Open,
            2 => Self::Data,
            3 => Self::Ack,
            4 => Self::Query,
            5 => Self::Read,
            6 => Self::ReadAck,
            7 => Self::Abort,
            9 => Self::Kept,
            _ => return None,
        })
    }
}

/// What an ack says about its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// These chunks are there.
    Progress,
    /// All of it is there and kept.
    Received,
    /// The topic is closed to this sender.
    Forbidden,
    /// It is a reply to something that was not asked, or not of this node.
    Unasked,
    /// It contradicts the protocol, or its digest is wrong.
    Malformed,
    /// There is no room: try again later.
    Full,
    /// Nothing is known about the message: start over.
    Unknown,
    /// There is room again: try now.
    Resume,
    /// A reply that came after its deadline.
    Late,
}

impl Status {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Progress => 0,
            Self::Received => 1,
            Self::Forbidden => 2,
            Self::Unasked => 3,
            Self::Malformed => 4,
            Self::Full => 5,
            Self::Unknown => 6,
            Self::Resume => 7,
            Self::Late => 8,
        }
    }

    /// The status of a code, if it is known.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Progress,
            1 => Self::Received,
            2 => Self::Forbidden,
            3 => Self::Unasked,
            4 => Self::Malformed,
            5 => Self::Full,
            6 => Self::Unknown,
            7 => Self::Resume,
            8 => Self::Late,
            _ => return None,
        })
    }
}

/// Why a reply has no content: what became of the request at the receiver. A code of the bus, so that nothing
/// which a server says can be mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyFailure {
    /// Nobody serves the topic's socket, or who does closed, crashed, or sent what is no answer.
    Unanswered,
    /// No answer within the time that the receiver gives its server.
    Late,
    /// The answer is longer than a message.
    TooLarge,
}

impl ReplyFailure {
    /// Code on the wire; zero is a reply like others.
    pub const fn code(self) -> u16 {
        match self {
            Self::Unanswered => 1,
            Self::Late => 2,
            Self::TooLarge => 3,
        }
    }

    /// The failure of a code; one that is not known is no answer either.
    pub const fn from_code(code: u16) -> Option<Self> {
        match code {
            0 => None,
            2 => Some(Self::Late),
            3 => Some(Self::TooLarge),
            _ => Some(Self::Unanswered),
        }
    }
}

/// Start of every packet.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MessageHeader {
    /// [`MessageKind`] code.
    pub kind: u8,
    /// [`FLAG_REPLY`]; other bits are zero, and receivers ignore them.
    pub flags: u8,
    /// [`Status`] code in an ack, else zero.
    pub status: u8,
    /// Bytes of the topic in an opening packet, ranges of messages that are kept in a *kept*, else zero.
    pub topic_len: u8,
    /// Number of the chunk, what an ack counts, or microseconds.
    pub number: U32,
    /// Number of the packet, of the one that an ack answers, of the first that is kept, or of a receipt.
    pub sequence: U64,
    /// The message; zero where it is not about one.
    pub id: [u8; 8],
}

/// What follows the header of an opening packet.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OpenBody {
    /// Bytes of the message.
    pub len: U32,
    /// Bytes of each chunk after the first but the last.
    pub chunk_len: U16,
    /// [`ReplyFailure`] code in a reply, else zero, and receivers ignore it.
    pub failure: U16,
    /// BLAKE3 of the message.
    pub digest: [u8; 32],
}

/// Chunks or packets `first..end` are there.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AckRange {
    /// The first of them.
    pub first: U32,
    /// The one after the last.
    pub end: U32,
}

/// How a message is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the message.
    pub len: usize,
    /// Bytes of chunk 0.
    pub first: usize,
    /// Bytes of each later one but the last.
    pub chunk: usize,
}

impl Cut {
    /// Number of chunks; chunk 0 is there even when it is empty.
    pub fn count(&self) -> u32 {
        let later = (self.len - self.first).div_ceil(self.chunk);
        // A message is at most 64 MiB.
        u32::try_from(later + 1).unwrap_or(u32::MAX)
    }

    /// Where a chunk lies in the message; `None` beyond the last.
    pub fn range(&self, number: u32) -> Option<std::ops::Range<usize>> {
        let Some(later) = number.checked_sub(1) else {
            return Some(0..self.first);
        };
        let start = usize::try_from(later).ok()?.checked_mul(self.chunk)?;
        let start = start.checked_add(self.first).filter(|at| *at < self.len)?;
        Some(start..(start + self.chunk).min(self.len))
    }
}

/// A packet, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The message; zero where it is not about one.
    pub id: [u8; 8],
    /// It is about a reply.
    pub reply: bool,
    /// Number of the packet, of that which an ack answers, of the first one that is kept, or of a receipt.
    pub sequence: u64,
    /// The rest.
    pub body: Body<'a>,
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Start of a message.
    Open {
        /// How it is cut.
        cut: Cut,
        /// BLAKE3 of all of it.
        digest: &'a [u8; 32],
        /// Its topic.
        topic: &'a [u8],
        /// It is a reply without content, for this reason.
        failure: Option<ReplyFailure>,
        /// Chunk 0.
        data: &'a [u8],
    },
    /// A later chunk.
    Data {
        /// Its number, at least 1.
        number: u32,
        /// Its bytes.
        data: &'a [u8],
    },
    /// What the receiver says.
    Ack {
        /// About the message.
        status: Status,
        /// Chunks there without a gap, or milliseconds.
        number: u32,
        /// Chunks beyond.
        ranges: &'a [AckRange],
    },
    /// Please acknowledge.
    Query,
    /// These have been read.
    Read {
        /// Their ids, at least one.
        ids: &'a [[u8; 8]],
    },
    /// That is known.
    ReadAck,
    /// The sender has given up.
    Abort,
    /// What became of messages of one packet each: their packets, counted from `sequence`.
    Kept {
        /// Microseconds that the last of them has waited for being told of.
        waited: u32,
        /// Those that are received and kept.
        kept: &'a [AckRange],
        /// Those that are there, and wait for that.
        there: &'a [AckRange],
    },
}

/// The packets of a payload: itself, or each of several. Ends with `None` where a length contradicts
/// the rest.
pub fn packets(payload: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let (mut one, mut rest) = match payload.split_first() {
        Some((&SEVERAL, rest)) if !rest.is_empty() => (None, rest),
        Some(_) | None => (Some(payload), &[][..]),
    };
    std::iter::from_fn(move || {
        if let Some(one) = one.take() {
            return Some(Some(one));
        }
        if rest.is_empty() {
            return None;
        }
        let split = rest
            .split_first_chunk()
            .and_then(|(len, after)| after.split_at_checked(u16::from_le_bytes(*len).into()));
        rest = split.map_or(&[], |(_, rest)| rest);
        Some(split.map(|(packet, _)| packet))
    })
}

/// Puts a packet behind others in one payload, if all of it then has at most `most` bytes.
pub fn append(payload: &mut Vec<u8>, packet: &[u8], most: usize) -> bool {
    let Ok(len) = u16::try_from(packet.len()) else {
        return false;
    };
    let alone = payload.first().is_some_and(|kind| *kind != SEVERAL);
    let grown = payload.len() + SEVERAL_EACH + packet.len();
    if grown + usize::from(alone) * (1 + SEVERAL_EACH) > most {
        return false;
    }
    if alone {
        // It was at most a frame long.
        let first = u16::try_from(payload.len())
            .unwrap_or(u16::MAX)
            .to_le_bytes();
        payload.splice(..0, [SEVERAL, first[0], first[1]]);
    }
    payload.extend_from_slice(&len.to_le_bytes());
    payload.extend_from_slice(packet);
    true
}

/// Reads a packet; `None` when it contradicts the format.
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, rest) = Ref::<_, MessageHeader>::from_prefix(bytes).ok()?;
    let header = Ref::into_ref(header);
    let number = header.number.get();
    let alone = |body| rest.is_empty().then_some(body);
    let body = match MessageKind::from_code(header.kind)? {
        MessageKind::Open => parse_open(header, rest)?,
        MessageKind::Data if number > 0 && !rest.is_empty() => Body::Data { number, data: rest },
        MessageKind::Data => return None,
        MessageKind::Ack => Body::Ack {
            status: Status::from_code(header.status)?,
            number,
            ranges: parse_ranges(rest)?,
        },
        MessageKind::Query => alone(Body::Query)?,
        MessageKind::Read => {
            let ids = <[[u8; 8]]>::ref_from_bytes(rest).ok()?;
            let ids = Some(ids).filter(|ids| (1..=READS_MAX).contains(&ids.len()))?;
            Body::Read { ids }
        }
        MessageKind::ReadAck => alone(Body::ReadAck)?,
        MessageKind::Abort => alone(Body::Abort)?,
        MessageKind::Kept => {
            let ranges = <[AckRange]>::ref_from_bytes(rest).ok()?;
            let fits = (1..=KEPT_RANGES_MAX).contains(&ranges.len());
            let ranges = Some(ranges).filter(|_| fits)?;
            let (kept, there) = ranges.split_at_checked(header.topic_len.into())?;
            if !are_apart(kept) || !are_apart(there) {
                return None;
            }
            Body::Kept {
                waited: number,
                kept,
                there,
            }
        }
    };
    // So that whoever counts on from it does not overflow.
    let sequence = Some(header.sequence.get()).filter(|number| *number <= SEQUENCE_MAX)?;
    Some(Packet {
        id: header.id,
        reply: header.flags & FLAG_REPLY != 0,
        sequence,
        body,
    })
}

fn parse_ranges(bytes: &[u8]) -> Option<&[AckRange]> {
    let ranges = <[AckRange]>::ref_from_bytes(bytes).ok()?;
    Some(ranges).filter(|ranges| ranges.len() <= ACK_RANGES_MAX && are_apart(ranges))
}

/// Whether ranges are in order and apart: then nobody has to look at a packet twice, whoever wrote them.
fn are_apart(ranges: &[AckRange]) -> bool {
    let mut end = 0;
    ranges.iter().all(|range| {
        let before = std::mem::replace(&mut end, range.end.get());
        before <= range.first.get() && range.first < range.end
    })
}

fn parse_open<'a>(header: &MessageHeader, rest: &'a [u8]) -> Option<Body<'a>> {
    let (open, rest) = Ref::<_, OpenBody>::from_prefix(rest).ok()?;
    let open = Ref::into_ref(open);
    let (topic, data) = rest.split_at_checked(header.topic_len.into())?;
    let cut = Cut {
        len: usize::try_from(open.len.get()).ok()?,
        first: data.len(),
        chunk: usize::from(open.chunk_len.get()),
    };
    let fits = cut.len <= MESSAGE_MAX && cut.first <= cut.len && cut.chunk >= CHUNK_MIN;
    let is_reply = header.flags & FLAG_REPLY != 0;
    fits.then_some(Body::Open {
        cut,
        digest: &open.digest,
        topic,
        failure: ReplyFailure::from_code(open.failure.get()).filter(|_| is_reply),
        data,
    })
}

impl Packet<'_> {
    /// The bytes of the packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    /// Puts the packet behind what is there.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        let mut header = MessageHeader {
            kind: MessageKind::Query.code(),
            flags: if self.reply { FLAG_REPLY } else { 0 },
            status: 0,
            topic_len: 0,
            number: U32::ZERO,
            sequence: U64::new(self.sequence),
            id: self.id,
        };
        let mut open = None;
        let (kind, parts): (_, [&[u8]; 2]) = match &self.body {
            Body::Open {
                cut,
                digest,
                topic,
                failure,
                data,
            } => {
                // A topic has at most 255 bytes, a message at most 64 MiB, a chunk fits a frame.
                header.topic_len = u8::try_from(topic.len()).unwrap_or(u8::MAX);
                open = Some(OpenBody {
                    len: U32::new(u32::try_from(cut.len).unwrap_or(u32::MAX)),
                    chunk_len: U16::new(u16::try_from(cut.chunk).unwrap_or(u16::MAX)),
                    failure: U16::new(failure.map_or(0, ReplyFailure::code)),
                    digest: **digest,
                });
                (MessageKind::Open, [topic, data])
            }
            Body::Data { number, data } => {
                header.number = U32::new(*number);
                (MessageKind::Data, [data, &[]])
            }
            Body::Ack {
                status,
                number,
                ranges,
            } => {
                header.status = status.code();
                header.number = U32::new(*number);
                (MessageKind::Ack, [ranges.as_bytes(), &[]])
            }
            Body::Query => (MessageKind::Query, [&[], &[]]),
            Body::Read { ids } => (MessageKind::Read, [ids.as_bytes(), &[]]),
            Body::ReadAck => (MessageKind::ReadAck, [&[], &[]]),
            Body::Abort => (MessageKind::Abort, [&[], &[]]),
            Body::Kept {
                waited,
                kept,
                there,
            } => {
                header.number = U32::new(*waited);
                header.topic_len = u8::try_from(kept.len()).unwrap_or(u8::MAX);
                (MessageKind::Kept, [kept.as_bytes(), there.as_bytes()])
            }
        };
        header.kind = kind.code();
        let len = OPEN_HEADER_LEN + parts[0].len() + parts[1].len();
        bytes.reserve(len);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(open.as_ref().map_or(&[], |open| open.as_bytes()));
        bytes.extend_from_slice(parts[0]);
        bytes.extend_from_slice(parts[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_packets_share_a_payload_and_come_out_again() {
        let packet = |n: u8, len: usize| [vec![1], vec![n; len]].concat();
        let all = [packet(1, 23), packet(2, 100), packet(3, 40)];
        let mut payload = all[0].clone();
        assert_eq!(packets(&payload).collect::<Vec<_>>(), [Some(&all[0][..])]);
        assert!(append(&mut payload, &all[1], 200));
        assert_eq!(payload.len(), 1 + 2 + 24 + 2 + 101);
        assert!(append(&mut payload, &all[2], 173));
        assert!(!append(&mut payload, &all[2], 215), "43 more are 216");
        let found: Vec<_> = packets(&payload).collect();
        assert_eq!(found, all.iter().map(|p| Some(&p[..])).collect::<Vec<_>>());
        // Cut anywhere, nothing but whole packets comes out.
        for len in 2..payload.len() {
            let whole: Vec<_> = packets(&payload[..len]).flatten().collect();
            assert!(whole.iter().zip(&all).all(|(found, sent)| found == sent));
            assert!(whole.len() < 3);
        }
        assert_eq!(parse(&payload), None, "several are not one");
    }

    #[test]
    fn every_size_class_is_cut_into_chunks_that_cover_it() {
        for len in 0..8 * CHUNK_MIN {
            for first in [0, 1, 300, 511, 512, 900] {
                let cut = Cut {
                    len,
                    first: first.min(len),
                    chunk: CHUNK_MIN,
                };
                let mut at = 0;
                for number in 0..cut.count() {
                    let range = cut.range(number).unwrap();
                    assert_eq!(range.start, at);
                    assert!(number == 0 || !range.is_empty());
                    at = range.end;
                }
                assert_eq!(at, len);
                assert_eq!(cut.range(cut.count()), None);
            }
        }
    }
}

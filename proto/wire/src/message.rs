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
//! batch ack: + up to BATCH_ACK_RANGES_MAX ranges of packets, first u32 | end u32, relative to `sequence`; the
//!        messages of the first `topic` ranges are stored, those of the others received
//! read:  + up to READS_MAX ids of messages; `sequence` numbers the receipt
//! read-ack: the header alone, with the `sequence` of the receipt
//!
//! bundle, several packets in one frame: kind 8 | for each: length u16 | packet
//! ```
//!
//! A message consists of chunk 0, which fills the opening packet, and chunks of equal length, of which the last
//! may be shorter. `sequence` numbers the packets that a node sends to one peer; an ack carries the number of the
//! packet that it acknowledges. In an ack, `number` counts the chunks received without a gap, and the ranges name
//! the chunks beyond it. With [`Status::Full`], `number` is the retry delay in milliseconds. Ranges are sorted
//! and disjoint.
//!
//! Most messages are one packet long. A batch ack acknowledges many of them at once by the numbers of their
//! packets: messages that are stored, and messages that are received and await a verdict. `number` is the ack
//! delay of the newest of them in microseconds. A *read* names messages by their ids. In both, the `id` of the
//! header is zero.
//!
//! A reply has the id of the message that it answers. [`FLAG_REPLY`] is set in every packet of either direction
//! about a reply, which keeps the two apart.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

/// Bytes of the longest message.
pub const MESSAGE_MAX: usize = 64 << 20;
/// Bytes of the longest topic.
pub const TOPIC_MAX: usize = 255;
/// Bytes of the shortest chunk size of a message of several chunks.
pub const CHUNK_MIN: usize = 512;
/// Ranges of one ack.
pub const ACK_RANGES_MAX: usize = 64;
/// Ranges of one batch ack.
pub const BATCH_ACK_RANGES_MAX: usize = 128;
/// The highest number of a packet or receipt; senders begin below half of it.
pub const SEQUENCE_MAX: u64 = u64::MAX >> 1;
/// Messages of one read receipt.
pub const READS_MAX: usize = 128;
/// [`MessageHeader::flags`]: the packet is about a reply.
pub const FLAG_REPLY: u8 = 1;
/// First byte of a bundle, in place of the [`MessageKind`].
pub const BUNDLE: u8 = 8;
/// Bytes before each packet of a bundle.
pub const BUNDLE_ENTRY_LEN: usize = 2;
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
    /// Received chunks of a message, or its verdict.
    Ack,
    /// Request for an ack.
    Query,
    /// Read receipt of several messages.
    Read,
    /// Acknowledgement of a read receipt.
    ReadAck,
    /// The sender has given up.
    Abort,
    /// Acknowledgement of several messages of one packet each.
    BatchAck,
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
            // 8 is BUNDLE.
            Self::BatchAck => 9,
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
            9 => Self::BatchAck,
            _ => return None,
        })
    }
}

/// State of a message at its receiver, as an ack reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Incomplete; the ack names the received chunks.
    Progress,
    /// Complete and stored.
    Received,
    /// The topic is closed to this sender.
    Forbidden,
    /// An unsolicited reply.
    Unasked,
    /// Protocol violation or digest mismatch.
    Malformed,
    /// Back-pressure: retry later.
    Full,
    /// No state for the message: start over.
    Unknown,
    /// Back-pressure has ended: retry now.
    Resume,
    /// A reply after its deadline.
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

/// Why a reply has no content: how the request failed at the receiver. A code of the bus, which no payload of a
/// server can imitate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyFailure {
    /// No server listens on the topic's socket, or it closed, crashed, or sent an invalid answer.
    Unanswered,
    /// No answer within the receiver's timeout for its server.
    Late,
    /// The answer exceeds the maximum length of a message.
    TooLarge,
}

impl ReplyFailure {
    /// Code on the wire; zero is a reply with content.
    pub const fn code(self) -> u16 {
        match self {
            Self::Unanswered => 1,
            Self::Late => 2,
            Self::TooLarge => 3,
        }
    }

    /// The failure of a code; unknown codes map to [`Self::Unanswered`].
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
    /// Bytes of the topic in an opening packet, ranges of stored messages in a batch ack, else zero.
    pub topic_len: u8,
    /// Number of the chunk, count of chunks of an ack, or delay in microseconds.
    pub number: U32,
    /// Number of the packet, of the acknowledged packet, of the base of a batch ack, or of a receipt.
    pub sequence: U64,
    /// The message; zero in a batch ack and a read.
    pub id: [u8; 8],
}

/// Fields after the header of an opening packet.
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

/// Received chunks or packets `first..end`.
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

/// How a message is divided into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLayout {
    /// Bytes of the message.
    pub len: usize,
    /// Bytes of chunk 0.
    pub first: usize,
    /// Bytes of each later one but the last.
    pub chunk: usize,
}

impl ChunkLayout {
    /// Number of chunks; an empty message has chunk 0.
    pub fn count(&self) -> u32 {
        let later = (self.len - self.first).div_ceil(self.chunk);
        // A message is at most 64 MiB.
        u32::try_from(later + 1).unwrap_or(u32::MAX)
    }

    /// Byte range of a chunk in the message; `None` beyond the last.
    pub fn range(&self, number: u32) -> Option<std::ops::Range<usize>> {
        let Some(later) = number.checked_sub(1) else {
            return Some(0..self.first);
        };
        let start = usize::try_from(later).ok()?.checked_mul(self.chunk)?;
        let start = start.checked_add(self.first).filter(|at| *at < self.len)?;
        Some(start..(start + self.chunk).min(self.len))
    }
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The message; zero in a batch ack and a read.
    pub id: [u8; 8],
    /// It is about a reply.
    pub reply: bool,
    /// Number of the packet, of the acknowledged packet, of the base of a batch ack, or of a receipt.
    pub sequence: u64,
    /// The rest.
    pub body: Body<'a>,
}

/// Content of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Start of a message.
    Open {
        /// Its chunks.
        layout: ChunkLayout,
        /// BLAKE3 of the message.
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
    /// State of a message at its receiver.
    Ack {
        /// The state.
        status: Status,
        /// Chunks received without a gap, or the retry delay in milliseconds.
        number: u32,
        /// Chunks received beyond the gap.
        ranges: &'a [AckRange],
    },
    /// Request for an ack.
    Query,
    /// Read receipt.
    Read {
        /// Ids of the messages, at least one.
        ids: &'a [[u8; 8]],
    },
    /// Acknowledgement of a read receipt.
    ReadAck,
    /// The sender has given up.
    Abort,
    /// Acknowledgement of messages of one packet each, by packet number relative to `sequence`.
    BatchAck {
        /// Ack delay of the newest of them, microseconds.
        delay_us: u32,
        /// Packets whose messages are stored.
        stored: &'a [AckRange],
        /// Packets whose messages are received and await a verdict.
        received: &'a [AckRange],
    },
}

/// The packets of a payload: the payload itself, or each packet of a bundle. Ends with `None` at an invalid
/// length.
pub fn packets(payload: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let (mut one, mut rest) = match payload.split_first() {
        Some((&BUNDLE, rest)) if !rest.is_empty() => (None, rest),
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

/// Appends a packet to a payload, which becomes a bundle, unless it would exceed `most` bytes.
pub fn append(payload: &mut Vec<u8>, packet: &[u8], most: usize) -> bool {
    let Ok(len) = u16::try_from(packet.len()) else {
        return false;
    };
    let alone = payload.first().is_some_and(|kind| *kind != BUNDLE);
    let grown = payload.len() + BUNDLE_ENTRY_LEN + packet.len();
    if grown + usize::from(alone) * (1 + BUNDLE_ENTRY_LEN) > most {
        return false;
    }
    if alone {
        // A payload fits a frame.
        let first = u16::try_from(payload.len())
            .unwrap_or(u16::MAX)
            .to_le_bytes();
        payload.splice(..0, [BUNDLE, first[0], first[1]]);
    }
    payload.extend_from_slice(&len.to_le_bytes());
    payload.extend_from_slice(packet);
    true
}

/// Parses a packet; `None` when it is malformed.
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
        MessageKind::BatchAck => {
            let ranges = <[AckRange]>::ref_from_bytes(rest).ok()?;
            let fits = (1..=BATCH_ACK_RANGES_MAX).contains(&ranges.len());
            let ranges = Some(ranges).filter(|_| fits)?;
            let (stored, received) = ranges.split_at_checked(header.topic_len.into())?;
            if !are_disjoint(stored) || !are_disjoint(received) {
                return None;
            }
            Body::BatchAck {
                delay_us: number,
                stored,
                received,
            }
        }
    };
    // Counting on from it must not overflow.
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
    Some(ranges).filter(|ranges| ranges.len() <= ACK_RANGES_MAX && are_disjoint(ranges))
}

/// Whether ranges are sorted and disjoint, which bounds the work for a hostile ack.
fn are_disjoint(ranges: &[AckRange]) -> bool {
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
    let layout = ChunkLayout {
        len: usize::try_from(open.len.get()).ok()?,
        first: data.len(),
        chunk: usize::from(open.chunk_len.get()),
    };
    let fits = layout.len <= MESSAGE_MAX && layout.first <= layout.len && layout.chunk >= CHUNK_MIN;
    let is_reply = header.flags & FLAG_REPLY != 0;
    fits.then_some(Body::Open {
        layout,
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

    /// Appends the packet to `bytes`.
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
                layout,
                digest,
                topic,
                failure,
                data,
            } => {
                // A topic has at most 255 bytes, a message at most 64 MiB, a chunk fits a frame.
                header.topic_len = u8::try_from(topic.len()).unwrap_or(u8::MAX);
                open = Some(OpenBody {
                    len: U32::new(u32::try_from(layout.len).unwrap_or(u32::MAX)),
                    chunk_len: U16::new(u16::try_from(layout.chunk).unwrap_or(u16::MAX)),
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
            Body::BatchAck {
                delay_us,
                stored,
                received,
            } => {
                header.number = U32::new(*delay_us);
                header.topic_len = u8::try_from(stored.len()).unwrap_or(u8::MAX);
                (
                    MessageKind::BatchAck,
                    [stored.as_bytes(), received.as_bytes()],
                )
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
    fn a_bundle_returns_the_packets_appended_to_it() {
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
        // Truncated anywhere, it yields whole packets only.
        for len in 2..payload.len() {
            let whole: Vec<_> = packets(&payload[..len]).flatten().collect();
            assert!(whole.iter().zip(&all).all(|(found, sent)| found == sent));
            assert!(whole.len() < 3);
        }
        assert_eq!(parse(&payload), None, "a bundle is not a packet");
    }

    #[test]
    fn chunks_cover_every_message_length() {
        for len in 0..8 * CHUNK_MIN {
            for first in [0, 1, 300, 511, 512, 900] {
                let layout = ChunkLayout {
                    len,
                    first: first.min(len),
                    chunk: CHUNK_MIN,
                };
                let mut at = 0;
                for number in 0..layout.count() {
                    let range = layout.range(number).unwrap();
                    assert_eq!(range.start, at);
                    assert!(number == 0 || !range.is_empty());
                    at = range.end;
                }
                assert_eq!(at, len);
                assert_eq!(layout.range(layout.count()), None);
            }
        }
    }
}

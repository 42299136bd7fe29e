//! Reports of relays to the sender of a frame that could not be forwarded, and fragments of frames that exceed
//! the link MTU.
//!
//! ```text
//! report: payload of a transit frame of Service::Report, not sealed end to end (its trailer is
//! crate::frame::handshake_trailer), session header zero
//! +------+------------+---------+-----------------+-------------------------+-------------------+
//! | code | reserved 3 | mtu u32 | reporter key 32 | original destination 16 | session header 16 |
//! +------+------------+---------+-----------------+-------------------------+-------------------+
//! | original service | reserved | flow hash u16 | reserved 4 |
//! +------------------+----------+---------------+------------+
//!
//! fragment frame
//! +-----------------------------------------------+-----------------------------------+---------+
//! | link header 16, kind Fragment, receiver and   | total u16 | part | zero | zero 4  | bytes   |
//! | counter of the frame that was cut             |           |      |      |         |         |
//! +-----------------------------------------------+-----------------------------------+---------+
//! ```
//!
//! A report is unauthenticated: any node on the path can forge one. The reporter's address is derived from its
//! key.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

use crate::frame::{LINK_HEADER_LEN, OVERHEAD, SessionHeader};
use crate::{OverlayAddress, PublicKey};

/// Smallest MTU of an IPv6 path (RFC 8200, section 5).
pub const INNER_MTU_MIN: u16 = 1280;
/// Frame of a packet of [`INNER_MTU_MIN`] bytes: every link carries it, in two fragments if necessary.
pub const FRAME_MIN_MAX: u16 = 1384;
const _: () = assert!(FRAME_MIN_MAX as usize == INNER_MTU_MIN as usize + OVERHEAD);
/// Bytes of a datagram that every underlay path is expected to carry (RFC 8899, section 5.1.2).
pub const DATAGRAM_BASE: u16 = 1200;

/// Code of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportCode {
    /// No route to the destination, or no neighbour to send it to.
    NoRoute,
    /// Hop limit exceeded.
    HopLimit,
    /// The frame exceeds the MTU of the next link.
    TooBig,
    /// Not an error: a frame of [`crate::Service::Trace`] has reached its destination.
    Reached,
}

impl ReportCode {
    /// Code on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::NoRoute => 1,
            Self::HopLimit => 2,
            Self::TooBig => 3,
            Self::Reached => 4,
        }
    }

    /// The meaning of a code, if it is known.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::NoRoute,
            2 => Self::HopLimit,
            3 => Self::TooBig,
            4 => Self::Reached,
            _ => return None,
        })
    }
}

/// Payload of a transit frame of [`crate::Service::Report`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Report {
    /// [`ReportCode`] code.
    pub code: u8,
    /// Zero; receivers ignore it.
    pub reserved: [u8; 3],
    /// Largest inner packet that the next link carries, bytes; 0 for other codes.
    pub mtu: U32,
    /// Key of the reporting node.
    pub reporter: PublicKey,
    /// Destination of the frame.
    pub destination: OverlayAddress,
    /// Session header of the frame: only nodes that received the frame know index and counter.
    pub session: SessionHeader,
    /// Service code of the frame.
    pub service: u8,
    /// Zero; receivers ignore it.
    pub reserved2: u8,
    /// Flow hash of the frame.
    pub flow_hash: U16,
    /// Zero; receivers ignore it.
    pub reserved3: U32,
}

/// Bytes of a [`Report`].
pub const REPORT_LEN: usize = size_of::<Report>();
const _: () = assert!(REPORT_LEN == 80);

impl Report {
    /// Parses a payload; `None` for any other length.
    pub fn parse(payload: &[u8]) -> Option<&Self> {
        Ref::<_, Self>::from_bytes(payload).ok().map(Ref::into_ref)
    }
}

/// Header of a fragment, after the link header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FragmentHeader {
    /// Bytes of the whole frame.
    pub total: U16,
    /// 0 for the first half, 1 for the second.
    pub part: u8,
    /// Zero; a receiver refuses anything else.
    pub reserved: u8,
    /// Zero; a receiver refuses anything else.
    pub reserved2: U32,
}

/// Bytes before the content of a fragment.
pub const FRAGMENT_HEADERS_LEN: usize = LINK_HEADER_LEN + size_of::<FragmentHeader>();
const _: () = assert!(FRAGMENT_HEADERS_LEN == 24);
// Two fragments of the size that every path carries hold every frame that may be fragmented.
const _: () =
    assert!(FRAME_MIN_MAX as usize <= 2 * (DATAGRAM_BASE as usize - FRAGMENT_HEADERS_LEN));

/// Byte range of part `part` of a frame of `total` bytes.
pub fn fragment_range(total: usize, part: u8) -> std::ops::Range<usize> {
    let middle = total.div_ceil(2);
    if part == 0 { 0..middle } else { middle..total }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        let known: Vec<_> = (0..=u8::MAX)
            .filter_map(|code| Some((code, ReportCode::from_code(code)?)))
            .collect();
        assert_eq!(known.len(), 4);
        assert!(known.iter().all(|(code, meaning)| meaning.code() == *code));
    }

    #[test]
    fn a_report_is_exactly_as_long_as_it_is() {
        let bytes = [7; REPORT_LEN + 1];
        assert!(Report::parse(&bytes[..REPORT_LEN]).is_some());
        assert!(Report::parse(&bytes).is_none());
        assert!(Report::parse(&bytes[..REPORT_LEN - 1]).is_none());
    }

    #[test]
    fn parts_make_a_whole() {
        for total in 0..3000 {
            let (first, second) = (fragment_range(total, 0), fragment_range(total, 1));
            assert_eq!(
                (first.start, first.end, second.end),
                (0, second.start, total)
            );
            assert!(first.len() == second.len() || first.len() == second.len() + 1);
        }
    }
}

//! What the kernel says about a receive: sender, segment size, losses.
//!
//! Control messages are read and written as bytes, so no length that the kernel gives is trusted
//! further than the slice it lies in.

use hyphae_wire::Endpoint;

use crate::address::read_name;
use crate::driver::DriverStats;

/// Room for the sender's name, in bytes. More than an address needs, to keep what follows aligned.
pub(crate) const NAME_ROOM: usize = 32;
/// Room for control messages of a receive: `UDP_GRO` and `SO_RXQ_OVFL`.
pub(crate) const CONTROL_ROOM: usize = 2 * CONTROL_SPACE;
/// Space of a control message with up to eight bytes of data.
pub(crate) const CONTROL_SPACE: usize = HEAD + ALIGN;

const ALIGN: usize = size_of::<usize>();
const HEAD: usize = size_of::<libc::cmsghdr>();
const LEVEL_AT: usize = size_of::<usize>();
const KIND_AT: usize = LEVEL_AT + size_of::<i32>();

const _: () = assert!(HEAD.is_multiple_of(ALIGN) && HEAD == KIND_AT + size_of::<i32>());

/// Writes the control message that makes the kernel cut a send into `segment`-byte datagrams.
pub(crate) fn write_segment(control: &mut [u8; CONTROL_SPACE], segment: u16) {
    *control = [0; CONTROL_SPACE];
    let len = HEAD + size_of::<u16>();
    control[..LEVEL_AT].copy_from_slice(&len.to_ne_bytes());
    control[LEVEL_AT..KIND_AT].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control[KIND_AT..HEAD].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control[HEAD..len].copy_from_slice(&segment.to_ne_bytes());
}

/// What the control messages of a receive said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Control {
    /// `UDP_GRO`: bytes of each datagram of the train. Absent for a lone datagram.
    segment: Option<i32>,
    /// `SO_RXQ_OVFL`: datagrams lost on this socket so far, modulo 2^32.
    lost: Option<u32>,
}

fn read_control(mut control: &[u8]) -> Control {
    let mut found = Control::default();
    while let Some(len) = control.first_chunk().map(|len| usize::from_ne_bytes(*len)) {
        let Some(data) = control.get(HEAD..len) else {
            break;
        };
        let number = |at: usize| control[at..].first_chunk().map(|n| i32::from_ne_bytes(*n));
        let value = data.first_chunk();
        match (number(LEVEL_AT), number(KIND_AT), value) {
            (Some(libc::SOL_UDP), Some(libc::UDP_GRO), Some(value)) => {
                found.segment = Some(i32::from_ne_bytes(*value));
            }
            (Some(libc::SOL_SOCKET), Some(libc::SO_RXQ_OVFL), Some(value)) => {
                found.lost = Some(u32::from_ne_bytes(*value));
            }
            _ => {}
        }
        control = control
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
    }
    found
}

/// Judges receives of one socket and counts what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    lost: u32,
}

impl Intake {
    /// Segment size and sender of a receive of `len` bytes, if it may be used. `flags` are those of
    /// the message.
    pub(crate) fn judge(
        &mut self,
        stats: &mut DriverStats,
        name: &[u8],
        control: &[u8],
        flags: i32,
        len: usize,
    ) -> Option<(u32, u32, Endpoint)> {
        let control = read_control(control);
        if let Some(lost) = control.lost {
            // The kernel's count wraps; only its growth means something.
            stats.socket_overruns += u64::from(lost.wrapping_sub(self.lost));
            self.lost = lost;
        }
        if flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            stats.rx_truncated += 1;
            return None;
        }
        let judged = (|| {
            let len = u32::try_from(len).ok().filter(|&len| len > 0)?;
            let segment = match control.segment {
                Some(segment) => u32::try_from(segment).ok().filter(|&segment| segment > 0)?,
                None => len,
            };
            Some((len, segment.min(len), read_name(name)?))
        })();
        if judged.is_none() {
            stats.rx_errors += 1;
        }
        judged
    }
}

/// What an error of a send means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The socket buffer is full.
    Backpressure,
    /// Perhaps segmentation is not possible on this socket's way out.
    Offload,
    Other,
    /// Larger than the interface's MTU.
    TooBig,
}

pub(crate) fn refusal(errno: i32) -> Refusal {
    match errno {
        libc::EAGAIN | libc::ENOBUFS => Refusal::Backpressure,
        libc::EIO | libc::EINVAL => Refusal::Offload,
        libc::EMSGSIZE => Refusal::TooBig,
        _ => Refusal::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEAD + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    const NAME: [u8; 16] = [2, 0, 0x25, 0xc6, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn both_control_messages_are_found_in_either_order() {
        let gro = message(libc::SOL_UDP, libc::UDP_GRO, &1400i32.to_ne_bytes());
        let lost = message(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7u32.to_ne_bytes());
        let expected = Control {
            segment: Some(1400),
            lost: Some(7),
        };
        assert_eq!(
            read_control(&[gro.clone(), lost.clone()].concat()),
            expected
        );
        assert_eq!(read_control(&[lost, gro].concat()), expected);
    }

    #[test]
    fn malformed_control_bytes_end_the_search() {
        let gro = message(libc::SOL_UDP, libc::UDP_GRO, &1400i32.to_ne_bytes());
        for len in 0..HEAD + 4 {
            assert_eq!(read_control(&gro[..len]), Control::default());
        }
        for first in [0, 1, HEAD - 1, 1 << 20, usize::MAX] {
            let mut bytes = gro.clone();
            bytes[..ALIGN].copy_from_slice(&first.to_ne_bytes());
            assert_eq!(read_control(&bytes), Control::default());
        }
    }

    #[test]
    fn the_segment_message_has_the_kernels_layout() {
        let mut control = [0xff; CONTROL_SPACE];
        write_segment(&mut control, 1400);
        let mut expected = message(libc::SOL_UDP, libc::UDP_SEGMENT, &1400u16.to_ne_bytes());
        expected.resize(CONTROL_SPACE, 0);
        assert_eq!(control.as_slice(), expected);
    }

    #[test]
    fn unusable_receives_are_counted_and_losses_are_differences() {
        let mut stats = DriverStats::default();
        let mut intake = Intake::default();
        let lost = |n: u32| {
            message(
                libc::SOL_SOCKET,
                libc::SO_RXQ_OVFL,
                n.to_ne_bytes().as_slice(),
            )
        };
        let gro = |n: i32| message(libc::SOL_UDP, libc::UDP_GRO, n.to_ne_bytes().as_slice());
        assert!(
            intake
                .judge(&mut stats, &NAME, &lost(5), libc::MSG_TRUNC, 9)
                .is_none()
        );
        assert!(
            intake
                .judge(&mut stats, &NAME, &lost(u32::MAX), libc::MSG_CTRUNC, 9)
                .is_none()
        );
        assert!(intake.judge(&mut stats, &NAME, &lost(2), 0, 9).is_some());
        assert_eq!(
            (stats.rx_truncated, stats.socket_overruns),
            (2, u64::from(u32::MAX) + 3)
        );
        assert!(intake.judge(&mut stats, &NAME, &[], 0, 0).is_none());
        assert!(intake.judge(&mut stats, &NAME, &gro(0), 0, 9).is_none());
        assert!(intake.judge(&mut stats, &NAME, &gro(-1), 0, 9).is_none());
        assert!(intake.judge(&mut stats, &[], &[], 0, 9).is_none());
        assert_eq!(stats.rx_errors, 4);
        let (len, segment, _) = intake.judge(&mut stats, &NAME, &gro(100), 0, 9).unwrap();
        assert_eq!((len, segment), (9, 9));
    }
}

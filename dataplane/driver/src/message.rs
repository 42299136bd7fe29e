//! Control messages: of a receive the sender, local address, segment size and losses; of a send the
//! local address and segment size.
//!
//! Control messages are read and written as bytes, so no length that the kernel gives is trusted
//! further than the slice it lies in.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyphae_wire::{AddressPair, LocalAddress};

use crate::address::{Family, read_name};
use crate::driver::DriverStats;

/// Room for the sender's name, in bytes. More than an address needs, to keep what follows aligned.
pub(crate) const NAME_ROOM: usize = 32;
/// Room for control messages of a receive: `UDP_GRO`, `SO_RXQ_OVFL` and `IPV6_PKTINFO` or
/// `IP_PKTINFO`. More than they need, so that the payload behind it keeps its place within a cache line.
pub(crate) const CONTROL_ROOM: usize = 112;
/// Room for control messages of a send: `IPV6_PKTINFO` or `IP_PKTINFO`, then `UDP_SEGMENT`.
pub(crate) const SEND_CONTROL_ROOM: usize = PKTINFO_SPACE + CONTROL_SPACE;
/// Space of a control message with up to eight bytes of data.
const CONTROL_SPACE: usize = HEAD + ALIGN;
/// Space of `IPV6_PKTINFO`, the longer of the two.
const PKTINFO_SPACE: usize = (HEAD + size_of::<libc::in6_pktinfo>()).next_multiple_of(ALIGN);

const _: () = assert!(CONTROL_ROOM >= 2 * CONTROL_SPACE + PKTINFO_SPACE);
const _: () = assert!(size_of::<libc::in6_pktinfo>() == 20 && size_of::<libc::in_pktinfo>() == 12);

const ALIGN: usize = size_of::<usize>();
const HEAD: usize = size_of::<libc::cmsghdr>();
const LEVEL_AT: usize = size_of::<usize>();
const KIND_AT: usize = LEVEL_AT + size_of::<i32>();

const _: () = assert!(HEAD.is_multiple_of(ALIGN) && HEAD == KIND_AT + size_of::<i32>());

/// Writes the control messages of a send: the address that it leaves from, unless that is for the
/// kernel to choose, and the size of the datagrams that it is cut into. Returns their length.
pub(crate) fn write_control(
    control: &mut [u8; SEND_CONTROL_ROOM],
    family: Family,
    local: &LocalAddress,
    segment: Option<u16>,
) -> usize {
    let mut end = 0;
    if !local.is_unset() {
        end = match family {
            Family::V6 => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&local.ip);
                info[16..].copy_from_slice(&local.interface.get().to_ne_bytes());
                write_message(control, 0, libc::SOL_IPV6, libc::IPV6_PKTINFO, &info)
            }
            Family::V4 => {
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                // Interface, the address to send from, and one that counts for receives only.
                info[4..8].copy_from_slice(&local.ip[12..]);
                write_message(control, 0, libc::SOL_IP, libc::IP_PKTINFO, &info)
            }
        };
    }
    if let Some(segment) = segment {
        let bytes = segment.to_ne_bytes();
        end = write_message(control, end, libc::SOL_UDP, libc::UDP_SEGMENT, &bytes);
    }
    end
}

/// Writes one control message at `at`; returns where the next one begins.
fn write_message(control: &mut [u8], at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    let len = HEAD + data.len();
    let end = at + len.next_multiple_of(ALIGN);
    let message = &mut control[at..end];
    message[..LEVEL_AT].copy_from_slice(&len.to_ne_bytes());
    message[LEVEL_AT..KIND_AT].copy_from_slice(&level.to_ne_bytes());
    message[KIND_AT..HEAD].copy_from_slice(&kind.to_ne_bytes());
    message[HEAD..len].copy_from_slice(data);
    message[len..].fill(0);
    end
}

/// What the control messages of a receive said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Control {
    /// `UDP_GRO`: bytes of each datagram of the train. Absent for a lone datagram.
    segment: Option<i32>,
    /// `SO_RXQ_OVFL`: datagrams lost on this socket so far, modulo 2^32.
    lost: Option<u32>,
    /// `IPV6_PKTINFO`, `IP_PKTINFO`: the address that it was sent to.
    local: LocalAddress,
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
            (Some(libc::SOL_IPV6), Some(libc::IPV6_PKTINFO), _) => {
                found.local = read_pktinfo_v6(data).unwrap_or_default();
            }
            (Some(libc::SOL_IP), Some(libc::IP_PKTINFO), _) => {
                found.local = read_pktinfo_v4(data).unwrap_or_default();
            }
            _ => {}
        }
        control = control
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
    }
    found
}

fn read_pktinfo_v6(info: &[u8]) -> Option<LocalAddress> {
    let ip: [u8; 16] = *info.first_chunk()?;
    let interface = u32::from_ne_bytes(*info.get(16..)?.first_chunk()?);
    Some(LocalAddress::new(ip.into(), interface))
}

fn read_pktinfo_v4(info: &[u8]) -> Option<LocalAddress> {
    // Second the address that an answer is to leave from, which a broadcast was not sent to.
    let ip: [u8; 4] = *info.get(4..)?.first_chunk()?;
    let mapped: Ipv6Addr = Ipv4Addr::from(ip).to_ipv6_mapped();
    Some(LocalAddress::new(mapped, 0))
}

/// Judges receives of one socket and counts what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    lost: u32,
}

impl Intake {
    /// Segment size and addresses of a receive of `len` bytes, if it may be used. `flags` are those
    /// of the message.
    pub(crate) fn judge(
        &mut self,
        stats: &mut DriverStats,
        name: &[u8],
        control: &[u8],
        flags: i32,
        len: usize,
    ) -> Option<(u32, u32, AddressPair)> {
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
            let addresses = AddressPair {
                remote: read_name(name)?,
                local: control.local,
            };
            Some((len, segment.min(len), addresses))
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

/// Whether a refusal may be for want of the address that the send was to leave from: the host has it
/// no more, or no route from it. `EINVAL` is also how a missing offload may look.
pub(crate) fn blames_source(errno: i32) -> bool {
    matches!(
        errno,
        libc::EINVAL | libc::ENETUNREACH | libc::ENODEV | libc::EADDRNOTAVAIL
    )
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
            local: LocalAddress::UNSET,
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
    fn control_messages_of_a_send_have_the_kernels_layout() {
        let segment = message(libc::SOL_UDP, libc::UDP_SEGMENT, &1400u16.to_ne_bytes());
        let v6 = LocalAddress::new("fe80::1".parse().unwrap(), 7);
        let v6_info = [&v6.ip[..], 7u32.to_ne_bytes().as_slice()].concat();
        let v6_info = message(libc::SOL_IPV6, libc::IPV6_PKTINFO, &v6_info);
        let v4 = LocalAddress::new("::ffff:192.0.2.1".parse().unwrap(), 7);
        let v4_info = [0, 0, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0];
        let v4_info = message(libc::SOL_IP, libc::IP_PKTINFO, &v4_info);
        for (family, local, expected) in [
            (Family::V6, LocalAddress::UNSET, &[][..]),
            (Family::V6, v6, &v6_info),
            (Family::V4, v4, &v4_info),
        ] {
            let mut control = [0xff; SEND_CONTROL_ROOM];
            let len = write_control(&mut control, family, &local, None);
            assert_eq!(&control[..len], expected);
            let len = write_control(&mut control, family, &local, Some(1400));
            assert_eq!(control[..len], [expected, &segment].concat());
        }
    }

    #[test]
    fn the_local_address_of_a_receive_is_what_an_answer_leaves_from() {
        let of = |bytes: &[u8]| format!("{:?}", read_control(bytes).local);
        let v6 = |ip: &str| {
            let ip: Ipv6Addr = ip.parse().unwrap();
            let info = [ip.octets().as_slice(), &7u32.to_ne_bytes()].concat();
            message(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info)
        };
        assert_eq!(of(&v6("2001:db8::1")), "2001:db8::1");
        assert_eq!(of(&v6("fe80::1")), "fe80::1%7");
        assert_eq!(of(&v6("::ffff:192.0.2.1")), "192.0.2.1");
        let broadcast = [7, 0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 255];
        let broadcast = message(libc::SOL_IP, libc::IP_PKTINFO, &broadcast);
        assert_eq!(of(&broadcast), "192.0.2.1");
        for (level, kind) in [
            (libc::SOL_IPV6, libc::IPV6_PKTINFO),
            (libc::SOL_IP, libc::IP_PKTINFO),
        ] {
            assert_eq!(of(&message(level, kind, &[1; 7])), "any");
        }
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

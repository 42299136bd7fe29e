//! Forged first messages: well-formed, each from another address of 127.64.0.0/10, which the kernel
//! lets any process of the host use as a source.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::bail;
use hyphae_test_hostile::Target;
use hyphae_wire::frame::LINK_HEADER_LEN;
use hyphae_wire::handshake::{HandshakeHeader, HandshakeStep, Offer, encode_frame};
use hyphae_wire::{SuiteSet, frame::MTU_DEFAULT};
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

/// Offsets of the handshake number and of the ephemeral key in the frame.
const SENDER_AT: usize = LINK_HEADER_LEN + 4;
const EPHEMERAL_AT: usize = LINK_HEADER_LEN + size_of::<HandshakeHeader>();
/// Pause when nothing is due.
const PAUSE: Duration = Duration::from_micros(200);
/// Bound of a burst after the thread was preempted, messages.
const BEHIND_MAX: u64 = 2000;

/// Sends `rate` first messages per second for `time`; returns their number.
pub(super) fn flood(relay: Target, rate: u64, time: Duration) -> anyhow::Result<u64> {
    let SocketAddr::V4(to) = relay.at else {
        bail!("the relay of this benchmark listens on IPv4 loopback");
    };
    let to = SockaddrIn::from(to);
    // Answers to forged sources arrive here and are not read.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let offer = Offer {
        suites: SuiteSet::all(),
        workers: 1,
        mtu: MTU_DEFAULT,
        ports: vec![socket.local_addr()?.port()],
        lanes: Vec::new(),
        resets: Vec::new(),
        instance: 0,
    };
    let noise = [&[0; 32][..], &offer.encode()].concat();
    let mut frame = encode_frame(HandshakeStep::Init, 1, 0, &noise);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let began = Instant::now();
    let (mut sent, mut skipped) = (0, 0);
    while began.elapsed() < time {
        let elapsed = began.elapsed().as_secs_f64();
        // Positive, and exact in f64.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "see above"
        )]
        let due = (elapsed * rate as f64) as u64;
        let behind = due.saturating_sub(sent + skipped);
        if behind == 0 {
            std::thread::sleep(PAUSE);
            continue;
        }
        skipped += behind.saturating_sub(BEHIND_MAX);
        for _ in 0..behind.min(BEHIND_MAX) {
            let (source, key) = (random.next(), random.next());
            frame[SENDER_AT..SENDER_AT + 4].copy_from_slice(&key.to_le_bytes()[..4]);
            frame[EPHEMERAL_AT..EPHEMERAL_AT + 8].copy_from_slice(&key.to_le_bytes());
            let [_, b, c, d, ..] = source.to_le_bytes();
            let address = Ipv4Addr::new(127, 64 | b & 63, c, d);
            let info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                },
                ipi_addr: in_addr { s_addr: 0 },
            };
            let parts = [IoSlice::new(&frame)];
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            let flags = MsgFlags::empty();
            match sendmsg(socket.as_raw_fd(), &parts, &control, flags, Some(&to)) {
                Ok(_) => sent += 1,
                // The loopback queue is full.
                Err(Errno::ENOBUFS | Errno::EAGAIN) => skipped += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(sent)
}

/// xorshift64: forged sources must differ, not be unpredictable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

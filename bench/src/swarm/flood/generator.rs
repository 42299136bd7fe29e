//! Forged first messages: well-formed, and as fast as a rate says.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::bail;
use hyphae_test_hostile::{Claims, FirstMessages, Hostile, Link, Routed, Target};
use hyphae_wire::{OverlayAddress, SecretKey, Service};
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use super::sources::{self, Sources};

/// Pause when nothing is due.
const PAUSE: Duration = Duration::from_micros(200);
/// Bound of a burst after the thread was preempted, messages.
const BEHIND_MAX: u64 = 2000;
/// Forged overlay sources of messages from behind the relay.
const NAMES: usize = 64;
/// Messages between two receptions of a link, which answers probes meanwhile.
const RECEIVE_EVERY: u64 = 1000;

/// The sender of a flood.
pub(super) enum Generator {
    /// From any address of 127.64.0.0/10, which the kernel lets any process of the host use as a source.
    Forged {
        socket: UdpSocket,
        to: SockaddrIn,
        messages: FirstMessages,
    },
    /// From the networks of one IPv6 site.
    Site {
        hosts: Vec<Hostile>,
        to: SocketAddr,
        messages: FirstMessages,
    },
    /// End to end, over a link with the relay of the target.
    Relayed {
        link: Box<Link>,
        names: Vec<OverlayAddress>,
        to: OverlayAddress,
        messages: FirstMessages,
    },
}

impl Generator {
    /// A generator for `relay`, or for the node `target` behind it.
    pub(super) fn new(
        sources: Sources,
        relay: Target,
        target: Target,
        claims: &Claims,
    ) -> anyhow::Result<Self> {
        let SocketAddr::V4(at) = relay.at else {
            bail!("the relay of this benchmark listens on IPv4 loopback");
        };
        Ok(match sources {
            Sources::Forged => {
                // Answers to forged sources arrive here and are not read.
                let host = Hostile::new((Ipv4Addr::UNSPECIFIED, 0).into())?;
                Self::Forged {
                    messages: FirstMessages::link(&host, claims)?,
                    to: SockaddrIn::from(at),
                    socket: host.socket,
                }
            }
            Sources::Site => {
                let hosts: Vec<_> = (0..sources::NETWORKS)
                    .map(sources::host)
                    .collect::<Result<_, _>>()?;
                Self::Site {
                    messages: FirstMessages::link(&hosts[0], claims)?,
                    to: sources::target(at.port()),
                    hosts,
                }
            }
            Sources::Relayed => {
                let host = Hostile::new((Ipv4Addr::LOCALHOST, 0).into())?;
                let name = |_| Ok(sources::new_key()?.public_key().address());
                let identity: SecretKey = sources::new_key()?;
                Self::Relayed {
                    link: Box::new(host.link(relay.at, &Claims::default())?),
                    names: (0..NAMES).map(name).collect::<anyhow::Result<_>>()?,
                    to: target.key.address(),
                    messages: FirstMessages::end_to_end(&identity, claims)?,
                }
            }
        })
    }

    /// Sends `rate` first messages per second for `time`; returns their number.
    pub(super) fn flood(&mut self, rate: u64, time: Duration) -> anyhow::Result<u64> {
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
                let accepted = u64::from(self.send(sent)?);
                sent += accepted;
                skipped += 1 - accepted;
            }
        }
        Ok(sent)
    }

    /// Sends the `n`th message; false when the loopback queue is full.
    fn send(&mut self, n: u64) -> anyhow::Result<bool> {
        match self {
            Self::Forged {
                socket,
                to,
                messages,
            } => {
                let [_, b, c, d, ..] = messages.random().to_le_bytes();
                let address = Ipv4Addr::new(127, 64 | b & 63, c, d);
                send_as(socket, address, to, messages.forge())
            }
            Self::Site {
                hosts,
                to,
                messages,
            } => {
                let host = &hosts[usize::try_from(n)? % hosts.len()];
                match host.socket.send_to(messages.forge(), *to) {
                    Ok(_) => Ok(true),
                    Err(error) => full(Errno::try_from(error)?),
                }
            }
            Self::Relayed {
                link,
                names,
                to,
                messages,
            } => {
                if n.is_multiple_of(RECEIVE_EVERY) {
                    link.receive(Duration::from_millis(1))?;
                }
                let name = names[usize::try_from(n)? % names.len()];
                let routed = Routed::new(name, *to, Service::Handshake);
                Ok(link.unsealed(&routed, messages.forge()).is_ok())
            }
        }
    }
}

fn send_as(
    socket: &UdpSocket,
    from: Ipv4Addr,
    to: &SockaddrIn,
    message: &[u8],
) -> anyhow::Result<bool> {
    let info = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: in_addr {
            s_addr: u32::from_ne_bytes(from.octets()),
        },
        ipi_addr: in_addr { s_addr: 0 },
    };
    let parts = [IoSlice::new(message)];
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let flags = MsgFlags::empty();
    match sendmsg(socket.as_raw_fd(), &parts, &control, flags, Some(to)) {
        Ok(_) => Ok(true),
        Err(error) => full(error),
    }
}

/// False for a full queue, any other error as it is.
fn full(error: Errno) -> anyhow::Result<bool> {
    if [Errno::ENOBUFS, Errno::EAGAIN].contains(&error) {
        Ok(false)
    } else {
        Err(error.into())
    }
}

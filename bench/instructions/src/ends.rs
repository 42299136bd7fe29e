//! Two neighbouring hosts: packets are sealed at one and opened at the other.

use anyhow::{Context, bail};
use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{Engine, EngineConfig, HostVerdict, Verdict};
use hyphae_shm::record::Program;
use hyphae_wire::{OverlayAddress, PublicKey, Suite, WorkerId};
use zerocopy::little_endian::U16;

use crate::NOW;
use crate::records::{self, Lane, endpoint, index, key};

/// IPv6 and UDP header.
const HEADERS: u16 = 48;

/// A train as sent.
#[derive(Clone, Debug)]
pub struct Sent {
    bytes: Vec<u8>,
    segment: usize,
}

/// The engines of both hosts, and a super-packet of the first.
pub struct Ends {
    from: Engine,
    to: Engine,
    header: TunHeader,
    packet: Vec<u8>,
    space: Vec<u8>,
    verdicts: Vec<Verdict>,
}

impl Ends {
    /// Two hosts; the first has a super-packet of `packets` with `payload` bytes each for the other.
    ///
    /// # Errors
    /// When an engine refuses a record.
    pub fn new(suite: Suite, packets: u16, payload: u16) -> anyhow::Result<Self> {
        let (a, b) = (key(1), key(2));
        let one = [[1; 32], [2; 32]];
        let two = [[3; 32], [4; 32]];
        let lane = |keys: [[u8; 32]; 2]| Lane {
            receive: index(1),
            send: index(1),
            suite,
            opens: keys[0],
            seals: keys[1],
            created: NOW,
        };
        let other = |keys: [[u8; 32]; 2]| [keys[1], keys[0]];
        let total = usize::from(packets) * usize::from(payload);
        let transport = u16::try_from(8 + total).context("a super-packet fits 64 KiB")?;
        Ok(Self {
            from: engine(a, b, lane(one), lane(two))?,
            to: engine(b, a, lane(other(one)), lane(other(two)))?,
            header: offload(packets, payload),
            packet: packet(a.address(), b.address(), transport),
            space: vec![0; 1 << 17],
            verdicts: Vec::with_capacity(64),
        })
    }

    /// Splits and seals the super-packet. Hands out every train, with the length of its segments;
    /// returns how many packets that were.
    ///
    /// # Errors
    /// When the engine does not let it go.
    #[inline(never)]
    pub fn seal(&mut self, mut each: impl FnMut(&[u8], usize)) -> anyhow::Result<u64> {
        let verdict = self.from.route_host(NOW, &self.header, &self.packet);
        let HostVerdict::Depart(departure) = verdict else {
            bail!("the packet does not depart");
        };
        let mut splitter = Splitter::new(&self.header, &self.packet, departure.mtu())
            .map_err(|_| anyhow::anyhow!("the packet cannot be split"))?;
        let mut packets = 0;
        while splitter.remaining() > 0 {
            let train = self
                .from
                .originate(NOW, &departure, &mut splitter, &mut self.space);
            let train = train.context("a train")?;
            packets += train.len.div_ceil(train.segment) as u64;
            each(&self.space[..train.len], train.segment);
        }
        Ok(packets)
    }

    /// As [`Self::seal`], returning the trains.
    ///
    /// # Errors
    /// When the engine refuses the packet.
    pub fn sealed(&mut self) -> anyhow::Result<Vec<Sent>> {
        let mut trains = Vec::new();
        self.seal(|bytes, segment| {
            trains.push(Sent {
                bytes: bytes.to_vec(),
                segment,
            });
        })?;
        Ok(trains)
    }

    /// Opens trains at the other host; returns the number of delivered packets.
    #[inline(never)]
    pub fn open(&mut self, trains: &mut [Sent]) -> u64 {
        let from = endpoint(1);
        let mut delivered = 0;
        for Sent { bytes, segment } in trains {
            self.verdicts.clear();
            self.to
                .receive(NOW, from, bytes, *segment, &mut self.verdicts);
            for verdict in &self.verdicts {
                delivered += u64::from(matches!(verdict, Verdict::Deliver { .. }));
            }
        }
        delivered
    }
}

/// Host `own`, peer 1 of which is `other`.
fn engine(own: PublicKey, other: PublicKey, link: Lane, session: Lane) -> anyhow::Result<Engine> {
    let mut engine = Engine::new(EngineConfig {
        worker: WorkerId(0),
        workers: 1,
        has_tun: true,
    });
    for program in [
        Program::LocalInstall(&records::local(own)),
        Program::PeerInstall(&records::peer(1, other)),
        Program::LinkInstall(&link.link(1, endpoint(1))),
        Program::SessionInstall(&session.session(other)),
        Program::FibReplace(&records::route(other.address(), 1)),
    ] {
        engine.apply(NOW, &program)?;
    }
    Ok(engine)
}

fn offload(packets: u16, payload: u16) -> TunHeader {
    if packets == 1 {
        return TunHeader::default();
    }
    TunHeader {
        flags: TunHeader::NEEDS_CSUM,
        gso_type: TunHeader::GSO_UDP_L4,
        hdr_len: U16::new(HEADERS),
        gso_size: U16::new(payload),
        csum_start: U16::new(40),
        csum_offset: U16::new(6),
    }
}

/// A UDP packet without a valid checksum.
fn packet(from: OverlayAddress, to: OverlayAddress, transport: u16) -> Vec<u8> {
    let mut packet = vec![0; 40 + usize::from(transport)];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&transport.to_be_bytes());
    packet[6..8].copy_from_slice(&[17, 61]);
    packet[8..24].copy_from_slice(&from.0);
    packet[24..40].copy_from_slice(&to.0);
    packet[40..44].copy_from_slice(&[0x23, 0x28, 0x23, 0x29]);
    packet[44..46].copy_from_slice(&transport.to_be_bytes());
    packet
}

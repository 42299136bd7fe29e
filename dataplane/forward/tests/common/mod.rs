//! Nodes made of engines, joined by lanes with known keys; frames made by hand; packets of a host.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "shared by test binaries that each use a part; test numbers are small"
)]

use hyphae_forward::host::{Splitter, TunHeader};
use hyphae_forward::{
    Aead, Departure, Egress, Engine, EngineConfig, EngineEvent, HostVerdict, LinkSlot, Train,
    Verdict,
};
use hyphae_shm::record::{
    FibReplace, LaneKeys, LinkInstall, LinkMtu, LocalInstall, NextHop, PeerInstall, Program,
    ROLE_ACTIVE, SessionInstall,
};
use hyphae_time::Nanos;
use hyphae_wire::frame::{LinkHeader, SealedHeaders, handshake_trailer};

use hyphae_wire::{
    Endpoint, FrameKind, LocalAddress, OverlayAddress, PublicKey, Service, SessionIndex, Suite,
    WorkerId,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// When everything happens unless a test says otherwise.
pub const NOW: Nanos = Nanos(1_000_000_000_000);
/// Limits of lanes unless a test says otherwise.
pub const REKEY_MS: u32 = 120_000;
pub const REJECT_MS: u32 = 180_000;
pub const BOTH_SUITES: [Suite; 2] = [Suite::ChaCha20Poly1305, Suite::Aes256Gcm];
/// Hop limit of every packet of a host.
pub const HOPS: u8 = 61;
pub const MTU: u16 = 1340;

/// An underlay address.
pub fn endpoint(n: u8) -> Endpoint {
    let address = std::net::SocketAddr::from(([10, 0, 0, n], 5000 + u16::from(n)));
    address.into()
}

/// One side of a lane.
#[derive(Clone, Copy)]
pub struct Lane {
    pub receive: SessionIndex,
    pub send: SessionIndex,
    pub number: u16,
    pub suite: Suite,
    pub role: u8,
    pub epoch: u32,
    pub created: Nanos,
    pub rekey_ms: u32,
    pub reject_ms: u32,
    /// What proves a reset by the other side.
    pub reset: [u8; 16],
    pub keys: LaneKeys,
}

impl Lane {
    /// Both sides of an active lane; `seed` chooses the keys.
    pub fn pair(seed: u8, suite: Suite, a: SessionIndex, b: SessionIndex) -> [Self; 2] {
        let (to_a, to_b) = ([seed; 32], [seed ^ 0x80; 32]);
        let side = |receive, send, receive_key, send_key| Self {
            receive,
            send,
            number: 0,
            suite,
            role: ROLE_ACTIVE,
            epoch: 1,
            created: NOW,
            rekey_ms: REKEY_MS,
            reject_ms: REJECT_MS,
            reset: [0; 16],
            keys: LaneKeys {
                receive: receive_key,
                send: send_key,
            },
        };
        [side(a, b, to_a, to_b), side(b, a, to_b, to_a)]
    }

    pub fn link(&self, peer: u32, endpoint: Endpoint) -> LinkInstall {
        LinkInstall {
            peer: U32::new(peer),
            receive_index: U32::new(self.receive.0),
            send_index: U32::new(self.send.0),
            lane: U16::new(self.number),
            suite: self.suite.code(),
            role: self.role,
            epoch: U32::new(self.epoch),
            flags: 0,
            reserved: [0; 3],
            endpoint,
            local: LocalAddress::UNSET,
            created: U64::new(self.created.0),
            rekey_after_ms: U32::new(self.rekey_ms),
            reject_after_ms: U32::new(self.reject_ms),
            reset: self.reset,
            keys: self.keys,
        }
    }

    pub fn session(&self, other: PublicKey) -> SessionInstall {
        SessionInstall {
            address: other.address(),
            key: other,
            receive_index: U32::new(self.receive.0),
            send_index: U32::new(self.send.0),
            lane: U16::new(self.number),
            suite: self.suite.code(),
            role: self.role,
            epoch: U32::new(self.epoch),
            flags: 0,
            reserved: 0,
            mtu: U16::new(MTU),
            reserved2: U32::ZERO,
            created: U64::new(self.created.0),
            rekey_after_ms: U32::new(self.rekey_ms),
            reject_after_ms: U32::new(self.reject_ms),
            reserved3: U64::ZERO,
            reset: self.reset,
            keys: self.keys,
        }
    }
}

/// A node: one engine per worker.
pub struct Node {
    pub key: PublicKey,
    pub address: OverlayAddress,
    pub endpoint: Endpoint,
    pub engines: Vec<Engine>,
}

impl Node {
    pub fn new(seed: u8, workers: u16) -> Self {
        let key = PublicKey([seed; 32]);
        let address = key.address();
        let engine = |worker| {
            let mut engine = Engine::new(EngineConfig {
                worker: WorkerId(worker),
                workers,
                has_tun: true,
            });
            let local = LocalInstall {
                address,
                mtu: U16::new(MTU),
                reserved: [0; 6],
                key,
            };
            engine.apply(NOW, &Program::LocalInstall(&local)).unwrap();
            engine
        };
        Self {
            key,
            address,
            endpoint: endpoint(seed),
            engines: (0..workers).map(engine).collect(),
        }
    }

    /// The first worker's engine.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engines[0]
    }

    pub fn peer(&mut self, number: u32, key: PublicKey) {
        for engine in &mut self.engines {
            install_peer(engine, number, key);
        }
    }

    pub fn route(&mut self, to: OverlayAddress, peers: &[(u32, u16)]) {
        for engine in &mut self.engines {
            install_route(engine, to, peers);
        }
    }
}

pub fn install_peer(engine: &mut Engine, number: u32, key: PublicKey) {
    let record = PeerInstall {
        peer: U32::new(number),
        reserved: U32::ZERO,
        key,
    };
    engine.apply(NOW, &Program::PeerInstall(&record)).unwrap();
}

pub fn install_link(engine: &mut Engine, lane: &Lane, peer: u32, endpoint: Endpoint) {
    let record = lane.link(peer, endpoint);
    engine.apply(NOW, &Program::LinkInstall(&record)).unwrap();
}

pub fn install_session(engine: &mut Engine, lane: &Lane, other: PublicKey) {
    let record = lane.session(other);
    engine
        .apply(NOW, &Program::SessionInstall(&record))
        .unwrap();
}

pub fn route_record(to: OverlayAddress, peers: &[(u32, u16)]) -> FibReplace {
    let mut record = FibReplace::new_zeroed();
    record.prefix = to.subnet().address();
    record.prefix_len = 64;
    record.next_hop_count = peers.len() as u8;
    for (place, (peer, weight)) in record.next_hops.iter_mut().zip(peers) {
        *place = NextHop {
            peer: U32::new(*peer),
            weight: U16::new(*weight),
            reserved: U16::ZERO,
        };
    }
    record
}

pub fn install_route(engine: &mut Engine, to: OverlayAddress, peers: &[(u32, u16)]) {
    let record = route_record(to, peers);
    engine.apply(NOW, &Program::FibReplace(&record)).unwrap();
}

/// What a datagram to a peer may hold.
pub fn link_mtu(engine: &mut Engine, peer: u32, mtu: u16) {
    let record = LinkMtu {
        peer: U32::new(peer),
        mtu: U16::new(mtu),
        reserved: U16::ZERO,
    };
    engine.apply(NOW, &Program::LinkMtu(&record)).unwrap();
}

/// An index of a worker.
pub fn index(worker: u16, slot: u16) -> SessionIndex {
    SessionIndex::new(WorkerId(worker), 0x155, slot)
}

/// Client, relay, server in a row, a session between the ends. The relay is peer 1 of both ends;
/// the client is its peer 1 and the server its peer 2. Lane `k` joins workers `k`; indices of links
/// have slot 1 (towards the client) and 2, those of sessions slot 3.
pub struct Line {
    pub client: Node,
    pub relay: Node,
    pub server: Node,
    /// Per worker: the client's and the relay's side.
    pub first: Vec<[Lane; 2]>,
    /// Per worker: the relay's and the server's side.
    pub second: Vec<[Lane; 2]>,
    /// Per worker: the client's and the server's side.
    pub session: Vec<[Lane; 2]>,
}

impl Line {
    pub fn new(workers: u16, suite: Suite) -> Self {
        let mut client = Node::new(1, workers);
        let mut relay = Node::new(2, workers);
        let mut server = Node::new(3, workers);
        client.peer(1, relay.key);
        server.peer(1, relay.key);
        relay.peer(1, client.key);
        relay.peer(2, server.key);
        let lanes = |seed: u8, a: u16, b: u16| -> Vec<[Lane; 2]> {
            let lane = |k: u16| {
                let mut pair = Lane::pair(seed + k as u8, suite, index(k, a), index(k, b));
                pair[0].number = k;
                pair[1].number = k;
                pair
            };
            (0..workers).map(lane).collect()
        };
        let (first, second, session) = (lanes(10, 2, 1), lanes(20, 2, 1), lanes(30, 3, 3));
        for k in 0..usize::from(workers) {
            install_link(&mut client.engines[k], &first[k][0], 1, relay.endpoint);
            install_link(&mut relay.engines[k], &first[k][1], 1, client.endpoint);
            install_link(&mut relay.engines[k], &second[k][0], 2, server.endpoint);
            install_link(&mut server.engines[k], &second[k][1], 1, relay.endpoint);
            install_session(&mut client.engines[k], &session[k][0], server.key);
            install_session(&mut server.engines[k], &session[k][1], client.key);
        }
        client.route(server.address, &[(1, 1)]);
        server.route(client.address, &[(1, 1)]);
        relay.route(client.address, &[(1, 1)]);
        relay.route(server.address, &[(2, 1)]);
        Self {
            client,
            relay,
            server,
            first,
            second,
            session,
        }
    }

    /// A UDP packet from the client to the server.
    pub fn packet(&self, len: usize) -> Vec<u8> {
        Host::udp(self.client.address, self.server.address).packet(len)
    }

    /// A valid frame of the client as the relay gets it, with the packet it carries.
    pub fn frame_at_relay(&mut self, len: usize) -> (Vec<u8>, Vec<u8>) {
        let packet = self.packet(len);
        let frame = send(self.client.engine(), NOW, &packet);
        (frame, packet)
    }

    /// Likewise as the server gets it.
    pub fn frame_at_server(&mut self, len: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut frame, packet) = self.frame_at_relay(len);
        let from = self.client.endpoint;
        let verdict = receive_one(self.relay.engine(), NOW, from, &mut frame);
        assert!(matches!(verdict, Verdict::Transmit(_)), "{verdict:?}");
        (frame, packet)
    }

    /// Headers of a frame from the client to the server.
    pub fn headers(&self, service: Service, payload: usize) -> SealedHeaders {
        let mut headers = SealedHeaders::new_zeroed();
        headers.routing.destination = self.server.address;
        headers.routing.source = self.client.address;
        headers.routing.hop_limit = HOPS;
        headers.routing.service = service.code();
        headers.routing.payload_len.set(payload as u16);
        headers
    }
}

/// The packet's way out of its host; panics if it has none.
pub fn depart(engine: &mut Engine, now: Nanos, header: &TunHeader, packet: &[u8]) -> Departure {
    let verdict = engine.route_host(now, header, packet);
    let HostVerdict::Depart(departure) = verdict else {
        panic!("{verdict:?}")
    };
    departure
}

/// The lane that a train leaves on; panics if another worker sends it.
pub fn lane_of(train: &Train) -> LinkSlot {
    let Egress::Lane(lane) = train.egress else {
        panic!("{train:?}")
    };
    lane
}

/// All trains of a packet or super-packet of the host.
pub fn trains(engine: &mut Engine, header: &TunHeader, packet: &[u8]) -> Vec<(Train, Vec<u8>)> {
    let departure = depart(engine, NOW, header, packet);
    let mut splitter = Splitter::new(header, packet, departure.mtu()).unwrap();
    let mut out = Vec::new();
    while splitter.remaining() > 0 {
        let mut space = vec![0; 1 << 17];
        let train = engine.originate(NOW, &departure, &mut splitter, &mut space);
        let train = train.unwrap();
        space.truncate(train.len);
        out.push((train, space));
    }
    out
}

/// The frame of one plain packet of the host.
pub fn send(engine: &mut Engine, now: Nanos, packet: &[u8]) -> Vec<u8> {
    let header = TunHeader::default();
    let departure = depart(engine, now, &header, packet);
    let mut splitter = Splitter::new(&header, packet, departure.mtu()).unwrap();
    let mut space = vec![0; 65_507];
    let train = engine.originate(now, &departure, &mut splitter, &mut space);
    space.truncate(train.unwrap().len);
    space
}

pub fn receive(
    engine: &mut Engine,
    now: Nanos,
    from: Endpoint,
    train: &mut [u8],
    segment: usize,
) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    engine.receive(now, from, train, segment, &mut verdicts);
    verdicts
}

/// Verdict of a train that is one frame.
pub fn receive_one(engine: &mut Engine, now: Nanos, from: Endpoint, frame: &mut [u8]) -> Verdict {
    let segment = frame.len();
    let verdicts = receive(engine, now, from, frame, segment);
    assert_eq!(verdicts.len(), 1);
    verdicts[0]
}

pub fn events(engine: &mut Engine) -> Vec<EngineEvent> {
    std::iter::from_fn(|| engine.next_event()).collect()
}

/// A transit frame made by hand. `session` and `link` are the sender's sides.
pub fn transit(
    link: (&Lane, u64),
    session: (&Lane, u64),
    mut headers: SealedHeaders,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = payload.to_vec();
    let unsealed = [Service::Handshake, Service::Report, Service::Trace];
    let tag = if unsealed
        .map(Service::code)
        .contains(&headers.routing.service)
    {
        handshake_trailer(payload)
    } else {
        headers.session.receiver.set(session.0.send.0);
        headers.session.counter.set(session.1);
        let aead = Aead::new(session.0.suite, &session.0.keys.send);
        aead.seal(session.1, &headers.associated_data(), &mut body)
    };
    body.extend(tag);
    seal_transit(link, &headers, &body)
}

/// Seals the link part around headers and a payload with its end-to-end tag.
pub fn seal_transit(link: (&Lane, u64), headers: &SealedHeaders, body: &[u8]) -> Vec<u8> {
    let (lane, counter) = link;
    let header = LinkHeader::new(FrameKind::Transit, lane.send.0, counter);
    let aad = [header.as_bytes(), &body[body.len() - 16..]].concat();
    let mut sealed = headers.as_bytes().to_vec();
    let tag = Aead::new(lane.suite, &lane.keys.send).seal(counter, &aad, &mut sealed);
    [header.as_bytes(), &sealed, &tag, body].concat()
}

/// A link-local frame made by hand.
pub fn link_local(lane: &Lane, counter: u64, payload: &[u8]) -> Vec<u8> {
    let header = LinkHeader::new(FrameKind::LinkLocal, lane.send.0, counter);
    let mut sealed = payload.to_vec();
    let aead = Aead::new(lane.suite, &lane.keys.send);
    let tag = aead.seal(counter, header.as_bytes(), &mut sealed);
    [header.as_bytes(), &sealed, &tag].concat()
}

/// What opening the link part of a transit frame that `lane` receives shows.
pub fn open_headers(lane: &Lane, frame: &[u8]) -> SealedHeaders {
    let (header, _) = LinkHeader::split(frame).unwrap();
    assert_eq!(header.receiver.get(), lane.receive.0);
    let aad = [&frame[..16], &frame[frame.len() - 16..]].concat();
    let mut sealed = frame[16..88].to_vec();
    let aead = Aead::new(lane.suite, &lane.keys.receive);
    aead.open(header.counter.get(), &aad, &mut sealed).unwrap();
    zerocopy::FromBytes::read_from_bytes(&sealed[..56]).unwrap()
}

/// Bytes that differ from place to place.
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// A flow of a host.
#[derive(Clone, Copy)]
pub struct Host {
    pub source: OverlayAddress,
    pub destination: OverlayAddress,
    pub ports: (u16, u16),
    pub tcp: bool,
}

impl Host {
    pub fn udp(source: OverlayAddress, destination: OverlayAddress) -> Self {
        Self {
            source,
            destination,
            ports: (40_000, 443),
            tcp: false,
        }
    }

    pub fn tcp(source: OverlayAddress, destination: OverlayAddress) -> Self {
        Self {
            tcp: true,
            ..Self::udp(source, destination)
        }
    }

    /// Bytes of IPv6 and transport header.
    pub fn headers_len(&self) -> usize {
        if self.tcp { 60 } else { 48 }
    }

    /// A packet with `len` bytes of payload. Its checksum field holds nothing that anyone checks.
    pub fn packet(&self, len: usize) -> Vec<u8> {
        let transport = self.headers_len() - 40 + len;
        let mut out = vec![0x60, 0, 0, 0];
        out.extend((transport as u16).to_be_bytes());
        out.extend([if self.tcp { 6 } else { 17 }, HOPS]);
        out.extend(self.source.0);
        out.extend(self.destination.0);
        out.extend(self.ports.0.to_be_bytes());
        out.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            out.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        } else {
            out.extend((transport as u16).to_be_bytes());
            out.extend([0, 0]);
        }
        out.extend(noise(len, u32::from(self.ports.0)));
        out
    }

    /// The offload header of a super-packet to be cut into `size` bytes of payload.
    pub fn offload(&self, size: u16) -> TunHeader {
        TunHeader {
            flags: TunHeader::NEEDS_CSUM,
            gso_type: if self.tcp {
                TunHeader::GSO_TCPV6
            } else {
                TunHeader::GSO_UDP_L4
            },
            hdr_len: U16::new(self.headers_len() as u16),
            gso_size: U16::new(size),
            csum_start: U16::new(40),
            csum_offset: U16::new(if self.tcp { 16 } else { 6 }),
        }
    }
}

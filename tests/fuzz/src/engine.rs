//! Trains from the underlay, through an engine that has two links, a route and a session.
//!
//! ```text
//!  neighbour 1 ──▶ this node (0.0) ──▶ neighbour 2 ──▶ the session's other end
//! ```

use hyphae_forward::host::inspect;
use hyphae_forward::{Aead, Engine, EngineConfig, Verdict};
use hyphae_shm::record::{
    CookieSecret, FibReplace, LaneKeys, LinkInstall, LocalInstall, NextHop, NodeSecret,
    PeerInstall, Program, Secret, SessionInstall,
};
use hyphae_shm::stats::DropReason;
use hyphae_time::Nanos;
use hyphae_wire::frame::{PAYLOAD_AT, SEALED_HEADERS_LEN, SealedHeaders, TAG_LEN};

use hyphae_wire::{
    Endpoint, FrameKind, LinkHeader, OverlayAddress, PublicKey, RoutingHeader, Service,
    SessionHeader, SessionIndex, Suite, WorkerId, guard,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::take;

const NOW: Nanos = Nanos(5_000_000_000);
const LOCAL: OverlayAddress = OverlayAddress([4, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
/// The session's other end in packets of the corpus; [`remote`] takes its place.
const CORPUS_REMOTE: [u8; 16] = [5, 2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2];
const REMOTE_KEY: PublicKey = PublicKey([9; 32]);
/// Index of the lane to neighbour 1; that to neighbour 2 is one higher, the session's two.
const INDEX: u32 = 0x0001_0001;
const SESSION_INDEX: u32 = INDEX + 2;
const COOKIE_SECRET: [u8; 32] = [0x55; 32];
const NODE_SECRET: [u8; 32] = [0x66; 32];
/// What neighbours prove with that they lost their session.
const RESET_TOKEN: [u8; 16] = [0x77; 16];

/// A train. The first byte says of what: bits 0 and 1 of raw bytes (with the size of a segment in
/// the next two), of a frame for this node sealed by its session, of one to be relayed, or of a
/// link-local one; bit 2 chooses the suite, the rest the service. All but raw ones are authentic:
/// what follows bends the headers of a valid frame by exclusive or (56 bytes), then is its payload.
pub fn engine(mut data: &[u8]) {
    let Some([first]) = take(&mut data) else {
        return;
    };
    let suite = if first & 4 == 0 {
        Suite::ChaCha20Poly1305
    } else {
        Suite::Aes256Gcm
    };
    let mut node = Node::new(suite);
    match first & 3 {
        0 => {
            let Some(segment) = take(&mut data).map(u16::from_le_bytes) else {
                return;
            };
            let segment = usize::from(segment).clamp(1, data.len().max(1));
            let mut train = data.to_vec();
            node.receive(&mut train, segment);
        }
        kind => {
            let service = Service::from_code(first >> 3).unwrap_or(Service::Ipv6);
            let frame = match kind {
                1 => node.sealed(LOCAL, service, data),
                2 => node.sealed(remote(), service, data),
                _ => node.link_local(data),
            };
            // Twice in one train: whatever the first copy is, the second is a replay.
            let mut train = [&frame[..], &frame].concat();
            let verdicts = node.receive(&mut train, frame.len());
            let short = Verdict::Drop(DropReason::FrameTooShort);
            let second = if verdicts[0] == short {
                short
            } else {
                Verdict::Drop(DropReason::LinkReplay)
            };
            assert_eq!(verdicts[1], second);
            assert_ne!(verdicts[0], Verdict::Drop(DropReason::LinkAuth));
        }
    }
}

/// A session's address is that of its key.
fn remote() -> OverlayAddress {
    REMOTE_KEY.address()
}

fn keys(seed: u8) -> LaneKeys {
    LaneKeys {
        receive: [seed; 32],
        send: [seed | 0x80; 32],
    }
}

struct Node {
    engine: Engine,
    suite: Suite,
}

impl Node {
    fn new(suite: Suite) -> Self {
        let config = EngineConfig {
            worker: WorkerId(0),
            workers: 2,
            has_tun: true,
        };
        let mut node = Self {
            engine: Engine::new(config),
            suite,
        };
        let local = LocalInstall {
            address: LOCAL,
            mtu: 1340.into(),
            reserved: [0; 6],
            key: PublicKey([9; 32]),
        };
        node.apply(&Program::LocalInstall(&local));
        let mut cookies = CookieSecret::new_zeroed();
        cookies.current.0 = COOKIE_SECRET;
        // The second first message of a train is over the limit.
        (cookies.inits_per_second, cookies.inits_burst) = (1.into(), 1.into());
        node.apply(&Program::CookieSecret(&cookies));
        let secret = NodeSecret {
            secret: Secret(NODE_SECRET),
        };
        node.apply(&Program::NodeSecret(&secret));
        for peer in [1, 2] {
            let install = PeerInstall {
                peer: peer.into(),
                key: PublicKey([u8::try_from(peer).unwrap_or(0); 32]),
                reserved: 0.into(),
            };
            node.apply(&Program::PeerInstall(&install));
            let mut link = LinkInstall::new_zeroed();
            link.peer = peer.into();
            link.receive_index = (INDEX + peer - 1).into();
            link.send_index = (0x40 + peer).into();
            link.suite = suite.code();
            link.epoch = 1.into();
            link.endpoint = endpoint();
            link.created = NOW.0.into();
            (link.rekey_after_ms, link.reject_after_ms) = (120_000.into(), 180_000.into());
            link.keys = keys(install.key.0[0]);
            link.reset = RESET_TOKEN;
            node.apply(&Program::LinkInstall(&link));
        }
        let mut session = SessionInstall::new_zeroed();
        (session.address, session.key) = (remote(), REMOTE_KEY);
        (session.receive_index, session.send_index) = (SESSION_INDEX.into(), 0x50.into());
        (session.suite, session.epoch, session.mtu) = (suite.code(), 1.into(), 1340.into());
        session.created = NOW.0.into();
        (session.rekey_after_ms, session.reject_after_ms) = (120_000.into(), 180_000.into());
        session.keys = keys(3);
        node.apply(&Program::SessionInstall(&session));
        let mut route = FibReplace::new_zeroed();
        (route.prefix, route.prefix_len) = (remote().subnet().address(), 64);
        route.next_hop_count = 1;
        route.next_hops[0] = NextHop {
            peer: 2.into(),
            weight: 1.into(),
            reserved: 0.into(),
        };
        node.apply(&Program::FibReplace(&route));
        node
    }

    fn apply(&mut self, program: &Program<'_>) {
        if let Err(error) = self.engine.apply(NOW, program) {
            panic!("{program:?}: {error}");
        }
    }

    /// A frame from neighbour 1, authentic on the hop, and for its end if that is this node.
    fn sealed(&self, destination: OverlayAddress, service: Service, mut data: &[u8]) -> Vec<u8> {
        let bend: [u8; SEALED_HEADERS_LEN] = take(&mut data).unwrap_or([0; SEALED_HEADERS_LEN]);
        let headers = SealedHeaders {
            routing: RoutingHeader {
                destination,
                source: remote(),
                hop_limit: 64,
                service: service.code(),
                flow_hash: 1.into(),
                payload_len: u16::try_from(data.len()).unwrap_or(u16::MAX).into(),
                flags: 0.into(),
            },
            session: SessionHeader {
                receiver: SESSION_INDEX.into(),
                ..SessionHeader::default()
            },
        };
        let mut bytes: [u8; SEALED_HEADERS_LEN] = zerocopy::transmute!(headers);
        bytes
            .iter_mut()
            .zip(bend)
            .for_each(|(byte, bend)| *byte ^= bend);
        let headers: SealedHeaders = zerocopy::transmute!(bytes);

        let mut payload = data.to_vec();
        if payload.get(8..24) == Some(&CORPUS_REMOTE) {
            payload[8..24].copy_from_slice(&remote().0);
        }
        let tag = if service == Service::Handshake {
            hyphae_wire::frame::handshake_trailer(&payload)
        } else {
            let counter = headers.session.counter.get();
            let session = Aead::new(self.suite, &keys(3).receive);
            session.seal(counter, &headers.associated_data(), &mut payload)
        };
        let link = LinkHeader::new(FrameKind::Transit, INDEX, 1);
        let aad = [link.as_bytes(), &tag].concat();
        let link_tag = self.link_key().seal(1, &aad, &mut bytes);
        [link.as_bytes(), &bytes, &link_tag, &payload, &tag].concat()
    }

    fn link_local(&self, data: &[u8]) -> Vec<u8> {
        let link = LinkHeader::new(FrameKind::LinkLocal, INDEX, 1);
        let mut payload = data.to_vec();
        let tag = self.link_key().seal(1, link.as_bytes(), &mut payload);
        [link.as_bytes(), &payload, &tag].concat()
    }

    fn link_key(&self) -> Aead {
        Aead::new(self.suite, &keys(1).receive)
    }

    fn receive(&mut self, train: &mut [u8], segment: usize) -> Vec<Verdict> {
        let drops_before = self.drops();
        let mut verdicts = Vec::new();
        self.engine
            .receive(NOW, endpoint(), train, segment, &mut verdicts);
        assert_eq!(
            verdicts.len(),
            train.len().div_ceil(segment),
            "a verdict per segment"
        );
        let drop = |v: &&Verdict| matches!(v, Verdict::Drop(_) | Verdict::Reply { .. });
        // A short answer takes the place of a frame that is dropped, or of a padded probe.
        let short = |v: &&Verdict| matches!(v, Verdict::TransmitPart(..));
        let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let least = number(verdicts.iter().filter(drop).count());
        let most = least + number(verdicts.iter().filter(short).count());
        let counted = self.drops() - drops_before;
        assert!((least..=most).contains(&counted), "a count per drop");
        for (verdict, number) in verdicts.iter().zip(0..) {
            let from = number * segment;
            self.check(verdict, train, from..train.len().min(from + segment));
        }
        while self.engine.next_event().is_some() {}
        verdicts
    }

    fn drops(&self) -> u64 {
        let counters = &self.engine.counters;
        // Pushed out by a later part: not the verdict of any frame of now.
        let all = DropReason::ALL.iter();
        let all = all.filter(|reason| **reason != DropReason::FragmentLost);
        all.map(|reason| counters.dropped(*reason)).sum()
    }

    /// What comes out keeps its promises.
    fn check(&self, verdict: &Verdict, train: &[u8], segment: std::ops::Range<usize>) {
        let part = |offset: u32, len: u32| {
            let number = |n: u32| usize::try_from(n).unwrap_or(usize::MAX / 4);
            let start = segment.start + number(offset);
            let range = start..start + number(len);
            assert!(
                segment.start <= range.start && range.end <= segment.end,
                "{verdict:?}"
            );
            &train[range]
        };
        match *verdict {
            Verdict::Drop(_) | Verdict::Done | Verdict::PuntHandshake => {}
            Verdict::Reply { len, .. } => {
                let answer = part(0, len);
                assert!(answer.len() < segment.len(), "an answer is shorter");
                match guard::parse(answer) {
                    Some((_, cookie)) if answer[0] == FrameKind::CookieReply.code() => {
                        assert_eq!(cookie, guard::cookie(&COOKIE_SECRET, &endpoint()));
                    }
                    Some((index, token)) => {
                        assert_eq!(answer[0], FrameKind::StatelessReset.code());
                        let index = SessionIndex(index);
                        assert_eq!(token, guard::link_token(&NODE_SECRET, index));
                        assert_ne!(index.worker(), WorkerId(1), "its own to answer");
                    }
                    None => panic!("an answer of no kind: {answer:02x?}"),
                }
            }
            Verdict::TransmitPart(lane, len) => {
                let peer = self.engine.peer(lane).unwrap_or(0);
                assert!(part(0, len).len() <= segment.len());
                self.check_sent(peer, part(0, len));
            }
            Verdict::Handoff(worker) | Verdict::HandoffOpened { worker, .. } => {
                assert_eq!(worker, WorkerId(1));
            }
            Verdict::Transmit(lane) => {
                let peer = self.engine.peer(lane).unwrap_or(0);
                self.check_sent(peer, &train[segment.clone()]);
            }
            // An engine below LANES_PER_WORKER_MAX never hands off what it sends.
            Verdict::HandoffEgress { .. } => panic!("no other worker sends: {verdict:?}"),
            // What may be handed on to all is a report, at a node of several workers.
            Verdict::HandoffAll { peer } => assert_eq!(peer, 1),
            Verdict::Deliver { offset, len, .. } => {
                let Ok(inner) = inspect(part(offset, len)) else {
                    panic!("delivered: not IPv6")
                };
                assert_eq!(inner.source.subnet(), remote().subnet());
                assert_eq!(inner.destination.subnet(), LOCAL.subnet());
            }
            Verdict::PuntLinkLocal {
                peer,
                receive_index,
                offset,
                len,
            } => {
                assert_eq!((peer, receive_index), (1, INDEX));
                assert!(hyphae_wire::control::parse(part(offset, len)).is_some());
            }
            Verdict::PuntService {
                destination,
                peer,
                offset,
                len,
                ..
            } => {
                assert_eq!(peer, 1);
                part(offset, len);
                assert_eq!(destination.subnet(), LOCAL.subnet());
            }
        }
    }

    /// A neighbour could open what it is sent.
    fn check_sent(&self, peer: u32, frame: &[u8]) {
        let key = Aead::new(self.suite, &keys(u8::try_from(peer).unwrap_or(0)).send);
        let Some((link, rest)) = LinkHeader::split(frame) else {
            panic!("sent: {frame:02x?}")
        };
        assert_eq!(
            (link.flags, link.reserved.get(), link.receiver.get()),
            (0, 0, 0x40 + peer)
        );
        let counter = link.counter.get();
        if link.kind == FrameKind::LinkLocal.code() {
            assert_eq!(
                key.open(counter, link.as_bytes(), &mut rest.to_vec()),
                Ok(())
            );
            return;
        }
        assert_eq!((link.kind, peer), (FrameKind::Transit.code(), 2));
        let aad = [link.as_bytes(), &frame[frame.len() - TAG_LEN..]].concat();
        let mut sealed = rest[..SEALED_HEADERS_LEN + TAG_LEN].to_vec();
        assert_eq!(key.open(counter, &aad, &mut sealed), Ok(()));
        let Ok((headers, _)) = SealedHeaders::read_from_prefix(&sealed) else {
            panic!("headers")
        };
        assert_eq!(headers.routing.destination.subnet(), remote().subnet());
        assert!(headers.routing.hop_limit > 0);
        let payload = frame.len() - PAYLOAD_AT - TAG_LEN;
        assert_eq!(usize::from(headers.routing.payload_len.get()), payload);
    }
}

fn endpoint() -> Endpoint {
    Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 9670)))
}

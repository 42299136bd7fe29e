//! Tables that unauthenticated sources fill: eviction, and what stays unaffected. Single forged messages are in
//! `abuse.rs`; what the workers hold back before is tested in dataplane/forward.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyphae_shm::record::{Program, Punt, PuntHandshake, PuntLinkLocal, PuntService};
use hyphae_wire::control::{self, ControlKind};
use hyphae_wire::frame::LINK_HEADER_LEN;
use hyphae_wire::handshake::{HandshakeStep, Message, Offer, encode_frame, encode_session_in};
use hyphae_wire::{
    Endpoint, Lane, NetworkId, PublicKey, SecretKey, Service, SessionIndex, SuiteSet, WorkerId,
};
use zerocopy::FromZeros;

use super::network::{Network, config};
use crate::index::Class;
use crate::keys::Kind;
use crate::noise::Noise;
use crate::{Config, Event, Policy, Refusal};
use hyphae_random::Rng;

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(50);
/// Workers that an initiator claims: the protocol limit.
const WORKERS: u16 = 64;

/// Handshakes of initiators, each with a key of its own.
struct Initiators {
    rng: Rng,
    number: u32,
    /// What they claim.
    workers: u16,
    /// Lanes that third messages list; `None` for as many as the second one.
    lanes: Option<u16>,
}

/// One of them, before its third message.
struct Initiator {
    noise: Box<Noise>,
    number: u32,
    kind: Kind,
    workers: u16,
    lanes: Option<u16>,
}

impl Initiators {
    fn new(seed: u8) -> Self {
        Self {
            rng: Rng::new([seed; 32]),
            number: 0,
            workers: WORKERS,
            lanes: None,
        }
    }

    fn offer(kind: Kind, workers: u16, lanes: Vec<SessionIndex>) -> Offer {
        Offer {
            suites: SuiteSet::all(),
            workers,
            mtu: 1340,
            ports: match kind {
                Kind::Link => vec![9670; workers.into()],
                Kind::EndToEnd => Vec::new(),
            },
            lanes,
            resets: Vec::new(),
            instance: 0,
        }
    }

    fn begin(&mut self, kind: Kind, identity: &hyphae_wire::SecretKey) -> (Initiator, Vec<u8>) {
        self.number += 1;
        let number = self.number;
        let mut noise = Noise::new(identity, kind, true, None, Some(self.rng.array()));
        let first = noise
            .write(&Self::offer(kind, self.workers, Vec::new()).encode())
            .unwrap();
        let initiator = Initiator {
            noise,
            number,
            kind,
            workers: self.workers,
            lanes: self.lanes,
        };
        (
            initiator,
            initiator_frame(kind, HandshakeStep::Init, number, 0, &first),
        )
    }

    fn identity(&mut self) -> hyphae_wire::SecretKey {
        hyphae_wire::SecretKey::from_bytes(&self.rng.array::<32>()).unwrap()
    }
}

fn initiator_frame(
    kind: Kind,
    step: HandshakeStep,
    sender: u32,
    receiver: u32,
    noise: &[u8],
) -> Vec<u8> {
    match kind {
        Kind::Link => encode_frame(step, sender, receiver, noise),
        Kind::EndToEnd => encode_session_in(NetworkId::PUBLIC, step, sender, receiver, noise),
    }
}

impl Initiator {
    /// The third message, where the second is for this one.
    fn finish(&mut self, answer: &[u8]) -> Option<Vec<u8>> {
        let message = match self.kind {
            Kind::Link => Message::parse_frame(answer),
            Kind::EndToEnd => Message::parse(answer),
        };
        self.third(&message.ok()?)
    }

    fn third(&mut self, message: &Message<'_>) -> Option<Vec<u8>> {
        if message.step != HandshakeStep::Response {
            return None;
        }
        if message.header.receiver.get() != self.number {
            return None;
        }
        let theirs = Offer::parse(&self.noise.read(message.noise)?).unwrap();
        let index = |n: u16| SessionIndex::new(Lane(n).worker(self.workers), 1, n);
        let listed = u16::try_from(theirs.lanes.len()).unwrap();
        let lanes = (0..self.lanes.unwrap_or(listed)).map(index);
        let mut choice = Initiators::offer(self.kind, self.workers, lanes.collect());
        choice.suites = theirs.suites;
        let third = self.noise.write(&choice.encode()).unwrap();
        let receiver = message.header.sender.get();
        Some(initiator_frame(
            self.kind,
            HandshakeStep::Finish,
            self.number,
            receiver,
            &third,
        ))
    }
}

fn v4(n: u8) -> Endpoint {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, n), 5000)).into()
}

/// One of 16 networks of one site.
fn site(n: u16) -> Endpoint {
    let ip = Ipv6Addr::new(0x2001, 0xdb8, 7, n % 16, 0, 0, 0, 1);
    SocketAddr::from((ip, 5000)).into()
}

fn receive_raw(network: &mut Network, node: usize, from: Endpoint, frame: &[u8]) {
    let meta = PuntHandshake {
        addresses: from.into(),
    };
    network.with(node, |overlay, now| {
        overlay.handle_punt(now, WorkerId(0), &Punt::Handshake(&meta, frame));
    });
}

/// A whole link handshake of an initiator.
fn join(network: &mut Network, node: usize, from: Endpoint, initiators: &mut Initiators) {
    let identity = initiators.identity();
    join_as(network, node, from, initiators, &identity);
}

fn join_as(
    network: &mut Network,
    node: usize,
    from: Endpoint,
    initiators: &mut Initiators,
    identity: &SecretKey,
) {
    let (mut initiator, first) = initiators.begin(Kind::Link, identity);
    let before = network.captured.len();
    receive_raw(network, node, from, &first);
    let answers: Vec<_> = network.captured.drain(before..).collect();
    let third = answers
        .iter()
        .find_map(|(_, _, answer)| initiator.finish(answer));
    if let Some(third) = third {
        receive_raw(network, node, from, &third);
    }
}

/// A message inside of the session that a node has with a key, if it has one.
fn send_inside(network: &mut Network, node: usize, key: PublicKey, frame: &[u8]) {
    exchange_inside(network, node, key, frame);
}

/// The same; returns the bodies of the answers inside of sessions.
fn exchange_inside(
    network: &mut Network,
    node: usize,
    key: PublicKey,
    frame: &[u8],
) -> Vec<Vec<u8>> {
    let mut associations = network.overlay(node).associations.iter();
    let known = associations.find(|(owner, a)| owner.kind() == Kind::Link && a.key == Some(key));
    let Some(lane) = known.and_then(|(_, a)| a.current()?.lanes.first().copied()) else {
        return Vec::new();
    };
    let message = [
        &control::message(ControlKind::Handshake),
        &frame[LINK_HEADER_LEN..],
    ]
    .concat();
    let meta = PuntLinkLocal {
        receive_index: lane.receive.0.into(),
        received: network.now.0.into(),
        ..PuntLinkLocal::new_zeroed()
    };
    let now = network.now;
    let n = &mut network.nodes[node];
    let overlay = n.overlay.as_mut().unwrap();
    overlay.handle_punt(now, WorkerId(0), &Punt::LinkLocal(&meta, &message));
    let mut answers = Vec::new();
    while let Some((worker, program)) = overlay.poll_program() {
        n.workers[worker.as_usize()].execute(now, &program);
        if let Program::InjectLinkLocal(_, answer) = program.program() {
            answers.push(answer[control::CONTROL_HEADER_LEN..].to_vec());
        }
    }
    network.with(node, |_, _| ());
    answers
}

/// The times of a node that renews every 20 s.
fn brisk(seed: u8) -> Config {
    Config {
        rekey_after: SECOND * 20,
        reject_after: SECOND * 40,
        ..config(seed, 1)
    }
}

/// Runs `attack` against node 0 for a minute, twenty times a second: an established link is renewed and never down,
/// and a node that joins halfway has a link within a second.
fn endures(seed: u64, victim: Config, mut attack: impl FnMut(&mut Network)) -> Network {
    let mut network = Network::new(seed, vec![victim, brisk(2), brisk(3)]);
    network.connect(1, 0);
    network.wait(SECOND, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    let end = network.now + SECOND * 60;
    let mut newcomer = None;
    while network.now < end {
        attack(&mut network);
        network.captured.clear();
        network.run(TICK);
        if newcomer.is_none() && network.now + SECOND * 30 >= end {
            newcomer = Some(network.now);
            network.connect(2, 0);
        }
        let late = newcomer.is_some_and(|began| network.now >= began + SECOND);
        assert!(!late || network.is_up(2, 0), "the newcomer has a link");
    }
    assert!(network.is_up(0, 2) && network.is_up(1, 0));
    assert!(network.overlay(1).handshakes().links_renewed >= 2);
    let down = |e: &Event| matches!(e, Event::PeerDown { .. });
    assert!(
        !network.nodes[1].events.iter().any(down),
        "the link stays up"
    );
    network
}

#[test]
fn first_messages_that_claim_the_most_workers_exclude_no_source() {
    let mut initiators = Initiators::new(1);
    let identity = initiators.identity();
    let mut turn = 0;
    endures(31, brisk(1), |network| {
        for from in [v4(1), v4(1), v4(1), site(turn), site(turn + 1)] {
            let (_, first) = initiators.begin(Kind::Link, &identity);
            receive_raw(network, 0, from, &first);
        }
        turn += 2;
    });
}

#[test]
fn finished_handshakes_that_claim_the_most_workers_exclude_no_source() {
    let mut initiators = Initiators::new(2);
    let mut turn = 0;
    let policy = Policy {
        inbound_max: 40,
        ..Policy::default()
    };
    let victim = Config { policy, ..brisk(1) };
    let network = endures(32, victim, |network| {
        let from = if turn % 4 == 0 { v4(1) } else { site(turn) };
        join(network, 0, from, &mut initiators);
        turn += 1;
    });
    // The limit.
    assert!(network.overlay(0).peers().count() <= 40);
}

#[test]
fn renewals_that_claim_more_lanes_than_their_session_exclude_no_source() {
    let mut initiators = Initiators::new(5);
    // As many keys as one address may have.
    let most = Policy::default().inbound_per_source_max;
    let identities: Vec<_> = (0..most).map(|_| initiators.identity()).collect();
    let mut turn = 0;
    let network = endures(36, brisk(1), |network| {
        for (n, identity) in identities.iter().enumerate() {
            let key = identity.public_key();
            initiators.workers = 1;
            if !network.overlay(0).is_up(key) {
                join_as(network, 0, v4(1), &mut initiators, identity);
            }
            if turn % most == n {
                initiators.workers = WORKERS;
                for _ in 0..2 {
                    let (_, first) = initiators.begin(Kind::Link, identity);
                    send_inside(network, 0, key, &first);
                }
            }
        }
        turn += 1;
    });
    assert_eq!(network.overlay(0).half_opens.len(), 0, "none was answered");
    let refused = |e: &&Event| {
        matches!(
            e,
            Event::Refused {
                reason: Refusal::Offer,
                ..
            }
        )
    };
    assert!(network.nodes[0].events.iter().filter(refused).count() > 1000);
}

#[test]
fn a_claim_of_the_most_workers_takes_eight_slots_of_a_single_worker() {
    let mut network = Network::new(38, vec![config(1, 1)]);
    let mut initiators = Initiators::new(8);
    assert_eq!(initiators.workers, 64);
    join(&mut network, 0, v4(1), &mut initiators);
    assert_eq!(network.overlay(0).peers().count(), 1);
    assert_eq!(network.nodes[0].workers[0].links.len(), 8);
}

#[test]
fn a_release_with_another_number_of_lanes_is_refused_with_both_numbers() {
    let mut network = Network::new(41, vec![config(1, 1)]);
    let mut initiators = Initiators::new(10);
    // As in releases that take the maximum of both worker counts.
    initiators.lanes = Some(WORKERS);
    join(&mut network, 0, v4(1), &mut initiators);
    assert_eq!(network.overlay(0).peers().count(), 0);
    let (listed, required) = (64, 8);
    let reason = Refusal::Lanes { listed, required };
    let refused = |e: &Event| matches!(e, Event::Refused { reason: r, .. } if *r == reason);
    assert!(network.nodes[0].events.iter().any(refused));
    let text = reason.to_string();
    assert!(text.contains("protocol version 1 requires 8"), "{text}");
}

#[test]
fn sessions_of_small_peers_weigh_as_much_as_the_slots_that_they_take_of_a_worker() {
    let mut network = Network::new(40, vec![config(1, 64)]);
    let mut initiators = Initiators::new(9);
    let honest = initiators.identity();
    join_as(&mut network, 0, v4(1), &mut initiators, &honest);
    initiators.workers = 1;
    let crowd: Vec<_> = (0..7).map(|_| initiators.identity()).collect();
    for identity in &crowd {
        join_as(&mut network, 0, v4(2), &mut initiators, identity);
        assert!(network.overlay(0).is_up(identity.public_key()));
    }
    // The rest belongs to others.
    let now = network.now;
    let overlay = network.nodes[0].overlay.as_mut().unwrap();
    while overlay.allocate(now, Kind::Link, 1, Class::Live).is_some() {}
    let newcomer = initiators.identity();
    join_as(&mut network, 0, v4(3), &mut initiators, &newcomer);
    // Eight lanes of a peer with one worker and 64 of a peer with 64 take one slot of each worker that they use.
    assert!(network.overlay(0).is_up(newcomer.public_key()));
    assert!(network.overlay(0).is_up(honest.public_key()));
    let up = |key: &&SecretKey| network.overlay(0).is_up(key.public_key());
    assert_eq!(crowd.iter().filter(up).count(), 6);
}

#[test]
fn half_open_renewals_are_charged_to_their_owner_and_evicted_before_its_session() {
    let mut network = Network::new(37, vec![config(1, 1)]);
    let mut initiators = Initiators::new(7);
    initiators.workers = 1;
    let identity = initiators.identity();
    join_as(&mut network, 0, v4(1), &mut initiators, &identity);
    for _ in 0..2 {
        let (_, first) = initiators.begin(Kind::Link, &identity);
        send_inside(&mut network, 0, identity.public_key(), &first);
    }
    assert_eq!(network.overlay(0).half_opens.len(), 2);
    // The rest belongs to others.
    let now = network.now;
    let overlay = network.nodes[0].overlay.as_mut().unwrap();
    while overlay.allocate(now, Kind::Link, 1, Class::Live).is_some() {}
    let newcomer = initiators.identity();
    join_as(&mut network, 0, site(1), &mut initiators, &newcomer);
    assert!(network.overlay(0).is_up(newcomer.public_key()));
    assert!(network.overlay(0).is_up(identity.public_key()));
    assert_eq!(network.overlay(0).half_opens.len(), 0);
}

#[test]
fn a_handshake_that_was_begun_inside_of_a_session_ends_in_it_and_nowhere_else() {
    let mut network = Network::new(39, vec![config(1, 1)]);
    let mut initiators = Initiators::new(8);
    initiators.workers = 1;
    let [one, other, third] = [(); 3].map(|()| initiators.identity());
    for (n, identity) in [(1, &one), (2, &other)] {
        join_as(&mut network, 0, v4(n), &mut initiators, identity);
    }
    let keys = [&one, &other, &third].map(SecretKey::public_key);
    let sessions = |n: &Network, key| {
        let mut associations = n.overlay(0).associations.values();
        let known = associations.find(|a| a.key == Some(key));
        known.map_or(0, |a| a.sessions.len())
    };
    let mut begin = |network: &mut Network, identity: &SecretKey| {
        let (mut initiator, first) = initiators.begin(Kind::Link, identity);
        let answers = exchange_inside(network, 0, keys[0], &first);
        let mut answers = answers.iter().filter_map(|body| Message::parse(body).ok());
        answers.find_map(|m| initiator.third(&m)).unwrap()
    };
    // Under another key, outside.
    let finish = begin(&mut network, &third);
    receive_raw(&mut network, 0, v4(3), &finish);
    // Under another key, inside of the session of that.
    let finish = begin(&mut network, &other);
    exchange_inside(&mut network, 0, keys[1], &finish);
    // Under the same key, outside; and then where it was begun.
    let finish = begin(&mut network, &one);
    receive_raw(&mut network, 0, v4(1), &finish);
    assert_eq!(keys.map(|key| sessions(&network, key)), [1, 1, 0]);
    exchange_inside(&mut network, 0, keys[0], &finish);
    assert_eq!(keys.map(|key| sessions(&network, key)), [2, 1, 0]);
}

/// Lanes of links that a class has room for.
fn room_of(network: &mut Network, node: usize, class: Class) -> usize {
    let now = network.now;
    let overlay = network.nodes[node].overlay.as_mut().unwrap();
    let mut all = Vec::new();
    while let Some(taken) = overlay.allocate(now, Kind::Link, 1, class) {
        all.extend(taken);
    }
    overlay.release_unused(now, Kind::Link, class, &all);
    all.len()
}

fn room(network: &mut Network, node: usize) -> usize {
    room_of(network, node, Class::Live)
}

#[test]
fn renewals_use_a_reserve_of_a_full_table_and_return_it() {
    let mut network = Network::new(42, vec![brisk(1), brisk(2)]);
    network.connect(1, 0);
    network.wait(SECOND, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    // The rest belongs to others.
    let now = network.now;
    let overlay = network.nodes[0].overlay.as_mut().unwrap();
    while overlay.allocate(now, Kind::Link, 1, Class::Live).is_some() {}
    let reserve = room_of(&mut network, 0, Class::Renewal);
    assert!(reserve > 0);
    let renewed = |n: &Network| n.overlay(1).handshakes().links_renewed;
    let (before, mut used) = (renewed(&network), false);
    while renewed(&network) < before + 5 {
        network.run(TICK);
        used |= room_of(&mut network, 0, Class::Renewal) < reserve;
        assert_eq!(room(&mut network, 0), 0, "nothing for others");
    }
    assert!(used, "two sessions at once");
    // As soon as the replaced session ends.
    network.run(SECOND * 15);
    assert_eq!(room_of(&mut network, 0, Class::Renewal), reserve);
    let down = |e: &Event| matches!(e, Event::PeerDown { .. });
    assert!(!network.nodes[1].events.iter().any(down));
}

#[test]
fn an_answer_that_no_third_message_can_follow_uses_no_slots_and_is_requested_again() {
    let mut network = Network::new(40, vec![config(1, 1), config(2, 1)]);
    let before = room(&mut network, 0);
    network.connect(0, 1);
    let overlay = network.nodes[0].overlay.as_mut().unwrap();
    // More than a message can carry.
    let ports = std::mem::replace(&mut overlay.config.ports, vec![1; 40_000]);
    network.run(TICK);
    assert!(!network.is_up(0, 1) && room(&mut network, 0) == before);
    network.nodes[0].overlay.as_mut().unwrap().config.ports = ports;
    network.wait(SECOND * 10, "the link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    assert_eq!(room(&mut network, 0), before - 1);
}

#[test]
fn half_open_renewals_end_with_their_session_and_release_their_slots() {
    let mut network = Network::new(38, vec![config(1, 1)]);
    let mut initiators = Initiators::new(6);
    initiators.workers = 1;
    let identity = initiators.identity();
    let before = room(&mut network, 0);
    join_as(&mut network, 0, v4(1), &mut initiators, &identity);
    for _ in 0..2 {
        let (_, first) = initiators.begin(Kind::Link, &identity);
        send_inside(&mut network, 0, identity.public_key(), &first);
    }
    assert_eq!(network.overlay(0).half_opens.len(), 2);
    assert_eq!(room(&mut network, 0), before - 3);
    let key = identity.public_key();
    network.with(0, |overlay, now| {
        assert!(overlay.remove_peer_by_key(now, &key));
    });
    assert_eq!(network.overlay(0).half_opens.len(), 0);
    assert_eq!(room(&mut network, 0), before);
}

#[test]
fn many_keys_behind_one_neighbour_exclude_neither_others_nor_those_behind_it() {
    let victim = Config {
        session_slots: 1024,
        sessions_max: 32,
        ..config(1, 1)
    };
    let mut network = Network::new(33, vec![victim, config(2, 1), config(3, 1)]);
    for node in [1, 2] {
        network.connect(node, 0);
    }
    network.wait(SECOND, "links", |n| n.is_up(0, 1) && n.is_up(0, 2));
    let mut initiators = Initiators::new(3);
    let through = network.nodes[0].peers_up[&network.key(1)];
    let mut finished = 0;
    for turn in 0..100 {
        let identity = initiators.identity();
        let (mut initiator, first) = initiators.begin(Kind::EndToEnd, &identity);
        let mut meta = PuntService::new_zeroed();
        meta.source = identity.public_key().address();
        meta.destination = network.address(0);
        meta.service = Service::Handshake.code();
        meta.peer = through.into();
        let now = network.now;
        let overlay = network.nodes[0].overlay.as_mut().unwrap();
        overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, &first));
        let mut third = None;
        while let Some((_, program)) = overlay.poll_program() {
            if let Program::InjectRouted(_, answer) = program.program() {
                third = third.or_else(|| initiator.finish(answer));
            }
        }
        finished += u32::from(third.is_some());
        network.with(0, |overlay, now| {
            if let Some(third) = third {
                overlay.handle_punt(now, WorkerId(0), &Punt::Service(&meta, &third));
            }
        });
        network.run(TICK);
        if turn == 60 {
            // One behind another neighbour, and one behind the same.
            for node in [2, 1] {
                let to = network.address(0);
                network.with(node, |overlay, now| overlay.ping(now, to, 7));
            }
        }
    }
    assert_eq!(finished, 100);
    for node in [1, 2] {
        let answered = |e: &Event| matches!(e, Event::EchoReply { id: 7, .. });
        assert!(network.nodes[node].events.iter().any(answered), "{node}");
    }
    assert!(network.overlay(0).sessions().count() <= 32);
}

#[test]
fn a_renewal_travels_inside_the_session_and_needs_no_first_message_outside() {
    let mut network = Network::new(34, vec![brisk(1), brisk(2)]);
    network.connect(1, 0);
    network.wait(SECOND, "link", |n| n.is_up(0, 1) && n.is_up(1, 0));
    let to = network.address(0);
    network.with(1, |overlay, now| overlay.ping(now, to, 1));
    network.run(SECOND);
    network.captured.clear();
    network.carry(1, 0, SECOND * 60);
    assert!(network.overlay(1).handshakes().links_renewed >= 2);
    assert_eq!(network.captured.len(), 0, "no frame outside of a session");
}

#[test]
fn one_node_that_restarts_its_handshake_has_no_more_sessions_than_others() {
    let mut network = Network::new(35, vec![config(1, 1)]);
    let mut initiators = Initiators::new(4);
    let identity = initiators.identity();
    for _ in 0..20 {
        let (mut initiator, first) = initiators.begin(Kind::Link, &identity);
        network.captured.clear();
        receive_raw(&mut network, 0, v4(1), &first);
        let answer = network.captured.last().unwrap().2.clone();
        let third = initiator.finish(&answer).unwrap();
        receive_raw(&mut network, 0, v4(1), &third);
        network.run(TICK);
        let lanes = network.nodes[0].workers[0].links.len();
        let each = usize::from(Lane::count(1, WORKERS));
        assert!(lanes <= crate::association::SESSIONS_MAX * each, "{lanes}");
    }
    assert!(network.overlay(0).is_up(identity.public_key()));
}

//! Handshake framing, offers, the Noise transcript, and addresses of keys.

#![allow(clippy::unwrap_used, reason = "a test")]

use hyphae_test_golden::{Case, load};
use hyphae_wire::handshake::{self, HandshakeStep, INIT_LEN, Message, NOISE_PATTERN, Offer};
use hyphae_wire::{OverlayAddress, PublicKey, SecretKey, SessionIndex, SuiteSet};
use snow::{Builder, HandshakeState};

#[test]
fn handshake_frames() {
    for case in load("handshake-frame") {
        let step = HandshakeStep::from_code(case.number("step")).unwrap();
        let (sender, receiver) = (case.number("sender"), case.number("receiver"));
        let (noise, written) = (case.bytes("noise"), case.bytes("frame"));
        let mut frame = written.clone();
        frame.resize(written.len() + case.number::<usize>("padding"), 0);
        assert_eq!(
            handshake::encode_frame(step, sender, receiver, &noise),
            frame,
            "{}",
            case.at()
        );
        assert_eq!(
            handshake::encode(step, sender, receiver, &noise),
            written[16..]
        );
        assert_eq!(
            step == HandshakeStep::Init,
            frame.len() == INIT_LEN,
            "{}",
            case.at()
        );

        let message = Message::parse_frame(&frame).unwrap();
        assert_eq!(
            (message.step, message.noise),
            (step, &noise[..]),
            "{}",
            case.at()
        );
        let header = message.header;
        assert_eq!(
            (header.sender.get(), header.receiver.get()),
            (sender, receiver)
        );
    }
}

#[test]
fn offers() {
    for case in load("offer") {
        let words = |field| case.text(field).split_whitespace();
        let offer = Offer {
            suites: SuiteSet(case.number("suites")),
            workers: case.number("workers"),
            mtu: case.number("mtu"),
            ports: words("ports").map(|port| port.parse().unwrap()).collect(),
            lanes: words("lanes")
                .map(|index| SessionIndex(u32::from_str_radix(index, 16).unwrap()))
                .collect(),
            resets: if case.has("resets") {
                let token = |word| u128::from_str_radix(word, 16).unwrap().to_be_bytes();
                words("resets").map(token).collect()
            } else {
                Vec::new()
            },
            instance: if case.has("instance") {
                case.number("instance")
            } else {
                0
            },
        };
        assert_eq!(offer.encode(), case.bytes("bytes"), "{}", case.at());
        assert_eq!(
            Offer::parse(&case.bytes("bytes")),
            Ok(offer),
            "{}",
            case.at()
        );
    }
}

fn side(case: &Case, name: &str, initiator: bool) -> HandshakeState {
    let (prologue, fixed) = (
        case.bytes("prologue"),
        case.bytes(&format!("{name}_static")),
    );
    let ephemeral = case.bytes(&format!("{name}_ephemeral"));
    let builder = Builder::new(NOISE_PATTERN.parse().unwrap())
        .local_private_key(&fixed)
        .and_then(|builder| builder.prologue(&prologue))
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(&ephemeral);
    if initiator {
        builder.build_initiator()
    } else {
        builder.build_responder()
    }
    .unwrap()
}

#[test]
fn noise_transcripts() {
    for case in load("noise-xx") {
        let mut initiator = side(&case, "initiator", true);
        let mut responder = side(&case, "responder", false);
        for number in 1..=3 {
            let payload = case.bytes(&format!("payload_{number}"));
            let (from, to) = if number == 2 {
                (&mut responder, &mut initiator)
            } else {
                (&mut initiator, &mut responder)
            };
            let (mut message, mut read) = ([0; 1200], [0; 1200]);
            let len = from.write_message(&payload, &mut message).unwrap();
            let expected = case.bytes(&format!("message_{number}"));
            assert_eq!(message[..len], expected, "{} {number}", case.at());
            let len = to.read_message(&expected, &mut read).unwrap();
            assert_eq!(read[..len], payload, "{} {number}", case.at());
        }
        let keys = (
            case.array("key_to_responder"),
            case.array("key_to_initiator"),
        );
        for side in [&mut initiator, &mut responder] {
            assert_eq!(
                side.get_handshake_hash(),
                case.bytes("handshake_hash"),
                "{}",
                case.at()
            );
            assert_eq!(side.dangerously_get_raw_split(), keys, "{}", case.at());
        }
        for (side, remote) in [(&initiator, "responder"), (&responder, "initiator")] {
            let secret = case.bytes(&format!("{remote}_static"));
            let key = SecretKey::from_bytes(&secret).unwrap().public_key();
            assert_eq!(side.get_remote_static(), Some(&key.0[..]), "{}", case.at());
        }
    }
}

#[test]
fn messages_of_the_transcript_carry_offers() {
    let cases = load("noise-xx");
    for case in cases.iter().filter(|case| case.name != "cacophony") {
        for number in 1..=3 {
            let payload = case.bytes(&format!("payload_{number}"));
            assert_eq!(
                Offer::parse(&payload).unwrap().encode(),
                payload,
                "{}",
                case.at()
            );
        }
    }
    assert_eq!(cases.len(), 3);
}

#[test]
fn addresses_of_keys() {
    let mut parities = [0, 0];
    for case in load("address") {
        let key: PublicKey = case.parsed("public");
        let secret = SecretKey::from_bytes(&case.bytes("secret")).unwrap();
        assert_eq!(secret.public_key(), key, "{}", case.at());
        let address: OverlayAddress = case.parsed::<std::net::Ipv6Addr>("address").into();
        assert_eq!(key.address(), address, "{}", case.at());
        assert_eq!(address.to_string(), case.text("address"), "{}", case.at());
        assert_eq!(address.subnet(), case.parsed("subnet"), "{}", case.at());
        let digest = case.bytes("digest");
        assert_eq!(digest[1..], address.0[1..], "{}", case.at());
        parities[usize::from(address.0[0] - 4)] += 1;
    }
    assert!(
        parities.iter().all(|cases| *cases >= 2),
        "both parities are there: {parities:?}"
    );
}

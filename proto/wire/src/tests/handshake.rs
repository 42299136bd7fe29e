//! Handshake framing and offers.

use proptest::prelude::*;

use super::config;
use crate::frame::LINK_HEADER_LEN;
use crate::handshake::{
    HandshakeError, HandshakeStep, INIT_LEN, Message, NOISE_MAX, Offer, RESETS_MAX, VERSION,
    encode, encode_frame, set_cookie,
};
use crate::{FrameKind, SessionIndex, SuiteSet};

const STEPS: [HandshakeStep; 3] = [
    HandshakeStep::Init,
    HandshakeStep::Response,
    HandshakeStep::Finish,
];

fn step() -> impl Strategy<Value = HandshakeStep> {
    prop::sample::select(&STEPS[..])
}

fn offer() -> impl Strategy<Value = Offer> {
    let ports = prop::collection::vec(any::<u16>(), 0..=64);
    let lanes = prop::collection::vec(any::<u32>().prop_map(SessionIndex), 0..=64);
    let resets = prop::collection::vec(any::<[u8; 16]>(), 0..=RESETS_MAX);
    let numbers = (any::<u8>(), 1u16..=64, any::<u16>(), any::<u64>());
    (numbers, ports, lanes, resets).prop_map(
        |((suites, workers, mtu, instance), ports, lanes, mut resets)| {
            resets.truncate(lanes.len());
            Offer {
                suites: SuiteSet(suites),
                workers,
                mtu,
                ports,
                lanes,
                resets,
                instance,
            }
        },
    )
}

#[test]
fn steps_and_frame_kinds_belong_together() {
    for step in STEPS {
        assert_eq!(HandshakeStep::from_code(step.code()), Some(step));
        assert_eq!(step.frame_kind().code(), step.code() + 2);
    }
    assert_eq!(
        (HandshakeStep::from_code(0), HandshakeStep::from_code(4)),
        (None, None)
    );
}

#[test]
fn no_answer_is_longer_than_the_first_message() {
    assert_eq!(
        encode_frame(HandshakeStep::Init, 1, 0, &[0; 32]).len(),
        INIT_LEN
    );
    for step in STEPS {
        assert_eq!(encode_frame(step, 1, 2, &[0; NOISE_MAX]).len(), INIT_LEN);
    }
    // The largest offer of this version, a key and two tags fit.
    const { assert!(32 + 48 + 16 + 8 + 64 * 2 + 64 * 4 + RESETS_MAX * 16 + 8 <= NOISE_MAX) };
}

#[test]
fn a_first_message_without_its_padding_is_short() {
    let frame = encode_frame(HandshakeStep::Init, 1, 0, &[0; 32]);
    assert!(!Message::parse_frame(&frame).unwrap().is_short_link());
    let cut = Message::parse_frame(&frame[..INIT_LEN - 1]).unwrap();
    assert!(cut.is_short_link(), "only with proof of its source");
}

#[test]
fn frame_kind_and_step_must_agree() {
    for step in STEPS {
        for kind in 0..=u8::MAX {
            let mut frame = encode_frame(step, 1, 2, &[9; 48]);
            frame[0] = kind;
            let agrees = kind == step.frame_kind().code();
            assert_eq!(
                Message::parse_frame(&frame).is_ok(),
                agrees,
                "{step:?} {kind}"
            );
        }
    }
}

#[test]
fn another_version_is_named() {
    let mut frame = encode_frame(HandshakeStep::Finish, 1, 2, &[]);
    frame[LINK_HEADER_LEN] = VERSION + 1;
    let error = Message::parse_frame(&frame).unwrap_err();
    assert_eq!(error, HandshakeError::Version(VERSION + 1));
    assert!(error.to_string().contains("version 2"), "{error}");
    assert_eq!(
        Offer::parse(&[2, 0, 1, 0, 0, 0, 0, 0]),
        Err(HandshakeError::Version(2))
    );
}

#[test]
fn offers_outside_the_limits_are_refused() {
    let valid = Offer {
        suites: SuiteSet::all(),
        workers: 64,
        mtu: 1340,
        ports: vec![],
        lanes: vec![],
        resets: vec![],
        instance: 0,
    };
    assert_eq!(Offer::parse(&valid.encode()), Ok(valid.clone()));
    for behind in [&[1][..], &[0; 8], &[1; 7], &[1; 9]] {
        let longer = [&valid.encode(), behind].concat();
        assert_eq!(Offer::parse(&longer), Err(HandshakeError::Offer));
    }
    for workers in [0, 65, 255, 256] {
        let offer = Offer {
            workers,
            ..valid.clone()
        };
        assert_eq!(
            Offer::parse(&offer.encode()),
            Err(HandshakeError::Offer),
            "{workers}"
        );
    }
    let ports = Offer {
        ports: vec![1; 65],
        ..valid.clone()
    };
    assert_eq!(Offer::parse(&ports.encode()), Err(HandshakeError::Offer));
    let lanes = Offer {
        lanes: vec![SessionIndex(1); 65],
        ..valid.clone()
    };
    assert_eq!(Offer::parse(&lanes.encode()), Err(HandshakeError::Offer));
    for (lanes, resets) in [(1, 2), (64, RESETS_MAX + 1)] {
        let offer = Offer {
            lanes: vec![SessionIndex(1); lanes],
            resets: vec![[1; 16]; resets],
            ..valid.clone()
        };
        assert_eq!(Offer::parse(&offer.encode()), Err(HandshakeError::Offer));
    }
}

#[test]
fn a_cookie_changes_its_own_bytes_only() {
    let mut frame = encode_frame(HandshakeStep::Init, 7, 0, &[3; 40]);
    let before = frame.clone();
    set_cookie(&mut frame, &[9; 16]);
    let message = Message::parse_frame(&frame).unwrap();
    assert_eq!(
        (message.header.cookie, message.noise),
        ([9; 16], &[3; 40][..])
    );
    set_cookie(&mut frame, &[0; 16]);
    assert_eq!(frame, before);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn messages_round_trip_in_a_frame_and_alone(
        step in step(), sender: u32, receiver: u32,
        noise in prop::collection::vec(any::<u8>(), 0..=NOISE_MAX),
    ) {
        let frame = encode_frame(step, sender, receiver, &noise);
        let bare = encode(step, sender, receiver, &noise);
        for message in [Message::parse_frame(&frame).unwrap(), Message::parse(&bare).unwrap()] {
            prop_assert_eq!(message.step, step);
            prop_assert_eq!(message.noise, &noise[..]);
            let header = message.header;
            prop_assert_eq!((header.sender.get(), header.receiver.get()), (sender, receiver));
            prop_assert_eq!((header.network.get(), header.cookie), (0, [0; 16]));
        }
        prop_assert_eq!(FrameKind::from_code(frame[0]), Some(step.frame_kind()));
        let padding = &frame[LINK_HEADER_LEN + bare.len()..];
        prop_assert!(padding.iter().all(|byte| *byte == 0));
        prop_assert!(padding.is_empty() || step == HandshakeStep::Init);
    }

    #[test]
    fn a_message_cut_anywhere_is_refused(
        step in step(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        cut: prop::sample::Index,
    ) {
        let bare = encode(step, 1, 2, &noise);
        let cut = cut.index(bare.len());
        prop_assert_eq!(Message::parse(&bare[..cut]).unwrap_err(), HandshakeError::Short);
    }

    #[test]
    fn offers_round_trip(offer in offer()) {
        prop_assert_eq!(Offer::parse(&offer.encode()), Ok(offer));
    }

    #[test]
    fn an_offer_is_exactly_as_long_as_it_says(
        offer in offer(), cut: prop::sample::Index, extra in 1usize..9,
    ) {
        let mut bytes = offer.encode();
        let cut = cut.index(bytes.len());
        if offer.instance != 0 && cut + 8 == bytes.len() {
            // What earlier versions send.
            let without = Offer { instance: 0, ..offer };
            prop_assert_eq!(Offer::parse(&bytes[..cut]), Ok(without));
        } else {
            prop_assert_eq!(Offer::parse(&bytes[..cut]), Err(HandshakeError::Offer));
        }
        bytes.resize(bytes.len() + extra, 0);
        prop_assert_eq!(Offer::parse(&bytes), Err(HandshakeError::Offer));
    }

    /// What is accepted means the same when it is written again (the reserved byte is ignored).
    #[test]
    fn any_accepted_bytes_are_an_offer(
        mut bytes in prop::collection::vec(any::<u8>(), 0..40), version: bool,
    ) {
        if let (true, Some(first)) = (version, bytes.first_mut()) {
            *first = VERSION;
        }
        if let Ok(offer) = Offer::parse(&bytes) {
            bytes[7] = 0;
            prop_assert_eq!(offer.encode(), bytes);
        }
    }
}

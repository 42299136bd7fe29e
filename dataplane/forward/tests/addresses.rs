//! Covers the address of this host that a lane sends from. Where a lane sends to is in `sessions.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small numbers of a test"
)]

mod common;

use common::{Line, NOW, events, link_local};
use hyphae_forward::{Engine, LinkSlot, Verdict};
use hyphae_shm::record::{FLAG_INITIATOR, Program, SessionRemove};
use hyphae_wire::control::{ControlKind, message};
use hyphae_wire::{AddressPair, LocalAddress, Suite};
use zerocopy::little_endian::U32;

#[test]
fn a_lane_answers_from_the_address_that_its_peer_uses_if_the_peer_began_it() {
    for initiator in [false, true] {
        let mut line = Line::new(1, Suite::Aes256Gcm);
        let (near, home) = (line.first[0][1], line.client.endpoint);
        let mut record = near.link(1, home);
        record.flags = if initiator { FLAG_INITIATOR } else { 0 };
        let remove = SessionRemove {
            receive_index: U32::new(near.receive.0),
            reserved: U32::ZERO,
        };
        let far = line.first[0][0];
        let engine = line.relay.engine();
        engine.apply(NOW, &Program::LinkRemove(&remove)).unwrap();
        engine.apply(NOW, &Program::LinkInstall(&record)).unwrap();
        let asked = |text: &str| AddressPair {
            remote: home,
            local: LocalAddress::new(text.parse().unwrap(), 0),
        };
        let (first, second) = (asked("2001:db8::1"), asked("2001:db8::2"));
        let lane = LinkSlot(near.receive.slot() as u32);
        let local = |engine: &Engine| engine.addresses(lane).unwrap().local;
        let hear = |engine: &mut Engine, from: &AddressPair, counter| {
            let mut verdicts = Vec::new();
            let mut frame = link_local(&far, counter, &message(ControlKind::Keepalive));
            let len = frame.len();
            engine.receive(NOW, from, &mut frame, len, &mut verdicts);
            assert_eq!(verdicts, [Verdict::Done]);
        };
        hear(engine, &first, 10);
        let expected = |pair: AddressPair| {
            if initiator {
                LocalAddress::UNSET
            } else {
                pair.local
            }
        };
        assert_eq!(local(engine), expected(first));
        hear(engine, &second, 12);
        assert_eq!(local(engine), expected(second));
        // A late frame does not move it, and a change of this host's address is no move of the peer.
        hear(engine, &first, 11);
        assert_eq!(local(engine), expected(second));
        assert_eq!(events(engine), []);
        engine.forget_source(&first.local);
        assert_eq!(local(engine), expected(second));
        engine.forget_source(&second.local);
        assert!(local(engine).is_unset());
        hear(engine, &second, 13);
        assert_eq!(local(engine), expected(second));
    }
}

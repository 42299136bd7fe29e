//! The local address of receives and sends: reported, used, and left out once the host has it no more.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use hyphae_wire::{AddressPair, LocalAddress};

use super::datagrams::unsegmented;
use super::{PATIENCE, Rig, Subject, for_both, pattern};
use crate::{Event, SLOT_BYTES, Span, udp};

for_both! {
    an_answer_leaves_from_the_address_that_was_asked,
    a_socket_with_one_address_reports_none,
    a_train_whose_source_is_gone_leaves_whole_from_another,
    datagrams_whose_source_is_gone_leave_singly_from_another,
}

fn rig<D: Subject>(address: &str) -> Rig<D> {
    Rig::with(address, 32, SLOT_BYTES, udp::SocketOptions::default())
}

fn local(text: &str) -> LocalAddress {
    LocalAddress::new(text.parse().unwrap(), 0)
}

/// Sends `bytes` back with these addresses, from a fresh buffer.
fn send<D: Subject>(rig: &mut Rig<D>, to: &AddressPair, segment: u16, bytes: &[u8]) {
    let buffer = rig.driver.allocate().expect("a transmit buffer");
    let span = Span {
        buffer,
        offset: 0,
        len: u32::try_from(bytes.len()).unwrap(),
    };
    rig.driver.spans(span).copy_from_slice(bytes);
    rig.driver.send(to, segment, &[span]).unwrap();
    rig.driver.release(buffer);
    rig.driver.submit().unwrap();
}

/// A peer's socket on loopback.
fn peer(address: &str) -> UdpSocket {
    let peer = UdpSocket::bind((address, 0)).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer
}

fn an_answer_leaves_from_the_address_that_was_asked<D: Subject>() {
    for (bound, from, asked, shown) in [
        ("[::]:0", "127.0.0.1", "127.0.0.2", "::ffff:127.0.0.2"),
        ("0.0.0.0:0", "127.0.0.1", "127.0.0.3", "::ffff:127.0.0.3"),
        ("[::]:0", "::1", "::1", "::1"),
    ] {
        let mut rig = rig::<D>(bound);
        let peer = peer(from);
        let asked = SocketAddr::from((asked.parse::<IpAddr>().unwrap(), rig.address.port()));
        peer.send_to(&[7; 90], asked).unwrap();
        let Event::Datagrams {
            buffer,
            from,
            local: at,
            ..
        } = rig.next()
        else {
            panic!("no datagrams")
        };
        assert_eq!(at, local(shown));
        rig.driver.release(buffer);
        let back = AddressPair {
            remote: from,
            local: at,
        };
        // A lone datagram, and a train.
        for (segment, len) in [(50, 50), (50, 500)] {
            send(&mut rig, &back, segment, &pattern(len, 1));
            let mut bytes = [0; 100];
            for _ in 0..len / usize::from(segment) {
                let (_, answered) = peer.recv_from(&mut bytes).unwrap();
                assert_eq!(answered, asked);
            }
        }
        assert_eq!(rig.driver.stats().tx_source_refused, 0);
        assert!(rig.driver.is_offloaded());
    }
}

fn a_socket_with_one_address_reports_none<D: Subject>() {
    let mut rig = rig::<D>("127.0.0.1:0");
    peer("127.0.0.1").send_to(&[1; 9], rig.address).unwrap();
    let Event::Datagrams { local, .. } = rig.next() else {
        panic!("no datagrams")
    };
    assert!(local.is_unset());
}

/// What a peer receives of trains and lone datagrams that are to leave from an address that the host
/// does not have.
fn sent_from_nowhere<D: Subject>(rig: &mut Rig<D>, bound: &str) {
    let gone = local("::ffff:192.0.2.1");
    let peer = peer("127.0.0.1");
    let to = AddressPair {
        remote: peer.local_addr().unwrap().into(),
        local: gone,
    };
    for (refused, segment, len) in [(1, 100, 6400), (2, 100, 100), (3, 300, 900)] {
        let bytes = pattern(len, 5);
        send(rig, &to, segment, &bytes);
        let mut got = Vec::new();
        let mut datagram = [0; 1000];
        while got.len() < len {
            let (len, from) = peer.recv_from(&mut datagram).unwrap();
            assert_eq!(from.port(), rig.address.port(), "{bound}");
            got.extend_from_slice(&datagram[..len]);
        }
        assert!(got == bytes);
        rig.turn_until(|driver| driver.stats().tx_source_refused == refused);
    }
    let stats = rig.driver.stats();
    assert_eq!(stats.refused_source, Some(gone));
    assert_eq!((stats.tx_errors, stats.tx_backpressure), (0, 0));
    rig.turn_until(|driver| driver.references() == 0);
}

fn a_train_whose_source_is_gone_leaves_whole_from_another<D: Subject>() {
    for bound in ["[::]:0", "0.0.0.0:0"] {
        let mut rig = rig::<D>(bound);
        sent_from_nowhere(&mut rig, bound);
        assert!(
            rig.driver.is_offloaded(),
            "{bound}: segmentation was not to blame"
        );
    }
}

fn datagrams_whose_source_is_gone_leave_singly_from_another<D: Subject>() {
    for bound in ["[::]:0", "0.0.0.0:0"] {
        let mut rig = unsegmented::<D>(bound);
        sent_from_nowhere(&mut rig, bound);
    }
}

//! Datagrams and trains over loopback, waiting and waking, limits and failures.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use hyphae_wire::Endpoint;
use rustix::event::{EventfdFlags, eventfd};

use super::{PATIENCE, Rig, Subject, for_both, pattern};
use crate::{BufferId, DriverParts, Event, SLOT_BYTES, SendError, Span, udp};

for_both! {
    a_full_train_arrives_whole,
    the_largest_train_arrives_in_order,
    trains_of_every_shape_keep_their_bytes,
    lone_datagrams_and_their_sender_arrive,
    order_is_kept_over_thousands_of_trains,
    buffers_come_back_after_100_000_relayed_datagrams,
    receiving_goes_on_after_the_buffers_ran_out,
    the_doorbell_ends_a_wait_and_is_cleared,
    a_wait_ends_with_its_timeout,
    a_wait_sends_what_is_queued_and_does_not_end_with_it,
    a_turn_has_a_budget_and_the_rest_is_not_slept_over,
    truncated_receives_are_dropped_and_counted,
    empty_datagrams_are_dropped_and_counted,
    datagrams_lost_in_the_socket_are_counted,
    impossible_sends_are_refused_without_taking_references,
    a_socket_that_cannot_segment_falls_back_for_good,
    a_refused_destination_does_not_end_segmentation,
    a_dual_stack_socket_speaks_both,
    more_sends_than_operations_leave_in_one_turn,
    dropping_a_busy_driver_ends_at_once,
}
fn a_full_train_arrives_whole<D: Subject>() {
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    for (segment, len) in [(1000, 64_000), (1400, 65_400), (1, 64), (1024, 65_400)] {
        let bytes = pattern(len, 1);
        a.send(b.endpoint(), segment, &bytes);
        a.driver.submit().unwrap();
        let Event::Datagrams {
            buffer,
            offset,
            len,
            segment: got,
            from,
            ..
        } = b.next()
        else {
            panic!("no datagrams")
        };
        assert_eq!((len as usize, got), (bytes.len(), u32::from(segment)));
        assert_eq!(from, a.endpoint());
        assert!(
            b.driver.spans(Span {
                buffer,
                offset,
                len
            }) == bytes
        );
        b.driver.release(buffer);
    }
    assert_eq!((a.driver.references(), b.driver.references()), (0, 0));
}

fn trains_of_every_shape_keep_their_bytes<D: Subject>() {
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    let first = a.driver.allocate().unwrap();
    let second = a.driver.allocate().unwrap();
    let bytes = pattern(60_000, 3);
    a.driver.bytes(first)[..60_000].copy_from_slice(&bytes);
    a.driver.bytes(second)[..60_000].copy_from_slice(&bytes);
    let span = |buffer, offset, len| Span {
        buffer,
        offset,
        len,
    };
    let shapes: [(u16, &[Span]); 7] = [
        (100, &[span(first, 0, 100)]),
        (100, &[span(first, 0, 50)]),
        (100, &[span(first, 0, 101)]),
        // Adjoining, then not, then of another buffer, empty, and back.
        (
            100,
            &[
                span(first, 0, 100),
                span(first, 100, 100),
                span(first, 300, 100),
            ],
        ),
        (
            100,
            &[
                span(first, 7, 100),
                span(second, 9, 100),
                span(first, 0, 0),
                span(first, 1, 3),
            ],
        ),
        // Cuts that do not fall on the borders of spans.
        (
            90,
            &[
                span(first, 0, 100),
                span(second, 0, 33),
                span(first, 59_000, 1000),
            ],
        ),
        (1400, &[span(second, 0, 60_000)]),
    ];
    for (segment, spans) in shapes {
        let expected: Vec<u8> = spans
            .iter()
            .flat_map(|s| bytes[s.offset as usize..][..s.len as usize].to_vec())
            .collect();
        a.driver.send(b.endpoint(), segment, spans).unwrap();
        a.driver.submit().unwrap();
        let expected: Vec<_> = expected
            .chunks(usize::from(segment))
            .map(<[u8]>::to_vec)
            .collect();
        assert_eq!(b.receive(), expected);
    }
    a.driver.release(first);
    a.driver.release(second);
    a.turn_until(|driver| driver.references() == 0);
}

fn lone_datagrams_and_their_sender_arrive<D: Subject>() {
    let mut rig = Rig::<D>::new();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in [1, 2, 15, 16, 17, 1399, 9000, 65_507] {
        let bytes = pattern(len, len);
        peer.send_to(&bytes, rig.address).unwrap();
        let Event::Datagrams {
            buffer,
            offset,
            len,
            segment,
            from,
            ..
        } = rig.next()
        else {
            panic!("no datagrams")
        };
        assert_eq!((len, segment), (u32::try_from(bytes.len()).unwrap(), len));
        assert!(
            rig.driver.spans(Span {
                buffer,
                offset,
                len
            }) == bytes
        );
        // And back from where it lies.
        let to = from.to_socket_addr();
        assert_eq!(to, peer.local_addr().unwrap());
        let span = Span {
            buffer,
            offset,
            len,
        };
        rig.driver
            .send(from, u16::try_from(segment).unwrap(), &[span])
            .unwrap();
        rig.driver.release(buffer);
        rig.driver.submit().unwrap();
        let mut back = vec![0; 70_000];
        let (len, sender) = peer.recv_from(&mut back).unwrap();
        assert_eq!(sender, rig.address);
        assert!(back[..len] == bytes);
    }
    rig.turn_until(|driver| driver.references() == 0);
}

fn the_largest_train_arrives_in_order<D: Subject>() {
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    for segment in [1024, 1400, 32_768, 65_507] {
        let bytes = pattern(65_507, 4);
        a.send(b.endpoint(), segment, &bytes);
        a.driver.submit().unwrap();
        // The kernel cuts it before the device, whose limit counts headers too.
        let mut datagrams = Vec::new();
        while datagrams.len() < 65_507_usize.div_ceil(usize::from(segment)) {
            datagrams.extend(b.receive());
        }
        assert!(datagrams.concat() == bytes);
    }
    assert_eq!((a.driver.references(), b.driver.references()), (0, 0));
}

fn order_is_kept_over_thousands_of_trains<D: Subject>() {
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    let mut expected = 0u32;
    let mut next = 0u32;
    for round in 0..500u32 {
        // Trains and lone datagrams of changing sizes, each datagram begins with its number.
        for train in 0..8 {
            let segments = (round + train) % 5 + 1;
            let segment = 50 + (round % 7) * 100;
            let mut bytes = vec![0; (segments * segment) as usize];
            for datagram in bytes.chunks_mut(segment as usize) {
                datagram[..4].copy_from_slice(&next.to_le_bytes());
                next += 1;
            }
            a.send(b.endpoint(), u16::try_from(segment).unwrap(), &bytes);
        }
        a.driver.wait(Some(Duration::ZERO)).unwrap();
        while expected < next {
            for datagram in b.receive() {
                assert_eq!(
                    u32::from_le_bytes(*datagram.first_chunk().unwrap()),
                    expected
                );
                expected += 1;
            }
        }
    }
    assert_eq!((a.driver.references(), b.driver.references()), (0, 0));
}

fn buffers_come_back_after_100_000_relayed_datagrams<D: Subject>() {
    let mut relay = Rig::<D>::with("127.0.0.1:0", 4, SLOT_BYTES, udp::SocketOptions::default());
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    let to = b.endpoint();
    let bytes = pattern(64 * 100, 9);
    let (mut sent, mut received) = (0, 0);
    while received < 100_000 {
        while sent < received + 1024 {
            a.send(relay.endpoint(), 100, &bytes);
            a.driver.submit().unwrap();
            sent += 64;
        }
        relay.driver.wait(Some(Duration::from_millis(1))).unwrap();
        while let Some(event) = relay.driver.next() {
            let Event::Datagrams {
                buffer,
                offset,
                len,
                segment,
                ..
            } = event
            else {
                panic!("no datagrams")
            };
            // Halves of a train leave apart: two references of one buffer.
            let half = len / segment / 2 * segment;
            let segment = u16::try_from(segment).unwrap();
            for span in [
                Span {
                    buffer,
                    offset,
                    len: half,
                },
                Span {
                    buffer,
                    offset: offset + half,
                    len: len - half,
                },
            ] {
                if span.len > 0 {
                    relay.driver.send(to, segment, &[span]).unwrap();
                }
            }
            relay.driver.release(buffer);
        }
        relay.driver.submit().unwrap();
        b.driver.wait(Some(Duration::from_millis(1))).unwrap();
        while let Some(event) = b.driver.next() {
            let Event::Datagrams {
                buffer,
                len,
                segment,
                ..
            } = event
            else {
                panic!("no datagrams")
            };
            received += len.div_ceil(segment);
            b.driver.release(buffer);
        }
        let stats = relay.driver.stats();
        assert_eq!(
            (stats.tx_errors, stats.tx_backpressure, stats.rx_errors),
            (0, 0, 0)
        );
    }
    relay.turn_until(|driver| driver.references() == 0);
    assert_eq!((a.driver.references(), b.driver.references()), (0, 0));
}

fn receiving_goes_on_after_the_buffers_ran_out<D: Subject>() {
    let options = udp::SocketOptions::default();
    let mut rig = Rig::<D>::with("127.0.0.1:0", 2, SLOT_BYTES, options);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seen = 0u32;
    for round in 0..50u32 {
        (0..10u32).for_each(|n| {
            peer.send_to(&(round * 10 + n).to_le_bytes(), rig.address)
                .map(drop)
                .unwrap();
        });
        // Hold both buffers until the driver has noticed.
        let held = [rig.next(), rig.next()];
        let deadline = Instant::now() + PATIENCE;
        while rig.driver.stats().buffer_exhausted == 0 {
            assert!(Instant::now() < deadline, "never noticed");
            rig.driver.wait(Some(Duration::ZERO)).unwrap();
            assert_eq!(rig.driver.next(), None);
        }
        for event in held {
            let Event::Datagrams {
                buffer,
                offset,
                len,
                ..
            } = event
            else {
                panic!("no datagrams")
            };
            let bytes = rig
                .driver
                .spans(Span {
                    buffer,
                    offset,
                    len,
                })
                .to_vec();
            assert_eq!(bytes, seen.to_le_bytes());
            seen += 1;
            rig.driver.release(buffer);
        }
        while seen < (round + 1) * 10 {
            for datagram in rig.receive() {
                assert_eq!(datagram, seen.to_le_bytes());
                seen += 1;
            }
        }
    }
    assert!(rig.driver.stats().buffer_exhausted > 0);
    assert_eq!(rig.driver.references(), 0);
}

fn the_doorbell_ends_a_wait_and_is_cleared<D: Subject>() {
    let mut rig = Rig::<D>::new();
    for round in 1..=3 {
        let doorbell = rig.doorbell.try_clone().unwrap();
        let ringer = thread::spawn(move || {
            rustix::io::write(&doorbell, &1u64.to_ne_bytes()).unwrap();
        });
        let start = Instant::now();
        while rig.driver.stats().doorbells < round {
            assert!(start.elapsed() < PATIENCE, "the doorbell was not heard");
            rig.driver.wait(Some(PATIENCE)).unwrap();
        }
        ringer.join().unwrap();
    }
    // Rung several times before the wait: one wait, then silence.
    for _ in 0..3 {
        rustix::io::write(&rig.doorbell, &1u64.to_ne_bytes()).unwrap();
    }
    rig.driver.wait(None).unwrap();
    let start = Instant::now();
    rig.driver.wait(Some(Duration::from_millis(20))).unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(19),
        "a cleared doorbell rang"
    );
}

fn a_wait_sends_what_is_queued_and_does_not_end_with_it<D: Subject>() {
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    let take = |rig: &mut Rig<D>| {
        let Event::Datagrams { buffer, .. } = rig.next() else {
            panic!("no datagrams")
        };
        rig.driver.release(buffer);
    };
    a.driver.wait(Some(Duration::ZERO)).unwrap();
    for sends in 1..=3 {
        for _ in 0..sends {
            a.send(b.endpoint(), 64, &pattern(64, 1));
        }
        let start = Instant::now();
        a.driver.wait(Some(Duration::from_millis(30))).unwrap();
        assert!(
            start.elapsed() >= Duration::from_millis(29),
            "woken by its own send"
        );
        (0..sends).for_each(|_| take(&mut b));
        // What comes ends it, with or without sends of its own.
        b.send(a.endpoint(), 64, &pattern(64, 1));
        b.driver.submit().unwrap();
        a.send(b.endpoint(), 64, &pattern(64, 1));
        take(&mut a);
        take(&mut b);
    }
    a.driver.submit().unwrap();
    assert_eq!(a.driver.references(), 0);
}

fn a_wait_ends_with_its_timeout<D: Subject>() {
    let mut rig = Rig::<D>::new();
    for millis in [1, 30] {
        let timeout = Duration::from_millis(millis);
        let start = Instant::now();
        rig.driver.wait(Some(timeout)).unwrap();
        let took = start.elapsed();
        assert!(took >= timeout && took < PATIENCE, "{took:?}");
    }
    assert_eq!(rig.driver.stats().wakeups, 2);
    let start = Instant::now();
    rig.driver.wait(Some(Duration::ZERO)).unwrap();
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(rig.driver.stats().wakeups, 2);
    assert_eq!(rig.driver.next(), None);
}

fn a_turn_has_a_budget_and_the_rest_is_not_slept_over<D: Subject>() {
    let mut rig = Rig::<D>::new();
    rig.driver.wait(Some(Duration::ZERO)).unwrap();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..40 {
        peer.send_to(b"lone", rig.address).unwrap();
    }
    let mut seen = 0;
    while seen < 40 {
        let start = Instant::now();
        rig.driver.wait(Some(PATIENCE)).unwrap();
        assert!(
            start.elapsed() < PATIENCE,
            "slept although {seen} of 40 were seen"
        );
        let mut turn = 0;
        while let Some(Event::Datagrams { buffer, .. }) = rig.driver.next() {
            rig.driver.release(buffer);
            turn += 1;
        }
        assert!(turn <= 16, "{turn} events in one turn");
        seen += turn;
    }
}

fn truncated_receives_are_dropped_and_counted<D: Subject>() {
    let options = udp::SocketOptions::default();
    let mut rig = Rig::<D>::with("127.0.0.1:0", 4, 2048, options);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 1..=10 {
        peer.send_to(&pattern(4000, 1), rig.address).unwrap();
        peer.send_to(b"fits", rig.address).unwrap();
        assert_eq!(rig.receive(), [b"fits"]);
        assert_eq!(rig.driver.stats().rx_truncated, round);
    }
    assert_eq!(rig.driver.references(), 0);
}

fn empty_datagrams_are_dropped_and_counted<D: Subject>() {
    let mut rig = Rig::<D>::with("127.0.0.1:0", 2, SLOT_BYTES, udp::SocketOptions::default());
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 1..=10 {
        peer.send_to(b"", rig.address).unwrap();
        peer.send_to(b"full", rig.address).unwrap();
        assert_eq!(rig.receive(), [b"full"]);
        assert_eq!(rig.driver.stats().rx_errors, round);
    }
}

fn datagrams_lost_in_the_socket_are_counted<D: Subject>() {
    let options = udp::SocketOptions {
        receive_bytes: 20_000,
        send_bytes: 1 << 20,
        ..udp::SocketOptions::default()
    };
    let mut rig = Rig::<D>::with("127.0.0.1:0", 4, SLOT_BYTES, options);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..500 {
        peer.send_to(&[7; 1000], rig.address).unwrap();
    }
    let mut seen = 0;
    loop {
        rig.driver.wait(Some(Duration::ZERO)).unwrap();
        let before = seen;
        while let Some(Event::Datagrams { buffer, .. }) = rig.driver.next() {
            rig.driver.release(buffer);
            seen += 1;
        }
        if seen == before {
            break;
        }
    }
    // The count comes with the next datagram.
    peer.send_to(b"and now", rig.address).unwrap();
    assert_eq!(rig.receive(), [b"and now"]);
    assert!(seen < 500, "the socket buffer was large enough for all");
    assert_eq!(rig.driver.stats().socket_overruns, 500 - seen);
}

fn impossible_sends_are_refused_without_taking_references<D: Subject>() {
    let mut rig = Rig::<D>::new();
    let to = rig.endpoint();
    let buffer = rig.driver.allocate().unwrap();
    let end = u32::try_from(rig.driver.bytes(buffer).len()).unwrap();
    let span = |offset, len| Span {
        buffer,
        offset,
        len,
    };
    let mut send = |segment, spans: &[Span]| rig.driver.send(to, segment, spans);
    assert_eq!(send(100, &[]), Err(SendError::Size));
    assert_eq!(send(0, &[span(0, 10)]), Err(SendError::Size));
    assert_eq!(send(100, &[span(0, 6401)]), Err(SendError::Size));
    assert_eq!(send(u16::MAX, &[span(0, 65_508)]), Err(SendError::Size));
    let scattered: Vec<_> = (0..65).map(|n| span(n * 10, 1)).collect();
    assert_eq!(send(65, &scattered), Err(SendError::Size));
    assert_eq!(send(100, &[span(end, 1)]), Err(SendError::Span));
    assert_eq!(send(100, &[span(u32::MAX, u32::MAX)]), Err(SendError::Span));
    let unused = Span {
        buffer: BufferId::new(buffer.index() + 1),
        offset: 0,
        len: 1,
    };
    assert_eq!(send(100, &[unused]), Err(SendError::Span));
    let absent = Span {
        buffer: BufferId::new(u16::MAX),
        offset: 0,
        len: 1,
    };
    assert_eq!(send(100, &[absent]), Err(SendError::Span));
    let v6: Endpoint = "[::1]:1".parse::<SocketAddr>().unwrap().into();
    assert_eq!(
        rig.driver.send(v6, 100, &[span(0, 10)]),
        Err(SendError::Family)
    );
    assert_eq!(
        rig.driver.write_tun(&[0; 10], &[span(0, 10)]),
        Err(SendError::NoTun)
    );
    assert_eq!(rig.driver.references(), 1);
    rig.driver.release(buffer);
    assert_eq!(rig.driver.references(), 0);
}

/// A driver whose socket cannot segment.
pub(super) fn unsegmented<D: Subject>(address: &str) -> Rig<D> {
    let (socket, report) = udp::bind(address.parse().unwrap(), Default::default()).unwrap();
    // A socket that sends without checksums refuses to segment, with EINVAL.
    // SAFETY: the option takes an `int`, which is passed with its size.
    let set = unsafe {
        let one = 1i32;
        let value = (&raw const one).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            value,
            4,
        )
    };
    assert_eq!(set, 0);
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let parts = DriverParts {
        socket,
        tun: None,
        doorbell: doorbell.try_clone().unwrap(),
        receive_buffers: 4,
        transmit_buffers: 8,
    };
    let driver = D::open_with(parts, SLOT_BYTES);
    Rig {
        driver,
        address: report.local,
        doorbell,
    }
}

fn a_socket_that_cannot_segment_falls_back_for_good<D: Subject>() {
    let mut rig = unsegmented::<D>("127.0.0.1:0");
    let mut other = Rig::<D>::new();
    let mut expected = Vec::new();
    for round in 0..20 {
        // Trains and a lone datagram between them: their order holds across both ways out.
        for (len, segment) in [(6000, 100), (40, 100), (6399, 100), (65_507, 1400)] {
            let bytes = pattern(len, round);
            expected.extend(bytes.chunks(usize::from(segment)).map(<[u8]>::to_vec));
            rig.send(other.endpoint(), segment, &bytes);
            if rig.driver.is_offloaded() {
                // Only what leaves together with the very first train may overtake it.
                rig.driver.wait(Some(Duration::ZERO)).unwrap();
            }
        }
        rig.driver.wait(Some(Duration::ZERO)).unwrap();
        assert!(!rig.driver.is_offloaded());
        for expected in expected.drain(..) {
            assert_eq!(other.receive(), [expected]);
        }
    }
    assert_eq!(rig.driver.stats().tx_errors, 0);
    assert_eq!(rig.driver.references(), 0);
}

fn a_refused_destination_does_not_end_segmentation<D: Subject>() {
    let mut rig = Rig::<D>::new();
    let nowhere = rig.endpoint().with_port(0);
    rig.send(nowhere, 100, &[1; 50]);
    rig.send(nowhere, 100, &[1; 500]);
    rig.driver.wait(Some(Duration::ZERO)).unwrap();
    assert_eq!(rig.driver.stats().tx_errors, 2);
    assert!(rig.driver.is_offloaded());
    assert_eq!(rig.driver.references(), 0);
}

fn a_dual_stack_socket_speaks_both<D: Subject>() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return hyphae_test_skip::lacks("IPv6");
    }
    let mut rig = Rig::<D>::with("[::]:0", 4, SLOT_BYTES, udp::SocketOptions::default());
    let port = rig.address.port();
    for (bind, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let peer = UdpSocket::bind(bind).unwrap();
        peer.send_to(b"hello", (to, port)).unwrap();
        let Event::Datagrams { buffer, from, .. } = rig.next() else {
            panic!("no datagrams")
        };
        rig.driver.release(buffer);
        assert_eq!(from.to_socket_addr(), peer.local_addr().unwrap());
        rig.send(from, 5, b"olleh");
        rig.driver.submit().unwrap();
        let mut back = [0; 16];
        assert_eq!(
            peer.recv_from(&mut back).unwrap(),
            (5, SocketAddr::new(to.parse().unwrap(), port))
        );
    }
}

fn more_sends_than_operations_leave_in_one_turn<D: Subject>() {
    let (mut a, mut b) = (Rig::<D>::new(), Rig::<D>::new());
    let buffer = a.driver.allocate().unwrap();
    let mut missing = BTreeSet::new();
    for n in 0..1000u32 {
        let span = Span {
            buffer,
            offset: n * 4,
            len: 4,
        };
        a.driver.spans(span).copy_from_slice(&n.to_le_bytes());
        a.driver.send(b.endpoint(), 4, &[span]).unwrap();
        missing.insert(n.to_le_bytes().to_vec());
    }
    a.driver.release(buffer);
    a.driver.submit().unwrap();
    while !missing.is_empty() {
        for datagram in b.receive() {
            assert!(missing.remove(&datagram));
        }
    }
    assert_eq!(a.driver.references(), 0);
}

fn dropping_a_busy_driver_ends_at_once<D: Subject>() {
    let mut other = Rig::<D>::new();
    for _ in 0..20 {
        let mut rig = Rig::<D>::new();
        rig.driver.wait(Some(Duration::ZERO)).unwrap();
        // Something received and not taken, something queued and not submitted.
        other.send(rig.endpoint(), 100, &[1; 1000]);
        other.driver.submit().unwrap();
        rig.driver.wait(Some(PATIENCE)).unwrap();
        rig.send(other.endpoint(), 100, b"last words");
        let start = Instant::now();
        drop(rig);
        // Rather than when something comes that never does.
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(other.receive(), [b"last words"]);
    }
}

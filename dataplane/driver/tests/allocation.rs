//! Nothing allocates after `open`: a relay of trains, lone datagrams, refusals and exhaustion on
//! both drivers, with every allocation of the thread counted.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, as in tests themselves"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket;
use std::time::Duration;

use hyphae_driver::{
    AnyDriver, Driver, DriverKind, DriverParts, Event, Span, TUN_HEADER_LEN, open, probe, udp,
};
use hyphae_wire::{AddressPair, Endpoint};
use rustix::event::{EventfdFlags, eventfd};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting touches a
// thread-local cell that needs neither allocation nor destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's duties are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn driver(kind: DriverKind) -> (AnyDriver, Endpoint) {
    let (socket, report) = udp::bind("127.0.0.1:0".parse().unwrap(), Default::default()).unwrap();
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let parts = DriverParts {
        socket,
        tun: None,
        doorbell,
        receive_buffers: 4,
        transmit_buffers: 4,
    };
    (open(kind, parts).unwrap(), report.local.into())
}

fn relay(kind: DriverKind) {
    let (mut driver, address) = driver(kind);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let nowhere = address.with_port(0);
    let before = ALLOCATIONS.get();
    let mut relayed = 0u32;
    while relayed < 2000 {
        let buffer = driver.allocate().unwrap();
        let span = Span {
            buffer,
            offset: 0,
            len: 6400,
        };
        // To itself, so that it is received as a train; one to nobody, which is refused.
        driver.send(address, 100, &[span]).unwrap();
        driver.send(nowhere, 100, &[span]).unwrap();
        let _ = driver.write_tun(&[0; TUN_HEADER_LEN], &[span]);
        driver.release(buffer);
        for _ in 0..6 {
            peer.send_to(b"more than there are buffers", address.to_socket_addr())
                .unwrap();
        }
        driver.wait(Some(Duration::ZERO)).unwrap();
        while let Some(Event::Datagrams {
            buffer,
            offset,
            len,
            segment,
            from,
            local,
        }) = driver.next()
        {
            let segment = u16::try_from(segment).unwrap();
            if from != address {
                driver
                    .send(
                        AddressPair {
                            remote: from,
                            local,
                        },
                        segment,
                        &[Span {
                            buffer,
                            offset,
                            len,
                        }],
                    )
                    .unwrap();
            }
            driver.release(buffer);
            relayed += 1;
        }
    }
    let allocated = ALLOCATIONS.get() - before;
    assert_eq!(allocated, 0, "{} allocated while it relayed", driver.name());
    let stats = driver.stats();
    assert!(stats.tx_errors > 0 && stats.rx_errors == 0, "{stats:?}");
}

#[test]
fn the_io_uring_driver_does_not_allocate() {
    match probe() {
        Ok(()) => relay(DriverKind::Uring),
        Err(error) => hyphae_test_skip::lacks(&format!("io_uring: {error}")),
    }
}

#[test]
fn the_epoll_driver_does_not_allocate() {
    relay(DriverKind::Epoll);
}

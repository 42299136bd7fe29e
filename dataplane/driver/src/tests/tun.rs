//! The TUN queue of both drivers, in a network namespace of its own per test.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::{PATIENCE, Subject, for_both, pattern};
use crate::tun::{Tun, TunError, open};
use crate::{DriverParts, Event, SLOT_BYTES, SendError, Span, TUN_HEADER_LEN, udp};

for_both! {
    packets_of_the_host_arrive_in_order,
    super_packets_arrive_in_one_read,
    written_packets_reach_the_host,
    bad_writes_are_counted,
    a_deleted_interface_is_noticed_once,
    a_deleted_interface_works_again_once_it_is_restored,
    the_name_is_free_once_the_driver_is_dropped,
}

/// Runs `body` on a thread with a network of its own.
fn in_namespace(body: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        // SAFETY: takes flags only, and changes the network of this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return hyphae_test_skip::lacks("CAP_SYS_ADMIN, for a network namespace");
        }
        let output = start(Command::new("ip").arg("-V").stdout(Stdio::null()));
        match output {
            Ok(mut child) => assert!(child.wait().unwrap().success()),
            Err(_) => return hyphae_test_skip::lacks("`ip`"),
        }
        body();
    })
    .join()
    .unwrap();
}

/// Held while a process is started. Until it runs its program it has every file that is open here, of other tests
/// too, so that none of them is closed by closing it.
static STARTING: RwLock<()> = RwLock::new(());

fn start(command: &mut Command) -> std::io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    // It returns when the program runs.
    command.spawn()
}

/// As long as this is held no process is started.
fn nothing_starts() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

fn ip(arguments: &str) {
    let child = start(Command::new("ip").args(arguments.split(' ')));
    let status = child.unwrap().wait().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A driver with a device that has the address 10.9.0.1/24.
fn rig<D: Subject>() -> (D, String) {
    let Tun { name, queues, uso } = open("hy%d", 1).unwrap();
    assert!(uso, "the kernel refused UDP segmentation");
    ip(&format!("address add 10.9.0.1/24 dev {name}"));
    ip(&format!("link set {name} up"));
    (
        D::open_with(parts(queues.into_iter().next()), SLOT_BYTES),
        name,
    )
}

fn parts(tun: Option<OwnedFd>) -> DriverParts {
    let (socket, _) = udp::bind("0.0.0.0:0".parse().unwrap(), Default::default()).unwrap();
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    DriverParts {
        socket,
        tun,
        doorbell,
        receive_buffers: 2,
        transmit_buffers: 4,
    }
}

/// The next IPv4 packet of the host with its virtio-net header; others (IPv6 noise) are released.
fn next_packet<D: Subject>(driver: &mut D) -> ([u8; TUN_HEADER_LEN], Vec<u8>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        while let Some(event) = driver.next() {
            let Event::Tun {
                buffer,
                offset,
                len,
            } = event
            else {
                panic!("no TUN packet")
            };
            let bytes = driver
                .spans(Span {
                    buffer,
                    offset,
                    len,
                })
                .to_vec();
            driver.release(buffer);
            let (header, packet) = bytes.split_first_chunk().unwrap();
            if packet[0] >> 4 == 4 {
                return (*header, packet.to_vec());
            }
        }
        assert!(
            Instant::now() < deadline,
            "nothing came: {:?}",
            driver.stats()
        );
        driver.wait(Some(PATIENCE)).unwrap();
    }
}

fn packets_of_the_host_arrive_in_order<D: Subject>() {
    in_namespace(|| {
        let (mut driver, _) = rig::<D>();
        let host = UdpSocket::bind("10.9.0.1:0").unwrap();
        let mut seen = 0u32;
        for count in [1u32, 1, 2, 3, 8, 20, 100, 1, 300] {
            for n in seen..seen + count {
                host.send_to(&n.to_le_bytes(), "10.9.0.2:9").unwrap();
            }
            for _ in 0..count {
                let (_, packet) = next_packet(&mut driver);
                assert_eq!(packet[28..], seen.to_le_bytes());
                seen += 1;
            }
        }
        assert_eq!((driver.references(), driver.stats().tun_errors), (0, 0));
    });
}

fn super_packets_arrive_in_one_read<D: Subject>() {
    in_namespace(|| {
        let (mut driver, _) = rig::<D>();
        let host = UdpSocket::bind("10.9.0.1:0").unwrap();
        // SAFETY: the option takes an `int`, which is passed with its size.
        let set = unsafe {
            let segment = 1000i32;
            let value = (&raw const segment).cast();
            libc::setsockopt(host.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4)
        };
        assert_eq!(set, 0);
        let bytes = pattern(60_000, 5);
        for _ in 0..20 {
            host.send_to(&bytes, "10.9.0.2:9").unwrap();
            let (header, packet) = next_packet(&mut driver);
            assert_eq!(header[1], 5, "not a UDP super-packet");
            assert!(packet[28..] == bytes);
        }
        assert_eq!((driver.references(), driver.stats().tun_errors), (0, 0));
    });
}

/// An IPv4 UDP packet from 10.9.0.2:9 to 10.9.0.1, without UDP checksum.
fn packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1,
    ];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    let words = ip
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    ip.extend(9u16.to_be_bytes());
    ip.extend(port.to_be_bytes());
    ip.extend(udp_len.to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(payload);
    ip
}

fn written_packets_reach_the_host<D: Subject>() {
    in_namespace(|| {
        let (mut driver, _) = rig::<D>();
        let host = UdpSocket::bind("10.9.0.1:0").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = host.local_addr().unwrap().port();
        for round in 0..50u32 {
            // More writes than can be in flight at once, each from several spans.
            for n in 0..100u32 {
                let buffer = loop {
                    match driver.allocate() {
                        Some(buffer) => break buffer,
                        None => driver.submit().unwrap(),
                    }
                };
                let bytes = packet(port, &(round * 100 + n).to_le_bytes());
                driver.bytes(buffer)[..20].copy_from_slice(&bytes[..20]);
                driver.bytes(buffer)[1000..1012].copy_from_slice(&bytes[20..]);
                let spans = [
                    Span {
                        buffer,
                        offset: 0,
                        len: 20,
                    },
                    Span {
                        buffer,
                        offset: 1000,
                        len: 10,
                    },
                    Span {
                        buffer,
                        offset: 1010,
                        len: 2,
                    },
                ];
                driver.write_tun(&[0; TUN_HEADER_LEN], &spans).unwrap();
                driver.release(buffer);
            }
            driver.submit().unwrap();
            for n in 0..100u32 {
                let mut bytes = [0; 64];
                let (len, from) = host.recv_from(&mut bytes).unwrap();
                assert_eq!(from, "10.9.0.2:9".parse().unwrap());
                assert_eq!(bytes[..len], (round * 100 + n).to_le_bytes());
            }
        }
        assert_eq!((driver.references(), driver.stats().tun_errors), (0, 0));
    });
}

fn bad_writes_are_counted<D: Subject>() {
    in_namespace(|| {
        let (mut driver, name) = rig::<D>();
        let buffer = driver.allocate().unwrap();
        let span = Span {
            buffer,
            offset: 0,
            len: 100,
        };
        // Of no IP version, then with a header that asks for the impossible.
        driver.spans(span).fill(0);
        driver.write_tun(&[0; TUN_HEADER_LEN], &[span]).unwrap();
        driver.write_tun(&[0xff; TUN_HEADER_LEN], &[span]).unwrap();
        driver.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(driver.stats().tun_errors, 2);
        ip(&format!("link set {name} down"));
        driver.write_tun(&[0; TUN_HEADER_LEN], &[span]).unwrap();
        driver.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(driver.stats().tun_errors, 3);
        assert_eq!(
            driver.write_tun(&[0; TUN_HEADER_LEN], &[]),
            Err(SendError::Size)
        );
        // One reference is ours, others can only be those of what the host has sent meanwhile.
        while let Some(Event::Tun { buffer, .. }) = driver.next() {
            driver.release(buffer);
        }
        assert_eq!(driver.references(), 1);
        driver.release(buffer);
    });
}

fn a_deleted_interface_is_noticed_once<D: Subject>() {
    in_namespace(|| {
        let (mut driver, name) = rig::<D>();
        driver.wait(Some(Duration::ZERO)).unwrap();
        ip(&format!("link delete {name}"));
        let deadline = Instant::now() + PATIENCE;
        while driver.stats().tun_errors == 0 {
            assert!(Instant::now() < deadline, "not noticed");
            // An error is no event: it does not end a wait.
            driver.wait(Some(Duration::from_millis(1))).unwrap();
            while let Some(Event::Tun { buffer, .. }) = driver.next() {
                driver.release(buffer);
            }
        }
        // And sleeps again, instead of finding the same error for ever.
        let (errors, start) = (driver.stats().tun_errors, Instant::now());
        let pause = Duration::from_millis(20);
        driver.wait(Some(pause)).unwrap();
        assert!(start.elapsed() >= pause);
        assert_eq!(driver.stats().tun_errors, errors);
        let buffer = driver.allocate().unwrap();
        let span = Span {
            buffer,
            offset: 0,
            len: 100,
        };
        assert_eq!(
            driver.write_tun(&[0; TUN_HEADER_LEN], &[span]),
            Err(SendError::NoTun)
        );
    });
}

/// Waits until the driver finds its interface deleted.
fn await_loss<D: Subject>(driver: &mut D, lost: u64) {
    let deadline = Instant::now() + PATIENCE;
    while driver.stats().tun_lost < lost {
        assert!(Instant::now() < deadline, "{:?}", driver.stats());
        driver.wait(Some(PATIENCE)).unwrap();
        while let Some(Event::Tun { buffer, .. }) = driver.next() {
            driver.release(buffer);
        }
    }
}

fn a_deleted_interface_works_again_once_it_is_restored<D: Subject>() {
    in_namespace(|| {
        let tun = open("hytest", 1).unwrap();
        let interface = tun.interface().unwrap();
        let queue = tun.queues.into_iter().next();
        let mut driver = D::open_with(parts(queue), SLOT_BYTES);
        assert!(!interface.restore().unwrap(), "nothing is to be restored");
        for round in 1..4 {
            driver.wait(Some(Duration::ZERO)).unwrap();
            ip("link delete hytest");
            // The loss ends a wait, so that a worker that would sleep for long hears of it.
            await_loss(&mut driver, round);
            assert_eq!(driver.stats().tun_lost, round, "once");
            assert!(interface.restore().unwrap());
            driver.resume_tun();
            ip("address add 10.9.0.1/24 dev hytest");
            ip("link set hytest up");
            let host = UdpSocket::bind("10.9.0.1:0").unwrap();
            host.send_to(b"again", "10.9.0.2:9").unwrap();
            let (_, packet) = next_packet(&mut driver);
            assert!(packet.ends_with(b"again"));
        }
        // Resumed too early it is lost once more.
        ip("link delete hytest");
        await_loss(&mut driver, 4);
        driver.resume_tun();
        await_loss(&mut driver, 5);
    });
}

fn the_name_is_free_once_the_driver_is_dropped<D: Subject>() {
    in_namespace(|| {
        for _ in 0..3 {
            let _nothing_starts = nothing_starts();
            let tun = open("hytest", 2).unwrap();
            assert_eq!((tun.name.as_str(), tun.queues.len()), ("hytest", 2));
            let mut drivers: Vec<D> = tun
                .queues
                .into_iter()
                .map(|queue| D::open_with(parts(Some(queue)), SLOT_BYTES))
                .collect();
            drivers
                .iter_mut()
                .for_each(|driver| driver.wait(Some(Duration::ZERO)).unwrap());
        }
    });
}

#[test]
fn a_device_of_somebody_else_is_not_shared() {
    in_namespace(|| {
        let _first = open("hytest", 2).unwrap();
        let error = open("hytest", 1).unwrap_err();
        assert!(matches!(error, TunError::Busy { .. }), "{error}");
        assert!(error.to_string().contains("another hyphae"), "{error}");
    });
}

//! The contract of [`Driver`], held by both drivers that talk to a kernel: one body per test, run
//! for each. `datagrams.rs` covers the socket, `sources.rs` the address that sends leave from, `tun.rs`
//! the TUN queue, `tests/allocation.rs` of the package that nothing allocates after `open`, `memory.rs` its own twin.

mod datagrams;
mod sources;
mod tun;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hyphae_wire::Endpoint;
use rustix::event::{EventfdFlags, eventfd};

use crate::epoll::EpollDriver;
use crate::uring::UringDriver;
use crate::{Driver, DriverParts, Event, SLOT_BYTES, Span, probe, udp};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the tests need beyond the contract.
trait Subject: Driver + Sized {
    fn open_with(parts: DriverParts, slot_bytes: usize) -> Self;
    /// References of all buffers together.
    fn references(&self) -> u64;
    fn is_offloaded(&self) -> bool;
}

impl Subject for UringDriver {
    fn open_with(parts: DriverParts, slot_bytes: usize) -> Self {
        Self::with_slots(parts, slot_bytes).unwrap()
    }
    fn references(&self) -> u64 {
        self.pool().references()
    }
    fn is_offloaded(&self) -> bool {
        self.is_offloaded()
    }
}

impl Subject for EpollDriver {
    fn open_with(parts: DriverParts, slot_bytes: usize) -> Self {
        Self::with_slots(parts, slot_bytes).unwrap()
    }
    fn references(&self) -> u64 {
        self.pool().references()
    }
    fn is_offloaded(&self) -> bool {
        self.is_offloaded()
    }
}

/// Runs each test for each driver.
macro_rules! for_both {
    ($($name:ident),* $(,)?) => {
        mod io_uring {
            $(#[test] fn $name() {
                match crate::probe() {
                    Ok(()) => super::$name::<crate::uring::UringDriver>(),
                    Err(error) => hyphae_test_skip::lacks(&error.to_string()),
                }
            })*
        }
        mod epoll {
            $(#[test] fn $name() {
                super::$name::<crate::epoll::EpollDriver>();
            })*
        }
    };
}
use for_both;

/// A driver, its address and its doorbell.
struct Rig<D> {
    driver: D,
    address: SocketAddr,
    doorbell: OwnedFd,
}

impl<D: Subject> Rig<D> {
    fn new() -> Self {
        Self::with("127.0.0.1:0", 32, SLOT_BYTES, udp::SocketOptions::default())
    }

    fn with(
        address: &str,
        receive_buffers: u16,
        slot_bytes: usize,
        options: udp::SocketOptions,
    ) -> Self {
        let (socket, report) = udp::bind(address.parse().unwrap(), options).unwrap();
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let parts = DriverParts {
            socket,
            tun: None,
            doorbell: doorbell.try_clone().unwrap(),
            receive_buffers,
            transmit_buffers: 8,
        };
        Self {
            driver: D::open_with(parts, slot_bytes),
            address: report.local,
            doorbell,
        }
    }

    fn endpoint(&self) -> Endpoint {
        self.address.into()
    }

    /// Queues `bytes` as one train from a fresh transmit buffer.
    fn send(&mut self, to: Endpoint, segment: u16, bytes: &[u8]) {
        let buffer = self.driver.allocate().expect("a transmit buffer");
        let span = Span {
            buffer,
            offset: 0,
            len: u32::try_from(bytes.len()).unwrap(),
        };
        self.driver.spans(span).copy_from_slice(bytes);
        self.driver.send(to, segment, &[span]).unwrap();
        self.driver.release(buffer);
    }

    /// The next event, however many turns it takes.
    fn next(&mut self) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.driver.next() {
                return event;
            }
            assert!(
                Instant::now() < deadline,
                "nothing came: {:?}",
                self.driver.stats()
            );
            self.driver.wait(Some(PATIENCE)).unwrap();
        }
    }

    /// The next receive: its datagrams.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let Event::Datagrams {
            buffer,
            offset,
            len,
            segment,
            ..
        } = self.next()
        else {
            panic!("no datagrams")
        };
        let bytes = self
            .driver
            .spans(Span {
                buffer,
                offset,
                len,
            })
            .to_vec();
        self.driver.release(buffer);
        bytes.chunks(segment as usize).map(<[u8]>::to_vec).collect()
    }

    /// Turns until `done` says so; what arrives is thrown away.
    fn turn_until(&mut self, mut done: impl FnMut(&D) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.driver) {
            assert!(
                Instant::now() < deadline,
                "never happened: {:?}",
                self.driver.stats()
            );
            self.driver.wait(Some(Duration::from_millis(1))).unwrap();
            while let Some(Event::Datagrams { buffer, .. }) = self.driver.next() {
                self.driver.release(buffer);
            }
        }
    }
}

/// Bytes that differ from datagram to datagram.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| ((at * 31) ^ (at >> 8) ^ (seed * 7)).to_le_bytes()[0])
        .collect()
}

#[test]
fn the_probe_agrees_with_open() {
    let result = probe();
    eprintln!("probe: {result:?}");
    let (kind, why) = crate::DriverKind::Auto.resolve();
    assert_eq!(why.is_none(), result.is_ok());
    let (socket, _) = udp::bind("127.0.0.1:0".parse().unwrap(), Default::default()).unwrap();
    let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let parts = DriverParts {
        socket,
        tun: None,
        doorbell,
        receive_buffers: 3,
        transmit_buffers: 1,
    };
    let driver = crate::open(crate::DriverKind::Auto, parts).unwrap();
    assert_eq!(driver.name(), kind.to_string());
}

/// Makes `io_uring_setup` fail with `errno` on this thread from now on, as a container's seccomp
/// profile does.
fn forbid_io_uring(errno: i32) {
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let errno = u32::try_from(errno).unwrap();
    let step = |code: u32, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | errno,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: takes integers only.
    let locked = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: `program` describes `filter`, both on this stack frame; the kernel copies them.
    let filtered = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    };
    assert_eq!((locked, filtered), (0, 0));
}

#[test]
fn where_io_uring_is_forbidden_the_cause_is_named_and_auto_means_epoll() {
    for (errno, words) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        let body = move || {
            forbid_io_uring(errno);
            let why = probe().unwrap_err().to_string();
            assert!(why.contains(words) && why.contains("seccomp"), "{why}");
            assert!(why.contains("epoll driver"), "{why}");
            let (kind, why) = crate::DriverKind::Auto.resolve();
            assert_eq!((kind, why.is_some()), (crate::DriverKind::Epoll, true));
            let mut rig = Rig::<EpollDriver>::new();
            rig.send(rig.endpoint(), 5, b"hello");
            assert_eq!(rig.receive(), [b"hello"]);
        };
        std::thread::spawn(body).join().unwrap();
    }
}

#[test]
fn a_driver_without_buffers_is_refused() {
    for (receive_buffers, transmit_buffers) in [(0, 1), (1, 0), (40_000, 1)] {
        let (socket, _) = udp::bind("127.0.0.1:0".parse().unwrap(), Default::default()).unwrap();
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let parts = DriverParts {
            socket,
            tun: None,
            doorbell,
            receive_buffers,
            transmit_buffers,
        };
        let Err(error) = crate::open(crate::DriverKind::Epoll, parts) else {
            panic!("opened with {receive_buffers} and {transmit_buffers} buffers")
        };
        assert!(matches!(error, crate::OpenError::Count { .. }), "{error}");
    }
}

//! The attach message between two ends in one process; a real second process is in
//! tests/processes.rs.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::Doorbell;

fn fds(count: usize) -> Vec<Doorbell> {
    (0..count).map(|_| Doorbell::new().unwrap()).collect()
}

/// Offers over a socket pair and accepts at the other end.
fn exchange(hello: &Hello, bells: usize) -> Result<(Hello, Vec<OwnedFd>), AttachError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let bells = fds(bells);
    let fds: Vec<_> = bells.iter().map(AsFd::as_fd).collect();
    offer(ours.as_fd(), hello, &fds).unwrap();
    accept(theirs.as_fd())
}

fn hello(workers: u16) -> Hello {
    Hello {
        workers: U16::new(workers),
        ..Hello::blank(WELCOME)
    }
}

#[test]
fn a_hello_arrives_with_its_descriptors() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let bells = fds(66);
    let mut sent = Hello {
        pid: U32::new(42),
        generation: U64::new(3),
        ..hello(64)
    };
    sent.ports[63] = U16::new(9651);
    sent.tun_name_len = store_text(&mut sent.tun_name, "hyphae0");
    sent.driver_len = store_text(&mut sent.driver, "io_uring");
    sent.driver_reason_len = store_text(&mut sent.driver_reason, &"ü".repeat(200));
    let borrowed: Vec<_> = bells.iter().map(AsFd::as_fd).collect();
    offer(ours.as_fd(), &sent, &borrowed).unwrap();
    let (received, fds) = accept(theirs.as_fd()).unwrap();
    assert_eq!(received.as_bytes(), sent.as_bytes());
    assert_eq!(
        (received.tun_name(), received.driver()),
        (Some("hyphae0"), "io_uring")
    );
    assert_eq!(
        received.driver_reason(),
        "ü".repeat(120),
        "cut between characters"
    );
    // The same doorbell at both ends, in the order that they were sent.
    bells[65].ring();
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&fds[65], &mut count), Ok(8));
    assert_eq!(
        rustix::io::read(&fds[64], &mut count),
        Err(rustix::io::Errno::AGAIN)
    );
}

#[test]
fn a_dataplane_without_tun_has_no_name_for_it() {
    assert_eq!(hello(1).tun_name(), None);
    let broken = Hello {
        tun_name: [0xff; 16],
        tun_name_len: 16,
        driver_len: 200,
        ..hello(1)
    };
    assert_eq!((broken.tun_name(), broken.driver()), (None, ""));
}

#[test]
fn refusals_say_why() {
    assert!(matches!(
        exchange(&Hello::blank(BUSY), 0),
        Err(AttachError::Busy)
    ));
    assert!(matches!(
        exchange(&Hello::blank(FORBIDDEN), 0),
        Err(AttachError::Forbidden)
    ));
    assert!(matches!(
        exchange(&Hello::blank(99), 0),
        Err(AttachError::Protocol)
    ));
    let newer = Hello {
        abi_version: U64::new(ABI_VERSION + 1),
        ..Hello::blank(BUSY)
    };
    let found = ABI_VERSION + 1;
    assert!(matches!(exchange(&newer, 0), Err(AttachError::Version { found: f }) if f == found));
    let other = Hello {
        cookie: *b"whatever",
        ..hello(1)
    };
    assert!(matches!(exchange(&other, 3), Err(AttachError::Protocol)));
}

#[test]
fn a_wrong_number_of_descriptors_is_refused() {
    for (workers, fds) in [(1, 2), (1, 4), (2, 3), (0, 2), (65, 66)] {
        assert!(matches!(
            exchange(&hello(workers), fds),
            Err(AttachError::Protocol)
        ));
    }
}

#[test]
fn a_short_or_missing_message_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    assert!(matches!(accept(theirs.as_fd()), Err(AttachError::Protocol)));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&hello(1).as_bytes()[..100]).unwrap();
    drop(ours);
    assert!(matches!(accept(theirs.as_fd()), Err(AttachError::Protocol)));
}

#[test]
fn the_same_user_may_attach() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    assert_eq!(check_peer(theirs.as_fd()).ok(), Some(pid));
}

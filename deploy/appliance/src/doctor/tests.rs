//! Synthetic hosts: one without problems, then one with a single problem for every check.

use std::collections::BTreeSet;

use hyphae_dataplane::DriverKind;
use rustix::thread::CapabilitySet;

use super::checks::evaluate;
use super::facts::{Availability, Facts, Link, StateDirectory};
use super::{Check, Level};

/// A host without problems, root.
fn host() -> Facts {
    Facts {
        configuration: None,
        user: 0,
        capabilities: Some(CapabilitySet::all()),
        kernel: "6.12.4-1-amd64".into(),
        driver: DriverKind::Auto,
        io_uring: None,
        io_uring_disabled: Some(0),
        memlock: Some(8 << 20),
        files: Some(1 << 20),
        rpc: vec!["127.0.0.1:8990".parse().unwrap()],
        rpc_token: false,
        workers: Some(Ok(2)),
        shared_cores: Vec::new(),
        receive_bytes_max: Some(212_992),
        transmit_bytes_max: Some(212_992),
        receive_bytes_needed: 16 << 20,
        transmit_bytes_needed: 16 << 20,
        tun: Some(Availability::Free),
        ports: vec![
            ("UDP 9670".into(), Availability::Free),
            ("TCP 9670".into(), Availability::Free),
        ],
        ipv6_disabled: Some(false),
        reaches: false,
        ipv6_rpfilter: Some("yes".into()),
        mtu: 1340,
        links: vec![Link {
            name: "eth0".into(),
            mtu: 1500,
        }],
        clock_synchronised: Some(true),
        state: StateDirectory {
            path: "/var/lib/hyphae".into(),
            exists: true,
            writable: true,
            owner: 0,
            mode: 0o700,
            free_bytes: Some(10 << 30),
            free_files: Some(1 << 20),
            key_mode: Some(0o640),
        },
        inbox_bytes_max: Some(256 << 20),
        peers: vec![("udp://relay.example:9670".into(), Ok(2))],
        governors: BTreeSet::from(["performance".into()]),
        idle_polled: Some(200_000),
        isolated: Some(String::new()),
        huge_pages: Some("always [madvise] never".into()),
    }
}

/// The same for an unprivileged user.
fn ordinary() -> Facts {
    let mut host = host();
    (host.user, host.capabilities, host.state.owner) = (1000, Some(CapabilitySet::empty()), 1000);
    host
}

fn find(host: &Facts, name: &str) -> Check {
    let all = evaluate(host);
    all.into_iter().find(|check| check.name == name).unwrap()
}

#[test]
fn callers_over_tcp_are_listed_with_the_limits_of_their_authentication() {
    let name = "RPC callers over TCP";
    let mut host = host();
    let found = find(&host, name).found;
    assert!(found.contains("127.0.0.1:8990: by their user.") && found.contains("container"));
    host.rpc_token = true;
    assert!(find(&host, name).found.contains("or the token"));
    host.rpc.clear();
    assert!(find(&host, name).found.contains("off"));
}

/// The result of a check after one change; asserts that no other check reports a problem.
fn changed(name: &str, change: impl FnOnce(&mut Facts)) -> Check {
    let mut host = host();
    change(&mut host);
    let bad: Vec<_> = evaluate(&host)
        .into_iter()
        .filter(|check| check.level != Level::Ok)
        .collect();
    let names: Vec<_> = bad.iter().map(|check| check.name).collect();
    assert_eq!(names, [name]);
    let check = bad.into_iter().next().unwrap();
    if check.level != Level::Unknown {
        assert!(!check.why.is_empty() && !check.fix.is_empty(), "{check:?}");
    }
    check
}

#[test]
fn a_host_without_problems_has_nothing_to_do() {
    for check in evaluate(&host()) {
        assert_eq!(check.level, Level::Ok, "{check:?}");
        assert!(check.why.is_empty() && check.fix.is_empty(), "{check:?}");
    }
}

/// Check, result, part of what is found, change.
type Case = (&'static str, Level, &'static str, fn(&mut Facts));

const CASES: &[Case] = &[
    ("configuration", Level::Fail, "line 3", |h| {
        h.configuration = Some("x.toml: line 3: y".into())
    }),
    ("kernel", Level::Warn, "5.15.0", |h| {
        h.kernel = "5.15.0-91-generic".into()
    }),
    ("kernel", Level::Fail, "4.19", |h| {
        h.kernel = "4.19.0".into()
    }),
    ("kernel", Level::Unknown, "version", |h| {
        h.kernel = "?".into()
    }),
    ("io_uring", Level::Warn, "forbidden", |h| {
        h.io_uring = Some("forbidden".into())
    }),
    ("io_uring", Level::Fail, "is 2", |h| {
        (h.driver, h.io_uring) = (DriverKind::Uring, Some("EPERM".into()));
        h.io_uring_disabled = Some(2);
    }),
    ("TUN device", Level::Fail, "No such file", |h| {
        h.tun = Some(Availability::Refused("/dev/net/tun: No such file".into()));
    }),
    ("TUN device", Level::Fail, "was set down", |h| {
        h.tun = Some(Availability::Broken(
            "TUN device hyphae0 was set down".into(),
        ));
    }),
    ("workers", Level::Warn, "core 1, 3", |h| {
        h.shared_cores = vec![1, 3]
    }),
    ("reverse path", Level::Warn, "IPv6_rpfilter=strict", |h| {
        (h.reaches, h.ipv6_rpfilter) = (true, Some("strict".into()));
    }),
    ("workers", Level::Fail, "core 9", |h| {
        h.workers = Some(Err("core 9 is not available".into()))
    }),
    ("locked memory", Level::Warn, "64 KiB", |h| {
        (h.memlock, h.capabilities) = (Some(64 << 10), Some(CapabilitySet::NET_ADMIN));
    }),
    ("open files", Level::Warn, "256", |h| h.files = Some(256)),
    ("ports", Level::Fail, "UDP 9671: in use", |h| {
        h.ports
            .push(("UDP 9671".into(), Availability::Refused("in use".into())));
    }),
    ("IPv6", Level::Fail, "disabled", |h| {
        h.ipv6_disabled = Some(true)
    }),
    ("IPv6", Level::Warn, "disabled", |h| {
        (h.ipv6_disabled, h.tun) = (Some(true), None)
    }),
    ("link MTU", Level::Warn, "wg0 1280", |h| {
        h.links.push(Link {
            name: "wg0".into(),
            mtu: 1280,
        });
    }),
    ("link MTU", Level::Warn, "at least 9000 needed", |h| {
        h.mtu = 8848
    }),
    ("link MTU", Level::Unknown, "no link", |h| h.links.clear()),
    ("clock", Level::Warn, "not synchronised", |h| {
        h.clock_synchronised = Some(false)
    }),
    ("clock", Level::Unknown, "adjtimex", |h| {
        h.clock_synchronised = None
    }),
    ("state directory", Level::Fail, "cannot be written", |h| {
        h.state.writable = false
    }),
    (
        "state directory",
        Level::Fail,
        "by others (mode 0777)",
        |h| h.state.mode = 0o777,
    ),
    ("state directory", Level::Fail, "key file", |h| {
        h.state.key_mode = Some(0o644)
    }),
    ("free disk", Level::Fail, "inodes", |h| {
        h.state.free_files = Some(0)
    }),
    ("free disk", Level::Fail, "500 KiB", |h| {
        h.state.free_bytes = Some(500 << 10)
    }),
    ("free disk", Level::Warn, "a full inbox needs", |h| {
        h.state.free_bytes = Some(200 << 20)
    }),
    ("free disk", Level::Unknown, "file system", |h| {
        h.state.free_bytes = None
    }),
    ("peers", Level::Warn, "attic:1: no such name", |h| {
        h.peers
            .push(("udp://attic:1".into(), Err("no such name".into())));
    }),
    ("peers", Level::Fail, "no address", |h| {
        h.peers = vec![("udp://attic:1".into(), Ok(0))]
    }),
];

#[test]
fn every_problem_is_found_with_reason_and_fix() {
    for (name, level, says, change) in CASES {
        let check = changed(name, change);
        assert_eq!(check.level, *level, "{check:?}");
        assert!(check.found.contains(says), "{check:?} says {says}");
    }
}

#[test]
fn limits_of_unprivileged_users_are_checked_for_them_only() {
    let host = ordinary();
    assert_eq!(find(&host, "capabilities").level, Level::Warn);
    let buffers = find(&host, "socket buffers");
    assert_eq!(buffers.level, Level::Warn);
    assert!(
        buffers.fix.contains("net.core.rmem_max=16777216"),
        "{buffers:?}"
    );
    assert_eq!(find(&host, "state directory").level, Level::Ok);

    let mut host = ordinary();
    host.tun = None;
    (host.receive_bytes_max, host.transmit_bytes_max) = (Some(16 << 20), Some(16 << 20));
    assert_eq!(
        find(&host, "capabilities").level,
        Level::Ok,
        "no TUN device is configured"
    );
    assert_eq!(find(&host, "socket buffers").level, Level::Ok);
    host.receive_bytes_max = None;
    assert_eq!(find(&host, "socket buffers").level, Level::Unknown);
    host.capabilities = None;
    assert_eq!(find(&host, "capabilities").level, Level::Unknown);
    host.state.owner = 0;
    assert_eq!(find(&host, "state directory").level, Level::Fail);
    // Without the capability no device would be created anyway.
    host.tun = Some(Availability::Refused("denied".into()));
    assert_eq!(find(&host, "TUN device").level, Level::Warn);
}

#[test]
fn resources_of_the_running_node_are_no_problem() {
    let mut host = host();
    host.tun = Some(Availability::Ours);
    host.ports = vec![("UDP 9670".into(), Availability::Ours)];
    assert!(evaluate(&host).iter().all(|check| check.level == Level::Ok));
    assert!(find(&host, "ports").found.contains("running node"));
    host.driver = DriverKind::Epoll;
    host.io_uring = Some("forbidden".into());
    assert_eq!(find(&host, "io_uring").level, Level::Ok, "not used");
}

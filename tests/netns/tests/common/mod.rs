//! What the process tests share: the binary, the privilege check, waiting, meshes.

#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod flow;
pub(crate) mod local;
pub(crate) mod mesh;
pub(crate) mod node;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use hyphae::lab::{Lab, Namespace, Spec};
use tempfile::NamedTempFile;

/// How long anything may take on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Links that only an event ends: their timers give nothing up as long as any test waits.
pub(crate) const UNTIMED_LINKS: &str =
    "[session]\nkeepalive_seconds = 60\ndead_after_seconds = 600\nlost_after_ms = 600000\n";

/// The `hyphae` binary, built if needed with the profile of this test.
pub(crate) fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let deps = std::env::current_exe().unwrap();
            let profile = deps
                .parent()
                .and_then(|deps| deps.parent())
                .unwrap()
                .to_owned();
            let mut build = Command::new(env!("CARGO"));
            // Of the whole workspace, as the tests are: the same features, so that nothing is built twice.
            build.args(["build", "--quiet", "--workspace", "--bin", "hyphae"]);
            if profile.ends_with("release") {
                build.arg("--release");
            }
            if std::env::var_os("CI").is_some() {
                // All tests are there already, and what they need has more features.
                build.arg("--tests");
            }
            let status = build
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap();
            assert!(status.success(), "the binary builds");
            profile.join("hyphae")
        })
        .clone()
}

/// Waits until `done` holds.
pub(crate) fn eventually(what: &str, timeout: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !done() {
        assert!(Instant::now() < deadline, "in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A place on loopback that nobody else is given. A port of 127.0.0.1 that is free could be taken by others before
/// the node that is to have it starts; this address belongs to this process.
pub(crate) fn own_place() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Process numbers have 22 bits.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    // Below the ports that kernels give out.
    let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from((Ipv4Addr::new(127, a | 1 << 7, b, c), port))
}

/// Waits until the host in a namespace has its address of the overlay, and the route that comes with it: the control
/// plane sets its device up after it has begun to answer.
pub(crate) fn host_up(inside: &Namespace, address: Ipv6Addr) {
    eventually("the host has its address and route", TIMEOUT, || {
        let reach = move || UdpSocket::bind((address, 0))?.connect("[400::1]:9");
        inside.run(reach).unwrap().is_ok()
    });
}

/// What tests with namespaces call, and the Debian packages that it is in.
const TOOLS: [(&str, &str); 3] = [
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("nft", "nftables"),
];

/// Whether this process may make namespaces, and has what it takes to set them up. A failure under CI, a loud skip
/// elsewhere.
pub(crate) fn privileged() -> bool {
    let mut lacks = Vec::new();
    if !rustix::process::geteuid().is_root() {
        lacks.push("root, for network namespaces".to_owned());
    }
    for (tool, package) in TOOLS {
        if Command::new(tool).arg("-V").output().is_err() {
            lacks.push(format!("`{tool}` (apt install {package})"));
        }
    }
    if lacks.is_empty() {
        return true;
    }
    hyphae_test_skip::lacks(&lacks.join(", "));
    false
}

/// Runs a program, given with its arguments, inside a namespace; it has to succeed. Returns what it
/// printed.
pub(crate) fn command(inside: &Namespace, line: &str) -> String {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let run = move || Command::new(&words[0]).args(&words[1..]).output();
    let output = inside.run(run).unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a namespace pass packets on between its devices.
pub(crate) fn forward_packets(inside: &Namespace) {
    let switch = || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    };
    inside.run(switch).unwrap().unwrap();
}

/// What the node in a namespace shows to Prometheus.
pub(crate) fn scrape(inside: &Namespace) -> String {
    inside.run(|| scrape_at("127.0.0.1:9469")).unwrap()
}

/// What a node shows to Prometheus at an address.
pub(crate) fn scrape_at(place: &str) -> String {
    let mut stream = TcpStream::connect(place).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    body.to_owned()
}

/// A lab of nodes that reach each other, and whose hosts do.
pub(crate) fn lab(spec: &Spec) -> Lab {
    let lab = Lab::namespaces(&Spec {
        program: Some(binary()),
        ..spec.clone()
    })
    .unwrap();
    lab.wait_until_connected(TIMEOUT).unwrap();
    let namespaces = lab.namespaces.as_ref().unwrap();
    for (inside, node) in namespaces
        .iter()
        .zip([&lab.client, &lab.relay, &lab.server])
    {
        host_up(inside, node.address());
    }
    lab
}

/// A file with this text, for as long as it is kept.
pub(crate) fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Sends bytes that depend on their position one way, and checks them at the other end.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: Ipv6Addr, bytes: usize) {
    let listener = to
        .run(move || TcpListener::bind((address, 0)))
        .unwrap()
        .unwrap();
    let place = listener.local_addr().unwrap();
    let connect = move || TcpStream::connect_timeout(&place, Duration::from_secs(10));
    let mut sending = None;
    // Right after a link has changed, the way may be gone for a moment.
    eventually("a connection", TIMEOUT, || {
        sending = from.run(connect).unwrap().ok();
        sending.is_some()
    });
    let mut sending = sending.unwrap();
    // One that was given up a moment too early may be before it.
    let mut receiving = loop {
        let (accepted, other) = listener.accept().unwrap();
        if other == sending.local_addr().unwrap() {
            break accepted;
        }
    };
    receiving.set_read_timeout(Some(TIMEOUT)).unwrap();
    let pattern = |at: usize| at.wrapping_mul(2_654_435_761).to_le_bytes()[1];
    let sender = std::thread::spawn(move || {
        let all: Vec<u8> = (0..bytes).map(pattern).collect();
        sending.write_all(&all).unwrap();
    });
    let mut received = vec![0; bytes];
    receiving.read_exact(&mut received).unwrap();
    sender.join().unwrap();
    assert!((0..bytes).all(|at| received[at] == pattern(at)));
}

/// Gives rules to the packet filter of a namespace.
pub(crate) fn nft(namespace: &Namespace, rules: &'static str) {
    let run = move || {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        nft.stdin.take().unwrap().write_all(rules.as_bytes())?;
        nft.wait()
    };
    let status = namespace.run(run).unwrap().unwrap();
    assert!(status.success(), "nft takes '{rules}': is nf_tables there?");
}

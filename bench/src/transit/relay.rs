//! The real dataplane process as relay, programmed by this program.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyphae_bench_paths::Source;
use hyphae_shm::record::{
    ACTION_FORWARD, FibReplace, LaneKeys, LinkInstall, LocalInstall, NextHop, PeerInstall, Program,
    ROLE_ACTIVE,
};
use hyphae_shm::stats::{Counter, counter_at};
use hyphae_shm::{Doorbell, Segment, StatsReader};
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::{Endpoint, OverlayAddress, PublicKey, SecretKey, SessionIndex, Suite, WorkerId};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

use super::load::{address, generator, sink, watch};
use super::{Args, Net, PORT, RELAY_TO_SOURCE, SINK, SOURCE, Sample};
use crate::process::{cpu, hyphae};

const KEY_FROM_SOURCE: [u8; 32] = [0x11; 32];
const KEY_TO_SINK: [u8; 32] = [0x22; 32];
const UNUSED_KEY: [u8; 32] = [0x33; 32];

/// The relay's process; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended; either way it is gone then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn measure(
    net: &Net,
    args: &Args,
    suite: Suite,
    payload: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    let directory = tempfile::tempdir()?;
    let process = start(net, args, directory.path())?;
    let stream = connect(directory.path())?;
    let (hello, fds) = hyphae_shm::attach::accept(stream.as_fd())?;
    let mut fds = fds.into_iter();
    let segment = Segment::attach(&fds.next().context("segment")?)?;
    let bell = Doorbell::from_fd(fds.nth(1).context("doorbell")?);
    let destination = install(&segment, &bell, suite)?;
    let stats = segment.stats_reader(WorkerId(0));
    let pid = hello.pid.get();

    let received = Arc::new(AtomicU64::new(0));
    let sinking = sink(&net.sink, address(SINK, PORT)?, Arc::clone(&received))?;
    let (from, to) = (address(SOURCE, PORT)?, address(RELAY_TO_SOURCE, PORT)?);
    let mut source = Source::new(suite, &KEY_FROM_SOURCE, index(0), u16::try_from(payload)?);
    let fill = move |frame: &mut [u8]| source.write(destination, frame);
    let generating = generator(&net.source, from, to, payload + OVERHEAD, train, fill)?;
    let sample = watch(&received, time, || Ok(Some((transit(&stats), cpu(pid)?))));
    generating.stop()?;
    sinking.stop()?;
    drop(process);
    sample
}

fn start(net: &Net, args: &Args, directory: &std::path::Path) -> anyhow::Result<Process> {
    let program = hyphae(None)?;
    let mut command = Command::new(program);
    command
        .args(["dataplane", "--no-tun", "--log-level", "warn", "--listen"])
        .arg(format!("0.0.0.0:{PORT}"))
        .args([
            "--cores",
            &args.core.to_string(),
            "--driver",
            &args.driver.to_string(),
        ])
        .arg("--state-dir")
        .arg(directory.join("state"))
        .arg("--socket-dir")
        .arg(directory.join("run"));
    Ok(Process(net.relay.run(move || command.spawn())??))
}

fn connect(directory: &std::path::Path) -> anyhow::Result<UnixStream> {
    let (path, started) = (directory.join("run/dataplane.sock"), Instant::now());
    loop {
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok(stream),
            Err(error) if started.elapsed() > Duration::from_secs(5) => {
                return Err(error).context("the dataplane did not come up");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Installs two links and a route; returns an address that the route covers.
fn install(segment: &Segment, bell: &Doorbell, suite: Suite) -> anyhow::Result<OverlayAddress> {
    let mut ring = segment.program_producer(WorkerId(0));
    let mut push = |program: Program<'_>| -> anyhow::Result<()> {
        let (code, body, tail) = program.parts();
        Ok(ring.push(code, &[body, tail])?)
    };
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let created = now.tv_sec.unsigned_abs() * 1_000_000_000;
    let key = |byte: u8| -> anyhow::Result<PublicKey> {
        Ok(SecretKey::from_bytes(&[byte; 32])?.public_key())
    };
    let mut local = LocalInstall::new_zeroed();
    local.address = key(1)?.address();
    local.mtu = U16::new(1340);
    push(Program::LocalInstall(&local))?;
    let far = key(3)?;
    for (peer, key, at, open, seal) in [
        (0, key(2)?, SOURCE, KEY_FROM_SOURCE, UNUSED_KEY),
        (1, far, SINK, UNUSED_KEY, KEY_TO_SINK),
    ] {
        let record = PeerInstall {
            peer: U32::new(peer),
            reserved: U32::ZERO,
            key,
        };
        push(Program::PeerInstall(&record))?;
        let mut link = LinkInstall::new_zeroed();
        link.peer = U32::new(peer);
        link.receive_index = U32::new(index(peer).0);
        link.send_index = U32::new(7);
        link.suite = suite.code();
        link.role = ROLE_ACTIVE;
        link.epoch = U32::new(1);
        link.endpoint = Endpoint::from(address(at, PORT)?);
        link.created = U64::new(created);
        link.rekey_after_ms = U32::new(3_600_000);
        link.reject_after_ms = U32::new(3_600_000);
        link.keys = LaneKeys {
            receive: open,
            send: seal,
        };
        push(Program::LinkInstall(&link))?;
    }
    let mut route = FibReplace::new_zeroed();
    route.prefix = far.address().subnet().address();
    route.prefix_len = 64;
    route.action = ACTION_FORWARD;
    route.next_hop_count = 1;
    route.next_hops[0] = NextHop {
        peer: U32::new(1),
        weight: U16::new(1),
        reserved: U16::ZERO,
    };
    push(Program::FibReplace(&route))?;
    if ring.publish() {
        bell.ring();
    }
    Ok(far.address())
}

fn index(peer: u32) -> SessionIndex {
    SessionIndex::new(WorkerId(0), 5, u16::try_from(peer + 1).unwrap_or(1))
}

fn transit(stats: &StatsReader) -> u64 {
    stats.counters()[counter_at(Counter::TransitPackets)]
}

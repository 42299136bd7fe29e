//! The real dataplane process as relay, programmed by this program.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyphae_bench_paths::Source;
use hyphae_bench_paths::records::{self, Lane};
use hyphae_shm::record::Program;
use hyphae_shm::stats::{Counter, counter_at};
use hyphae_shm::{Doorbell, Segment, StatsReader};
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::{Endpoint, Nanos, OverlayAddress, SessionIndex, Suite, WorkerId};

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
    let frame = payload + OVERHEAD;
    let fill = move |bytes: &mut [u8]| source.write_train(bytes, frame, || destination);
    let generating = generator(&net.source, from, to, frame, train, fill)?;
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
    let created = Nanos(now.tv_sec.unsigned_abs() * 1_000_000_000);
    push(Program::LocalInstall(&records::local(records::key(1))))?;
    let far = records::key(3);
    for (peer, key, at, opens, seals) in [
        (0, records::key(2), SOURCE, KEY_FROM_SOURCE, UNUSED_KEY),
        (1, far, SINK, UNUSED_KEY, KEY_TO_SINK),
    ] {
        push(Program::PeerInstall(&records::peer(peer, key)))?;
        let lane = Lane {
            receive: index(peer),
            send: records::index(7),
            suite,
            opens,
            seals,
            created,
        };
        let link = lane.link(peer, Endpoint::from(address(at, PORT)?));
        push(Program::LinkInstall(&link))?;
    }
    let route = records::route(far.address(), 1);
    push(Program::FibReplace(&route))?;
    if ring.publish() {
        bell.ring();
    }
    Ok(far.address())
}

fn index(peer: u32) -> SessionIndex {
    records::index(u16::try_from(peer + 1).unwrap_or(1))
}

fn transit(stats: &StatsReader) -> u64 {
    stats.counters()[counter_at(Counter::TransitPackets)]
}

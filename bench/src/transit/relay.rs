//! The real dataplane process as relay, programmed by this program.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyphae_instructions::Source;
use hyphae_instructions::records::{self, Lane};
use hyphae_shm::record::Program;
use hyphae_shm::stats::{Counter, counter_at};
use hyphae_shm::{Doorbell, Segment, StatsReader};
use hyphae_time::monotonic;
use hyphae_wire::frame::OVERHEAD;

use hyphae_wire::{Endpoint, OverlayAddress, SessionIndex, Suite, WorkerId};

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
        // Fails if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn measure(
    net: &Net,
    args: &Args,
    (suite, workers): (Suite, u16),
    payload: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    let directory = tempfile::tempdir()?;
    let process = start(net, args, workers, directory.path())?;
    let stream = connect(directory.path())?;
    let (hello, fds) = hyphae_shm::attach::accept(stream.as_fd())?;
    let mut fds = fds.into_iter();
    let segment = Segment::attach(&fds.next().context("segment")?)?;
    // Rings its doorbell.
    let bells = fds.skip(1).map(Doorbell::from_fd);
    let (mut stats, mut destination) = (Vec::new(), OverlayAddress::default());
    for (worker, bell) in (0..workers).map(WorkerId).zip(bells) {
        destination = install(&segment, worker, &bell, suite)?;
        stats.push(segment.stats_reader(worker));
    }
    let pid = hello.pid.get();

    let received = Arc::new(AtomicU64::new(0));
    let sinking = sink(&net.sink, address(SINK, PORT)?, Arc::clone(&received))?;
    let from = address(SOURCE, PORT)?;
    let (mut to, mut sources) = (Vec::new(), Vec::new());
    for (worker, port) in (0..workers).map(WorkerId).zip(hello.ports) {
        to.push(address(RELAY_TO_SOURCE, port.get())?);
        let index = index(worker, 0);
        let payload = u16::try_from(payload)?;
        sources.push(Source::new(suite, &KEY_FROM_SOURCE, index, payload));
    }
    let frame = payload + OVERHEAD;
    let fill = move |worker: usize, bytes: &mut [u8]| {
        sources[worker].write_train(bytes, frame, || destination);
    };
    let generating = generator(&net.source, from, &to, frame, train, fill)?;
    let own = || Ok(Some((stats.iter().map(transit).sum(), cpu(pid)?)));
    let sample = watch(&received, time, own);
    generating.stop()?;
    sinking.stop()?;
    drop(process);
    sample
}

fn start(
    net: &Net,
    args: &Args,
    workers: u16,
    directory: &std::path::Path,
) -> anyhow::Result<Process> {
    // The others share cores with generator and sink.
    let all = std::thread::available_parallelism()?.get();
    let cores = (0..usize::from(workers)).map(|n| ((args.core + n) % all).to_string());
    let cores = cores.collect::<Vec<_>>().join(",");
    let program = hyphae(None)?;
    let mut command = Command::new(program);
    command
        .args(["dataplane", "--no-tun", "--log-level", "warn", "--listen"])
        .arg(format!("0.0.0.0:{PORT}"))
        .args(["--cores", &cores, "--driver", &args.driver.to_string()])
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

/// Installs two links and a route at a worker; returns an address that the route covers.
fn install(
    segment: &Segment,
    worker: WorkerId,
    bell: &Doorbell,
    suite: Suite,
) -> anyhow::Result<OverlayAddress> {
    let mut ring = segment.program_producer(worker);
    let mut push = |program: Program<'_>| -> anyhow::Result<()> {
        let (code, body, tail) = program.parts();
        Ok(ring.push(code, &[body, tail])?)
    };
    let created = monotonic();
    push(Program::LocalInstall(&records::local(records::key(1))))?;
    let far = records::key(3);
    for (peer, key, at, opens, seals) in [
        (0, records::key(2), SOURCE, KEY_FROM_SOURCE, UNUSED_KEY),
        (1, far, SINK, UNUSED_KEY, KEY_TO_SINK),
    ] {
        push(Program::PeerInstall(&records::peer(peer, key)))?;
        let lane = Lane {
            receive: index(worker, peer),
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

fn index(worker: WorkerId, peer: u32) -> SessionIndex {
    records::index_at(worker, u16::try_from(peer + 1).unwrap_or(1))
}

fn transit(stats: &StatsReader) -> u64 {
    stats.counters()[counter_at(Counter::TransitPackets)]
}

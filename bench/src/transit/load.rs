//! Generator and sink.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use hyphae::lab::Namespace;
use hyphae_driver::{
    Driver, DriverKind, DriverParts, Event, RECEIVE_BUFFERS, Span, TRANSMIT_BUFFERS, udp,
};
use hyphae_wire::Endpoint;

use super::{Net, PORT, RELAY_TO_SOURCE, SINK, SOURCE, Sample};
use crate::process::machine_busy;

/// The core that generator and sink share.
const CORE: usize = 0;

/// A thread that runs until stopped.
pub(super) struct Running<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<T>>,
}

impl<T> Running<T> {
    pub(super) fn stop(self) -> anyhow::Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("a load thread has panicked"))?
    }
}

/// Counters of a forwarder thread.
#[derive(Debug, Default)]
pub(super) struct Meter {
    packets: AtomicU64,
    cpu: AtomicU64,
}

impl Meter {
    /// Adds forwarded packets of the calling thread.
    pub(super) fn add(&self, packets: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let nanos = time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs();
        self.cpu.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> (u64, Duration) {
        let cpu = Duration::from_nanos(self.cpu.load(Ordering::Relaxed));
        (self.packets.load(Ordering::Relaxed), cpu)
    }
}

/// Samples the sink over `time`, after a warm-up; `own` reads the counters of the forwarder.
pub(super) fn watch(
    received: &AtomicU64,
    time: Duration,
    own: impl Fn() -> anyhow::Result<Option<(u64, Duration)>>,
) -> anyhow::Result<Sample> {
    std::thread::sleep(Duration::from_millis(300));
    let sample = || anyhow::Ok((received.load(Ordering::Relaxed), own()?, machine_busy()?));
    let (before, began) = (sample()?, Instant::now());
    std::thread::sleep(time);
    let (after, seconds) = (sample()?, began.elapsed().as_secs_f64());
    let own = before
        .1
        .zip(after.1)
        .map(|(before, after)| (after.0 - before.0, after.1.saturating_sub(before.1)));
    Ok(Sample {
        arrived: after.0 - before.0,
        seconds,
        machine: after.2.saturating_sub(before.2),
        own,
    })
}

/// Starts a thread inside a namespace, pinned.
pub(super) fn spawn<T: Send + 'static>(
    namespace: &Namespace,
    core: usize,
    work: impl FnOnce(&AtomicBool) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<Running<T>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let thread = namespace.run(move || {
        std::thread::spawn(move || {
            hyphae_dataplane::pin(core)?;
            work(&flag)
        })
    })?;
    Ok(Running { stop, thread })
}

/// Counts packets at an address.
pub(super) fn sink(
    namespace: &Namespace,
    address: SocketAddr,
    received: Arc<AtomicU64>,
) -> anyhow::Result<Running<()>> {
    let socket = namespace
        .run(move || udp::bind(address, udp::SocketOptions::default()))??
        .0;
    spawn(namespace, CORE, move |stop| {
        let mut driver = open(socket, DriverKind::Epoll)?;
        while !stop.load(Ordering::Relaxed) {
            driver.wait(Some(Duration::from_millis(50)))?;
            while let Some(event) = driver.next() {
                if let Event::Datagrams {
                    buffer,
                    len,
                    segment,
                    ..
                } = event
                {
                    received.fetch_add(u64::from(len.div_ceil(segment)), Ordering::Relaxed);
                    driver.release(buffer);
                }
            }
        }
        Ok(())
    })
}

/// Sends trains of `train` segments of `frame` bytes to the destinations in turn. `fill` writes the train for a
/// destination.
pub(super) fn generator(
    namespace: &Namespace,
    from: SocketAddr,
    to: &[SocketAddr],
    frame: usize,
    train: usize,
    mut fill: impl FnMut(usize, &mut [u8]) + Send + 'static,
) -> anyhow::Result<Running<()>> {
    let socket = namespace
        .run(move || udp::bind(from, udp::SocketOptions::default()))??
        .0;
    let to: Vec<Endpoint> = to.iter().copied().map(Endpoint::from).collect();
    spawn(namespace, CORE, move |stop| {
        let mut driver = open(socket, DriverKind::Epoll)?;
        let len = u32::try_from(frame * train)?;
        let segment = u16::try_from(frame)?;
        let mut places = (0..to.len()).cycle();
        while !stop.load(Ordering::Relaxed) {
            for place in places.by_ref().take(4) {
                let Some(buffer) = driver.allocate() else {
                    break;
                };
                let span = Span {
                    buffer,
                    offset: 0,
                    len,
                };
                fill(place, driver.spans(span));
                driver.send(to[place], segment, &[span])?;
                driver.release(buffer);
            }
            driver.submit()?;
        }
        Ok(())
    })
}

/// Load for forwarders that do not parse frames.
pub(super) struct Plain {
    generating: Running<()>,
    sinking: Running<()>,
    received: Arc<AtomicU64>,
}

impl Plain {
    /// Trains from the source to the relay, and a sink behind it.
    pub(super) fn start(net: &Net, frame: usize, train: usize) -> anyhow::Result<Self> {
        let ends = [(SOURCE, 0), (RELAY_TO_SOURCE, PORT), (SINK, PORT)];
        let [from, to, at] = ends.map(|(ip, port)| address(ip, port));
        Self::between(net, (from?, to?), at?, frame, train)
    }

    /// As [`Self::start`], with other addresses: of the generator, its destination, and the sink.
    pub(super) fn between(
        net: &Net,
        (from, to): (SocketAddr, SocketAddr),
        at: SocketAddr,
        frame: usize,
        train: usize,
    ) -> anyhow::Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let sinking = sink(&net.sink, at, Arc::clone(&received))?;
        let generating = generator(&net.source, from, &[to], frame, train, move |_, bytes| {
            bytes.chunks_mut(frame).for_each(|frame| frame[0] = 1);
        })?;
        Ok(Self {
            generating,
            sinking,
            received,
        })
    }

    pub(super) fn watch(
        self,
        time: Duration,
        own: impl Fn() -> anyhow::Result<Option<(u64, Duration)>>,
    ) -> anyhow::Result<Sample> {
        let sample = watch(&self.received, time, own);
        self.generating.stop()?;
        self.sinking.stop()?;
        sample
    }
}

pub(super) fn open(socket: OwnedFd, kind: DriverKind) -> anyhow::Result<hyphae_driver::AnyDriver> {
    let doorbell = hyphae_shm::Doorbell::new()?.into_fd();
    let parts = DriverParts {
        socket,
        tun: None,
        doorbell,
        receive_buffers: RECEIVE_BUFFERS,
        transmit_buffers: TRANSMIT_BUFFERS,
    };
    Ok(hyphae_driver::open(kind, parts)?)
}

/// An address of the bench's own range.
pub(super) fn address(ip: &str, port: u16) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse()?, port))
}

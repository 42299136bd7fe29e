//! Generator and sink.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use hyphae::lab::Namespace;
use hyphae_uring::{Driver, DriverKind, Event, Parts, Span, udp};
use hyphae_wire::Endpoint;

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

/// Sends trains that `fill` writes into `train` segments of `frame` bytes.
pub(super) fn generator(
    namespace: &Namespace,
    from: SocketAddr,
    to: SocketAddr,
    frame: usize,
    train: usize,
    mut fill: impl FnMut(&mut [u8]) + Send + 'static,
) -> anyhow::Result<Running<()>> {
    let socket = namespace
        .run(move || udp::bind(from, udp::SocketOptions::default()))??
        .0;
    let to = Endpoint::from(to);
    spawn(namespace, CORE, move |stop| {
        let mut driver = open(socket, DriverKind::Epoll)?;
        let len = u32::try_from(frame * train)?;
        let segment = u16::try_from(frame)?;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..4 {
                let Some(buffer) = driver.allocate() else {
                    break;
                };
                let span = Span {
                    buffer,
                    offset: 0,
                    len,
                };
                driver
                    .spans(span)
                    .chunks_exact_mut(frame)
                    .for_each(&mut fill);
                driver.send(&to, segment, &[span])?;
                driver.release(buffer);
            }
            driver.submit()?;
        }
        Ok(())
    })
}

pub(super) fn open(socket: OwnedFd, kind: DriverKind) -> anyhow::Result<hyphae_uring::AnyDriver> {
    let doorbell = hyphae_shm::Doorbell::new()?.into_fd();
    let parts = Parts {
        socket,
        tun: None,
        doorbell,
        receive_buffers: 32,
        transmit_buffers: 32,
    };
    Ok(hyphae_uring::open(kind, parts)?)
}

/// An address of the bench's own range.
pub(super) fn address(ip: &str, port: u16) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse()?, port))
}

//! Generators and sinks: threads with sockets inside the namespaces of client and server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::{Messages, Percentiles, SmallPackets, percentiles};
use crate::lab::{Lab, Namespace};

/// Payload of a small packet, bytes.
const SMALL: usize = 64;
/// Bytes of one write of a TCP generator.
const CHUNK: usize = 128 * 1024;
/// Interval of probes during the kill of the control plane.
const PACE: Duration = Duration::from_micros(500);
/// Concurrent calls of the message generator.
const MESSAGES_IN_FLIGHT: usize = 8;

fn ends(lab: &Lab) -> anyhow::Result<(&Namespace, &Namespace)> {
    let [client, _, server] = lab.namespaces.as_ref().context("a lab with namespaces")?;
    Ok((client, server))
}

fn udp(namespace: &Namespace, address: Ipv6Addr) -> anyhow::Result<UdpSocket> {
    let socket = namespace.run(move || UdpSocket::bind((address, 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// Round trips of single small packets between the hosts.
pub(super) fn udp_round_trips(lab: &Lab, count: usize) -> anyhow::Result<Percentiles> {
    let (client, server) = ends(lab)?;
    let (local, remote) = (
        udp(client, lab.client.address())?,
        udp(server, lab.server.address())?,
    );
    let to = remote.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let echo = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = remote.recv_from(&mut packet) {
                    // A reply that cannot be sent counts as a lost sample.
                    let _ = remote.send_to(&packet[..len], from);
                }
            }
        })
    };
    let mut samples = Vec::with_capacity(count);
    let mut packet = [0u8; SMALL];
    for n in 0..count {
        packet[..8].copy_from_slice(&(n as u64).to_le_bytes());
        let sent = Instant::now();
        local.send_to(&packet, to)?;
        let mut answer = [0; SMALL];
        if local.recv(&mut answer).is_ok() && answer == packet {
            samples.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
    }
    stop.store(true, Ordering::Relaxed);
    echo.join()
        .map_err(|_| anyhow!("the echo thread has panicked"))?;
    Ok(percentiles(samples))
}

/// Small packets at the rate of one unpaced sender.
pub(super) fn small_packets(lab: &Lab, time: Duration) -> anyhow::Result<SmallPackets> {
    let (client, server) = ends(lab)?;
    let (local, remote) = (
        udp(client, lab.client.address())?,
        udp(server, lab.server.address())?,
    );
    local.connect(remote.local_addr()?)?;
    let received = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let sink = {
        let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut packet = [0; 2048];
            loop {
                match remote.recv(&mut packet) {
                    Ok(_) => drop(received.fetch_add(1, Ordering::Relaxed)),
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        })
    };
    let (started, mut sent) = (Instant::now(), 0u64);
    while started.elapsed() < time {
        for _ in 0..64 {
            // A full device queue is part of the measurement.
            sent += u64::from(local.send(&[0; SMALL]).is_ok());
        }
    }
    let took = started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    sink.join()
        .map_err(|_| anyhow!("the sink thread has panicked"))?;
    let received = received.load(Ordering::Relaxed);
    Ok(SmallPackets {
        payload_bytes: SMALL,
        offered_per_second: sent as f64 / took,
        delivered_per_second: received as f64 / took,
        loss_percent: 100.0 * (1.0 - received as f64 / sent.max(1) as f64),
    })
}

/// Concurrent probes of the nodes: the load of a lab without TUN devices.
pub(super) fn messages(lab: &Lab, time: Duration) -> anyhow::Result<Messages> {
    let (answered, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..MESSAGES_IN_FLIGHT {
            scope.spawn(|| {
                while started.elapsed() < time {
                    let result = lab
                        .client
                        .ping(lab.server.address(), Duration::from_secs(1));
                    let counter = if result.is_ok() { &answered } else { &lost };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    Ok(Messages {
        answered_per_second: answered.load(Ordering::Relaxed) as f64
            / started.elapsed().as_secs_f64(),
        lost: lost.load(Ordering::Relaxed),
    })
}

/// TCP from one end to the other.
pub(super) struct Transfer {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Transfer {
    /// Connects `streams` streams and starts sending.
    pub(super) fn start(lab: &Lab, to_server: bool, streams: usize) -> anyhow::Result<Self> {
        let (client, server) = ends(lab)?;
        let (source, sink, address) = if to_server {
            (client, server, lab.server.address())
        } else {
            (server, client, lab.client.address())
        };
        let listener = sink.run(move || TcpListener::bind((address, 0)))??;
        let to = listener.local_addr()?;
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for _ in 0..streams {
            let sending =
                source.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
            let (receiving, _) = listener.accept()?;
            sending.set_write_timeout(Some(Duration::from_millis(200)))?;
            let ended = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || send(sending, &ended)));
            let counter = Arc::clone(&received);
            threads.push(std::thread::spawn(move || receive(receiving, &counter)));
        }
        Ok(Self {
            received,
            stop,
            threads,
        })
    }

    /// Runs for `time`; returns the bytes received and the time that they took.
    pub(super) fn run(self, time: Duration) -> anyhow::Result<(u64, Duration)> {
        // Exclude slow start.
        std::thread::sleep(time / 5);
        let (before, started) = (self.received.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(time * 4 / 5);
        let bytes = self.received.load(Ordering::Relaxed) - before;
        let took = started.elapsed();
        self.end()?;
        Ok((bytes, took))
    }

    /// Samples the throughput in the background, every 100 ms.
    pub(super) fn spawn(self) -> Sampled {
        let done = Arc::new(AtomicBool::new(false));
        let (flag, received) = (Arc::clone(&done), Arc::clone(&self.received));
        let sampler = std::thread::spawn(move || {
            let mut windows = Vec::new();
            let mut last = (received.load(Ordering::Relaxed), Instant::now());
            while !flag.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let now = (received.load(Ordering::Relaxed), Instant::now());
                let seconds = (now.1 - last.1).as_secs_f64();
                windows.push((now.0 - last.0) as f64 * 8e-9 / seconds);
                last = now;
            }
            windows
        });
        Sampled {
            transfer: self,
            done,
            sampler,
        }
    }

    fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread
                .join()
                .map_err(|_| anyhow!("a TCP thread has panicked"))?;
        }
        Ok(())
    }
}

/// A transfer whose throughput is sampled.
pub(super) struct Sampled {
    transfer: Transfer,
    done: Arc<AtomicBool>,
    sampler: JoinHandle<Vec<f64>>,
}

/// Gbit/s of a sampled transfer.
pub(super) struct Throughput {
    pub(super) mean: f64,
    pub(super) worst: f64,
}

impl Sampled {
    pub(super) fn stop(self) -> anyhow::Result<Throughput> {
        self.done.store(true, Ordering::Relaxed);
        let windows = self
            .sampler
            .join()
            .map_err(|_| anyhow!("the sampler has panicked"))?;
        self.transfer.end()?;
        // Exclude slow start.
        let steady = windows.get(3..).unwrap_or_default();
        Ok(Throughput {
            mean: steady.iter().sum::<f64>() / steady.len().max(1) as f64,
            worst: steady.iter().copied().fold(f64::INFINITY, f64::min),
        })
    }
}

fn send(mut stream: TcpStream, stop: &AtomicBool) {
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

fn receive(mut stream: TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(len) = stream.read(&mut chunk) {
        if len == 0 {
            return;
        }
        received.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// A paced stream of packets; of probes without TUN devices.
pub(super) struct Paced {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: Option<JoinHandle<(u64, Duration)>>,
    answered: Arc<AtomicU64>,
}

/// Result of a paced stream.
pub(super) struct PacedResult {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Not measured for probes, which run one at a time.
    pub(super) longest_gap: Option<Duration>,
}

impl Paced {
    pub(super) fn start(lab: &Lab) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        if lab.namespaces.is_none() {
            return Ok(Self::of_probes(lab, stop, answered));
        }
        let (client, server) = ends(lab)?;
        let (local, remote) = (
            udp(client, lab.client.address())?,
            udp(server, lab.server.address())?,
        );
        local.connect(remote.local_addr()?)?;
        let ended = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let (mut sent, mut next) = (0, Instant::now());
            while !ended.load(Ordering::Relaxed) {
                sent += u64::from(local.send(&[0; SMALL]).is_ok());
                next += PACE;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            sent
        });
        let ended = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || {
            let (mut received, mut gap, mut last) = (0, Duration::ZERO, None::<Instant>);
            let mut packet = [0; 2048];
            loop {
                match remote.recv(&mut packet) {
                    Ok(_) => {
                        received += 1;
                        gap = gap.max(last.map_or(Duration::ZERO, |at| at.elapsed()));
                        last = Some(Instant::now());
                    }
                    Err(_) if ended.load(Ordering::Relaxed) => return (received, gap),
                    Err(_) => {}
                }
            }
        });
        Ok(Self {
            stop,
            sender,
            receiver: Some(receiver),
            answered,
        })
    }

    fn of_probes(lab: &Lab, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) -> Self {
        let (client, address) = (lab.client.client.clone(), lab.server.address().to_string());
        let (ended, counter) = (Arc::clone(&stop), Arc::clone(&answered));
        let sender = std::thread::spawn(move || {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                let params = hyphae_rpc::method::PingParams {
                    address: address.clone(),
                    timeout_ms: 500,
                };
                sent += 1;
                let pong = client.node_ping(params);
                counter.fetch_add(u64::from(pong.is_ok()), Ordering::Relaxed);
            }
            sent
        });
        Self {
            stop,
            sender,
            receiver: None,
            answered,
        }
    }

    pub(super) fn stop(self) -> anyhow::Result<PacedResult> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread of the paced stream has panicked");
        let sent = self.sender.join().map_err(panicked)?;
        let (received, longest_gap) = match self.receiver {
            Some(receiver) => {
                let panicked = |_| anyhow!("the receiver has panicked");
                let (received, gap) = receiver.join().map_err(panicked)?;
                (received, Some(gap))
            }
            None => (self.answered.load(Ordering::Relaxed), None),
        };
        Ok(PacedResult {
            sent,
            received,
            longest_gap,
        })
    }
}

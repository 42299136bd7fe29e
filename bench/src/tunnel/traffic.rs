//! Generators and sinks over ordinary sockets of the hosts. Rates are counted at the sink.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use hyphae::lab::Namespace;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg};

use super::peers::Network;
use super::underlay::Place;
use crate::stats::Times;

/// Bytes of one write.
const CHUNK: usize = 128 * 1024;
/// Warm-up of streams.
const WARM_UP: Duration = Duration::from_millis(500);
/// Payload of a probe, bytes, and its timeout.
const PROBE: usize = 64;
const PROBE_MAX: Duration = Duration::from_millis(500);
/// Pause between probes.
const PAUSE: Duration = Duration::from_micros(200);

/// Destination of traffic from the client.
pub(super) struct Target<'a> {
    from: &'a Namespace,
    own: IpAddr,
    to: &'a Namespace,
    address: IpAddr,
}

impl<'a> Target<'a> {
    pub(super) fn new(network: &'a dyn Network, to: Place) -> anyhow::Result<Self> {
        let spaces = network.namespaces();
        let target = Self {
            from: &spaces[0],
            own: network.address(Place::Client, to),
            to: &spaces[to.number()],
            address: network.address(to, Place::Client),
        };
        target.wait()?;
        Ok(target)
    }

    fn udp(&self) -> anyhow::Result<(UdpSocket, UdpSocket)> {
        let (own, address) = (self.own, self.address);
        let from = self.from.run(move || UdpSocket::bind((own, 0)))??;
        let to = self.to.run(move || UdpSocket::bind((address, 0)))??;
        Ok((from, to))
    }

    /// Waits until a packet arrives.
    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // A tentative address cannot be bound.
            if let Ok((from, to)) = self.udp() {
                to.set_read_timeout(Some(Duration::from_millis(100)))?;
                // ENETUNREACH until there is a route.
                let _ = from.send_to(&[0; PROBE], to.local_addr()?);
                if to.recv(&mut [0; PROBE]).is_ok() {
                    return Ok(());
                }
            } else {
                std::thread::sleep(Duration::from_millis(20));
            }
            ensure!(
                Instant::now() < deadline,
                "nothing arrives at {} from {}",
                self.address,
                self.own
            );
        }
    }
}

/// Running streams, and the threads that read them.
pub(super) struct Tcp {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Tcp {
    pub(super) fn start(target: &Target<'_>, streams: usize) -> anyhow::Result<Self> {
        let address = target.address;
        let listener = target.to.run(move || TcpListener::bind((address, 0)))??;
        let at: SocketAddr = listener.local_addr()?;
        let (stop, received) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let mut threads = Vec::new();
        for _ in 0..streams {
            let connect = move || TcpStream::connect_timeout(&at, Duration::from_secs(10));
            let sender = target.from.run(connect)??;
            let (reader, _) = listener.accept()?;
            for stream in [&sender, &reader] {
                // So that every thread checks the stop flag.
                stream.set_read_timeout(Some(Duration::from_millis(100)))?;
                stream.set_write_timeout(Some(Duration::from_millis(100)))?;
            }
            let (flag, count) = (Arc::clone(&stop), Arc::clone(&received));
            threads.push(std::thread::spawn(move || read(reader, &flag, &count)));
            let flag = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || write(sender, &flag)));
        }
        let flow = Self {
            stop,
            received,
            threads,
        };
        std::thread::sleep(WARM_UP);
        Ok(flow)
    }

    /// Received bytes over `time`, and seconds.
    pub(super) fn watch(&self, time: Duration) -> anyhow::Result<(u64, f64)> {
        let (before, start) = (self.received.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(time);
        let bytes = self.received.load(Ordering::Relaxed) - before;
        let dead = self.threads.iter().any(JoinHandle::is_finished);
        ensure!(!dead, "a stream has ended early");
        Ok((bytes, start.elapsed().as_secs_f64()))
    }

    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread
                .join()
                .map_err(|_| anyhow!("a stream's thread has panicked"))??;
        }
        Ok(())
    }
}

/// Whether the error is a timeout.
fn waits(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn read(mut stream: TcpStream, stop: &AtomicBool, received: &AtomicU64) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(len) => drop(received.fetch_add(len as u64, Ordering::Relaxed)),
            Err(error) if waits(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write(mut stream: TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if waits(&error) => {}
            // The reader was stopped first.
            Err(_) if stop.load(Ordering::Relaxed) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Round-trip times of probes, one at a time, and the number of lost ones.
pub(super) fn round_trips(target: &Target<'_>, samples: usize) -> anyhow::Result<(Times, usize)> {
    let (here, there) = target.udp()?;
    here.set_read_timeout(Some(PROBE_MAX))?;
    there.set_read_timeout(Some(Duration::from_millis(100)))?;
    here.connect(there.local_addr()?)?;
    let stop = AtomicBool::new(false);
    let (mut times, mut lost) = (Vec::with_capacity(samples), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut packet = [0; PROBE];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((len, from)) = there.recv_from(&mut packet) {
                    // Counted as lost by the sender.
                    let _ = there.send_to(&packet[..len], from);
                }
            }
        });
        let (mut packet, mut answer) = ([0; PROBE], [0; PROBE]);
        for n in 0..samples as u64 {
            packet[..8].copy_from_slice(&n.to_le_bytes());
            let sent = Instant::now();
            let mut back = here.send(&packet).is_ok();
            while back {
                back = here.recv(&mut answer).is_ok();
                if back && answer == packet {
                    times.push(sent.elapsed());
                    break;
                }
            }
            lost += usize::from(!back);
            std::thread::sleep(PAUSE);
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok((Times::new(times), lost))
}

/// Time between packets of a [`Beat`].
const BEAT: Duration = Duration::from_millis(2);
/// Time of steady arrival before and after an interruption.
const STEADY: Duration = Duration::from_millis(500);

/// Packets at a fixed interval.
pub(super) struct Beat {
    from: UdpSocket,
    to: UdpSocket,
}

impl Beat {
    pub(super) fn new(target: &Target<'_>) -> anyhow::Result<Self> {
        let (from, to) = target.udp()?;
        to.set_read_timeout(Some(BEAT * 10))?;
        from.connect(to.local_addr()?)?;
        Ok(Self { from, to })
    }

    /// The longest gap between packets around `interrupt`; `None` without recovery within `most`.
    pub(super) fn gap(
        &self,
        most: Duration,
        interrupt: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Duration>> {
        let stop = AtomicBool::new(false);
        let arrivals = Mutex::new(Vec::new());
        let came = |since: Instant| {
            let arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let later = arrivals.iter().rev().take_while(|at| **at >= since);
            later.count()
        };
        // Half of the sent packets: tolerates delays of a loaded machine.
        let enough = usize::try_from(STEADY.as_millis() / BEAT.as_millis() / 2)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Fails while there is no route.
                    let _ = self.from.send(&[0; SMALL]);
                    std::thread::sleep(BEAT);
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if self.to.recv(&mut [0; SMALL]).is_ok() {
                        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                        arrivals.push(Instant::now());
                    }
                }
            });
            let steady = |since: Instant, most: Duration| {
                while since.elapsed() < most {
                    std::thread::sleep(STEADY / 10);
                    let recent = Instant::now().checked_sub(STEADY).unwrap_or(since);
                    if came(recent.max(since)) >= enough {
                        return true;
                    }
                }
                false
            };
            let began = steady(Instant::now(), most);
            let killed = Instant::now();
            let done = interrupt();
            let recovered = steady(Instant::now(), most);
            stop.store(true, Ordering::Relaxed);
            done?;
            ensure!(began, "no steady packets before the interruption");
            let arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let gaps = arrivals.windows(2).filter(|pair| pair[1] >= killed);
            let longest = gaps.map(|pair| pair[1] - pair[0]).max();
            Ok(longest.filter(|_| recovered))
        })
    }
}

/// Packets per sendmmsg and recvmmsg.
const AT_ONCE: usize = 32;
/// Payload of a small packet.
pub(super) const SMALL: usize = 64;
/// Receive buffer of the sink, bytes; the kernel doubles it.
const SINK_BYTES: usize = 4 << 20;
/// Interval of the generator.
const TICK: Duration = Duration::from_micros(500);
/// Time for packets in flight to arrive.
const DRAIN: Duration = Duration::from_millis(200);

/// Small packets at a rate.
pub(super) struct Small {
    from: UdpSocket,
    to: UdpSocket,
}

/// Packets of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Went {
    sent: u64,
    arrived: u64,
    seconds: f64,
}

impl Went {
    /// Received packets per second.
    pub(super) fn rate(&self) -> f64 {
        self.arrived as f64 / self.seconds
    }

    /// Sent packets per second.
    pub(super) fn offered(&self) -> f64 {
        self.sent as f64 / self.seconds
    }

    /// Share of the sent packets.
    pub(super) fn lost(&self) -> f64 {
        1.0 - self.arrived as f64 / self.sent.max(1) as f64
    }
}

impl Small {
    pub(super) fn new(target: &Target<'_>) -> anyhow::Result<Self> {
        let (from, to) = target.udp()?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&to, SINK_BYTES)?;
        to.set_read_timeout(Some(DRAIN))?;
        from.connect(to.local_addr()?)?;
        Ok(Self { from, to })
    }

    /// Sends packets at a rate, or at the generator's maximum if that is less, and counts the received ones.
    pub(super) fn go(&self, rate: f64, time: Duration) -> anyhow::Result<Went> {
        let gap = Duration::from_secs_f64(1.0 / rate).as_nanos().max(1);
        let arrived = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let (sent, seconds) = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Ends by a timeout after the last packet was sent.
                while let came = receive(&self.to)
                    && (came > 0 || !done.load(Ordering::Relaxed))
                {
                    arrived.fetch_add(came, Ordering::Relaxed);
                }
            });
            let (start, mut sent) = (Instant::now(), 0u64);
            while start.elapsed() < time {
                let due = start.elapsed().as_nanos() / gap;
                let before = Instant::now();
                while let left = due.saturating_sub(sent.into())
                    && left > 0
                    && before.elapsed() < TICK
                {
                    sent += send(&self.from, left);
                }
                std::thread::sleep(TICK.saturating_sub(before.elapsed()));
            }
            let seconds = start.elapsed().as_secs_f64();
            done.store(true, Ordering::Relaxed);
            (sent, seconds)
        });
        ensure!(sent > 0, "no packet was sent");
        Ok(Went {
            sent,
            arrived: arrived.into_inner(),
            seconds,
        })
    }
}

/// Sends at most `count` packets; returns their number.
fn send(socket: &UdpSocket, most: u128) -> u64 {
    let count = usize::try_from(most).map_or(AT_ONCE, |most| most.min(AT_ONCE));
    let slices = [[IoSlice::new(&[1; SMALL])]; AT_ONCE];
    let mut headers = MultiHeaders::<()>::preallocate(count, None);
    let (fd, to) = (socket.as_raw_fd(), [None; AT_ONCE]);
    let (slices, to, flags) = (&slices[..count], &to[..count], MsgFlags::empty());
    let sent = sendmmsg(fd, &mut headers, slices, to, [], flags);
    // A full queue counts as loss.
    sent.map_or(count, Iterator::count) as u64
}

/// Waits for packets and returns the number of available ones; none after a timeout.
fn receive(socket: &UdpSocket) -> u64 {
    let mut packets = [[0; SMALL]; AT_ONCE];
    let mut slices = packets.each_mut().map(|packet| [IoSliceMut::new(packet)]);
    let mut headers = MultiHeaders::<()>::preallocate(AT_ONCE, None);
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_WAITFORONE);
    let came = recvmmsg(fd, &mut headers, slices.iter_mut(), flags, None);
    let came = came.map_or(0, Iterator::count);
    packets[..came].iter().filter(|it| it[0] == 1).count() as u64
}

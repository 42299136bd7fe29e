//! The stream thread with real sockets on loopback, by io_uring and without. Framing, queues and
//! the table have tests beside them; whole nodes are in tests/netns.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyphae_shm::stats::{Counter, DropReason};
use hyphae_shm::{Doorbell, RECORD_MAX};
use hyphae_wire::frame::LinkHeader;
use hyphae_wire::{Endpoint, FrameKind, SessionIndex, WorkerId};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketType, bind, socket};
use rustix::time::Timespec;
use zerocopy::IntoBytes;

use super::rings::{COUNTERS, COUNTS_LEN, DROPS};
use super::{StreamContext, StreamOutlet, Times, connect, listen_at, parse_counts, run};
use crate::handoff::{self, Handed, Handoff};
use crate::watchdog::Heartbeat;

const PATIENCE: Duration = Duration::from_secs(60);
/// Ends no connection, however long a test takes.
const LONG: Times = Times {
    first_frame: Duration::from_secs(3600),
    whole_frame: Duration::from_secs(3600),
    unused: Duration::from_secs(3600),
    idle: Duration::from_secs(3600),
};

/// Two workers' ends of a stream thread.
struct Rig {
    workers: Vec<Handoff>,
    outlets: Vec<StreamOutlet>,
    bells: Vec<Arc<Doorbell>>,
    received: Vec<(usize, Endpoint, Vec<u8>)>,
    counts: [u64; COUNTS_LEN],
    listens_at: SocketAddr,
    stop: Arc<AtomicBool>,
    bell: Arc<Doorbell>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Rig {
    fn new(uring: bool, times: Times) -> Self {
        let doorbell = || Arc::new(Doorbell::new().unwrap());
        // The test waits for one thing only, so both workers share a doorbell.
        let shared = doorbell();
        let bells = vec![Arc::clone(&shared), shared];
        let bell = doorbell();
        let mut workers = handoff::connect(&bells);
        let (outlets, rings) = connect(&mut workers, &bells, &bell);
        let listener = listen_at("[::]:0".parse().unwrap(), 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let context = StreamContext {
            rings,
            bell: Arc::clone(&bell),
            listener: Some(listener),
            mark: 0,
            uring,
            times,
            stop: Arc::clone(&stop),
            heartbeat: Arc::new(Heartbeat::new(doorbell())),
        };
        Self {
            workers,
            outlets,
            bells,
            received: Vec::new(),
            counts: [0; COUNTS_LEN],
            listens_at: SocketAddr::from(([127, 0, 0, 1], port)),
            stop,
            bell,
            thread: Some(std::thread::spawn(move || run(context))),
        }
    }

    fn take(&mut self) {
        let mut scratch = vec![0; RECORD_MAX];
        for (n, worker) in self.workers.iter_mut().enumerate() {
            let (received, counts) = (&mut self.received, &mut self.counts);
            worker
                .inlets
                .take(usize::MAX, &mut scratch, |handed| match handed {
                    Handed::Raw { from, frame } => received.push((n, from.remote, frame.to_vec())),
                    Handed::Counts(bytes) => {
                        let news = parse_counts(bytes).unwrap();
                        counts.iter_mut().zip(news).for_each(|(c, n)| *c += n.get());
                    }
                    Handed::Opened { .. } | Handed::Egress { .. } | Handed::Host(_) => {
                        panic!("a stream passes frames on as it received them")
                    }
                });
        }
    }

    /// Takes what comes until the condition holds.
    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.take();
            if done(self) {
                return;
            }
            assert!(Instant::now() < deadline, "in time: {what}");
            if self.workers.iter_mut().all(|worker| worker.inlets.sleep()) {
                let mut fds = [PollFd::new(&*self.bells[0], PollFlags::IN)];
                let timeout = Timespec::try_from(Duration::from_secs(1)).unwrap();
                poll(&mut fds, Some(&timeout)).unwrap();
            }
            self.bells[0].clear();
            self.workers
                .iter_mut()
                .for_each(|worker| worker.inlets.wake());
        }
    }

    fn send(&mut self, worker: usize, to: Endpoint, frame: &[u8]) -> bool {
        let sent = self.outlets[worker].send(&to, frame);
        self.outlets[worker].publish();
        sent
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counts[COUNTERS.iter().position(|c| *c == counter).unwrap()]
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counts[COUNTERS.len() + DROPS.iter().position(|d| *d == reason).unwrap()]
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.listens_at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What a peer that has accepted a connection of ours reads: a frame opens it.
    fn dialled(&mut self, listener: &TcpListener) -> (Endpoint, TcpStream) {
        let to = Endpoint::from(listener.local_addr().unwrap()).stream();
        let first = frame(FrameKind::HandshakeInit, 0, 64, 0);
        assert!(self.send(0, to, &first));
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read_frame(&mut stream).unwrap(), first);
        (to, stream)
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Runs a test with both ways of reading and writing.
fn both(test: impl Fn(bool)) {
    test(false);
    match hyphae_driver::probe() {
        Ok(()) => test(true),
        Err(error) => hyphae_test_skip::lacks(&format!("io_uring: {error}")),
    }
}

fn frame(kind: FrameKind, worker: u16, len: usize, counter: u64) -> Vec<u8> {
    let sealed = matches!(kind, FrameKind::Transit | FrameKind::LinkLocal);
    let receiver = if sealed {
        SessionIndex::new(WorkerId(worker), 1, 1).0
    } else {
        0
    };
    let mut frame = LinkHeader::new(kind, receiver, counter).as_bytes().to_vec();
    frame.resize(len, counter as u8);
    frame
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

fn read_frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut prefix = [0; 2];
    stream.read_exact(&mut prefix)?;
    let mut frame = vec![0; usize::from(u16::from_be_bytes(prefix))];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Waits until the other end has closed; the kernel says so with a reset when bytes were left
/// unread there.
fn wait_for_end(stream: &mut TcpStream) {
    loop {
        match stream.read(&mut [0]) {
            Ok(read) => return assert_eq!(read, 0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

fn local_listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn frames_reach_their_worker_and_answers_the_connection() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        let mut stream = rig.connect();
        let from = Endpoint::from(stream.local_addr().unwrap()).stream();
        let sent = [
            (0, frame(FrameKind::HandshakeInit, 0, 200, 0)),
            (1, frame(FrameKind::Transit, 1, 65_507, 1)),
            (0, frame(FrameKind::LinkLocal, 0, 40, 2)),
            // A worker that this node does not have: for worker 0 to refuse.
            (0, frame(FrameKind::Transit, 7, 120, 3)),
        ];
        for (n, (_, frame)) in sent.iter().enumerate() {
            let bytes = prefixed(frame);
            let cut = (n * 7 + 1).min(bytes.len());
            stream.write_all(&bytes[..cut]).unwrap();
            stream.write_all(&bytes[cut..]).unwrap();
        }
        rig.wait("all frames", |rig| rig.received.len() == sent.len());
        for (worker, frame) in sent {
            let found = rig
                .received
                .iter()
                .position(|r| *r == (worker, from, frame.clone()));
            assert!(found.is_some(), "worker {worker} has its frame");
        }
        let answer = frame(FrameKind::HandshakeResponse, 0, 300, 0);
        assert!(rig.send(1, from, &answer));
        assert_eq!(read_frame(&mut stream).unwrap(), answer);
        rig.wait("counts", |rig| {
            rig.count(Counter::StreamRxFrames) == 4 && rig.count(Counter::StreamTxFrames) == 1
        });
        drop(stream);
        rig.wait("the end", |rig| rig.count(Counter::StreamEnded) == 1);
        assert!(rig.send(0, from, &answer));
        rig.wait("no connection", |rig| {
            rig.dropped(DropReason::StreamDown) == 1
        });
    });
}

#[test]
fn the_frames_of_one_turn_arrive_in_order() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        let listener = local_listener();
        let (to, mut stream) = rig.dialled(&listener);
        for n in 0..200 {
            let frame = frame(FrameKind::Transit, 0, 1000, n);
            assert!(rig.outlets[0].send(&to, &frame));
        }
        rig.outlets[0].publish();
        for n in 0..200 {
            let expected = frame(FrameKind::Transit, 0, 1000, n);
            assert_eq!(read_frame(&mut stream).unwrap(), expected);
        }
    });
}

#[test]
fn only_a_first_message_dials_and_a_sealed_frame_dials_again() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        let listener = local_listener();
        let to = Endpoint::from(listener.local_addr().unwrap()).stream();
        let probe = frame(FrameKind::LinkLocal, 0, 64, 9);
        assert!(rig.send(0, to, &probe));
        rig.wait("refusal", |rig| rig.dropped(DropReason::StreamDown) == 1);
        let (to, stream) = rig.dialled(&listener);
        drop(stream);
        rig.wait("the end", |rig| rig.count(Counter::StreamEnded) == 1);
        listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let again = loop {
            assert!(Instant::now() < deadline, "the connection is opened again");
            rig.send(0, to, &probe);
            match listener.accept() {
                Ok((stream, _)) => break stream,
                // The address rests for a moment first.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut again = again;
        again.set_nonblocking(false).unwrap();
        assert_eq!(read_frame(&mut again).unwrap(), probe);
    });
}

#[test]
fn a_connection_that_cannot_be_opened_is_counted() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        // Bound, so that nobody else can listen there, and nobody does.
        let bound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&bound, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let closed = TcpListener::from(bound);
        let closed_at = closed.local_addr().unwrap();
        let first = frame(FrameKind::HandshakeInit, 0, 64, 0);
        assert!(rig.send(0, Endpoint::from(closed_at).stream(), &first));
        rig.wait("failure", |rig| {
            rig.count(Counter::StreamConnectFailed) == 1 && rig.dropped(DropReason::StreamDown) == 1
        });
    });
}

#[test]
fn what_is_no_frame_ends_the_connection() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        for greeting in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0, 3, 1, 1, 1],
            &[0xff, 0xff, 1],
        ] {
            let mut stream = rig.connect();
            stream.write_all(greeting).unwrap();
            wait_for_end(&mut stream);
        }
        rig.wait("the ends", |rig| {
            rig.count(Counter::StreamEndedMalformed) == 3 && rig.count(Counter::StreamEnded) == 3
        });
        assert!(rig.received.is_empty());
    });
}

const SHORT: Duration = Duration::from_millis(200);

/// One that lacks something for too long ends after that time, and is counted; nothing else ends it.
fn ends_after_a_while(uring: bool, times: Times, counter: Counter, sent: &[u8]) {
    let mut rig = Rig::new(uring, times);
    let began = Instant::now();
    let mut stream = rig.connect();
    stream.write_all(sent).unwrap();
    wait_for_end(&mut stream);
    assert!(began.elapsed() >= SHORT);
    rig.wait("the end", |rig| {
        rig.count(counter) == 1 && rig.count(Counter::StreamEnded) == 1
    });
}

/// One on which a session sends lives longer than one without; false when this was too slow to send before the end.
fn lives_longer(uring: bool, unused: Duration, sent: &[u8]) -> bool {
    let times = Times {
        unused,
        idle: unused * 2,
        ..LONG
    };
    let mut rig = Rig::new(uring, times);
    let began = Instant::now();
    let mut stream = rig.connect();
    stream.write_all(sent).unwrap();
    let from = Endpoint::from(stream.local_addr().unwrap()).stream();
    rig.wait("its frame, or the end", |rig| {
        rig.received.len() == 1 || rig.count(Counter::StreamEnded) == 1
    });
    let frame = frame(FrameKind::LinkLocal, 0, 64, 1);
    assert!(rig.send(0, from, &frame));
    let read = read_frame(&mut stream);
    if read.is_err() || began.elapsed() >= unused {
        return false;
    }
    assert_eq!(read.unwrap(), frame);
    wait_for_end(&mut stream);
    assert!(began.elapsed() >= unused * 2);
    rig.wait("the end", |rig| rig.count(Counter::StreamEndedIdle) == 1);
    true
}

#[test]
fn silence_half_frames_and_disuse_end_a_connection() {
    both(|uring| {
        let whole = prefixed(&frame(FrameKind::HandshakeInit, 0, 64, 0));
        let half = [&whole[..], &whole[..10]].concat();
        let (silent, idle) = (Counter::StreamEndedSilent, Counter::StreamEndedIdle);
        let times = Times {
            first_frame: SHORT,
            ..LONG
        };
        ends_after_a_while(uring, times, silent, &[]);
        let times = Times {
            whole_frame: SHORT,
            ..LONG
        };
        ends_after_a_while(uring, times, silent, &half);
        let times = Times {
            unused: SHORT,
            ..LONG
        };
        ends_after_a_while(uring, times, idle, &whole);
        assert!((0..8).any(|n| lives_longer(uring, SHORT * (1 << n), &whole)));
    });
}

#[test]
fn a_slow_receiver_hurts_only_itself() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        let (slow_at, fast_at) = (local_listener(), local_listener());
        let (slow_to, mut slow) = rig.dialled(&slow_at);
        let (fast_to, mut fast) = rig.dialled(&fast_at);
        // Far more than the kernel and the queue take, and then a frame for the other one.
        let (mut handed, mut n) = (0, 0);
        while rig.dropped(DropReason::StreamQueue) == 0 {
            for _ in 0..200 {
                n += 1;
                handed += u64::from(
                    rig.outlets[0].send(&slow_to, &frame(FrameKind::Transit, 0, 1400, n)),
                );
            }
            rig.outlets[0].publish();
            assert!(n < 1_000_000, "the queue is bounded");
            let frame = frame(FrameKind::Transit, 0, 1200, n);
            rig.wait("room for the other one", |_| true);
            if rig.outlets[1].send(&fast_to, &frame) {
                rig.outlets[1].publish();
                assert_eq!(read_frame(&mut fast).unwrap(), frame);
            }
        }
        let last = frame(FrameKind::LinkLocal, 0, 100, u64::from(u32::MAX));
        // The thread may be behind with what was handed to it.
        let deadline = Instant::now() + PATIENCE;
        while !rig.send(0, slow_to, &last) {
            assert!(Instant::now() < deadline, "room for one more");
            std::thread::sleep(Duration::from_millis(1));
        }
        // What was taken arrives whole and in order; what was not is counted.
        let (mut arrived, mut newest) = (0, 0);
        loop {
            let frame = read_frame(&mut slow).unwrap();
            if frame == last {
                break;
            }
            let counter = LinkHeader::split(&frame).unwrap().0.counter.get();
            assert!(counter > newest, "in order");
            (newest, arrived) = (counter, arrived + 1);
        }
        rig.wait("every frame is accounted for", |rig| {
            arrived + rig.dropped(DropReason::StreamQueue) == handed
        });
    });
}

#[test]
fn one_source_has_a_bounded_number_of_connections() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        let mut streams: Vec<_> = (0..32).map(|_| rig.connect()).collect();
        rig.wait("all", |rig| rig.count(Counter::StreamAccepted) == 32);
        let mut refused = rig.connect();
        wait_for_end(&mut refused);
        rig.wait("refusal", |rig| {
            rig.count(Counter::StreamRefusedSource) == 1
        });
        streams.pop();
        rig.wait("room", |rig| rig.count(Counter::StreamEnded) == 1);
        streams.push(rig.connect());
        rig.wait("one more", |rig| rig.count(Counter::StreamAccepted) == 33);
    });
}

#[test]
fn the_last_frames_leave_before_the_thread_ends() {
    both(|uring| {
        let mut rig = Rig::new(uring, LONG);
        let listener = local_listener();
        let (to, mut stream) = rig.dialled(&listener);
        let last = frame(FrameKind::LinkLocal, 0, 64, 7);
        assert!(rig.send(1, to, &last));
        rig.stop();
        assert_eq!(read_frame(&mut stream).unwrap(), last);
        wait_for_end(&mut stream);
    });
}

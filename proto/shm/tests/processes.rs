//! Two processes over a real segment: this binary starts itself again as the control plane, hands it
//! the descriptors over a Unix socket, and kills it in the middle of a stream. Rings within a process
//! are tested beside their source.

#![allow(clippy::unwrap_used, reason = "a test")]
#![cfg(not(loom))]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyphae_shm::attach::{Hello, WELCOME, accept, check_peer, offer};
use hyphae_shm::{Consumer, Doorbell, Layout, Producer, PushError, RECORD_MAX, Segment};
use hyphae_wire::WorkerId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const CHILD: &str = "HYPHAE_SHM_TEST_CHILD";
const W0: WorkerId = WorkerId(0);
const DATA: u16 = 1;
const GO: u16 = 2;
const LAST: u16 = 3;

/// Far longer than anything here takes; reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for a doorbell.
fn sleep(bell: &Doorbell) {
    let deadline = Timespec::try_from(DEADLINE).unwrap();
    let mut fds = [PollFd::new(bell, PollFlags::IN)];
    assert_eq!(
        poll(&mut fds, Some(&deadline)),
        Ok(1),
        "a doorbell was not rung"
    );
    bell.clear();
}

/// The next record, sleeping until there is one.
fn next(ring: &mut Consumer, bell: &Doorbell, scratch: &mut [u8]) -> (u16, usize) {
    loop {
        if let Some(record) = ring.pop(scratch).unwrap() {
            return record;
        }
        ring.release();
        if ring.sleep() {
            sleep(bell);
            ring.wake();
        }
    }
}

fn publish(ring: &mut Producer, bell: &Doorbell) {
    if ring.publish() {
        bell.ring();
    }
}

/// Record `n` of a process: its number, the process, and bytes that follow from both.
fn body(pid: u32, n: u64) -> Vec<u8> {
    let mut bytes = Vec::from(n.to_le_bytes());
    bytes.extend(pid.to_le_bytes());
    let filler = u8::try_from((n ^ u64::from(pid)) & 0xff).unwrap();
    let len = usize::try_from(n * 37 % 3000).unwrap();
    bytes.resize(bytes.len() + len, filler);
    bytes
}

/// Checks record by record that a process's stream has no gap and no damage.
fn check(record: &[u8], pid: u32, expected: u64) {
    assert_eq!(
        record,
        body(pid, expected),
        "record {expected} of process {pid}"
    );
}

/// What the other side holds: the lease, the rings and the bells.
struct Dataplane {
    segment: Segment,
    memory: OwnedFd,
    program: Consumer,
    punt: Producer,
    bell: Doorbell,
    control_bell: Doorbell,
}

impl Dataplane {
    /// Starts a control plane that sends `records`, or for ever: `test` again, in a process of its own.
    fn attach(&self, test: &str, records: Option<u64>) -> (Child, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, records.unwrap_or(u64::MAX).to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        check_peer(ours.as_fd()).unwrap();
        let mut hello = Hello::blank(WELCOME);
        hello.workers = 1.into();
        hello.generation = self.segment.raise_generation().into();
        let fds = [
            self.memory.as_fd(),
            self.control_bell.as_fd(),
            self.bell.as_fd(),
        ];
        offer(ours.as_fd(), &hello, &fds).unwrap();
        (child, ours)
    }

    /// Lets the control plane begin, through the punt ring.
    fn go(&mut self) {
        self.punt.push(GO, &[]).unwrap();
        publish(&mut self.punt, &self.control_bell);
    }
}

/// Whether this process is the child of a test, which is then done.
fn is_child() -> bool {
    let Ok(records) = std::env::var(CHILD) else {
        return false;
    };
    control_plane(records.parse().unwrap());
    true
}

/// The control plane: attaches, waits for the start record, and sends numbered records.
fn control_plane(records: u64) {
    let (hello, fds) = accept(std::io::stdin().as_fd()).unwrap();
    let [memory, control_bell, bell] = <[OwnedFd; 3]>::try_from(fds).unwrap();
    let (control_bell, bell) = (Doorbell::from_fd(control_bell), Doorbell::from_fd(bell));
    let segment = Segment::attach(&memory).unwrap();
    assert_eq!(segment.generation(), hello.generation.get());
    let mut program = segment.program_producer(W0);
    let mut punt = segment.punt_consumer(W0);
    let mut scratch = vec![0; RECORD_MAX];
    assert_eq!(next(&mut punt, &control_bell, &mut scratch), (GO, 0));
    punt.release();
    let pid = std::process::id();
    let mut push = |code, bytes: &[u8]| {
        loop {
            match program.push(code, &[bytes]) {
                Ok(()) => break,
                Err(PushError::Full) => {
                    publish(&mut program, &bell);
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
        publish(&mut program, &bell);
    };
    (0..records).for_each(|n| push(DATA, &body(pid, n)));
    push(LAST, &[]);
}

#[test]
fn a_killed_control_plane_leaves_whole_records_and_the_next_one_resumes() {
    if is_child() {
        return;
    }
    let name = "a_killed_control_plane_leaves_whole_records_and_the_next_one_resumes";
    let (segment, memory) = Segment::create(Layout::new(1)).unwrap();
    let mut dataplane = Dataplane {
        program: segment.program_consumer(W0),
        punt: segment.punt_producer(W0),
        bell: Doorbell::new().unwrap(),
        control_bell: Doorbell::new().unwrap(),
        memory,
        segment,
    };
    let mut scratch = vec![0; RECORD_MAX];
    for round in 0..4 {
        let (mut child, _lease) = dataplane.attach(name, None);
        dataplane.go();
        let pid = child.id();
        let mut n = 0;
        while n < 5000 + round * 777 {
            let (code, len) = next(&mut dataplane.program, &dataplane.bell, &mut scratch);
            assert_eq!(code, DATA);
            check(&scratch[..len], pid, n);
            n += 1;
            if n % 16 == 0 {
                dataplane.program.release();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it published before it died is whole and in order; what it did not is not there.
        while let Some((code, len)) = dataplane.program.pop(&mut scratch).unwrap() {
            assert_eq!(code, DATA);
            check(&scratch[..len], pid, n);
            n += 1;
        }
        dataplane.program.release();
    }
    let records = 3000;
    let (mut child, _lease) = dataplane.attach(name, Some(records));
    dataplane.go();
    for n in 0..records {
        let (code, len) = next(&mut dataplane.program, &dataplane.bell, &mut scratch);
        assert_eq!(code, DATA);
        check(&scratch[..len], child.id(), n);
        dataplane.program.release();
    }
    assert_eq!(
        next(&mut dataplane.program, &dataplane.bell, &mut scratch),
        (LAST, 0)
    );
    assert!(child.wait().unwrap().success());
    assert_eq!(dataplane.program.pop(&mut scratch), Ok(None));
    assert_eq!(dataplane.segment.generation(), 5);
}

#[test]
fn records_that_wait_are_taken_by_the_next_control_plane() {
    if is_child() {
        return;
    }
    let name = "records_that_wait_are_taken_by_the_next_control_plane";
    let (segment, memory) = Segment::create(Layout::new(1)).unwrap();
    let mut dataplane = Dataplane {
        program: segment.program_consumer(W0),
        punt: segment.punt_producer(W0),
        bell: Doorbell::new().unwrap(),
        control_bell: Doorbell::new().unwrap(),
        memory,
        segment,
    };
    // Nobody is attached; the record waits in the ring.
    dataplane.go();
    let mut scratch = vec![0; RECORD_MAX];
    let (mut child, _lease) = dataplane.attach(name, Some(0));
    assert_eq!(
        next(&mut dataplane.program, &dataplane.bell, &mut scratch),
        (LAST, 0)
    );
    assert!(child.wait().unwrap().success());
}

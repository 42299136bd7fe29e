//! Covers: a real dataplane under a control plane that sends what is no record. Needs no root.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use common::{TIMEOUT, binary, eventually};
use hyphae_shm::record::{Generation, Program};
use hyphae_shm::stats::{Counter, counter_at};
use hyphae_shm::{Doorbell, Segment};
use hyphae_wire::WorkerId;
use zerocopy::FromZeros;

struct Dataplane(Child);

impl Drop for Dataplane {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn records_that_are_none_are_refused_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let mut command = Command::new(binary());
    command
        .args(["dataplane", "--no-tun", "--listen", "127.0.0.1:0"])
        .args(["--cores", "any:1", "--log-level", "warn"])
        .arg("--state-dir")
        .arg(directory.path().join("state"))
        .arg("--socket-dir")
        .arg(&run)
        .stdin(Stdio::null());
    let mut dataplane = Dataplane(command.spawn().unwrap());
    let mut stream = None;
    eventually("the dataplane listens", TIMEOUT, || {
        stream = UnixStream::connect(run.join("dataplane.sock")).ok();
        stream.is_some()
    });
    let (_, fds) = hyphae_shm::attach::accept(stream.unwrap().as_fd()).unwrap();
    let mut fds = fds.into_iter();
    let segment = Segment::attach(&fds.next().unwrap()).unwrap();
    let bell = Doorbell::from_fd(fds.nth(1).unwrap());
    let mut ring = segment.program_producer(WorkerId(0));
    let stats = segment.stats_reader(WorkerId(0));
    let count = |counter| stats.counters()[counter_at(counter)];

    // A code that nobody has given, and a record that is cut short.
    let generation = Generation::new_zeroed();
    let good = Program::SnapshotRequest(&generation);
    let (code, body, _) = good.parts();
    ring.push(u16::MAX, &[&[0x5a; 64]]).unwrap();
    ring.push(code, &[&body[..body.len() - 1]]).unwrap();
    if ring.publish() {
        bell.ring();
    }
    eventually("both are refused", TIMEOUT, || {
        count(Counter::ProgramRefused) == 2
    });
    // The next one counts.
    ring.push(code, &[body]).unwrap();
    if ring.publish() {
        bell.ring();
    }
    eventually("a good one is taken", TIMEOUT, || {
        count(Counter::ProgramRecords) == 3
    });
    assert_eq!(count(Counter::ProgramRefused), 2);
    assert!(dataplane.0.try_wait().unwrap().is_none());
}

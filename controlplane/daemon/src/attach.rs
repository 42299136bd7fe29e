//! Getting hold of a dataplane, and what is held while the lease lives.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hyphae_overlay::OwnedProgram;
use hyphae_shm::attach::{AttachError, Hello, accept};
use hyphae_shm::record::Program;
use hyphae_shm::{
    Consumer, Doorbell, Producer, PushError, RECORD_MAX, Segment, SegmentError, StatsReader,
};
use hyphae_wire::WorkerId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Records that wait for room in a program ring, per worker. The engines are drained after every
/// step, so this bounds what one resync or one burst of handshakes may produce.
const BACKLOG_MAX: usize = 1 << 20;
/// Room for records that is kept when none waits.
const BACKLOG_KEPT: usize = 256;

/// File name of the dataplane's socket.
pub(crate) const DATAPLANE_SOCKET: &str = "dataplane.sock";

/// Attaching failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachFailure {
    /// Nobody is there, or not yet.
    #[error("no dataplane at {0} yet")]
    Absent(std::path::PathBuf),
    /// The dataplane refused, or is of another version.
    #[error(transparent)]
    Refused(#[from] AttachError),
    /// The segment is not one.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The system failed.
    #[error("attaching: {0}")]
    System(#[from] io::Error),
}

/// Room in a ring for a packet to send, with what surrounds it.
const PACKET_ROOM: usize = 2048;

/// A dataplane that this control plane is attached to.
pub(crate) struct Attachment {
    pub(crate) hello: Hello,
    lease: AsyncFd<UnixStream>,
    bell: AsyncFd<Doorbell>,
    workers: Vec<Worker>,
    pub(crate) scratch: Box<[u8]>,
}

/// Watches a descriptor.
#[allow(
    deprecated,
    reason = "deprecated for types that do not own their descriptor; all types here do, and the \
              replacement is an unsafe function"
)]
pub(crate) fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}

struct Worker {
    program: Producer,
    punt: Consumer,
    bell: Doorbell,
    backlog: VecDeque<OwnedProgram>,
    dirty: bool,
    stats: StatsReader,
}

impl Attachment {
    /// Connects to the dataplane of a socket directory.
    pub(crate) fn connect(directory: &Path) -> Result<Self, AttachFailure> {
        let path = directory.join(DATAPLANE_SOCKET);
        let stream = UnixStream::connect(&path).map_err(|_| AttachFailure::Absent(path))?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
        let (hello, fds) = accept(stream.as_fd())?;
        stream.set_nonblocking(true)?;
        let mut fds = fds.into_iter();
        let mut next = || {
            fds.next()
                .ok_or(AttachFailure::Refused(AttachError::Protocol))
        };
        let memory: OwnedFd = next()?;
        let bell = Doorbell::from_fd(next()?);
        let segment = Segment::attach(&memory)?;
        if segment.layout().workers != hello.workers.get() {
            return Err(AttachFailure::Refused(AttachError::Protocol));
        }
        let worker = |n: u16, bell| {
            let id = WorkerId(n);
            Worker {
                program: segment.program_producer(id),
                punt: segment.punt_consumer(id),
                bell: Doorbell::from_fd(bell),
                backlog: VecDeque::new(),
                dirty: false,
                stats: segment.stats_reader(id),
            }
        };
        let mut workers = Vec::new();
        for n in 0..hello.workers.get() {
            workers.push(worker(n, next()?));
        }
        Ok(Self {
            hello,
            lease: watch(stream)?,
            bell: watch(bell)?,
            workers,
            scratch: vec![0; RECORD_MAX].into_boxed_slice(),
        })
    }

    /// Queues a record for a worker. False when the backlog is at its limit: the dataplane does not
    /// take records any more.
    pub(crate) fn push(&mut self, worker: WorkerId, program: OwnedProgram) -> bool {
        let Some(worker) = self.workers.get_mut(worker.as_usize()) else {
            return true;
        };
        worker.backlog.push_back(program);
        worker.backlog.len() < BACKLOG_MAX
    }

    /// Whether a packet may go to a worker now.
    pub(crate) fn has_room(&mut self, worker: WorkerId) -> bool {
        let worker = self.workers.get_mut(worker.as_usize());
        worker.is_none_or(|worker| {
            worker.backlog.is_empty() && worker.program.free_bytes() >= PACKET_ROOM
        })
    }

    /// As [`Self::push`], for a record that carries no secret: straight into the ring while nothing
    /// waits before it.
    pub(crate) fn push_through(&mut self, worker: WorkerId, program: &Program<'_>) -> bool {
        if let Some(worker) = self.workers.get_mut(worker.as_usize())
            && worker.backlog.is_empty()
        {
            let (code, body, tail) = program.parts();
            if worker.program.push(code, &[body, tail]).is_ok() {
                worker.dirty = true;
                return true;
            }
        }
        self.push(worker, OwnedProgram::new(program))
    }

    /// Moves what fits from the backlogs into the rings and rings those who sleep. True when
    /// something had to stay.
    pub(crate) fn flush(&mut self) -> bool {
        let mut left = false;
        for worker in &mut self.workers {
            while let Some(program) = worker.backlog.front() {
                match worker.program.push(program.code(), &[program.bytes()]) {
                    Ok(()) => worker.dirty = true,
                    Err(PushError::Full) => break,
                    Err(error @ (PushError::TooBig | PushError::Corrupt)) => {
                        tracing::error!(%error, "a record could not be handed to the dataplane");
                    }
                }
                worker.backlog.pop_front();
            }
            left |= !worker.backlog.is_empty();
            if worker.backlog.is_empty() {
                worker.backlog.shrink_to(BACKLOG_KEPT);
            }
            if std::mem::take(&mut worker.dirty) && worker.program.publish() {
                worker.bell.ring();
            }
        }
        left
    }

    /// Takes the next punted record of any worker into the scratch memory.
    pub(crate) fn pop(&mut self) -> Option<(WorkerId, u16, usize)> {
        for (n, worker) in (0..).zip(&mut self.workers) {
            if let Ok(Some((code, len))) = worker.punt.pop(&mut self.scratch) {
                return Some((WorkerId(n), code, len));
            }
        }
        None
    }

    /// Gives the room of popped records back.
    pub(crate) fn release(&mut self) {
        self.workers
            .iter_mut()
            .for_each(|worker| worker.punt.release());
    }

    /// Announces sleep; false when there are records.
    pub(crate) fn sleep(&mut self) -> bool {
        self.workers.iter_mut().all(|worker| worker.punt.sleep())
    }

    /// Takes the announcement back.
    pub(crate) fn wake(&mut self) {
        self.workers
            .iter_mut()
            .for_each(|worker| worker.punt.wake());
    }

    /// Waits until a worker rings.
    pub(crate) async fn rung(&self) -> io::Result<()> {
        let mut guard = self.bell.readable().await?;
        self.bell.get_ref().clear();
        guard.clear_ready();
        Ok(())
    }

    /// Waits until the dataplane is gone.
    pub(crate) async fn gone(&self) {
        loop {
            let Ok(mut guard) = self.lease.readable().await else {
                return;
            };
            match rustix::io::read(self.lease.get_ref(), &mut [0u8; 16]) {
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Tells the dataplane that this control plane stops, which it does not do when it dies.
    pub(crate) fn leave(&self) {
        // A dataplane that has gone needs no telling.
        let _ = rustix::io::write(self.lease.get_ref(), &[0]);
    }

    /// Statistics of every worker.
    pub(crate) fn stats(&self) -> Vec<StatsReader> {
        self.workers
            .iter()
            .map(|worker| worker.stats.clone())
            .collect()
    }

    /// Records that wait for room.
    pub(crate) fn backlog(&self) -> usize {
        self.workers.iter().map(|worker| worker.backlog.len()).sum()
    }
}

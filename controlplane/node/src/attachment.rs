//! Attaching to a dataplane, and what belongs to the lease: rings, doorbells, counters.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hyphae_overlay::OwnedProgram;
use hyphae_shm::attach::{AttachError, Hello, accept};
use hyphae_shm::record::Program;
use hyphae_shm::{
    Consumer, Doorbell, Producer, PushError, RECORD_MAX, Segment, SegmentError, StatsReader,
};
use hyphae_wire::WorkerId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Records that wait for room in a program ring, per worker. The engines are drained after every step, so this
/// bounds the records of one resynchronisation or one burst of handshakes.
const BACKLOG_MAX: usize = 1 << 20;
/// Capacity of an empty backlog, records.
const BACKLOG_CAPACITY: usize = 256;

/// Time within which a dataplane offers its segment to a control plane that connects.
const OFFER_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between attempts to attach.
pub(crate) const ATTACH_RETRY: Duration = Duration::from_millis(20);
/// Shortest interval between log lines about failed attempts.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// File name of the dataplane's socket.
pub const DATAPLANE_SOCKET: &str = "dataplane.sock";

/// Attaching failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachFailure {
    /// No dataplane listens.
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

/// Ring space for a packet and its record, bytes.
const PACKET_ROOM: usize = 2048;

/// A dataplane that this control plane is attached to.
pub struct Attachment {
    /// Description of the dataplane.
    pub hello: Hello,
    lease: AsyncFd<UnixStream>,
    bell: AsyncFd<Doorbell>,
    workers: Vec<Worker>,
    pub(crate) scratch: Box<[u8]>,
}

/// Waits for a dataplane that listens in a socket directory.
pub async fn wait_for_dataplane(directory: &Path) -> Attachment {
    let mut log = AttachLog::default();
    loop {
        match Attachment::connect(directory).await {
            Ok(attachment) => return attachment,
            Err(error) => log.refused(&error),
        }
        tokio::time::sleep(ATTACH_RETRY).await;
    }
}

/// Logs failed attempts to attach, at most one per [`LOG_EVERY`].
#[derive(Default)]
pub(crate) struct AttachLog {
    logged: Option<Instant>,
}

impl AttachLog {
    pub(crate) fn refused(&mut self, error: &AttachFailure) {
        let now = Instant::now();
        // At start the dataplane may need a moment.
        let first = self.logged.is_none() && matches!(error, AttachFailure::Absent(_));
        if !first && self.logged.is_none_or(|at| now - at >= LOG_EVERY) {
            tracing::warn!(%error, "not attached to a dataplane; trying on");
            self.logged = Some(now);
        }
        self.logged.get_or_insert(now);
    }
}

/// Detaches from a dataplane that does not read its records.
pub(super) fn abandon(attachment: &mut Option<Attachment>) {
    tracing::error!("the dataplane takes no more records; detaching from it");
    *attachment = None;
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
    /// Connects to the dataplane of a socket directory, and waits for its offer within [`OFFER_TIMEOUT`].
    pub(crate) async fn connect(directory: &Path) -> Result<Self, AttachFailure> {
        let path = directory.join(DATAPLANE_SOCKET);
        let stream = UnixStream::connect(&path).map_err(|_| AttachFailure::Absent(path))?;
        stream.set_nonblocking(true)?;
        let lease = watch(stream)?;
        let offered = tokio::time::timeout(OFFER_TIMEOUT, lease.readable()).await;
        offered.map_err(io::Error::from)??.retain_ready();
        let (hello, fds) = accept(lease.get_ref().as_fd())?;
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
            lease,
            bell: watch(bell)?,
            workers,
            scratch: vec![0; RECORD_MAX].into_boxed_slice(),
        })
    }

    /// Queues a record for a worker. False when the backlog is full: the dataplane reads no records.
    pub(crate) fn push(&mut self, worker: WorkerId, program: OwnedProgram) -> bool {
        let Some(worker) = self.workers.get_mut(worker.as_usize()) else {
            return true;
        };
        worker.backlog.push_back(program);
        worker.backlog.len() < BACKLOG_MAX
    }

    /// Whether the ring of a worker has room for a packet.
    pub(crate) fn has_room(&mut self, worker: WorkerId) -> bool {
        let worker = self.workers.get_mut(worker.as_usize());
        worker.is_none_or(|worker| {
            worker.backlog.is_empty() && worker.program.free_bytes() >= PACKET_ROOM
        })
    }

    /// As [`Self::push`], for a record without secrets: into the ring directly while the backlog is empty.
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

    /// Moves records from the backlogs into the rings and rings sleeping workers. True when records are left.
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
                worker.backlog.shrink_to(BACKLOG_CAPACITY);
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

    /// Frees the ring space of popped records.
    pub(crate) fn release(&mut self) {
        self.workers
            .iter_mut()
            .for_each(|worker| worker.punt.release());
    }

    /// Announces sleep; false when there are records.
    pub(crate) fn sleep(&mut self) -> bool {
        self.workers.iter_mut().all(|worker| worker.punt.sleep())
    }

    /// Withdraws the announcement.
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

    /// Waits until the lease ends, as it does when the dataplane ends.
    pub(crate) async fn lease_ended(&self) {
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

    /// Notifies the dataplane of a regular stop, as opposed to a crash.
    pub(crate) fn leave(&self) {
        // The dataplane may have ended.
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

//! Jobs of the worker, the queue that they wait in, and the leases that its answers carry.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};

use hyphae_bus::{Inbound, Room, Topic};
use tokio::sync::oneshot;

use super::error::{InboxError, PutError};
use super::types::{Listing, MessageNumber, Put};

pub(super) type Done<T> = oneshot::Sender<T>;

/// A job of the worker.
#[derive(Debug)]
pub(super) enum Job {
    Update(Update),
    Query(Query),
}

/// A change, part of the next transaction.
#[derive(Debug)]
pub(super) enum Update {
    Put {
        messages: Vec<Inbound>,
        hidden: bool,
        /// A result for each message.
        done: Done<Vec<Result<Put, PutError>>>,
    },
    Confirm {
        numbers: Vec<MessageNumber>,
        done: Done<Result<(), InboxError>>,
    },
    Release(Vec<MessageNumber>),
}

/// A question, answered after the transaction.
#[derive(Debug)]
pub(super) enum Query {
    Take {
        topic: Option<Topic>,
        /// As many as fit, but one at least.
        most: Room,
        /// The delivery is on disk before the caller has the messages.
        recorded: bool,
        /// For the lease, which returns the messages if the caller has disconnected.
        queue: JobQueue,
        done: Done<Result<Option<Taken>, InboxError>>,
    },
    Peek {
        topic: Option<Topic>,
        done: Done<Result<Option<Inbound>, InboxError>>,
    },
    List {
        topic: Option<Topic>,
        after: MessageNumber,
        count: usize,
        done: Done<Listing>,
    },
}

/// Does jobs.
pub(super) trait Work: Send {
    /// Does some at once.
    fn work(&mut self, jobs: Vec<Job>);
}

/// Queue of the worker.
#[derive(Clone)]
pub(super) enum JobQueue {
    /// Of a thread.
    Thread(mpsc::Sender<Job>),
    /// None: jobs are done by the caller. It holds the receiver of the answer, so no lease in an answer is dropped, and
    /// enqueued again, while the worker is locked.
    Inline(Arc<Mutex<dyn Work>>),
}

impl JobQueue {
    /// A thread that runs `worker` on the jobs that wait.
    pub(super) fn spawn(
        path: PathBuf,
        worker: impl FnOnce(&mpsc::Receiver<Job>) + Send + 'static,
    ) -> Result<Self, InboxError> {
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("inbox".to_owned())
            .spawn(move || worker(&queue))
            .map_err(|source| InboxError::Io {
                path,
                source,
                hint: "; no thread for it",
            })?;
        Ok(Self::Thread(jobs))
    }

    /// Enqueues a job. A closed inbox drops it, and the reply channel with it.
    pub(super) fn send(&self, job: Job) {
        match self {
            Self::Thread(jobs) => {
                let _ = jobs.send(job);
            }
            Self::Inline(worker) => {
                if let Ok(mut worker) = worker.lock() {
                    worker.work(vec![job]);
                }
            }
        }
    }
}

impl std::fmt::Debug for JobQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "Thread",
            Self::Inline(_) => "Inline",
        })
    }
}

/// Exclusive access to hidden messages. When it is dropped, they stay in the inbox and are visible again.
#[derive(Debug)]
pub struct Lease {
    pub(super) numbers: Vec<MessageNumber>,
    pub(super) queue: Option<JobQueue>,
}

impl Lease {
    /// One lease of the messages of several; `None` of none.
    pub fn join(leases: impl IntoIterator<Item = Self>) -> Option<Self> {
        leases.into_iter().reduce(|mut all, mut other| {
            // It releases nothing when it is dropped.
            other.queue = None;
            all.numbers.append(&mut other.numbers);
            all
        })
    }

    /// A lease of each message.
    fn split(mut self) -> Vec<Self> {
        let queue = self.queue.take();
        let each = |number| Self {
            numbers: vec![number],
            queue: queue.clone(),
        };
        std::mem::take(&mut self.numbers)
            .into_iter()
            .map(each)
            .collect()
    }

    /// Removes the messages. When this returns `Ok`, they are not delivered again.
    ///
    /// # Errors
    /// When that could not be written: they are then visible again.
    pub async fn confirm(mut self) -> Result<(), InboxError> {
        let (done, answer) = oneshot::channel();
        let queue = self.queue.take().ok_or(InboxError::Closed)?;
        let numbers = std::mem::take(&mut self.numbers);
        queue.send(Job::Update(Update::Confirm { numbers, done }));
        answer.await.map_err(|_| InboxError::Closed)?
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            // A closed inbox shows the messages when it is opened again.
            let numbers = std::mem::take(&mut self.numbers);
            queue.send(Job::Update(Update::Release(numbers)));
        }
    }
}

/// Delivered messages, one or more.
#[derive(Debug)]
pub struct Taken {
    /// The messages, the oldest first.
    pub messages: Vec<Inbound>,
    /// Deliveries of each, this one included.
    pub deliveries: Vec<u32>,
    pub(super) lease: Lease,
}

impl Taken {
    /// The messages, their delivery counts, and the lease of all of them.
    pub fn into_parts(self) -> (Vec<Inbound>, Vec<u32>, Lease) {
        (self.messages, self.deliveries, self.lease)
    }

    /// The same, with a lease of each.
    pub fn split(self) -> (Vec<Inbound>, Vec<u32>, Vec<Lease>) {
        (self.messages, self.deliveries, self.lease.split())
    }

    /// Removes the messages. When this returns `Ok`, they are not delivered again.
    ///
    /// # Errors
    /// When that could not be written: they are visible again, so they must not be used.
    pub async fn confirm(self) -> Result<Vec<Inbound>, InboxError> {
        self.lease.confirm().await?;
        Ok(self.messages)
    }
}

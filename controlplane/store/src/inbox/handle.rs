//! The inbox as other tasks use it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyphae_bus::{Inbound, Room, Topic};
use hyphae_files::Directory;
use tokio::sync::{oneshot, watch};

use super::error::{InboxError, PutError};
use super::job::{Job, JobQueue, Lease, Query, Taken, Update};
use super::types::{Depth, Found, Limits, Listing, MessageNumber, Put, path_in};
use super::worker::Worker;

/// Handle of an inbox. Clones share it.
#[derive(Clone, Debug)]
pub struct Inbox {
    queue: JobQueue,
    depth: Arc<Depth>,
    changed: watch::Receiver<u64>,
    limits: Limits,
}

impl Inbox {
    /// Opens the inbox of a state directory, or makes one. A damaged file is moved aside, never deleted.
    ///
    /// # Errors
    /// When the file cannot be used; the error names it and a remedy.
    pub fn open(directory: &Directory, limits: Limits) -> Result<(Self, Found), InboxError> {
        Self::start(Some(directory.clone()), limits)
    }

    /// An inbox in memory, which ends with the process.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn in_memory(limits: Limits) -> Result<Self, InboxError> {
        Self::start(None, limits).map(|(inbox, _)| inbox)
    }

    fn start(directory: Option<Directory>, limits: Limits) -> Result<(Self, Found), InboxError> {
        let depth = Arc::new(Depth::default());
        let (changes, changed) = watch::channel(0);
        let (worker, found) = Worker::open(directory.clone(), limits, Arc::clone(&depth), changes)?;
        let queue = match directory {
            Some(directory) => JobQueue::spawn(path_in(&directory), |queue| worker.run(queue))?,
            None => JobQueue::Inline(Arc::new(Mutex::new(worker))),
        };
        let inbox = Self {
            queue,
            depth,
            changed,
            limits,
        };
        Ok((inbox, found))
    }

    /// Stores a message. When this returns `Ok`, it is on disk and may be acknowledged. `hidden`: only its
    /// [lease](Self::lease) makes it visible.
    ///
    /// # Errors
    /// When there is no room or it cannot be written: then it must not be acknowledged.
    pub async fn put(&self, message: Inbound, hidden: bool) -> Result<Put, PutError> {
        let mut put = self.put_all(vec![message], hidden).await;
        put.pop().unwrap_or(Err(InboxError::Closed.into()))
    }

    /// As [`Self::put`] for several, in one transaction; a result for each.
    pub async fn put_all(
        &self,
        messages: Vec<Inbound>,
        hidden: bool,
    ) -> Vec<Result<Put, PutError>> {
        let count = messages.len();
        let answer = self.ask(|done| {
            Job::Update(Update::Put {
                messages,
                hidden,
                done,
            })
        });
        let closed = || Err(InboxError::Closed.into());
        let answer = answer.await;
        answer.unwrap_or_else(|| std::iter::repeat_with(closed).take(count).collect())
    }

    /// The lease of a message that was put `hidden`.
    pub fn lease(&self, number: MessageNumber) -> Lease {
        Lease {
            numbers: vec![number],
            queue: Some(self.queue.clone()),
        }
    }

    /// Delivers the oldest messages, of one topic or of any: at least one if the inbox has one, then as many as fit
    /// `most`. They are hidden until their lease is confirmed or dropped.
    ///
    /// # Errors
    /// When the first cannot be read.
    pub async fn take(
        &self,
        topic: Option<Topic>,
        most: Room,
    ) -> Result<Option<Taken>, InboxError> {
        self.deliver(topic, most, false).await
    }

    /// As [`Self::take`], with the delivery counts on disk when this returns: after a crash the next process knows
    /// them.
    ///
    /// # Errors
    /// When the first cannot be read, or the counts cannot be written.
    pub async fn take_recorded(
        &self,
        topic: Option<Topic>,
        most: Room,
    ) -> Result<Option<Taken>, InboxError> {
        self.deliver(topic, most, true).await
    }

    async fn deliver(
        &self,
        topic: Option<Topic>,
        most: Room,
        recorded: bool,
    ) -> Result<Option<Taken>, InboxError> {
        let queue = self.queue.clone();
        let answer = self.ask(|done| {
            Job::Query(Query::Take {
                topic,
                most,
                recorded,
                queue,
                done,
            })
        });
        answer.await.ok_or(InboxError::Closed)?
    }

    /// Number of messages, of one topic or of all, and up to `count` of them with a number above `after`, oldest first,
    /// without their payloads.
    ///
    /// # Errors
    /// When the inbox has been closed.
    pub async fn list(
        &self,
        topic: Option<Topic>,
        after: MessageNumber,
        count: usize,
    ) -> Result<Listing, InboxError> {
        let answer = self.ask(|done| {
            Job::Query(Query::List {
                topic,
                after,
                count,
                done,
            })
        });
        answer.await.ok_or(InboxError::Closed)
    }

    /// The oldest message, of one topic or of any; it stays.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn peek(&self, topic: Option<Topic>) -> Result<Option<Inbound>, InboxError> {
        let answer = self.ask(|done| Job::Query(Query::Peek { topic, done }));
        answer.await.ok_or(InboxError::Closed)?
    }

    /// Changes whenever a message may have become visible.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Messages and bytes of their payloads, hidden ones included.
    pub fn depth(&self) -> (u64, u64) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        (load(&self.depth.messages), load(&self.depth.bytes))
    }

    /// Whether the last write failed.
    pub fn failing(&self) -> bool {
        self.depth.failing.load(Ordering::Relaxed)
    }

    /// Counts a call that waits for a message; `None` when `max` wait already.
    pub fn wait(&self, max: u64) -> Option<Waiting> {
        // Dropped, and so counted back, when there are too many.
        let waiting = Waiting(Arc::clone(&self.depth));
        let before = self.depth.waiting.fetch_add(1, Ordering::Relaxed);
        (before < max).then_some(waiting)
    }

    /// Calls that wait for a message.
    pub fn waiting(&self) -> u64 {
        self.depth.waiting.load(Ordering::Relaxed)
    }

    /// Transactions that were written.
    pub fn commits(&self) -> u64 {
        self.depth.commits.load(Ordering::Relaxed)
    }

    /// Its limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<T>) -> Job,
    ) -> impl Future<Output = Option<T>> {
        let (done, answer) = oneshot::channel();
        self.queue.send(job(done));
        async move { answer.await.ok() }
    }
}

/// A call that waits.
#[derive(Debug)]
pub struct Waiting(Arc<Depth>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

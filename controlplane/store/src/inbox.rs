//! The inbox: messages that were acknowledged to their senders and that nobody has taken yet.
//!
//! A thread of its own owns a store on disk, so that a sync of the disk holds nobody up. It takes everything that
//! waits, writes it in one transaction, syncs once and only then tells those who wait: under load many
//! messages share a sync, alone a message pays for one (group commit). Payloads stay on disk; memory holds
//! one small entry per message. A store in memory needs no thread: whoever asks does the work.
//!
//! Taking is in two steps. [`Inbox::take`] hides a message and hands it out; [`Taken::confirm`] removes it
//! for good. Whoever drops a [`Taken`] unconfirmed, or dies, leaves the message where it was. How often a message
//! was handed out is counted, with [`Inbox::take_recorded`] on disk.

mod batch;
mod completed;
mod damage;
mod index;
mod load;
mod reader;
mod record;
mod shelf;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyphae_bus::{DeliveryKey, Inbound, Room, Topic};
use hyphae_config::InboxConfig;
use hyphae_files::Directory;
use hyphae_wire::OverlayAddress;
use tokio::sync::{oneshot, watch};

use worker::{Desk, Job, Worker};

/// File name in the state directory.
pub const INBOX_FILE: &str = "inbox.redb";

/// For messages.
fn path_in(directory: &Directory) -> PathBuf {
    directory.path_of(INBOX_FILE)
}

/// To take one message, however long.
pub const ONE: Room = Room {
    messages: 1,
    bytes: 0,
};

/// What an inbox may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages.
    pub messages_max: usize,
    /// Bytes of their payloads.
    pub bytes_max: u64,
    /// Ids of messages that came, which are remembered so that none comes twice.
    pub completed_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages_max: 65_536,
            bytes_max: 512 << 20,
            completed_max: 262_144,
        }
    }
}

impl From<InboxConfig> for Limits {
    fn from(config: InboxConfig) -> Self {
        Self {
            messages_max: config.messages_max,
            bytes_max: config.bytes_max as u64,
            ..Self::default()
        }
    }
}

/// The inbox cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// The file cannot be read or written.
    #[error("inbox {path}: {source}{hint}")]
    Io {
        /// File.
        path: PathBuf,
        /// How.
        source: std::io::Error,
        /// Way out.
        hint: &'static str,
    },
    /// Another process has it open.
    #[error(
        "inbox {0} is in use by another process: stop it, or name another state directory with --state-dir"
    )]
    InUse(PathBuf),
    /// Made by a version that keeps it otherwise.
    #[error(
        "inbox {path} has format {found}, this version reads {expected}: run the version that made it, or \
         move the file away to start with an empty inbox"
    )]
    Format {
        /// File.
        path: PathBuf,
        /// As read.
        found: u64,
        /// As written by this version.
        expected: u64,
    },
    /// The content is damaged.
    #[error("inbox {path} is damaged: {message}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// What was found.
        message: String,
    },
    /// The thread of the inbox is gone.
    #[error("the inbox has been closed")]
    Closed,
}

impl InboxError {
    /// The same, for one more who has to hear it.
    fn again(&self) -> Self {
        match self {
            Self::Io { path, source, hint } => Self::Io {
                path: path.clone(),
                source: std::io::Error::new(source.kind(), source.to_string()),
                hint,
            },
            Self::InUse(path) => Self::InUse(path.clone()),
            Self::Format {
                path,
                found,
                expected,
            } => Self::Format {
                path: path.clone(),
                found: *found,
                expected: *expected,
            },
            Self::Damaged { path, message } => Self::Damaged {
                path: path.clone(),
                message: message.clone(),
            },
            Self::Closed => Self::Closed,
        }
    }
}

/// Why a message is not kept. Its sender is not told that it was received.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The limits of the inbox are reached.
    #[error("the inbox is full")]
    Full,
    /// It could not be written.
    #[error(transparent)]
    Failed(#[from] InboxError),
}

/// What became of a message that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is kept.
    Stored(MessageNumber),
    /// It has come before: nothing to do but to acknowledge it again.
    Duplicate,
}

/// Names a message of the inbox; grows with every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageNumber(pub u64);

/// Messages of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// How many there are.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Of the messages: hidden, because they were handed out.
    pub handed_out: u64,
    /// Those that were asked for, the oldest first.
    pub entries: Vec<Listed>,
}

/// A message of an inbox, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its place in the order.
    pub number: MessageNumber,
    /// Its sender and id.
    pub key: DeliveryKey,
    /// Overlay address of its sender.
    pub source_address: OverlayAddress,
    /// Its topic.
    pub topic: Topic,
    /// Bytes of its payload.
    pub len: u64,
    /// Times that it was handed out.
    pub deliveries: u32,
    /// It is handed out now.
    pub handed_out: bool,
}

/// What was found when an inbox was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// Ids of messages that came before, oldest first.
    pub completed: Vec<DeliveryKey>,
    /// A damaged file was moved here.
    pub moved_aside: Option<PathBuf>,
}

/// How much there is, for metrics and back-pressure.
#[derive(Debug, Default)]
struct Depth {
    messages: AtomicU64,
    bytes: AtomicU64,
    /// The last write failed.
    failing: AtomicBool,
    commits: AtomicU64,
    /// Calls that wait for a message.
    waiting: AtomicU64,
}

/// The inbox. Copies lead to the same one.
#[derive(Clone, Debug)]
pub struct Inbox {
    jobs: Desk,
    depth: Arc<Depth>,
    changed: watch::Receiver<u64>,
    limits: Limits,
}

impl Inbox {
    /// Opens the inbox of a state directory, or makes one. A damaged file is moved aside, never deleted.
    ///
    /// # Errors
    /// When the file cannot be used; the error names it and the way out.
    pub fn open(directory: &Directory, limits: Limits) -> Result<(Self, Found), InboxError> {
        Self::start(Some(directory.clone()), limits)
    }

    /// An inbox in memory, gone with the process.
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
        let jobs = match directory {
            Some(directory) => Desk::apart(path_in(&directory), worker)?,
            None => Desk::Here(Arc::new(Mutex::new(worker))),
        };
        let inbox = Self {
            jobs,
            depth,
            changed,
            limits,
        };
        Ok((inbox, found))
    }

    /// Keeps a message. When this returns `Ok`, it is on disk and may be acknowledged. `held` hides it,
    /// for whoever deals with it first; see [`Self::held`].
    ///
    /// # Errors
    /// When there is no room or it cannot be written: then it must not be acknowledged.
    pub async fn put(&self, message: Inbound, held: bool) -> Result<Put, PutError> {
        let mut put = self.put_all(vec![message], held).await;
        put.pop().unwrap_or(Err(InboxError::Closed.into()))
    }

    /// The same for several, in one transaction; an answer for each.
    pub async fn put_all(&self, messages: Vec<Inbound>, held: bool) -> Vec<Result<Put, PutError>> {
        let count = messages.len();
        let answer = self.ask(|done| Job::Put {
            messages,
            held,
            done,
        });
        let closed = || Err(InboxError::Closed.into());
        let answer = answer.await;
        answer.unwrap_or_else(|| std::iter::repeat_with(closed).take(count).collect())
    }

    /// The right to decide about a message that was put `held`.
    pub fn held(&self, number: MessageNumber) -> Lease {
        Lease {
            numbers: vec![number],
            jobs: Some(self.jobs.clone()),
        }
    }

    /// Hands out the oldest messages, of a topic if one is named, and hides them from others until they are
    /// confirmed or let go. At least one if there is one, then as many as fit `most`.
    ///
    /// # Errors
    /// When the first cannot be read.
    pub async fn take(
        &self,
        topic: Option<Topic>,
        most: Room,
    ) -> Result<Option<Taken>, InboxError> {
        self.hand_out(topic, most, false).await
    }

    /// The same, and that they were handed out is on disk when this returns: whoever takes them may be gone with
    /// this process, and the next one knows.
    ///
    /// # Errors
    /// When the first cannot be read, or nothing written.
    pub async fn take_recorded(
        &self,
        topic: Option<Topic>,
        most: Room,
    ) -> Result<Option<Taken>, InboxError> {
        self.hand_out(topic, most, true).await
    }

    async fn hand_out(
        &self,
        topic: Option<Topic>,
        most: Room,
        recorded: bool,
    ) -> Result<Option<Taken>, InboxError> {
        let jobs = self.jobs.clone();
        let answer = self.ask(|done| Job::Take {
            topic,
            most,
            recorded,
            jobs,
            done,
        });
        answer.await.ok_or(InboxError::Closed)?
    }

    /// How many messages there are, of a topic if one is named, and up to `count` of them with a number above
    /// `after`, the oldest first, without their payloads.
    ///
    /// # Errors
    /// When the inbox has been closed.
    pub async fn list(
        &self,
        topic: Option<Topic>,
        after: MessageNumber,
        count: usize,
    ) -> Result<Listing, InboxError> {
        let answer = self.ask(|done| Job::List {
            topic,
            after,
            count,
            done,
        });
        answer.await.ok_or(InboxError::Closed)
    }

    /// The oldest message, of a topic if one is named; it stays.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn peek(&self, topic: Option<Topic>) -> Result<Option<Inbound>, InboxError> {
        let answer = self.ask(|done| Job::Peek { topic, done });
        answer.await.ok_or(InboxError::Closed)?
    }

    /// Changes whenever a message may have become visible.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Messages, and bytes of their payloads; those that are hidden count, too.
    pub fn depth(&self) -> (u64, u64) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        (load(&self.depth.messages), load(&self.depth.bytes))
    }

    /// Whether the last write failed.
    pub fn failing(&self) -> bool {
        self.depth.failing.load(Ordering::Relaxed)
    }

    /// Counts a call that waits for a message; `None` when there are `max` already.
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

    /// What it may hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<T>) -> Job,
    ) -> impl Future<Output = Option<T>> {
        let (done, answer) = oneshot::channel();
        // A closed queue drops the sender, which is what the answer then says.
        self.jobs.send(job(done));
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

/// The right to decide about messages. Dropping it leaves them in the inbox, visible again.
#[derive(Debug)]
pub struct Lease {
    numbers: Vec<MessageNumber>,
    jobs: Option<Desk>,
}

impl Lease {
    /// One lease of what several are of; `None` of nothing.
    pub fn join(leases: impl IntoIterator<Item = Self>) -> Option<Self> {
        leases.into_iter().reduce(|mut all, mut other| {
            // Nothing is left of it to be released.
            other.jobs = None;
            all.numbers.append(&mut other.numbers);
            all
        })
    }

    /// A lease of each message.
    fn split(mut self) -> Vec<Self> {
        let jobs = self.jobs.take();
        let each = |number| Self {
            numbers: vec![number],
            jobs: jobs.clone(),
        };
        std::mem::take(&mut self.numbers)
            .into_iter()
            .map(each)
            .collect()
    }

    /// Removes the messages for good. When this returns `Ok`, they will not be handed out again.
    ///
    /// # Errors
    /// When that could not be written: they are then visible again.
    pub async fn confirm(mut self) -> Result<(), InboxError> {
        let (done, answer) = oneshot::channel();
        let jobs = self.jobs.take().ok_or(InboxError::Closed)?;
        let numbers = std::mem::take(&mut self.numbers);
        // As in `Inbox::ask`.
        jobs.send(Job::Confirm { numbers, done });
        answer.await.map_err(|_| InboxError::Closed)?
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(jobs) = self.jobs.take() {
            // A closed inbox shows the messages when it is opened again.
            jobs.send(Job::Release(std::mem::take(&mut self.numbers)));
        }
    }
}

/// Messages that were handed out, one or more.
#[derive(Debug)]
pub struct Taken {
    /// The messages, the oldest first.
    pub messages: Vec<Inbound>,
    /// Times that each has been handed out, this one included.
    pub deliveries: Vec<u32>,
    lease: Lease,
}

impl Taken {
    /// The messages, how often each was handed out, and the right to decide about all of them.
    pub fn into_parts(self) -> (Vec<Inbound>, Vec<u32>, Lease) {
        (self.messages, self.deliveries, self.lease)
    }

    /// The same, with a right to decide about each.
    pub fn split(self) -> (Vec<Inbound>, Vec<u32>, Vec<Lease>) {
        (self.messages, self.deliveries, self.lease.split())
    }

    /// Removes the messages for good. When this returns, they will not be handed out again.
    ///
    /// # Errors
    /// When that could not be written: they are then visible again, so they must not be used.
    pub async fn confirm(self) -> Result<Vec<Inbound>, InboxError> {
        self.lease.confirm().await?;
        Ok(self.messages)
    }
}

//! The thread of the inbox: takes what waits, commits once, answers.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use hyphae_bus::{Inbound, Room, Topic};
use hyphae_files::Directory;
use tokio::sync::{oneshot, watch};

use super::batch::{Batch, Loaded, Placed, Removal, Write};
use super::damage::move_aside;
use super::index::Index;
use super::reader::Reader;
use super::record::Head;
use super::store::Store;
use super::{
    Depth, Found, InboxError, Lease, Limits, Listing, MessageNumber, Put, PutError, Taken, path_in,
};

/// Jobs of one transaction.
const BATCH_JOBS: usize = 1024;
/// Bytes of one transaction, unless one message has more.
const BATCH_BYTES: usize = 32 << 20;
/// How soon a store that failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

type Done<T> = oneshot::Sender<T>;

/// Something asked of the inbox.
#[derive(Debug)]
pub(super) enum Job {
    Put {
        messages: Vec<Inbound>,
        held: bool,
        /// An answer for each.
        done: Done<Vec<Result<Put, PutError>>>,
    },
    Confirm {
        numbers: Vec<MessageNumber>,
        done: Done<Result<(), InboxError>>,
    },
    Release(Vec<MessageNumber>),
    Take {
        topic: Option<Topic>,
        /// As many as fit, but one at least.
        most: Room,
        /// That they are handed out is on disk before anybody has them.
        recorded: bool,
        /// For the lease: an answer that nobody picks up lets the message go.
        jobs: Desk,
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

/// Messages to hand out.
#[derive(Default)]
struct Picked {
    messages: Vec<Inbound>,
    numbers: Vec<MessageNumber>,
    deliveries: Vec<u32>,
}

/// The same, and who waits for them.
struct Handing {
    found: Picked,
    recorded: bool,
    jobs: Desk,
    done: Done<Result<Option<Taken>, InboxError>>,
}

/// Where jobs are handed in.
#[derive(Clone)]
pub(super) enum Desk {
    /// To the thread of the worker.
    Thread(mpsc::Sender<Job>),
    /// Done at once. Whoever hands one in holds what the answer comes by, so nothing that is left of an
    /// answer is dropped, and handed in again, while the worker is at work.
    Here(Arc<Mutex<Worker>>),
}

impl Desk {
    /// A thread for a worker.
    pub(super) fn apart(path: PathBuf, worker: Worker) -> Result<Self, InboxError> {
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("inbox".to_owned())
            .spawn(move || worker.run(&queue))
            .map_err(|source| InboxError::Io {
                path,
                source,
                hint: "; no thread for it",
            })?;
        Ok(Self::Thread(jobs))
    }

    /// Has a job done. An inbox that is closed drops it, which is what its answer then says.
    pub(super) fn send(&self, job: Job) {
        match self {
            Self::Thread(jobs) => {
                let _ = jobs.send(job);
            }
            Self::Here(worker) => {
                if let Ok(mut worker) = worker.lock() {
                    worker.work(vec![job]);
                }
            }
        }
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "Thread",
            Self::Here(_) => "Here",
        })
    }
}

pub(super) struct Worker {
    directory: Option<Directory>,
    limits: Limits,
    /// `None` after a failed write: what the file holds is then not known until it is read again.
    store: Option<Store>,
    /// When it failed.
    failed: Instant,
    index: Index,
    next: u64,
    depth: Arc<Depth>,
    changes: watch::Sender<u64>,
}

impl Worker {
    pub(super) fn open(
        directory: Option<Directory>,
        limits: Limits,
        depth: Arc<Depth>,
        changes: watch::Sender<u64>,
    ) -> Result<(Self, Found), InboxError> {
        let mut found = Found::default();
        let (store, loaded) = match (Store::open(directory.as_ref()), &directory) {
            (Err(error @ InboxError::Damaged { .. }), Some(directory)) => {
                let moved = move_aside(directory)?;
                tracing::error!(
                    %error,
                    moved_to = %moved.display(),
                    "starting with an empty inbox; the damaged file is kept, remove it when it is not needed"
                );
                found.moved_aside = Some(moved);
                Store::open(Some(directory))?
            }
            (result, _) => result?,
        };
        let Loaded {
            index,
            completed,
            next,
        } = loaded;
        found.completed = completed;
        let worker = Self {
            directory,
            limits,
            store: Some(store),
            failed: Instant::now(),
            index,
            next,
            depth,
            changes,
        };
        worker.publish();
        Ok((worker, found))
    }

    /// Works until every handle is gone.
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut bytes = weight(&first);
            let mut jobs = vec![first];
            while jobs.len() < BATCH_JOBS && bytes < BATCH_BYTES {
                let Ok(job) = queue.try_recv() else { break };
                bytes += weight(&job);
                jobs.push(job);
            }
            self.work(jobs);
        }
    }

    fn work(&mut self, jobs: Vec<Job>) {
        // Opened again here or not before the next: what follows counts on one index. Whoever needs it hears of it.
        let _ = self.store();
        let mut changed = false;
        let (mut writing, mut reading) = (Writing::default(), Vec::new());
        for job in jobs {
            match job {
                Job::Put {
                    messages,
                    held,
                    done,
                } => {
                    let answers = messages
                        .into_iter()
                        .map(|message| self.put(message, held, &mut writing))
                        .collect();
                    writing.puts.push((answers, done));
                }
                Job::Confirm { numbers, done } => {
                    let removal = |number: MessageNumber| {
                        let entry = self.index.get(number)?;
                        Some(Removal {
                            number,
                            shelf: entry.place.shelf,
                            len: entry.head.len,
                            recorded: entry.recorded,
                        })
                    };
                    let removals = numbers.into_iter().filter_map(removal);
                    writing.batch.removals.extend(removals);
                    writing.confirmed.push(done);
                }
                Job::Release(numbers) => {
                    for number in numbers {
                        changed |= self.index.show(number);
                    }
                }
                job @ (Job::Take { .. } | Job::Peek { .. } | Job::List { .. }) => {
                    reading.push(job);
                }
            }
        }
        changed |= self.write(writing);
        let mut handing = Vec::new();
        for job in reading {
            match job {
                Job::Take {
                    topic,
                    most,
                    recorded,
                    jobs,
                    done,
                } => match self.take(topic.as_ref(), most) {
                    Ok(found) => handing.push(Handing {
                        found,
                        recorded,
                        jobs,
                        done,
                    }),
                    // As below.
                    Err(error) => drop(done.send(Err(error))),
                },
                Job::List {
                    topic,
                    after,
                    count,
                    done,
                } => {
                    // As below.
                    let _ = done.send(self.index.list(topic.as_ref(), after, count));
                }
                Job::Peek { topic, done } => {
                    // Whoever asked may have gone.
                    let _ = done.send(self.peek(topic.as_ref()));
                }
                Job::Put { .. } | Job::Confirm { .. } | Job::Release(_) => {}
            }
        }
        changed |= self.hand_out(handing);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    fn put(
        &mut self,
        message: Inbound,
        held: bool,
        writing: &mut Writing,
    ) -> Result<Put, PutError> {
        let key = message.key();
        let messages = self.index.len() + writing.batch.writes.len() + 1;
        let bytes = self.index.bytes() + writing.bytes + message.payload.len() as u64;
        if messages > self.limits.messages_max || bytes > self.limits.bytes_max {
            return if self.index.is_completed(&key) {
                Ok(Put::Duplicate)
            } else {
                Err(PutError::Full)
            };
        }
        // Taken back if it cannot be written.
        if !self.index.complete(&key) {
            return Ok(Put::Duplicate);
        }
        writing.bytes += message.payload.len() as u64;
        let number = MessageNumber(self.next);
        writing.batch.writes.push(Write {
            number,
            head: Head::of(&message),
            payload: message.payload,
            held,
        });
        self.next += 1;
        Ok(Put::Stored(number))
    }

    /// Commits and answers. True when a message may have become visible.
    fn write(&mut self, mut writing: Writing) -> bool {
        if writing.is_empty() {
            return false;
        }
        writing.batch.forgotten = self.index.surplus(self.limits.completed_max);
        let result = if writing.batch.is_empty() {
            // Only duplicates of what is on disk, or nothing that fits.
            Ok(Placed::default())
        } else {
            self.commit(&writing.batch)
        };
        match result {
            Ok(placed) => self.written(writing, placed),
            Err(error) => self.failed(writing, &error),
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<Placed, InboxError> {
        let result = match &mut self.store {
            Some(store) => store.commit(batch),
            None => Err(self.unavailable()),
        };
        self.depth.commits.fetch_add(1, Ordering::Relaxed);
        self.depth.failing.store(result.is_err(), Ordering::Relaxed);
        if let Err(error) = &result
            && self.store.take().is_some()
        {
            self.failed = Instant::now();
            tracing::error!(%error, "the inbox cannot be written, so no message is acknowledged or leased");
        }
        result
    }

    /// Answers those who take messages. True when a message is visible again, because what had to be on disk before
    /// could not be written.
    fn hand_out(&mut self, handing: Vec<Handing>) -> bool {
        let mut batch = Batch::default();
        for of in handing.iter().filter(|of| of.recorded) {
            let counts = of.found.deliveries.iter().copied();
            batch
                .deliveries
                .extend(of.found.numbers.iter().copied().zip(counts));
        }
        let result = if batch.is_empty() {
            Ok(Placed::default())
        } else {
            self.commit(&batch)
        };
        let mut changed = false;
        for of in handing {
            let taken = match &result {
                Err(error) if of.recorded && !of.found.numbers.is_empty() => {
                    for number in of.found.numbers {
                        changed |= self.index.show(number);
                    }
                    Err(error.again())
                }
                Err(_) | Ok(_) => {
                    if of.recorded {
                        for (number, count) in of.found.numbers.iter().zip(&of.found.deliveries) {
                            self.index.recall(*number, *count);
                        }
                    }
                    let lease = Lease {
                        jobs: (!of.found.numbers.is_empty()).then_some(of.jobs),
                        numbers: of.found.numbers,
                    };
                    Ok((!of.found.messages.is_empty()).then_some(Taken {
                        messages: of.found.messages,
                        deliveries: of.found.deliveries,
                        lease,
                    }))
                }
            };
            // Whoever asked may have gone; then they go back.
            let _ = of.done.send(taken);
        }
        changed
    }

    fn written(&mut self, writing: Writing, placed: Placed) -> bool {
        let mut changed = false;
        for removal in writing.batch.removals {
            self.index.remove(removal.number);
        }
        for (number, place) in placed.moved {
            self.index.relocate(number, place);
        }
        let mut held = Vec::new();
        for (write, place) in writing.batch.writes.into_iter().zip(placed.writes) {
            let number = write.number;
            self.index.insert(number, write.head, place, !write.held);
            changed |= !write.held;
            if write.held {
                held.push(number);
            }
        }
        self.index.forget(writing.batch.forgotten);
        // Whoever hears the answer finds the depth that belongs to it.
        self.publish();
        for (answers, done) in writing.puts {
            // Whoever asked may have gone; then nobody decides about a held message.
            if let Err(answers) = done.send(answers) {
                for put in answers.into_iter().flatten() {
                    if let Put::Stored(number) = put
                        && held.contains(&number)
                    {
                        changed |= self.index.show(number);
                    }
                }
            }
        }
        for done in writing.confirmed {
            let _ = done.send(Ok(()));
        }
        changed
    }

    fn failed(&mut self, writing: Writing, error: &InboxError) -> bool {
        for (answers, done) in writing.puts {
            let failed = answers.into_iter().map(|answer| match answer {
                Ok(Put::Stored(_) | Put::Duplicate) => Err(PutError::Failed(error.again())),
                Err(refusal) => Err(refusal),
            });
            // Whoever asked may have gone.
            let _ = done.send(failed.collect());
        }
        for done in writing.confirmed {
            let _ = done.send(Err(error.again()));
        }
        let last = writing.batch.writes.iter().rev();
        self.index.undo(last.map(|write| write.head.key.peer));
        let removals = writing.batch.removals.into_iter();
        removals.fold(false, |changed, removal| {
            self.index.show(removal.number) | changed
        })
    }

    fn take(&mut self, topic: Option<&Topic>, mut most: Room) -> Result<Picked, InboxError> {
        let mut found = Picked::default();
        self.store()?;
        let mut reader = self.store.as_ref().ok_or(InboxError::Closed)?.reader()?;
        loop {
            if !found.numbers.is_empty() {
                let next = self.index.first(topic);
                let fits = next.is_some_and(|(_, entry)| entry.head.len <= most.bytes as u64);
                if !fits || most.messages == 0 {
                    break;
                }
            }
            match read(&mut reader, &mut self.index, topic) {
                Ok(Some((number, message))) => {
                    found.deliveries.push(self.index.hand_out(number));
                    most.messages = most.messages.saturating_sub(1);
                    most.bytes = most.bytes.saturating_sub(message.payload.len());
                    found.numbers.push(number);
                    found.messages.push(message);
                }
                Ok(None) => break,
                Err(error) if found.numbers.is_empty() => return Err(error),
                // Whoever asks next hears of it.
                Err(_) => break,
            }
        }
        Ok(found)
    }

    fn peek(&mut self, topic: Option<&Topic>) -> Result<Option<Inbound>, InboxError> {
        self.store()?;
        let mut reader = self.store.as_ref().ok_or(InboxError::Closed)?.reader()?;
        let found = read(&mut reader, &mut self.index, topic)?;
        Ok(found.map(|(_, message)| message))
    }

    /// The store, opened again if it failed some time ago.
    fn store(&mut self) -> Result<&mut Store, InboxError> {
        if self.store.is_none() {
            if self.failed.elapsed() < REOPEN_AFTER {
                return Err(self.unavailable());
            }
            self.failed = Instant::now();
            let (store, loaded) = Store::open(self.directory.as_ref())?;
            tracing::info!("the inbox can be written again");
            let hidden = std::mem::replace(&mut self.index, loaded.index).hidden();
            for number in hidden {
                self.index.hide(number);
            }
            self.next = self.next.max(loaded.next);
            self.store = Some(store);
        }
        self.store.as_mut().ok_or(InboxError::Closed)
    }

    fn unavailable(&self) -> InboxError {
        InboxError::Io {
            path: self.directory.as_ref().map(path_in).unwrap_or_default(),
            source: std::io::Error::other("an earlier write failed; tried again shortly"),
            hint: "",
        }
    }

    fn publish(&self) {
        let messages = self.index.len() as u64;
        self.depth.messages.store(messages, Ordering::Relaxed);
        self.depth
            .bytes
            .store(self.index.bytes(), Ordering::Relaxed);
    }
}

/// What is said about messages that were put once the transaction is written, and to whom.
type Answers = (Vec<Result<Put, PutError>>, Done<Vec<Result<Put, PutError>>>);

/// What one transaction writes, and who waits for it.
#[derive(Default)]
struct Writing {
    batch: Batch,
    bytes: u64,
    puts: Vec<Answers>,
    confirmed: Vec<Done<Result<(), InboxError>>>,
}

impl Writing {
    fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.puts.is_empty()
    }
}

fn weight(job: &Job) -> usize {
    match job {
        Job::Put { messages, .. } => messages.iter().map(|message| message.payload.len()).sum(),
        Job::Confirm { .. }
        | Job::Release(_)
        | Job::Take { .. }
        | Job::Peek { .. }
        | Job::List { .. } => 0,
    }
}

/// The oldest visible message whose payload is what came.
fn read(
    reader: &mut Reader<'_>,
    index: &mut Index,
    topic: Option<&Topic>,
) -> Result<Option<(MessageNumber, Inbound)>, InboxError> {
    while let Some((number, entry)) = index.first(topic) {
        if let Some(payload) = reader.payload(number, entry)? {
            return Ok(Some((number, entry.head.message(payload))));
        }
        // It stays in the file, for whoever wants to look.
        tracing::error!(error = %reader.damaged(number), "a message is left out");
        index.hide(number);
    }
    Ok(None)
}

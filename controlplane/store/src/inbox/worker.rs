//! The worker of the inbox: does the jobs that wait in one transaction, then answers them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hyphae_bus::{Inbound, Room, Topic};
use hyphae_files::Directory;
use tokio::sync::watch;

use super::batch::{Batch, Loaded, Placed, Removal, Write};
use super::damage::move_aside;
use super::error::{InboxError, PutError};
use super::index::Index;
use super::job::{Done, Job, JobQueue, Lease, Query, Taken, Update, Work};
use super::reader::Reader;
use super::record::Head;
use super::store::Store;
use super::types::{Depth, Found, Limits, MessageNumber, Put, path_in};

/// Jobs of one transaction.
const BATCH_JOBS: usize = 1024;
/// Bytes of one transaction, unless one message has more.
const BATCH_BYTES: usize = 32 << 20;
/// Time after which a store that failed is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

/// Messages that were chosen for a caller.
#[derive(Default)]
struct Picked {
    messages: Vec<Inbound>,
    numbers: Vec<MessageNumber>,
    deliveries: Vec<u32>,
}

/// Chosen messages whose delivery count is yet to be written, and their caller.
struct PendingDelivery {
    picked: Picked,
    recorded: bool,
    queue: JobQueue,
    done: Done<Result<Option<Taken>, InboxError>>,
}

pub(super) struct Worker {
    directory: Option<Directory>,
    limits: Limits,
    /// `None` after a failed write: the content of the file is then unknown until it is read again.
    store: Option<Store>,
    /// Time of the last failure.
    failed: Instant,
    index: Index,
    next: u64,
    depth: Arc<Depth>,
    changes: watch::Sender<u64>,
}

impl Work for Worker {
    fn work(&mut self, jobs: Vec<Job>) {
        // A failed store is opened before the batch or not at all: the steps below share one index. Jobs that need the
        // store report the error.
        let _ = self.store();
        let mut changed = false;
        let (mut writing, mut queries) = (Writing::default(), Vec::new());
        for job in jobs {
            match job {
                Job::Update(update) => changed |= self.collect(update, &mut writing),
                Job::Query(query) => queries.push(query),
            }
        }
        changed |= self.write(writing);
        let mut deliveries = Vec::new();
        for query in queries {
            self.answer(query, &mut deliveries);
        }
        changed |= self.deliver(deliveries);
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }
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

    /// Works until every handle is dropped.
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

    /// Adds an update to the transaction. True when a message became visible.
    fn collect(&mut self, update: Update, writing: &mut Writing) -> bool {
        match update {
            Update::Put {
                messages,
                hidden,
                done,
            } => {
                let messages = messages.into_iter();
                let results = messages.map(|message| self.put(message, hidden, writing));
                let results = results.collect();
                writing.puts.push((results, done));
                false
            }
            Update::Confirm { numbers, done } => {
                let removals = numbers
                    .into_iter()
                    .filter_map(|number| self.removal(number));
                writing.batch.removals.extend(removals);
                writing.confirmed.push(done);
                false
            }
            Update::Release(numbers) => numbers
                .into_iter()
                .fold(false, |changed, number| self.index.show(number) | changed),
        }
    }

    fn removal(&self, number: MessageNumber) -> Option<Removal> {
        let entry = self.index.get(number)?;
        Some(Removal {
            number,
            shelf: entry.place.shelf,
            len: entry.head.len,
            recorded: entry.recorded,
        })
    }

    /// Answers a query; one for messages is added to `deliveries`. Its caller may have disconnected.
    fn answer(&mut self, query: Query, deliveries: &mut Vec<PendingDelivery>) {
        match query {
            // Its messages would count a delivery and return.
            Query::Take { done, .. } if done.is_closed() => {}
            Query::Take {
                topic,
                most,
                recorded,
                queue,
                done,
            } => match self.take(topic.as_ref(), most) {
                Ok(picked) => deliveries.push(PendingDelivery {
                    picked,
                    recorded,
                    queue,
                    done,
                }),
                Err(error) => drop(done.send(Err(error))),
            },
            Query::List {
                topic,
                after,
                count,
                done,
            } => drop(done.send(self.index.list(topic.as_ref(), after, count))),
            Query::Peek { topic, done } => drop(done.send(self.peek(topic.as_ref()))),
        }
    }

    fn put(
        &mut self,
        message: Inbound,
        hidden: bool,
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
        // Undone if it cannot be written.
        if !self.index.complete(&key) {
            return Ok(Put::Duplicate);
        }
        writing.bytes += message.payload.len() as u64;
        let number = MessageNumber(self.next);
        writing.batch.writes.push(Write {
            number,
            head: Head::of(&message),
            payload: message.payload,
            hidden,
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
            // Only duplicates of stored messages, or none that fits.
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

    /// Delivers messages. True when a message is visible again because its delivery count could not be written.
    fn deliver(&mut self, deliveries: Vec<PendingDelivery>) -> bool {
        let mut batch = Batch::default();
        for PendingDelivery { picked, .. } in deliveries.iter().filter(|of| of.recorded) {
            let counts = picked.deliveries.iter().copied();
            let counts = picked.numbers.iter().copied().zip(counts);
            batch.deliveries.extend(counts);
        }
        let result = if batch.is_empty() {
            Ok(Placed::default())
        } else {
            self.commit(&batch)
        };
        let mut changed = false;
        for of in deliveries {
            let taken = match &result {
                Err(error) if of.recorded && !of.picked.numbers.is_empty() => {
                    for number in of.picked.numbers {
                        changed |= self.index.show(number);
                    }
                    Err(error.again())
                }
                Err(_) | Ok(_) => {
                    if of.recorded {
                        for (number, count) in of.picked.numbers.iter().zip(&of.picked.deliveries) {
                            self.index.recall(*number, *count);
                        }
                    }
                    let lease = Lease {
                        queue: (!of.picked.numbers.is_empty()).then_some(of.queue),
                        numbers: of.picked.numbers,
                    };
                    Ok((!of.picked.messages.is_empty()).then_some(Taken {
                        messages: of.picked.messages,
                        deliveries: of.picked.deliveries,
                        lease,
                    }))
                }
            };
            // The caller may have disconnected; then the lease returns the messages.
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
        let mut hidden = Vec::new();
        for (write, place) in writing.batch.writes.into_iter().zip(placed.writes) {
            let number = write.number;
            self.index.insert(number, write.head, place, !write.hidden);
            changed |= !write.hidden;
            if write.hidden {
                hidden.push(number);
            }
        }
        self.index.forget(writing.batch.forgotten);
        // Before the answers: a caller then reads the depth after its own message.
        self.publish();
        for (answers, done) in writing.puts {
            // The caller may have disconnected; then no lease makes its hidden messages visible.
            if let Err(answers) = done.send(answers) {
                for put in answers.into_iter().flatten() {
                    if let Put::Stored(number) = put
                        && hidden.contains(&number)
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
            // The caller may have disconnected.
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
                    found.deliveries.push(self.index.deliver(number));
                    most.messages = most.messages.saturating_sub(1);
                    most.bytes = most.bytes.saturating_sub(message.payload.len());
                    found.numbers.push(number);
                    found.messages.push(message);
                }
                Ok(None) => break,
                Err(error) if found.numbers.is_empty() => return Err(error),
                // The next caller gets the error.
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

/// Results of messages, sent to their caller once the transaction is written.
type Answers = (Vec<Result<Put, PutError>>, Done<Vec<Result<Put, PutError>>>);

/// Content of one transaction, and the callers that wait for it.
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
        Job::Update(Update::Put { messages, .. }) => {
            messages.iter().map(|message| message.payload.len()).sum()
        }
        Job::Update(Update::Confirm { .. } | Update::Release(_)) | Job::Query(_) => 0,
    }
}

/// The oldest visible message whose payload is intact.
fn read(
    reader: &mut Reader<'_>,
    index: &mut Index,
    topic: Option<&Topic>,
) -> Result<Option<(MessageNumber, Inbound)>, InboxError> {
    while let Some((number, entry)) = index.first(topic) {
        if let Some(payload) = reader.payload(number, entry)? {
            return Ok(Some((number, entry.head.message(payload))));
        }
        // It stays in the file, for diagnosis.
        tracing::error!(error = %reader.damaged(number), "a message is left out");
        index.hide(number);
    }
    Ok(None)
}

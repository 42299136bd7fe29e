//! The file: tables, transactions, what to do with a damaged one.

#![allow(
    clippy::result_large_err,
    reason = "errors of the library, which stay inside this file and are seldom"
)]

use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

use ahash::RandomState;
use bytes::Bytes;
use hyphae_bus::DeliveryKey;
use hyphae_files::Directory;
use hyphae_wire::PublicKey;
use redb::{
    AccessGuard, Builder, Database, DatabaseError, Durability, Error, ReadOnlyTable, ReadableTable,
    StorageError, TableDefinition, TableError,
};

use super::index::{Entry, Index};
use super::record::{self, Head, IN_PIECES, KEY_LEN, Place};
use super::{INBOX_FILE, InboxError, MessageNumber, path_in};

/// Messages that were written together, by the number of the first.
const SHELVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("shelves");
/// A payload that is too long for a shelf, piece by piece, by the number of its message: the head is alone on
/// its shelf, in a record without a payload. One long value would be copied, as a whole, several times.
const PIECES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("pieces");
/// Of a shelf: which of its messages have been taken, bit by bit from its first number on.
const TAKEN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("taken");
/// Ids of messages of one sender that came together, by the number of the first.
const COMPLETED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("completed");
/// How often messages were handed out, of those that were leased and are still there.
const DELIVERIES: TableDefinition<'_, u64, u32> = TableDefinition::new("deliveries");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const FORMAT_NOW: u64 = 3;
/// What an inbox without a file is called.
const IN_MEMORY: &str = "in memory";
/// Pages that are kept in memory.
const CACHE: usize = 8 << 20;
/// A file larger than its content by this and by [`WASTE_FACTOR`] is rewritten when it is opened.
const WASTE: u64 = 32 << 20;
const WASTE_FACTOR: u64 = 2;
/// A shelf takes no more messages when it has so many bytes.
const SHELF_FULL: usize = 1 << 20;
/// Bytes of a piece: with what surrounds it, it fits a page of 1 MiB.
const PIECE: usize = (1 << 20) - 4096;
/// A shelf of at least so many bytes is written again when less than a quarter of them is of use.
const SHELF_SMALL: u64 = 64 << 10;

/// A message that is to be written.
pub(super) struct Write {
    pub(super) number: MessageNumber,
    pub(super) head: Head,
    pub(super) payload: Bytes,
    /// Hidden from those who take messages out.
    pub(super) held: bool,
}

/// One transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) writes: Vec<Write>,
    pub(super) removals: Vec<Removal>,
    /// The oldest ids of these senders, so many of them, are forgotten.
    pub(super) forgotten: Vec<(PublicKey, usize)>,
    /// How often messages have been handed out by now.
    pub(super) deliveries: Vec<(MessageNumber, u32)>,
}

/// A message that is to be removed.
pub(super) struct Removal {
    pub(super) number: MessageNumber,
    pub(super) shelf: u64,
    pub(super) len: u64,
    /// There is a row of how often it was handed out.
    pub(super) recorded: bool,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.removals.is_empty() && self.deliveries.is_empty()
    }
}

/// The store. After a failed write it is not to be used any more.
pub(super) struct Store {
    content: Content,
}

enum Content {
    File(Box<File>),
    /// Payloads alone: what else there is, the index knows.
    Memory(RefCell<HashMap<MessageNumber, Bytes, RandomState>>),
}

struct File {
    directory: Directory,
    database: Database,
    shelves: HashMap<u64, Shelf, RandomState>,
    completed: Completed,
}

/// Where the ids of each sender are.
#[derive(Default)]
struct Completed {
    senders: HashMap<PublicKey, Rows, RandomState>,
    /// Rows with ids of several senders, as earlier versions wrote them: of how many there are ids that are remembered.
    shared: HashMap<u64, usize, RandomState>,
}

#[derive(Default)]
struct Rows {
    /// Oldest first, and how many ids each has.
    rows: VecDeque<(u64, usize)>,
    /// Of the oldest row: forgotten already.
    forgotten: usize,
}

impl Completed {
    fn add(&mut self, sender: PublicKey, row: u64, count: usize) {
        let of = self.senders.entry(sender).or_default();
        of.rows.push_back((row, count));
    }

    /// The oldest ids of a sender are forgotten; gives the rows that nothing is left of.
    fn forget(&mut self, sender: PublicKey, count: usize) -> Vec<u64> {
        let mut empty = Vec::new();
        let Some(of) = self.senders.get_mut(&sender) else {
            return empty;
        };
        of.forgotten += count;
        while let Some((row, count)) = of.rows.front().copied()
            && count <= of.forgotten
        {
            of.rows.pop_front();
            of.forgotten -= count;
            let left = self.shared.get_mut(&row).map_or(0, |others| {
                *others -= 1;
                *others
            });
            if left == 0 {
                self.shared.remove(&row);
                empty.push(row);
            }
        }
        if of.rows.is_empty() {
            self.senders.remove(&sender);
        }
        empty
    }
}

/// What is known of a shelf without reading it.
struct Shelf {
    /// Messages that have not been taken.
    left: u64,
    /// Bytes of their payloads.
    useful: u64,
    /// Bytes of all of it.
    size: u64,
    /// Of its only message.
    pieces: u32,
    taken: Vec<u8>,
}

impl Shelf {
    fn new(size: usize) -> Self {
        Self {
            left: 0,
            useful: 0,
            size: size as u64,
            pieces: 0,
            taken: Vec::new(),
        }
    }

    fn add(&mut self, payload: usize) {
        self.left += 1;
        self.useful += payload as u64;
    }

    fn take(&mut self, first: u64, removal: &Removal) {
        let (byte, bit) = bit_of(first, removal.number.0);
        if self.taken.len() <= byte {
            self.taken.resize(byte + 1, 0);
        }
        if let Some(bits) = self.taken.get_mut(byte) {
            *bits |= bit;
        }
        self.left = self.left.saturating_sub(1);
        self.useful = self.useful.saturating_sub(removal.len);
    }

    fn is_wasteful(&self) -> bool {
        self.size >= SHELF_SMALL && self.useful < self.size / 4
    }
}

fn bit_of(first: u64, number: u64) -> (usize, u8) {
    let at = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
    (at / 8, 1 << (at % 8))
}

fn is_taken(bits: &[u8], first: u64, number: u64) -> bool {
    let (byte, bit) = bit_of(first, number);
    bits.get(byte).is_some_and(|bits| bits & bit != 0)
}

/// Where messages lie after a transaction.
#[derive(Default)]
pub(super) struct Placed {
    /// Those that were written, in order.
    pub(super) writes: Vec<Place>,
    /// Others that have moved.
    pub(super) moved: Vec<(MessageNumber, Place)>,
}

/// What the store held when it was opened.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// Ids of messages that came, oldest first.
    pub(super) completed: Vec<DeliveryKey>,
    /// Above every number in use.
    pub(super) next: u64,
}

impl Store {
    /// Opens or makes a file; `None` keeps everything in memory.
    pub(super) fn open(directory: Option<&Directory>) -> Result<(Self, Loaded), InboxError> {
        let Some(directory) = directory else {
            let store = Self {
                content: Content::Memory(RefCell::default()),
            };
            let loaded = Loaded {
                index: Index::default(),
                completed: Vec::new(),
                next: 1,
            };
            return Ok((store, loaded));
        };
        let place = &path_in(directory);
        let fail = |error: Error| explain(place, error);
        let _hand = InHand::take(directory);
        let is_new = !directory.contains(INBOX_FILE);
        let opened = directory.open_or_create(INBOX_FILE).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        let (file, size) = opened.map_err(|source| io_error(place, source))?;
        if size == 0 && !is_new {
            return Err(InboxError::Damaged {
                path: place.clone(),
                message: "it is empty, which no inbox is".to_owned(),
            });
        }
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        let database = builder.create_file(file);
        let mut database = database.map_err(|error| fail(opening(error)))?;
        // A kill is repaired while opening. What a disk or a hand did to the file is found only here, and
        // later it would be found in the middle of something.
        if !database.check_integrity().map_err(|e| fail(opening(e)))? {
            tracing::warn!(inbox = %place.display(), "inbox was repaired");
        }
        let (loaded, shelves, completed) = prepare(&database, place)?;
        let live = loaded.index.bytes();
        if size > live.saturating_mul(WASTE_FACTOR) + WASTE {
            database.compact().map_err(|error| fail(error.into()))?;
        }
        let store = Self {
            content: Content::File(Box::new(File {
                directory: directory.clone(),
                database,
                shelves,
                completed,
            })),
        };
        Ok((store, loaded))
    }

    /// Writes a batch and syncs. When this returns `Ok`, it survives the loss of power.
    pub(super) fn commit(&mut self, batch: &Batch) -> Result<Placed, InboxError> {
        let file = match &mut self.content {
            Content::File(file) => file,
            Content::Memory(payloads) => {
                let payloads = payloads.get_mut();
                let writes = batch.writes.iter();
                payloads.extend(writes.map(|write| (write.number, write.payload.clone())));
                for removal in &batch.removals {
                    payloads.remove(&removal.number);
                }
                let writes = vec![Place::default(); batch.writes.len()];
                return Ok(Placed {
                    writes,
                    ..Placed::default()
                });
            }
        };
        let _hand = InHand::take(&file.directory);
        file.write(batch)
            .map_err(|error| explain(&path_in(&file.directory), error))
    }

    /// A look at the payloads as they are now: opening one costs more than reading a message.
    pub(super) fn reader(&self) -> Result<Reader<'_>, InboxError> {
        let (database, directory) = match &self.content {
            Content::File(file) => (&file.database, &file.directory),
            Content::Memory(payloads) => return Ok(Reader::Memory(payloads.borrow())),
        };
        let _hand = InHand::take(directory);
        let open = || -> Result<_, Error> {
            let transaction = database.begin_read()?;
            Ok(Box::new(Tables {
                shelves: transaction.open_table(SHELVES)?,
                pieces: transaction.open_table(PIECES)?,
            }))
        };
        let tables = open().map_err(|error| explain(&path_in(directory), error))?;
        Ok(Reader::File {
            tables,
            directory,
            open: None,
        })
    }
}

impl File {
    fn write(&mut self, batch: &Batch) -> Result<Placed, Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate);
        let mut placed = Placed::default();
        {
            let mut shelves = transaction.open_table(SHELVES)?;
            let mut taken = transaction.open_table(TAKEN)?;
            let mut completed = transaction.open_table(COMPLETED)?;
            let mut pieces = transaction.open_table(PIECES)?;
            // Of each sender: the number of the first, and ids.
            let mut ids = BTreeMap::<PublicKey, (u64, Vec<u8>)>::new();
            for Write { number, head, .. } in &batch.writes {
                let (_, of) = ids
                    .entry(head.key.peer)
                    .or_insert_with(|| (number.0, Vec::new()));
                of.extend_from_slice(&record::encode_key(&head.key));
            }
            for (sender, (row, ids)) in ids {
                completed.insert(row, &ids[..])?;
                self.completed.add(sender, row, ids.len() / KEY_LEN);
            }
            let mut rest = &batch.writes[..];
            while let Some(first) = rest.first() {
                let (first, mut bytes) = (first.number.0, Vec::new());
                let mut count = 0;
                let mut shelf = Shelf::new(0);
                for write in rest {
                    let (number, head) = (write.number.0, write.head.encode());
                    let fits = bytes.len() + head.len() + write.payload.len() <= SHELF_FULL;
                    if (count > 0 && !fits) || shelf.pieces > 0 {
                        break;
                    }
                    let at = if fits {
                        record::append(&mut bytes, number, &head, &write.payload)
                    } else {
                        record::append(&mut bytes, number, &head, &[]);
                        for (n, piece) in (0..).zip(write.payload.chunks(PIECE)) {
                            pieces.insert((first, n), piece)?;
                            shelf.pieces = n + 1;
                        }
                        IN_PIECES
                    };
                    placed.writes.push(Place { shelf: first, at });
                    shelf.add(write.payload.len());
                    count += 1;
                }
                rest = rest.get(count..).unwrap_or_default();
                shelf.size = bytes.len() as u64;
                shelves.insert(first, &bytes[..])?;
                self.shelves.insert(first, shelf);
            }
            if !batch.deliveries.is_empty() || batch.removals.iter().any(|it| it.recorded) {
                let mut deliveries = transaction.open_table(DELIVERIES)?;
                for (number, count) in &batch.deliveries {
                    deliveries.insert(number.0, count)?;
                }
                for removal in batch.removals.iter().filter(|it| it.recorded) {
                    deliveries.remove(removal.number.0)?;
                }
            }
            let mut touched = BTreeSet::new();
            for removal in &batch.removals {
                if let Some(shelf) = self.shelves.get_mut(&removal.shelf) {
                    shelf.take(removal.shelf, removal);
                    touched.insert(removal.shelf);
                }
            }
            for first in touched {
                let Some(shelf) = self.shelves.get_mut(&first) else {
                    continue;
                };
                if shelf.left == 0 {
                    for n in 0..shelf.pieces {
                        pieces.remove((first, n))?;
                    }
                    shelves.remove(first)?;
                    taken.remove(first)?;
                    self.shelves.remove(&first);
                } else if shelf.is_wasteful() {
                    let (bytes, moved) = {
                        let found = shelves.get(first)?;
                        let old = found.as_ref().map_or(&[][..], |old| old.value());
                        tidied(old, first, &shelf.taken)
                    };
                    shelves.insert(first, &bytes[..])?;
                    taken.remove(first)?;
                    shelf.size = bytes.len() as u64;
                    shelf.taken.clear();
                    placed.moved.extend(moved);
                } else {
                    taken.insert(first, &shelf.taken[..])?;
                }
            }
            for (sender, count) in &batch.forgotten {
                for row in self.completed.forget(*sender, *count) {
                    completed.remove(row)?;
                }
            }
        }
        transaction.commit()?;
        Ok(placed)
    }
}

/// A shelf without what has been taken from it, and where the others lie then.
fn tidied(old: &[u8], first: u64, taken: &[u8]) -> (Vec<u8>, Vec<(MessageNumber, Place)>) {
    let (mut bytes, mut moved) = (Vec::new(), Vec::new());
    for record in record::records(old).flatten() {
        if !is_taken(taken, first, record.number) {
            let at = record::append(&mut bytes, record.number, record.head, record.payload);
            moved.push((MessageNumber(record.number), Place { shelf: first, at }));
        }
    }
    (bytes, moved)
}

/// Where payloads lie in a file.
pub(super) struct Tables {
    shelves: ReadOnlyTable<u64, &'static [u8]>,
    pieces: ReadOnlyTable<(u64, u32), &'static [u8]>,
}

/// The payloads at one moment.
pub(super) enum Reader<'a> {
    File {
        tables: Box<Tables>,
        directory: &'a Directory,
        /// The shelf that was read last: the next message is mostly on it.
        open: Option<(u64, Box<AccessGuard<'static, &'static [u8]>>)>,
    },
    Memory(Ref<'a, HashMap<MessageNumber, Bytes, RandomState>>),
}

impl Reader<'_> {
    /// The payload of a message; `None` when what is there is not what came.
    pub(super) fn payload(
        &mut self,
        number: MessageNumber,
        entry: &Entry,
    ) -> Result<Option<Bytes>, InboxError> {
        let (tables, directory, open) = match self {
            Self::File {
                tables,
                directory,
                open,
            } => (tables, *directory, open),
            Self::Memory(payloads) => return Ok(payloads.get(&number).cloned()),
        };
        let Place { shelf, at } = entry.place;
        if at == IN_PIECES {
            let _hand = InHand::take(directory);
            let bytes = joined(&tables.pieces, shelf, entry.head.len);
            let bytes = bytes.map_err(|error| explain(&path_in(directory), error))?;
            return Ok(entry.head.is_of(&bytes).then(|| bytes.into()));
        }
        if open.as_ref().is_none_or(|(open, _)| *open != shelf) {
            let _hand = InHand::take(directory);
            let found = tables.shelves.get(shelf);
            let found = found.map_err(|error| explain(&path_in(directory), error.into()))?;
            *open = found.map(|found| (shelf, Box::new(found)));
        }
        let end = usize::try_from(entry.head.len)
            .ok()
            .and_then(|len| at.checked_add(len));
        let bytes = open
            .as_ref()
            .and_then(|(_, bytes)| bytes.value().get(at..end?));
        let bytes = bytes.filter(|bytes| entry.head.is_of(bytes));
        Ok(bytes.map(Bytes::copy_from_slice))
    }

    /// What is wrong when a payload is not what came.
    pub(super) fn damaged(&self, number: MessageNumber) -> InboxError {
        InboxError::Damaged {
            path: match self {
                Self::File { directory, .. } => path_in(directory),
                Self::Memory(_) => PathBuf::from(IN_MEMORY),
            },
            message: format!("the payload of message {} is not what came", number.0),
        }
    }
}

/// The pieces of a payload of this length, or as much as there is.
fn joined(
    pieces: &ReadOnlyTable<(u64, u32), &'static [u8]>,
    shelf: u64,
    len: u64,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
    for piece in pieces.range((shelf, 0)..(shelf, pieces_of(len)))? {
        bytes.extend_from_slice(piece?.1.value());
    }
    Ok(bytes)
}

fn pieces_of(len: u64) -> u32 {
    u32::try_from(len.div_ceil(PIECE as u64)).unwrap_or(u32::MAX)
}

/// What was found, and what is known of it without reading it again.
type Prepared = (Loaded, HashMap<u64, Shelf, RandomState>, Completed);

/// Makes the tables and reads what memory holds of them.
fn prepare(database: &Database, path: &Path) -> Result<Prepared, InboxError> {
    let fail = |error: Error| explain(path, error);
    let made = || -> Result<u64, Error> {
        let transaction = database.begin_write()?;
        let format = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(FORMAT)?.map(|format| format.value());
            if found.is_none() {
                meta.insert(FORMAT, FORMAT_NOW)?;
                transaction.open_table(SHELVES)?;
                transaction.open_table(PIECES)?;
                transaction.open_table(TAKEN)?;
                transaction.open_table(COMPLETED)?;
            }
            found
        };
        if format.is_none() {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        Ok(format.unwrap_or(FORMAT_NOW))
    };
    let found = made().map_err(fail)?;
    if found != FORMAT_NOW {
        return Err(InboxError::Format {
            path: path.to_owned(),
            found,
            expected: FORMAT_NOW,
        });
    }
    let mut unreadable = None;
    let read = |unreadable: &mut Option<u64>| -> Result<Prepared, Error> {
        let transaction = database.begin_read()?;
        let (mut index, mut next) = (Index::default(), 1);
        let (mut completed, mut rows) = (Vec::new(), Completed::default());
        for row in transaction.open_table(COMPLETED)?.iter()? {
            let (first, keys) = row?;
            let (keys, rest) = keys.value().as_chunks::<KEY_LEN>();
            if !rest.is_empty() {
                *unreadable = Some(first.value());
            }
            let mut senders = BTreeMap::<PublicKey, usize>::new();
            for key in keys {
                let key = record::decode_key(key);
                if index.complete(&key) {
                    *senders.entry(key.peer).or_default() += 1;
                }
                completed.push(key);
            }
            if senders.len() > 1 {
                rows.shared.insert(first.value(), senders.len());
            }
            for (sender, count) in senders {
                rows.add(sender, first.value(), count);
            }
            next = next.max(first.value() + keys.len() as u64);
        }
        let taken = transaction.open_table(TAKEN)?;
        let mut shelves = HashMap::default();
        for row in transaction.open_table(SHELVES)?.iter()? {
            let (first, bytes) = row?;
            let (first, bytes) = (first.value(), bytes.value());
            let bits = taken.get(first)?;
            let mut shelf = Shelf::new(bytes.len());
            shelf.taken = bits.map(|bits| bits.value().to_vec()).unwrap_or_default();
            for record in record::records(bytes) {
                let head = record.as_ref().and_then(|record| Head::decode(record.head));
                let (Some(record), Some(head)) = (record, head) else {
                    *unreadable = Some(first);
                    break;
                };
                next = next.max(record.number + 1);
                if is_taken(&shelf.taken, first, record.number) {
                    continue;
                }
                let len = record.payload.len() as u64;
                let apart = record.number == first && len == 0 && head.len > 0;
                if head.len != len && !apart {
                    *unreadable = Some(record.number);
                }
                let at = if apart {
                    shelf.pieces = pieces_of(head.len);
                    IN_PIECES
                } else {
                    record.at
                };
                let place = Place { shelf: first, at };
                shelf.add(usize::try_from(head.len).unwrap_or(usize::MAX));
                index.insert(MessageNumber(record.number), head, place, true);
            }
            shelves.insert(first, shelf);
        }
        match transaction.open_table(DELIVERIES) {
            Ok(deliveries) => {
                for row in deliveries.iter()? {
                    let (number, count) = row?;
                    index.recall(MessageNumber(number.value()), count.value());
                }
            }
            // No message has been leased yet.
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let loaded = Loaded {
            index,
            completed,
            next,
        };
        Ok((loaded, shelves, rows))
    };
    let loaded = read(&mut unreadable).map_err(fail)?;
    match unreadable {
        None => Ok(loaded),
        Some(number) => Err(InboxError::Damaged {
            path: path.to_owned(),
            message: format!("the entry of message {number} cannot be read"),
        }),
    }
}

/// Moves a damaged file away.
pub(super) fn move_aside(directory: &Directory) -> Result<PathBuf, InboxError> {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut number = unix.as_secs();
    let target = loop {
        let target = format!("{INBOX_FILE}.damaged-{number}");
        if !directory.contains(&target) {
            break target;
        }
        number += 1;
    };
    let renamed = directory.rename(INBOX_FILE, &target);
    renamed.map_err(|source| io_error(&path_in(directory), source))?;
    Ok(directory.path_of(&target))
}

thread_local! {
    /// Where the file is that this thread is working on.
    static IN_HAND: RefCell<Option<Directory>> = const { RefCell::new(None) };
}

/// While it lives, a panic of this thread moves the file aside.
///
/// The library asserts what a damaged file can break, and in a release build a panic ends the process
/// without unwinding. The hook still runs: so the next start finds no file to trip over again, and the
/// damaged one is kept.
struct InHand;

impl InHand {
    fn take(directory: &Directory) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let hand = IN_HAND.with(|hand| hand.try_borrow_mut().ok()?.take());
                if let Some(directory) = hand.filter(|directory| directory.contains(INBOX_FILE)) {
                    match move_aside(&directory) {
                        Ok(moved) => tracing::error!(
                            inbox = %path_in(&directory).display(),
                            moved_to = %moved.display(),
                            "inbox is damaged; it is moved aside and kept, the next start makes a new one"
                        ),
                        Err(error) => tracing::error!(%error, "inbox is damaged: move it away"),
                    }
                }
                before(info);
            }));
        });
        IN_HAND.with(|hand| *hand.borrow_mut() = Some(directory.clone()));
        Self
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        IN_HAND.with(|hand| *hand.borrow_mut() = None);
    }
}

/// What opening ran into; a file of another kind counts as damaged.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum of the library is open; what is not named here means what it says"
)]
fn opening(error: DatabaseError) -> Error {
    match error {
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Error::Corrupted(error.to_string())
        }
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => {
            Error::Corrupted(error.to_string())
        }
        other => other.into(),
    }
}

fn io_error(path: &Path, source: io::Error) -> InboxError {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let kind = source.kind();
    let hint = if matches!(kind, StorageFull | QuotaExceeded | FileTooLarge) {
        "; make room on its disk"
    } else if matches!(kind, PermissionDenied | ReadOnlyFilesystem) {
        "; make it writable, or name another state directory with --state-dir"
    } else {
        ""
    };
    InboxError::Io {
        path: path.to_owned(),
        source,
        hint,
    }
}

/// The error of the store in our terms.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum of the library is open; whatever else there is means that the content is not as written"
)]
fn explain(path: &Path, error: Error) -> InboxError {
    match error {
        Error::Io(source) => io_error(path, source),
        Error::PreviousIo => io_error(path, io::Error::other("an earlier write failed")),
        Error::DatabaseAlreadyOpen => InboxError::InUse(path.to_owned()),
        other => InboxError::Damaged {
            path: path.to_owned(),
            message: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_ids_of_several_senders_goes_with_the_last_of_them() {
        let mut completed = Completed::default();
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        completed.add(a, 7, 2);
        completed.add(b, 7, 1);
        completed.shared.insert(7, 2);
        completed.add(a, 9, 3);
        assert_eq!(completed.forget(a, 4), [0; 0], "the other has one in it");
        assert_eq!(completed.forget(b, 1), [7]);
        assert_eq!(completed.forget(a, 1), [9]);
        assert!(completed.senders.is_empty() && completed.shared.is_empty());
    }
}

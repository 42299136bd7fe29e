//! The file: tables, transactions, what to do with a damaged one.

#![allow(
    clippy::result_large_err,
    reason = "errors of the library, which stay inside this file and are seldom"
)]

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, Durability, Error, ReadOnlyTable, ReadableTable,
    ReadableTableMetadata, StorageError, TableDefinition,
};

use super::record::{self, Head, KEY_LEN};
use super::{InboxError, MessageNumber, index::Index};

const HEADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("heads");
const PAYLOADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("payloads");
/// By age.
const COMPLETED: TableDefinition<'_, u64, &[u8; KEY_LEN]> = TableDefinition::new("completed");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: &str = "format";
const FORMAT_NOW: u64 = 1;
/// What an inbox without a file is called.
const IN_MEMORY: &str = "in memory";
/// Pages that are kept in memory.
const CACHE: usize = 8 << 20;
/// A file larger than its content by this and by [`WASTE_FACTOR`] is rewritten when it is opened.
const WASTE: u64 = 32 << 20;
const WASTE_FACTOR: u64 = 2;

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
    pub(super) removals: Vec<MessageNumber>,
    /// Ages of ids that are forgotten.
    pub(super) forgotten: Vec<u64>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.removals.is_empty()
    }
}

/// The store.
pub(super) struct Store {
    path: PathBuf,
    content: Content,
}

enum Content {
    File(Box<Database>),
    /// Payloads alone: what else there is, the index knows.
    Memory(RefCell<BTreeMap<MessageNumber, Bytes>>),
}

/// What the store held when it was opened.
pub(super) struct Loaded {
    pub(super) index: Index,
    /// Above every number in use.
    pub(super) next: u64,
}

impl Store {
    /// Opens or makes a file; `None` keeps everything in memory.
    pub(super) fn open(path: Option<&Path>) -> Result<(Self, Loaded), InboxError> {
        let Some(place) = path else {
            let store = Self {
                path: PathBuf::from(IN_MEMORY),
                content: Content::Memory(RefCell::default()),
            };
            let (index, next) = (Index::default(), 1);
            return Ok((store, Loaded { index, next }));
        };
        let fail = |error: Error| explain(place, error);
        let _hand = InHand::take(place);
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        let database = builder.create(place);
        let mut database = database.map_err(|error| fail(opening(error)))?;
        // A kill is repaired while opening. What a disk or a hand did to the file is found only here, and
        // later it would be found in the middle of something.
        if !database.check_integrity().map_err(|e| fail(opening(e)))? {
            tracing::warn!(inbox = %place.display(), "inbox was repaired");
        }
        let loaded = prepare(&database, place)?;
        let live = loaded.index.bytes();
        let size = std::fs::metadata(place);
        if size.is_ok_and(|file| file.len() > live.saturating_mul(WASTE_FACTOR) + WASTE) {
            database.compact().map_err(|error| fail(error.into()))?;
        }
        let store = Self {
            path: place.to_owned(),
            content: Content::File(Box::new(database)),
        };
        Ok((store, loaded))
    }

    /// Writes a batch and syncs. When this returns `Ok`, it survives the loss of power.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), InboxError> {
        let database = match &self.content {
            Content::File(database) => database,
            Content::Memory(payloads) => {
                let mut payloads = payloads.borrow_mut();
                let writes = batch.writes.iter();
                payloads.extend(writes.map(|write| (write.number, write.payload.clone())));
                for number in &batch.removals {
                    payloads.remove(number);
                }
                return Ok(());
            }
        };
        let _hand = InHand::take(&self.path);
        let write = || -> Result<(), Error> {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate);
            {
                let mut heads = transaction.open_table(HEADS)?;
                let mut payloads = transaction.open_table(PAYLOADS)?;
                let mut completed = transaction.open_table(COMPLETED)?;
                for Write {
                    number,
                    head,
                    payload,
                    held: _,
                } in &batch.writes
                {
                    heads.insert(number.0, &head.encode()[..])?;
                    payloads.insert(number.0, &payload[..])?;
                    completed.insert(number.0, &record::encode_key(&head.key))?;
                }
                for number in &batch.removals {
                    heads.remove(number.0)?;
                    payloads.remove(number.0)?;
                }
                for age in &batch.forgotten {
                    completed.remove(age)?;
                }
            }
            Ok(transaction.commit()?)
        };
        write().map_err(|error| explain(&self.path, error))
    }

    /// A look at the payloads as they are now: opening one costs more than reading a message.
    pub(super) fn reader(&self) -> Result<Reader<'_>, InboxError> {
        let database = match &self.content {
            Content::File(database) => database,
            Content::Memory(payloads) => return Ok(Reader::Memory(payloads.borrow())),
        };
        let _hand = InHand::take(&self.path);
        let open = || -> Result<_, Error> { Ok(database.begin_read()?.open_table(PAYLOADS)?) };
        let table = open().map_err(|error| explain(&self.path, error))?;
        let path = &self.path;
        Ok(Reader::File { table, path })
    }
}

/// The payloads at one moment.
pub(super) enum Reader<'a> {
    File {
        table: ReadOnlyTable<u64, &'static [u8]>,
        path: &'a Path,
    },
    Memory(Ref<'a, BTreeMap<MessageNumber, Bytes>>),
}

impl Reader<'_> {
    /// The payload of a message, unchecked.
    pub(super) fn payload(&self, number: MessageNumber) -> Result<Option<Bytes>, InboxError> {
        let (table, path) = match self {
            Self::File { table, path } => (table, path),
            Self::Memory(payloads) => return Ok(payloads.get(&number).cloned()),
        };
        let _hand = InHand::take(path);
        let found = table.get(number.0);
        let found = found.map_err(|error| explain(path, error.into()))?;
        Ok(found.map(|bytes| Bytes::copy_from_slice(bytes.value())))
    }

    /// What is wrong when a payload is not what came.
    pub(super) fn damaged(&self, number: MessageNumber) -> InboxError {
        InboxError::Damaged {
            path: match self {
                Self::File { path, .. } => path.to_path_buf(),
                Self::Memory(_) => PathBuf::from(IN_MEMORY),
            },
            message: format!("the payload of message {} is not what came", number.0),
        }
    }
}

/// Makes the tables and reads what memory holds of them.
fn prepare(database: &Database, path: &Path) -> Result<Loaded, InboxError> {
    let fail = |error: Error| explain(path, error);
    let made = || -> Result<u64, Error> {
        let transaction = database.begin_write()?;
        let format = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(FORMAT)?.map(|format| format.value());
            if found.is_none() {
                meta.insert(FORMAT, FORMAT_NOW)?;
                transaction.open_table(HEADS)?;
                transaction.open_table(PAYLOADS)?;
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
    let read = |unreadable: &mut Option<u64>| -> Result<Loaded, Error> {
        let transaction = database.begin_read()?;
        let (mut index, mut next) = (Index::default(), 1);
        let completed = transaction.open_table(COMPLETED)?;
        for row in completed.iter()? {
            let (age, key) = row?;
            index.complete(age.value(), record::decode_key(key.value()));
            next = next.max(age.value() + 1);
        }
        let heads = transaction.open_table(HEADS)?;
        for row in heads.iter()? {
            let (number, bytes) = row?;
            let number = number.value();
            match Head::decode(bytes.value()) {
                Some(head) => index.insert(MessageNumber(number), head, true),
                None => *unreadable = Some(number),
            }
            next = next.max(number + 1);
        }
        if transaction.open_table(PAYLOADS)?.len()? != heads.len()? {
            *unreadable = Some(0);
        }
        Ok(Loaded { index, next })
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
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, InboxError> {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut number = unix.as_secs();
    let target = loop {
        let target = path.with_extension(format!("redb.damaged-{number}"));
        if !target.exists() {
            break target;
        }
        number += 1;
    };
    std::fs::rename(path, &target).map_err(|source| io_error(path, source))?;
    Ok(target)
}

thread_local! {
    /// The file that this thread is working on.
    static IN_HAND: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// While it lives, a panic of this thread moves the file aside.
///
/// The library asserts what a damaged file can break, and in a release build a panic ends the process
/// without unwinding. The hook still runs: so the next start finds no file to trip over again, and the
/// damaged one is kept.
struct InHand;

impl InHand {
    fn take(path: &Path) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let path = IN_HAND.with(|path| path.try_borrow_mut().ok()?.take());
                if let Some(path) = path.filter(|path| path.exists()) {
                    match move_aside(&path) {
                        Ok(moved) => tracing::error!(
                            inbox = %path.display(),
                            moved_to = %moved.display(),
                            "inbox is damaged; it is moved aside and kept, the next start makes a new one"
                        ),
                        Err(error) => tracing::error!(%error, "inbox is damaged: move it away"),
                    }
                }
                before(info);
            }));
        });
        IN_HAND.with(|hand| *hand.borrow_mut() = Some(path.to_owned()));
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

//! The store: one file, one transaction per batch.

#![allow(
    clippy::result_large_err,
    reason = "errors of the library, which stay inside the inbox and are rare"
)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ahash::RandomState;
use bytes::Bytes;
use hyphae_files::Directory;
use hyphae_wire::PublicKey;
use redb::{Builder, Database, Durability, Error, ReadableTable, StorageError, Table};

use super::batch::{Batch, Loaded, Placed, Removal, Write};
use super::completed::Completed;
use super::damage::{InHand, explain, io_error, opening};
use super::error::InboxError;
use super::index::Index;
use super::load::load;
use super::reader::{PIECE, Reader, Tables};
use super::record::{self, IN_PIECES, KEY_LEN, Place};
use super::shelf::{Shelf, tidied};
use super::tables::{COMPLETED, DELIVERIES, PIECES, SHELVES, TAKEN};
use super::types::{INBOX_FILE, MessageNumber, path_in};

/// Page cache, bytes.
const CACHE: usize = 8 << 20;
/// A file larger than its content by this and by [`WASTE_FACTOR`] is rewritten when it is opened.
const WASTE: u64 = 32 << 20;
const WASTE_FACTOR: u64 = 2;
/// Size of a full shelf, bytes.
const SHELF_FULL: usize = 1 << 20;

/// The store. It must not be used after a failed write.
pub(super) struct Store {
    content: Content,
}

enum Content {
    File(Box<File>),
    /// Payloads only; the index has the heads.
    Memory(RefCell<HashMap<MessageNumber, Bytes, RandomState>>),
}

struct File {
    directory: Directory,
    database: Database,
    shelves: HashMap<u64, Shelf, RandomState>,
    completed: Completed,
}

impl Store {
    /// Opens or creates a file; `None`: in memory.
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
        // Opening repairs the effects of a kill. Damage by the disk or an editor is detected only here; later it would
        // fail a transaction.
        if !database.check_integrity().map_err(|e| fail(opening(e)))? {
            tracing::warn!(inbox = %place.display(), "inbox was repaired");
        }
        let found = load(&database, place)?;
        let live = found.loaded.index.bytes();
        if size > live.saturating_mul(WASTE_FACTOR) + WASTE {
            database.compact().map_err(|error| fail(error.into()))?;
        }
        let store = Self {
            content: Content::File(Box::new(File {
                directory: directory.clone(),
                database,
                shelves: found.shelves,
                completed: found.completed,
            })),
        };
        Ok((store, found.loaded))
    }

    /// Writes a batch and syncs: after `Ok` it survives a loss of power.
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

    /// A snapshot of the payloads. Opening one costs more than reading a message.
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

/// A table of byte strings.
type ByteTable<'a, K> = Table<'a, K, &'static [u8]>;

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
            self.write_ids(&mut completed, &batch.writes)?;
            placed.writes = self.write_shelves(&mut shelves, &mut pieces, &batch.writes)?;
            if !batch.deliveries.is_empty() || batch.removals.iter().any(|it| it.recorded) {
                write_deliveries(&mut transaction.open_table(DELIVERIES)?, batch)?;
            }
            for first in self.take(&batch.removals) {
                placed
                    .moved
                    .extend(self.shrink(first, &mut shelves, &mut taken, &mut pieces)?);
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

    /// Writes the ids of messages, a row for each sender.
    fn write_ids(
        &mut self,
        table: &mut ByteTable<'_, u64>,
        writes: &[Write],
    ) -> Result<(), StorageError> {
        // Number of the first message, and ids.
        let mut ids = BTreeMap::<PublicKey, (u64, Vec<u8>)>::new();
        for Write { number, head, .. } in writes {
            let (_, of) = ids
                .entry(head.key.peer)
                .or_insert_with(|| (number.0, Vec::new()));
            of.extend_from_slice(&record::encode_key(&head.key));
        }
        for (sender, (row, ids)) in ids {
            table.insert(row, &ids[..])?;
            self.completed.add(sender, row, ids.len() / KEY_LEN);
        }
        Ok(())
    }

    /// Writes messages to new shelves; returns their places, in order.
    fn write_shelves(
        &mut self,
        shelves: &mut ByteTable<'_, u64>,
        pieces: &mut ByteTable<'_, (u64, u32)>,
        writes: &[Write],
    ) -> Result<Vec<Place>, StorageError> {
        let mut places = Vec::with_capacity(writes.len());
        let mut rest = writes;
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
                places.push(Place { shelf: first, at });
                shelf.add(write.payload.len());
                count += 1;
            }
            rest = rest.get(count..).unwrap_or_default();
            shelf.size = bytes.len() as u64;
            shelves.insert(first, &bytes[..])?;
            self.shelves.insert(first, shelf);
        }
        Ok(places)
    }

    /// Marks messages as removed; returns the shelves that change.
    fn take(&mut self, removals: &[Removal]) -> BTreeSet<u64> {
        let mut touched = BTreeSet::new();
        for removal in removals {
            if let Some(shelf) = self.shelves.get_mut(&removal.shelf) {
                shelf.take(removal.shelf, removal);
                touched.insert(removal.shelf);
            }
        }
        touched
    }

    /// Deletes an empty shelf, rewrites a wasteful one, else stores which of its messages are removed. Returns the
    /// messages that a rewrite has moved.
    fn shrink(
        &mut self,
        first: u64,
        shelves: &mut ByteTable<'_, u64>,
        taken: &mut ByteTable<'_, u64>,
        pieces: &mut ByteTable<'_, (u64, u32)>,
    ) -> Result<Vec<(MessageNumber, Place)>, StorageError> {
        let Some(shelf) = self.shelves.get_mut(&first) else {
            return Ok(Vec::new());
        };
        if shelf.left == 0 {
            for n in 0..shelf.pieces {
                pieces.remove((first, n))?;
            }
            shelves.remove(first)?;
            taken.remove(first)?;
            self.shelves.remove(&first);
            return Ok(Vec::new());
        }
        if !shelf.is_wasteful() {
            taken.insert(first, &shelf.taken[..])?;
            return Ok(Vec::new());
        }
        let (bytes, moved) = {
            let found = shelves.get(first)?;
            let old = found.as_ref().map_or(&[][..], |old| old.value());
            tidied(old, first, &shelf.taken)
        };
        shelves.insert(first, &bytes[..])?;
        taken.remove(first)?;
        shelf.size = bytes.len() as u64;
        shelf.taken.clear();
        Ok(moved)
    }
}

fn write_deliveries(table: &mut Table<'_, u64, u32>, batch: &Batch) -> Result<(), StorageError> {
    for (number, count) in &batch.deliveries {
        table.insert(number.0, count)?;
    }
    for removal in batch.removals.iter().filter(|it| it.recorded) {
        table.remove(removal.number.0)?;
    }
    Ok(())
}

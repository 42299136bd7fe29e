//! Reads the index of a file when it is opened.

#![allow(
    clippy::result_large_err,
    reason = "errors of the library, which stay inside the inbox and are rare"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ahash::RandomState;
use hyphae_bus::DeliveryKey;
use hyphae_wire::PublicKey;
use redb::{Database, Error, ReadTransaction, ReadableTable, TableError};

use super::batch::Loaded;
use super::completed::Completed;
use super::damage::explain;
use super::error::InboxError;
use super::index::Index;
use super::reader::pieces_of;
use super::record::{self, Head, IN_PIECES, KEY_LEN, Place};
use super::shelf::{Shelf, is_taken};
use super::tables::{COMPLETED, DELIVERIES, FORMAT, FORMAT_NOW, META, PIECES, SHELVES, TAKEN};
use super::types::MessageNumber;

/// Content of a file, and the bookkeeping of its shelves.
pub(super) struct Content {
    pub(super) loaded: Loaded,
    pub(super) shelves: HashMap<u64, Shelf, RandomState>,
    pub(super) completed: Completed,
}

/// Creates the tables of a new file; reads those of an existing one.
pub(super) fn load(database: &Database, path: &Path) -> Result<Content, InboxError> {
    let fail = |error: Error| explain(path, error);
    let found = format(database).map_err(fail)?;
    if found != FORMAT_NOW {
        return Err(InboxError::Format {
            path: path.to_owned(),
            found,
            expected: FORMAT_NOW,
        });
    }
    let mut loader = Loader::default();
    loader.read(database).map_err(fail)?;
    if let Some(number) = loader.unreadable {
        return Err(InboxError::Damaged {
            path: path.to_owned(),
            message: format!("the entry of message {number} cannot be read"),
        });
    }
    Ok(Content {
        loaded: Loaded {
            index: loader.index,
            completed: loader.ids,
            // Numbers begin at 1.
            next: loader.next.max(1),
        },
        shelves: loader.shelves,
        completed: loader.completed,
    })
}

/// Format of a file; a new one gets the current format and its tables.
fn format(database: &Database) -> Result<u64, Error> {
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
}

#[derive(Default)]
struct Loader {
    index: Index,
    /// Above all numbers that were read.
    next: u64,
    /// Ids of received messages, oldest first.
    ids: Vec<DeliveryKey>,
    completed: Completed,
    shelves: HashMap<u64, Shelf, RandomState>,
    /// Number of a message whose entry contradicts itself.
    unreadable: Option<u64>,
}

impl Loader {
    fn read(&mut self, database: &Database) -> Result<(), Error> {
        let transaction = database.begin_read()?;
        self.read_ids(&transaction)?;
        self.read_shelves(&transaction)?;
        self.read_deliveries(&transaction)
    }

    fn read_ids(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        for row in transaction.open_table(COMPLETED)?.iter()? {
            let (first, keys) = row?;
            let (keys, rest) = keys.value().as_chunks::<KEY_LEN>();
            if !rest.is_empty() {
                self.unreadable = Some(first.value());
            }
            let mut senders = BTreeMap::<PublicKey, usize>::new();
            for key in keys {
                let key = record::decode_key(key);
                if self.index.complete(&key) {
                    *senders.entry(key.peer).or_default() += 1;
                }
                self.ids.push(key);
            }
            if senders.len() > 1 {
                self.completed.shared.insert(first.value(), senders.len());
            }
            for (sender, count) in senders {
                self.completed.add(sender, first.value(), count);
            }
            self.next = self.next.max(first.value() + keys.len() as u64);
        }
        Ok(())
    }

    fn read_shelves(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        let taken = transaction.open_table(TAKEN)?;
        for row in transaction.open_table(SHELVES)?.iter()? {
            let (first, bytes) = row?;
            let (first, bytes) = (first.value(), bytes.value());
            let bits = taken.get(first)?;
            let mut shelf = Shelf::new(bytes.len());
            shelf.taken = bits.map(|bits| bits.value().to_vec()).unwrap_or_default();
            self.read_records(first, bytes, &mut shelf);
            self.shelves.insert(first, shelf);
        }
        Ok(())
    }

    fn read_records(&mut self, first: u64, bytes: &[u8], shelf: &mut Shelf) {
        for record in record::records(bytes) {
            let head = record.as_ref().and_then(|record| Head::decode(record.head));
            let (Some(record), Some(head)) = (record, head) else {
                self.unreadable = Some(first);
                return;
            };
            self.next = self.next.max(record.number + 1);
            if is_taken(&shelf.taken, first, record.number) {
                continue;
            }
            let len = record.payload.len() as u64;
            let apart = record.number == first && len == 0 && head.len > 0;
            if head.len != len && !apart {
                self.unreadable = Some(record.number);
            }
            let at = if apart {
                shelf.pieces = pieces_of(head.len);
                IN_PIECES
            } else {
                record.at
            };
            let place = Place { shelf: first, at };
            shelf.add(usize::try_from(head.len).unwrap_or(usize::MAX));
            self.index
                .insert(MessageNumber(record.number), head, place, true);
        }
    }

    fn read_deliveries(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        match transaction.open_table(DELIVERIES) {
            Ok(deliveries) => {
                for row in deliveries.iter()? {
                    let (number, count) = row?;
                    self.index
                        .recall(MessageNumber(number.value()), count.value());
                }
                Ok(())
            }
            // Created with the first lease.
            Err(TableError::TableDoesNotExist(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

//! Payloads in a snapshot of the store.

#![allow(
    clippy::result_large_err,
    reason = "errors of the library, which stay inside the inbox and are rare"
)]

use std::cell::Ref;
use std::collections::HashMap;
use std::path::PathBuf;

use ahash::RandomState;
use bytes::Bytes;
use hyphae_files::Directory;
use redb::{AccessGuard, Error, ReadOnlyTable};

use super::damage::{InHand, explain};
use super::error::InboxError;
use super::index::Entry;
use super::record::{IN_PIECES, Place};
use super::types::{MessageNumber, path_in};

/// Name of an inbox without a file, for errors.
const IN_MEMORY: &str = "in memory";
/// Length of a piece, bytes: with its overhead it fits a page of 1 MiB.
pub(super) const PIECE: usize = (1 << 20) - 4096;
/// Tables with payloads.
pub(super) struct Tables {
    pub(super) shelves: ReadOnlyTable<u64, &'static [u8]>,
    pub(super) pieces: ReadOnlyTable<(u64, u32), &'static [u8]>,
}

/// The payloads in a snapshot.
pub(super) enum Reader<'a> {
    File {
        tables: Box<Tables>,
        directory: &'a Directory,
        /// The shelf that was read last: it usually has the next message.
        open: Option<(u64, Box<AccessGuard<'static, &'static [u8]>>)>,
    },
    Memory(Ref<'a, HashMap<MessageNumber, Bytes, RandomState>>),
}

impl Reader<'_> {
    /// The payload of a message; `None` when it is damaged.
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

    /// Error for a damaged payload.
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

/// The pieces of a payload of this length, as far as they exist.
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

pub(super) fn pieces_of(len: u64) -> u32 {
    u32::try_from(len.div_ceil(PIECE as u64)).unwrap_or(u32::MAX)
}

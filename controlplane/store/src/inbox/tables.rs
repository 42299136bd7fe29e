//! Tables of the file.

use redb::TableDefinition;

/// Messages that were written together, by the number of the first.
pub(super) const SHELVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("shelves");
/// A payload that is too long for a shelf, piece by piece, by the number of its message: the head is alone on
/// its shelf, in a record without a payload. One long value would be copied, as a whole, several times.
pub(super) const PIECES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("pieces");
/// Of a shelf: which of its messages have been taken, bit by bit from its first number on.
pub(super) const TAKEN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("taken");
/// Ids of messages of one sender that came together, by the number of the first.
pub(super) const COMPLETED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("completed");
/// How often messages were handed out, of those that were leased and are still there.
pub(super) const DELIVERIES: TableDefinition<'_, u64, u32> = TableDefinition::new("deliveries");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const FORMAT: &str = "format";
pub(super) const FORMAT_NOW: u64 = 3;

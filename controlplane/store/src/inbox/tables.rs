//! Tables of the file.

use redb::TableDefinition;

/// Messages that were written together, by the number of the first.
pub(super) const SHELVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("shelves");
/// Pieces of a payload that is too long for a shelf, by the number of its message. Its head is the only record of a
/// shelf. One long value would be copied several times.
pub(super) const PIECES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("pieces");
/// Removed messages of a shelf, a bit each from its first number on.
pub(super) const TAKEN: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("taken");
/// Ids of messages of one sender that were received together, by the number of the first.
pub(super) const COMPLETED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("completed");
/// Deliveries of messages that were leased and are not removed.
pub(super) const DELIVERIES: TableDefinition<'_, u64, u32> = TableDefinition::new("deliveries");
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const FORMAT: &str = "format";
pub(super) const FORMAT_NOW: u64 = 3;

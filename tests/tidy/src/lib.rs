//! Placeholder replaced by the room owner.

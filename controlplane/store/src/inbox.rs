//! The inbox: messages that were acknowledged to their senders and not delivered yet.
//!
//! A thread owns a store on disk, so that a sync of the disk blocks no other task. It takes all jobs that wait,
//! writes them in one transaction, syncs once and then answers their callers (group commit): under load many messages
//! share a sync. Payloads stay on disk; memory holds a small entry per message. A store in memory has no thread: the
//! caller does the work.
//!
//! Delivery has two steps. [`Inbox::take`] hides messages and returns them with a [`Lease`]; [`Taken::confirm`] removes
//! them. A lease that is dropped, also by a crash, leaves them in the inbox. Deliveries are counted, with
//! [`Inbox::take_recorded`] on disk.

mod batch;
mod completed;
mod damage;
mod error;
mod handle;
mod index;
mod job;
mod load;
mod reader;
mod record;
mod shelf;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod types;
mod worker;

pub use error::{InboxError, PutError};
pub use handle::{Inbox, Waiting};
pub use job::{Lease, Taken};
pub use types::{Found, INBOX_FILE, Limits, Listed, Listing, MessageNumber, ONE, Put};

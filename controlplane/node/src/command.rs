//! Commands to the node task.

use crate::request::{Reply, Request};
use crate::snapshot::Snapshot;

/// A command to the node task.
pub(crate) enum Command {
    /// A request with a reply.
    Request(Request),
    /// State and counters for metrics.
    Snapshot(Reply<Snapshot>),
    /// Ends the task.
    Shutdown,
}

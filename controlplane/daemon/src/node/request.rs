//! Requests to the engine task.

use tokio::sync::oneshot;

use super::services::bus::BusRequest;
use super::snapshot::Snapshot;
use crate::rpc::Outcome;

/// A request to the engine task.
pub(crate) enum Command {
    /// An RPC call.
    Call {
        method: String,
        /// JSON text.
        params: String,
        reply: oneshot::Sender<Outcome>,
    },
    /// A request to the message bus.
    Bus(BusRequest),
    /// State and counters for metrics.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Ends the task.
    Shutdown,
}

impl From<BusRequest> for Command {
    fn from(request: BusRequest) -> Self {
        Self::Bus(request)
    }
}

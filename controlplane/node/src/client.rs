//! Client of the node task.

use tokio::sync::{mpsc, oneshot};

use crate::command::Command;
use crate::request::{Reply, Request};
use crate::snapshot::Snapshot;

/// The node task has ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the node is shutting down")]
pub struct NodeStopped;

/// Sends requests to the node task. Cheap to clone.
#[derive(Clone)]
pub struct NodeClient(mpsc::Sender<Command>);

impl NodeClient {
    pub(crate) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self(commands)
    }

    /// Sends a request and waits for the reply.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, NodeStopped> {
        self.call(|reply| Command::Request(request(reply))).await
    }

    /// State and counters for metrics.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn snapshot(&self) -> Result<Snapshot, NodeStopped> {
        self.call(Command::Snapshot).await
    }

    /// Has the node leave the dataplane and end.
    pub async fn shut_down(&self) {
        // The task may have ended already.
        let _ = self.0.send(Command::Shutdown).await;
    }

    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, NodeStopped> {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.send(command(reply)).await;
        sent.map_err(|_| NodeStopped)?;
        answer.await.map_err(|_| NodeStopped)
    }
}

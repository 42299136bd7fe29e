//! Disconnects of callers. A disconnect cancels the waits of a caller, for messages, replies and room; changes
//! complete.

use tokio::sync::watch;

/// Guard of a connected caller. Dropping or closing it signals the disconnect.
pub(crate) struct Connected(watch::Sender<bool>);

impl Connected {
    /// A caller that is connected, and the event of its disconnect.
    pub(crate) fn new() -> (Self, Disconnect) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Disconnect(Some(receiver)))
    }

    /// The caller has disconnected.
    pub(crate) fn close(&self) {
        self.0.send_replace(true);
    }
}

/// The event that a caller disconnects.
#[derive(Clone)]
pub(crate) struct Disconnect(Option<watch::Receiver<bool>>);

impl Disconnect {
    /// Of a caller whose disconnect is not visible, such as another node.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// Returns when the caller has disconnected.
    pub(crate) async fn happened(&self) {
        match self.0.clone() {
            // An error: the connection was dropped.
            Some(mut closed) => drop(closed.wait_for(|closed| *closed).await),
            None => std::future::pending().await,
        }
    }
}

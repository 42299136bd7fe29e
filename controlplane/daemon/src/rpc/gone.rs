//! Whether the caller of a request is still there to hear its answer.
//!
//! A caller that has gone ends its waits, for messages, replies and room, and nothing else: what changes something
//! goes on to its end.

use tokio::sync::watch;

/// Whoever holds it is the caller, or sees it. Dropped, the caller has gone.
pub(super) struct Presence(watch::Sender<bool>);

impl Presence {
    /// A caller who is there, and what tells others when it is not.
    pub(super) fn new() -> (Self, Gone) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Gone(Some(receiver)))
    }

    /// The caller has gone.
    pub(super) fn end(&self) {
        self.0.send_replace(true);
    }
}

/// Tells when a caller has gone.
#[derive(Clone)]
pub(crate) struct Gone(Option<watch::Receiver<bool>>);

impl Gone {
    /// Of a caller whose going nobody sees, such as another node.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// Returns when the caller has gone.
    pub(crate) async fn happened(&self) {
        match self.0.clone() {
            // An error says that nobody is left who would tell.
            Some(mut gone) => drop(gone.wait_for(|gone| *gone).await),
            None => std::future::pending().await,
        }
    }
}

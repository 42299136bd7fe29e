//! Lists that calls return. A long one becomes text on the blocking pool: handshakes and hellos would
//! wait for it on the thread of the engines.

use hyphae_rpc::message::{Error, code};
use serde::Serialize;
use tokio::sync::oneshot;

use super::methods::{Outcome, value};

/// Rows that are written at once.
const AT_ONCE: usize = 1000;

/// A list, not yet text.
pub(crate) struct Rows {
    len: usize,
    write: Box<dyn FnOnce() -> Outcome + Send>,
}

impl Rows {
    /// What the engines know of each row, and how it is shown.
    pub(super) fn new<R, T>(rows: Vec<R>, show: impl Fn(R) -> T + Send + 'static) -> Self
    where
        R: Send + 'static,
        T: Serialize,
    {
        let len = rows.len();
        let write = move || value(rows.into_iter().map(show).collect::<Vec<_>>());
        let write = Box::new(write);
        Self { len, write }
    }

    /// As text, once it is.
    pub(super) async fn text(self) -> Outcome {
        let (reply, text) = oneshot::channel();
        self.answer(reply);
        let ended = |_| Err(Error::new(code::INTERNAL, "the list was not written"));
        text.await.unwrap_or_else(ended)
    }

    /// Sends it as text.
    pub(crate) fn answer(self, reply: oneshot::Sender<Outcome>) {
        let Self { len, write } = self;
        // The caller may have disconnected.
        let answer = move || drop(reply.send(write()));
        if len > AT_ONCE {
            tokio::task::spawn_blocking(answer);
        } else {
            answer();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn long_lists_are_written_off_the_thread_of_the_engines() {
        for (len, here) in [(AT_ONCE, true), (AT_ONCE + 1, false)] {
            let engines = current().id();
            let rows = Rows::new(vec![(); len], move |()| current().id() == engines);
            let text = rows.text().await.unwrap();
            let written: Vec<bool> = serde_json::from_str(text.get()).unwrap();
            assert_eq!(written, vec![here; len]);
        }
    }
}

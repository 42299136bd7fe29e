//! Replies: a value as JSON text, optionally followed by bytes. A long list is rendered on the blocking pool, since
//! rendering it on the engine thread would delay handshakes and hellos.

use bytes::Bytes;
use hyphae_rpc::message::Error;
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::internal;
use hyphae_node::Delivery;

/// Most rows of a list that is rendered on the caller's thread.
const INLINE_ROWS_MAX: usize = 1000;

/// Result of a call as JSON text, rendered without a tree of values.
pub(crate) type Outcome = Result<Box<RawValue>, Error>;

/// The reply to a call.
pub(crate) struct Reply {
    pub(crate) result: Box<RawValue>,
    /// Attached bytes.
    pub(crate) attached: Vec<Bytes>,
    /// Messages in the result.
    pub(crate) delivery: Option<Delivery>,
}

impl From<Box<RawValue>> for Reply {
    fn from(result: Box<RawValue>) -> Self {
        Self {
            result,
            attached: Vec::new(),
            delivery: None,
        }
    }
}

/// Renders a result.
pub(super) fn value(result: impl Serialize) -> Outcome {
    serde_json::value::to_raw_value(&result).map_err(internal)
}

/// The result of a change.
pub(super) fn ok_true() -> Outcome {
    value(true)
}

/// Renders a list, a long one on the blocking pool.
pub(super) async fn rows<R, T>(rows: Vec<R>, show: impl Fn(R) -> T + Send + 'static) -> Outcome
where
    R: Send + 'static,
    T: Serialize,
{
    let long = rows.len() > INLINE_ROWS_MAX;
    let render = move || value(rows.into_iter().map(show).collect::<Vec<_>>());
    if long {
        let rendered = tokio::task::spawn_blocking(render).await;
        rendered.unwrap_or_else(|error| Err(internal(error)))
    } else {
        render()
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn long_lists_are_rendered_off_the_thread_of_the_engines() {
        for (len, inline) in [(INLINE_ROWS_MAX, true), (INLINE_ROWS_MAX + 1, false)] {
            let engines = current().id();
            let text = rows(vec![(); len], move |()| current().id() == engines).await;
            let rendered: Vec<bool> = serde_json::from_str(text.unwrap().get()).unwrap();
            assert_eq!(rendered, vec![inline; len]);
        }
    }
}

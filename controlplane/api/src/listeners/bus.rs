//! Listener for other nodes: messages on the reserved topic `mycelium.admin` are JSON-RPC requests, their replies the
//! responses. The caller is the key that the session has proven.

use std::sync::Arc;

use hyphae_bus::{Destination, Inbound, Outgoing, Topic};
use hyphae_rpc::message::{Error, code};
use tokio::sync::{Semaphore, mpsc};

use crate::authorizer::Caller;
use crate::context::Dispatcher;
use crate::disconnect::Disconnect;
use crate::envelope::{Parsed, SMALL_MAX, delivered, refusal};

/// Calls of other nodes that are answered concurrently.
const AT_ONCE: usize = 64;

/// Answers calls of other nodes, each by a reply to its message.
pub(super) async fn answer_remote_calls(
    mut calls: mpsc::Receiver<Inbound>,
    dispatcher: Arc<Dispatcher>,
) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    // Never closed.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Some(inbound) = calls.recv().await else {
            return;
        };
        let dispatcher = Arc::clone(&dispatcher);
        tokio::spawn(async move {
            answer(&dispatcher, inbound).await;
            drop(permit);
        });
    }
}

async fn answer(dispatcher: &Arc<Dispatcher>, inbound: Inbound) {
    let caller = Caller::bus(inbound.source_key);
    let answer = if inbound.payload.len() > SMALL_MAX {
        let message = "a request over the bus has at most 1 MiB";
        Some(refusal(Error::new(code::INVALID_REQUEST, message)).into())
    } else {
        let call = Parsed::new(&inbound.payload, &|method| {
            dispatcher.authorize(&caller, method)
        });
        call.answer(dispatcher, &caller, &Disconnect::never()).await
    };
    // Notifications have no answer.
    let Some(answer) = answer else { return };
    let reply = Outgoing {
        destination: Destination::Key(inbound.source_key),
        topic: Topic::default(),
        payload: answer.json.into(),
        digest: None,
        try_for: None,
        reply_within: None,
        failure: None,
    };
    match dispatcher.bus().reply(inbound.id, reply).await {
        Ok(()) => delivered(answer.deliveries).await,
        Err(error) => {
            tracing::warn!(%error, to = %inbound.source_key, "answer was not sent");
        }
    }
}

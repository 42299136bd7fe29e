//! Sends a message to a node and waits until it is received.
//!
//! The receiver may be any node, also the one that sends. With a third argument the message is sent on that topic.
//!
//! ```sh
//! hyphae up --no-tun &
//! cargo run -p hyphae-rpc --example send_message -- /run/hyphae/rpc.sock ADDRESS "hello"
//! hyphae message receive
//! ```

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use hyphae_rpc::method::{
    Destination, MessageIdParams, MessageState, OutgoingMessage, PushMessageParams,
    PushMessageResult,
};
use hyphae_rpc::{Base64, Client, ClientError};

/// Interval of state requests.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, destination, text, topic @ ..] = arguments.as_slice() else {
        return Err("usage: send_message SOCKET ADDRESS|KEY TEXT [TOPIC]".into());
    };
    let destination: Destination = destination.parse()?;
    let client = Client::new(socket);

    let message = OutgoingMessage {
        dst: destination,
        topic: topic.first().map(|topic| Base64::from(topic.as_bytes())),
        payload: Base64::from(text.as_bytes()),
    };
    let params = PushMessageParams {
        message,
        reply_timeout: None,
        wait: None,
    };
    let PushMessageResult::Id { id } = client.push_message(params)? else {
        return Err("a reply without having asked for one".into());
    };

    let state = wait_until_final(&client, &id)?;
    writeln!(std::io::stdout(), "message {id}: {state:?}")?;
    if state == MessageState::Aborted {
        return Err("the message was not delivered".into());
    }
    Ok(())
}

/// Polls until the message is received, read or aborted.
fn wait_until_final(client: &Client, id: &str) -> Result<MessageState, ClientError> {
    loop {
        let info = client.get_message_info(MessageIdParams { id: id.to_owned() })?;
        match info.state {
            MessageState::Pending | MessageState::Sending { .. } => {
                std::thread::sleep(POLL_INTERVAL);
            }
            state @ (MessageState::Received | MessageState::Read | MessageState::Aborted) => {
                return Ok(state);
            }
        }
    }
}

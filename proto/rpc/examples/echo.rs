//! Sends a message to its own node, pops it from the inbox, answers it, and prints its state.
//!
//! `cargo run -p hyphae-rpc --example echo -- /run/hyphae/rpc.sock`

#![forbid(unsafe_code)]

use hyphae_rpc::method::{
    Destination, MessageIdParams, OutgoingMessage, PopMessageParams, PushMessageParams,
    PushMessageResult,
};
use hyphae_rpc::{Base64, Client};

#[allow(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args().nth(1).ok_or("usage: echo RPC_SOCKET")?;
    let node = Client::new(socket);
    let own = node.get_info()?;
    let pushed = node.push_message(PushMessageParams {
        message: OutgoingMessage {
            dst: Destination::Pk(own.node_pubkey),
            topic: Some(Base64::from("example")),
            payload: Base64::from("hello"),
        },
        reply_timeout: None,
        wait: None,
    })?;
    let PushMessageResult::Id { id } = pushed else {
        return Err("no reply was asked for".into());
    };
    let message = node.pop_message(PopMessageParams {
        timeout: Some(10),
        topic: Some(Base64::encode("example")),
        peek: None,
    })?;
    let message = message.ok_or("nothing came")?;
    let text = String::from_utf8(message.payload.0)?;
    let info = node.get_message_info(MessageIdParams { id })?;
    println!(
        "{text} from {}: {} bytes, {:?}",
        message.src_ip, info.msg_len, info.state
    );
    Ok(())
}

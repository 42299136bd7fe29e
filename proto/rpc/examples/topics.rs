//! Adds a topic, allows one key to send to it, shows it, and removes it. Over HTTP.
//!
//! `cargo run -p hyphae-rpc --example topics -- 127.0.0.1:8990`

#![forbid(unsafe_code)]

use hyphae_rpc::method::{TopicParams, TopicPubkeyParams};
use hyphae_rpc::{Base64, Client, ClientError, code};

#[allow(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: topics HOST:PORT")?;
    let node = Client::http(address);
    let topic = Base64::encode("example.topics");
    let named = || TopicParams {
        topic: topic.clone(),
    };
    node.add_topic(named())?;
    node.add_topic_pubkey_source(TopicPubkeyParams {
        topic: topic.clone(),
        pubkey: node.get_info()?.node_pubkey,
    })?;
    println!("sources: {:?}", node.get_topic_pubkey_sources(named())?);
    node.remove_topic(named())?;
    match node.get_topic_sources(named()) {
        Err(ClientError::Call(error)) if error.code == code::TOPIC_NOT_FOUND => {
            println!("removed");
            Ok(())
        }
        other => Err(format!("still there: {other:?}").into()),
    }
}

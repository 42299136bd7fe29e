//! `hyphae message`: sending and receiving.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use hyphae_bus::Topic;
use hyphae_rpc::method::{
    Destination, IncomingMessage, ListMessagesParams, MessageIdParams, MessageInfo, MessageState,
    OutgoingMessage, PopMessageParams, PopMessagesParams, PushMessageParams,
    PushMessageReplyParams, PushMessageResult, TokensParams,
};
use hyphae_rpc::{Base64, Client};
use serde_json::json;

use super::{NodeRef, output};
use crate::text;

/// Payloads from this size on show progress, bytes.
const PROGRESS_MIN: usize = 1 << 20;
/// Interval of state requests.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Time limit of one call for a message while the command waits without a limit, seconds.
const LONG_POLL: u64 = 60;
/// Lease of a message while it is printed, seconds; a slower reader receives it again.
const LEASE: u64 = 300;

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MessageCommand {
    /// Send a message to a node.
    #[command(after_help = "Examples:\n  hyphae message send 400:1234::1 hello\n  \
        hyphae message send KEY --topic logs --file ./app.log --wait\n  \
        echo ping | hyphae message send 400:1234::1 --topic echo --reply-timeout 10\n  \
        hyphae message send 400:1234::1 pong --reply-to 0123456789abcdef")]
    Send(SendArgs),
    /// Receive a message; it leaves the inbox after it was printed.
    #[command(
        after_help = "Examples:\n  hyphae message receive\n  hyphae message receive --topic logs --wait --raw > app.log\n  \
        hyphae message receive --follow --json | jq -r .payload"
    )]
    Receive(ReceiveArgs),
    /// Show the delivery state of a message that was sent from this node.
    Info(InfoArgs),
    /// Count the messages of the inbox and list the oldest.
    #[command(
        after_help = "Examples:\n  hyphae message list\n  hyphae message list --topic logs --count 0 --json | jq .total"
    )]
    List(ListArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct SendArgs {
    /// Overlay address or public key of the receiver.
    destination: Destination,
    /// The message; standard input when neither it nor --file is given.
    #[arg(conflicts_with = "file")]
    message: Option<String>,
    /// Send this file; '-' is standard input.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Topic, 0 to 255 bytes; 'hex:' and hex digits for one that is not text.
    #[arg(long, short, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// Wait until the message is received; fail when it is not delivered.
    #[arg(long, short)]
    wait: bool,
    /// When the send queue is full, wait this many seconds for room.
    #[arg(long, value_name = "SECONDS", conflicts_with = "reply_to")]
    room_timeout: Option<u64>,
    /// Wait this many seconds for a reply and print it; fail when none comes.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["wait", "reply_to"])]
    reply_timeout: Option<u64>,
    /// Answer the message with this id.
    #[arg(long, value_name = "ID")]
    reply_to: Option<String>,
    #[command(flatten)]
    node: NodeRef,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ReceiveArgs {
    /// Only messages on exactly this topic.
    #[arg(long, short, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// Wait this many seconds for a message [default: 0].
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["wait", "follow"])]
    timeout: Option<u64>,
    /// Wait until a message arrives.
    #[arg(long, short)]
    wait: bool,
    /// Receive messages until stopped.
    #[arg(long, short, conflicts_with = "peek")]
    follow: bool,
    /// Leave the message in the inbox.
    #[arg(long)]
    peek: bool,
    /// Print the payload only, unchanged.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    node: NodeRef,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct InfoArgs {
    /// Id of the message, as `send` printed it.
    id: String,
    #[command(flatten)]
    node: NodeRef,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// Only messages on exactly this topic.
    #[arg(long, short, value_name = "TOPIC")]
    topic: Option<Topic>,
    /// List at most this many, up to 1000; 0 only counts.
    #[arg(long, short, value_name = "NUMBER", default_value_t = 100)]
    count: u32,
    /// List messages after this number.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    #[command(flatten)]
    node: NodeRef,
}

pub(crate) fn run(command: MessageCommand, json: bool) -> anyhow::Result<()> {
    match command {
        MessageCommand::Info(args) => info(&args, json),
        MessageCommand::List(args) => list(&args, json),
        MessageCommand::Send(args) => send(&args, json),
        MessageCommand::Receive(args) => receive(&args, json),
    }
}

fn send(args: &SendArgs, json: bool) -> anyhow::Result<()> {
    let payload = payload(args)?;
    let length = payload.len();
    let client = args.node.client();
    let message = OutgoingMessage {
        dst: args.destination.clone(),
        topic: args
            .topic
            .as_ref()
            .map(|topic| Base64::from(topic.as_bytes())),
        payload: Base64(payload),
    };
    if let Some(id) = args.reply_to.clone() {
        client.push_message_reply(PushMessageReplyParams {
            id: id.clone(),
            message,
            ack: None,
        })?;
        return sent(&client, args, &id, length, json);
    }
    let params = PushMessageParams {
        message,
        reply_timeout: args.reply_timeout,
        wait: args.room_timeout,
    };
    match client.push_message(params)? {
        PushMessageResult::Reply(reply) => show(&reply, false, json),
        PushMessageResult::Id { id } if args.reply_timeout.is_some() => {
            bail!("no reply came in time; the message has id {id}")
        }
        PushMessageResult::Id { id } => sent(&client, args, &id, length, json),
    }
}

fn payload(args: &SendArgs) -> anyhow::Result<Vec<u8>> {
    match (&args.message, &args.file) {
        (Some(text), _) => Ok(text.clone().into_bytes()),
        (None, Some(path)) if path.as_os_str() != "-" => {
            std::fs::read(path).with_context(|| path.display().to_string())
        }
        (None, Some(_) | None) => {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.context("standard input")?;
            Ok(bytes)
        }
    }
}

/// Prints the id of a message, or waits until it is received.
fn sent(
    client: &Client,
    args: &SendArgs,
    id: &str,
    length: usize,
    json: bool,
) -> anyhow::Result<()> {
    if !args.wait {
        if json {
            return output::document(&json!({ "id": id }));
        }
        return Ok(output::line(id)?);
    }
    let show_progress = length >= PROGRESS_MIN && std::io::stderr().is_terminal();
    let info = loop {
        let info = client.get_message_info(MessageIdParams { id: id.to_owned() })?;
        match &info.state {
            MessageState::Pending | MessageState::Sending { .. } => {
                if show_progress {
                    progress(&info.state, length);
                }
                std::thread::sleep(POLL_INTERVAL);
            }
            MessageState::Received | MessageState::Read | MessageState::Aborted => break info,
        }
    };
    if show_progress {
        output::notice("");
    }
    finished(id, &info, json)
}

fn progress(state: &MessageState, length: usize) {
    let percent = match state {
        MessageState::Sending {
            pending,
            sent,
            acked,
        } => (acked * 100)
            .checked_div(pending + sent + acked)
            .unwrap_or(0),
        MessageState::Pending
        | MessageState::Received
        | MessageState::Read
        | MessageState::Aborted => 0,
    };
    let mebibytes = length as f64 / f64::from(1 << 20);
    output::progress(format_args!("{percent:>3} % of {mebibytes:.1} MiB"));
}

fn finished(id: &str, info: &MessageInfo, json: bool) -> anyhow::Result<()> {
    let reason = info.reason.as_deref().unwrap_or("not delivered");
    if info.state == MessageState::Aborted {
        bail!("message {id} was aborted: {reason}");
    }
    if json {
        return output::document(&json!({ "id": id, "info": info }));
    }
    output::line(format_args!("{id} received"))?;
    Ok(())
}

fn encoded(topic: Option<&Topic>) -> Option<String> {
    topic.map(|topic| Base64::encode(topic.as_bytes()))
}

fn receive(args: &ReceiveArgs, json: bool) -> anyhow::Result<()> {
    let client = args.node.client();
    let unlimited = args.wait || args.follow;
    let timeout = unlimited.then_some(LONG_POLL).or(args.timeout);
    loop {
        let message = if args.peek {
            client.pop_message(PopMessageParams {
                peek: Some(true),
                timeout,
                topic: encoded(args.topic.as_ref()),
            })?
        } else {
            let leased = client.pop_messages(PopMessagesParams {
                count: 1,
                timeout,
                topic: encoded(args.topic.as_ref()),
                attach: None,
                lease: Some(LEASE),
            })?;
            leased.into_iter().next()
        };
        match message {
            Some(message) => {
                deliver(&client, &message, args.raw, json)?;
                if !args.follow {
                    return Ok(());
                }
            }
            None if unlimited => {}
            None => bail!("no message; --wait waits for one"),
        }
    }
}

/// Prints a message. A leased message is then acknowledged, or returned when printing failed.
fn deliver(
    client: &Client,
    message: &IncomingMessage,
    raw: bool,
    json: bool,
) -> anyhow::Result<()> {
    let written = show(message, raw, json);
    let Some(token) = message.lease.clone() else {
        return written;
    };
    let tokens = TokensParams {
        tokens: vec![token],
    };
    if let Err(error) = written {
        // Best effort: the lease expires otherwise.
        let _ = client.return_messages(tokens);
        return Err(error.context("the message was not printed and stays in the inbox"));
    }
    client.ack_messages(tokens).with_context(|| {
        format!(
            "message {} was printed, and may be received again",
            message.id
        )
    })?;
    Ok(())
}

fn info(args: &InfoArgs, json: bool) -> anyhow::Result<()> {
    let params = MessageIdParams {
        id: args.id.clone(),
    };
    let info = args.node.client().get_message_info(params)?;
    if json {
        return output::document(&info);
    }
    let state = match &info.state {
        MessageState::Pending => "pending: no session with the receiver yet".to_owned(),
        MessageState::Sending {
            pending,
            sent,
            acked,
        } => format!("sending: {acked} chunks acknowledged, {sent} in flight, {pending} pending"),
        MessageState::Received => "received".to_owned(),
        MessageState::Read => "read".to_owned(),
        MessageState::Aborted => format!(
            "aborted: {}",
            info.reason.as_deref().unwrap_or("not delivered")
        ),
    };
    output::line(format_args!("to       {}", info.dst))?;
    output::line(format_args!("state    {state}"))?;
    output::line(format_args!("length   {} bytes", info.msg_len))?;
    output::line(format_args!(
        "created  {} (seconds since 1970)",
        info.created
    ))?;
    output::line(format_args!(
        "deadline {} (seconds since 1970)",
        info.deadline
    ))?;
    Ok(())
}

fn list(args: &ListArgs, json: bool) -> anyhow::Result<()> {
    let inbox = args.node.client().list_messages(ListMessagesParams {
        topic: encoded(args.topic.as_ref()),
        count: Some(args.count),
        after: args.after,
    })?;
    if json {
        return output::document(&inbox);
    }
    if !inbox.messages.is_empty() {
        let mut rows = Vec::new();
        for message in &inbox.messages {
            let topic = message.topic.clone().unwrap_or_default();
            rows.push(vec![
                message.number.to_string(),
                message.id.clone(),
                message.src_ip.clone(),
                Topic::new(topic.0)?.to_string(),
                message.msg_len.to_string(),
                message.deliveries.to_string(),
                if message.handed_out { "leased" } else { "-" }.to_owned(),
            ]);
        }
        let heads = [
            "NUMBER",
            "ID",
            "FROM",
            "TOPIC",
            "BYTES",
            "DELIVERIES",
            "LEASE",
        ];
        output::table(&heads, &rows)?;
    }
    output::line(format_args!(
        "{} messages, {} bytes; {} leased",
        inbox.total, inbox.bytes, inbox.handed_out
    ))?;
    Ok(())
}

/// Prints a message to standard output.
fn show(message: &IncomingMessage, raw: bool, json: bool) -> anyhow::Result<()> {
    if raw {
        return Ok(output::raw(&message.payload.0)?);
    }
    if json {
        return output::document_line(message);
    }
    output::line(format_args!("id       {}", message.id))?;
    output::line(format_args!(
        "from     {} ({})",
        message.src_ip, message.src_pk
    ))?;
    if let Some(topic) = &message.topic {
        let topic = Topic::new(topic.0.clone())?.to_string();
        output::line(format_args!("topic    {}", text::one_line(&topic)))?;
    }
    if let Some(deliveries) = message.deliveries.filter(|count| *count > 1) {
        output::line(format_args!("delivery {deliveries}"))?;
    }
    match std::str::from_utf8(&message.payload.0) {
        Ok(text) => output::line(text),
        Err(_) => output::line(format_args!(
            "base64:{}",
            Base64::encode(&message.payload.0)
        )),
    }?;
    Ok(())
}

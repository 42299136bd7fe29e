//! `hyphae topic`: access lists of topics, and the sockets that serve them.

use clap::{Subcommand, ValueEnum};
use hyphae_bus::Topic;
use hyphae_rpc::method::{
    AcceptParams, Destination, ForwardSocketParams, OutboundSocketParams, TopicParams,
    TopicPubkeyParams, TopicSettings, TopicSubnetParams,
};
use hyphae_rpc::{Base64, Client, ClientError};
use serde_json::{Value, json};

use super::{NodeRef, output};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// List topics with their sources and sockets.
    #[command(after_help = "Examples:\n  hyphae topic list\n  hyphae topic list --json")]
    List(NodeRef),
    /// Add a topic; it drops all messages until it has sources.
    #[command(after_help = "Examples:\n  hyphae topic add logs\n  hyphae topic add hex:00ff")]
    Add {
        /// Topic; 'hex:' and hex digits for one that is not text.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Remove a topic with its sources and sockets.
    #[command(after_help = "Examples:\n  hyphae topic remove logs")]
    Remove {
        /// Topic.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Show or set the action for messages on unlisted topics.
    #[command(after_help = "Examples:\n  hyphae topic default\n  hyphae topic default reject")]
    Default {
        /// New action.
        action: Option<Action>,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Manage the subnets that may send to a topic.
    #[command(
        after_help = "Examples:\n  hyphae topic source add logs 400:1234::/64\n  hyphae topic source list logs"
    )]
    Source {
        #[command(subcommand)]
        command: MemberCommand,
    },
    /// Manage the keys that may send to a topic.
    #[command(
        after_help = "Examples:\n  hyphae topic pubkey-source add logs KEY\n  hyphae topic pubkey-source remove logs KEY"
    )]
    PubkeySource {
        #[command(subcommand)]
        command: MemberCommand,
    },
    /// Manage the local server that receives a topic's messages; its responses are sent back.
    #[command(
        after_help = "Examples:\n  hyphae topic forward set logs /run/app.sock --framing http\n  \
        hyphae topic forward show logs"
    )]
    Forward {
        #[command(subcommand)]
        command: ForwardCommand,
    },
    /// Manage the local socket whose requests are sent to a topic of another node.
    #[command(
        after_help = "Examples:\n  hyphae topic outbound set logs KEY /run/remote-app.sock --framing http\n  \
        hyphae topic outbound remove logs"
    )]
    Outbound {
        #[command(subcommand)]
        command: OutboundCommand,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Action {
    /// Accept them.
    Accept,
    /// Drop them.
    Reject,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum YesOrNo {
    #[value(aliases = ["true", "on", "1"])]
    Yes,
    #[value(aliases = ["false", "off", "0"])]
    No,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List the allowed sources.
    #[command(after_help = "Examples:\n  hyphae topic source list logs")]
    List {
        /// Topic.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Allow a source.
    #[command(after_help = "Examples:\n  hyphae topic source add logs 400:1234::/64")]
    Add {
        /// Topic.
        topic: Topic,
        /// Subnet, or public key.
        member: String,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Remove a source.
    #[command(after_help = "Examples:\n  hyphae topic source remove logs 400:1234::/64")]
    Remove {
        /// Topic.
        topic: Topic,
        /// Subnet, or public key.
        member: String,
        #[command(flatten)]
        node: NodeRef,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ForwardCommand {
    /// Show the socket, if any.
    #[command(after_help = "Examples:\n  hyphae topic forward show logs")]
    Show {
        /// Topic.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Forward messages to a socket.
    #[command(after_help = "Examples:\n  hyphae topic forward set logs /run/app.sock")]
    Set {
        /// Topic.
        topic: Topic,
        /// Socket of the local server.
        path: std::path::PathBuf,
        /// Framing of requests on the socket: eof, http or json-lines [default: unchanged,
        /// initially eof].
        #[arg(long)]
        framing: Option<String>,
        /// Time limit of the server, seconds [default: unchanged, initially 5].
        #[arg(long, value_name = "SECONDS")]
        reply_timeout: Option<u64>,
        /// Whether connections to the server are reused [default: unchanged, initially yes with http and no
        /// with json-lines].
        #[arg(long, value_name = "YES-OR-NO")]
        keep_alive: Option<YesOrNo>,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Stop forwarding messages.
    #[command(after_help = "Examples:\n  hyphae topic forward remove logs")]
    Remove {
        /// Topic.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OutboundCommand {
    /// Show the socket, if any.
    #[command(after_help = "Examples:\n  hyphae topic outbound show logs")]
    Show {
        /// Topic.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Create a socket whose requests are sent to another node.
    #[command(after_help = "Examples:\n  hyphae topic outbound set logs KEY /run/remote.sock")]
    Set {
        /// Topic, on this and the other node.
        topic: Topic,
        /// Overlay address or public key of the other node.
        destination: Destination,
        /// Path of the socket.
        path: std::path::PathBuf,
        /// Framing of requests on the socket: eof, http or json-lines [default: unchanged,
        /// initially eof].
        #[arg(long)]
        framing: Option<String>,
        #[command(flatten)]
        node: NodeRef,
    },
    /// Remove the socket.
    #[command(after_help = "Examples:\n  hyphae topic outbound remove logs")]
    Remove {
        /// Topic.
        topic: Topic,
        #[command(flatten)]
        node: NodeRef,
    },
}

pub(crate) fn run(command: TopicCommand, json: bool) -> anyhow::Result<()> {
    match command {
        TopicCommand::List(node) => list(&node.client(), json),
        TopicCommand::Add { topic, node } => {
            output::changed(node.client().add_topic(params(&topic))?, json)
        }
        TopicCommand::Remove { topic, node } => {
            output::changed(node.client().remove_topic(params(&topic))?, json)
        }
        TopicCommand::Default { action, node } => default(&node.client(), action, json),
        TopicCommand::Source { command } => source(command, json),
        TopicCommand::PubkeySource { command } => pubkey_source(command, json),
        TopicCommand::Forward { command } => forward(command, json),
        TopicCommand::Outbound { command } => outbound(command, json),
    }
}

fn encoded(topic: &Topic) -> String {
    Base64::encode(topic.as_bytes())
}

fn params(topic: &Topic) -> TopicParams {
    TopicParams {
        topic: encoded(topic),
    }
}

fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for name in client.get_topics()? {
        let topic = Topic::new(Base64::decode(&name)?.0)?;
        let settings = client.get_topic_settings(params(&topic))?;
        let TopicSettings {
            forward_socket: forward,
            outbound_socket: outbound,
            framing,
            ..
        } = &settings;
        let sources = settings.subnets.iter().chain(&settings.pubkeys);
        let sources: Vec<String> = sources.cloned().collect();
        let (served, called) = (forward.is_some(), forward.is_some() || outbound.is_some());
        let shown = |is: bool, text: String| if is { text } else { "-".to_owned() };
        rows.push(vec![
            topic.to_string(),
            or_dash(sources.join(", ")),
            or_dash(forward.clone().unwrap_or_default()),
            outbound.as_ref().map_or_else(
                || "-".to_owned(),
                |socket| format!("{} to {}", socket.path, socket.dst),
            ),
            shown(called, framing.clone()),
            shown(served, format!("{} s", settings.reply_timeout_seconds)),
            shown(served, yes_or_no(settings.keep_alive).to_owned()),
        ]);
        documents.push(json!({
            "topic": name,
            "name": topic,
            "subnets": settings.subnets,
            "pubkeys": settings.pubkeys,
            "forwardSocket": forward,
            "outboundSocket": outbound,
            "framing": framing,
            "replyTimeoutSeconds": settings.reply_timeout_seconds,
            "keepAlive": settings.keep_alive,
        }));
    }
    let accept = client.get_default_topic_action()?;
    if json {
        return output::document(&json!({ "accept": accept, "topics": documents }));
    }
    let heads = [
        "TOPIC",
        "SOURCES",
        "FORWARD",
        "OUTBOUND",
        "FRAMING",
        "TIMEOUT",
        "KEEP-ALIVE",
    ];
    output::table(&heads, &rows)?;
    output::line(format_args!("unlisted topics are {}", action_text(accept)))?;
    Ok(())
}

fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn action_text(accept: bool) -> &'static str {
    if accept { "accepted" } else { "rejected" }
}

fn default(client: &Client, action: Option<Action>, json: bool) -> anyhow::Result<()> {
    if let Some(action) = action {
        let accept = matches!(action, Action::Accept);
        return output::changed(
            client.set_default_topic_action(AcceptParams { accept })?,
            json,
        );
    }
    let accept = client.get_default_topic_action()?;
    if json {
        return output::document(&json!({ "accept": accept }));
    }
    output::line(format_args!("unlisted topics are {}", action_text(accept)))?;
    Ok(())
}

fn source(command: MemberCommand, json: bool) -> anyhow::Result<()> {
    manage_members(
        command,
        Client::get_topic_sources,
        |client, topic, subnet| client.add_topic_source(TopicSubnetParams { topic, subnet }),
        |client, topic, subnet| client.remove_topic_source(TopicSubnetParams { topic, subnet }),
        json,
    )
}

fn pubkey_source(command: MemberCommand, json: bool) -> anyhow::Result<()> {
    manage_members(
        command,
        Client::get_topic_pubkey_sources,
        |client, topic, pubkey| client.add_topic_pubkey_source(TopicPubkeyParams { topic, pubkey }),
        |client, topic, pubkey| {
            client.remove_topic_pubkey_source(TopicPubkeyParams { topic, pubkey })
        },
        json,
    )
}

/// A call that adds or removes a member of a topic's access list.
type Change = fn(&Client, String, String) -> Result<bool, ClientError>;

fn manage_members(
    command: MemberCommand,
    list: fn(&Client, TopicParams) -> Result<Vec<String>, ClientError>,
    add: Change,
    remove: Change,
    json: bool,
) -> anyhow::Result<()> {
    let (change, topic, member, node) = match command {
        MemberCommand::List { topic, node } => {
            return members(&list(&node.client(), params(&topic))?, json);
        }
        MemberCommand::Add {
            topic,
            member,
            node,
        } => (add, topic, member, node),
        MemberCommand::Remove {
            topic,
            member,
            node,
        } => (remove, topic, member, node),
    };
    output::changed(change(&node.client(), encoded(&topic), member)?, json)
}

fn members(all: &[String], json: bool) -> anyhow::Result<()> {
    if json {
        return output::document(&all);
    }
    Ok(all.iter().try_for_each(output::line)?)
}

fn forward(command: ForwardCommand, json: bool) -> anyhow::Result<()> {
    match command {
        ForwardCommand::Show { topic, node } => shown(
            &json!(node.client().get_topic_forward_socket(params(&topic))?),
            json,
        ),
        ForwardCommand::Set {
            topic,
            path,
            framing,
            reply_timeout,
            keep_alive,
            node,
        } => {
            let params = ForwardSocketParams {
                topic: encoded(&topic),
                socket_path: absolute(&path)?,
                framing,
                reply_timeout,
                keep_alive: keep_alive.map(|is| matches!(is, YesOrNo::Yes)),
            };
            output::changed(node.client().set_topic_forward_socket(params)?, json)
        }
        ForwardCommand::Remove { topic, node } => output::changed(
            node.client().remove_topic_forward_socket(params(&topic))?,
            json,
        ),
    }
}

fn outbound(command: OutboundCommand, json: bool) -> anyhow::Result<()> {
    match command {
        OutboundCommand::Show { topic, node } => shown(
            &json!(node.client().get_topic_outbound_socket(params(&topic))?),
            json,
        ),
        OutboundCommand::Set {
            topic,
            destination,
            path,
            framing,
            node,
        } => {
            let params = OutboundSocketParams {
                topic: encoded(&topic),
                dst: destination,
                path: absolute(&path)?,
                framing,
            };
            output::changed(node.client().set_topic_outbound_socket(params)?, json)
        }
        OutboundCommand::Remove { topic, node } => output::changed(
            node.client().remove_topic_outbound_socket(params(&topic))?,
            json,
        ),
    }
}

/// Makes a path absolute: the node has another working directory.
fn absolute(path: &std::path::Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?;
    let text = path
        .to_str()
        .ok_or_else(|| anyhow::anyhow!("{}: the path of a socket must be UTF-8", path.display()))?;
    Ok(text.to_owned())
}

fn shown(value: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return output::document(value);
    }
    match value {
        Value::Null => output::line("none"),
        Value::String(text) => output::line(text),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            output::line(value)
        }
    }?;
    Ok(())
}

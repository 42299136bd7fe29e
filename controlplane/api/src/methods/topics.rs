//! Topics: their sources and sockets. A change is on disk before it is applied, and before the call returns.

use std::path::{Path, PathBuf};

use hyphae_bus::topics::{Authority, DefaultAction, Framing, OutboundSocket, TopicConfig, Topics};
use hyphae_bus::{Destination, Topic};
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    AcceptParams, ForwardSocketParams, OutboundSocketParams, TopicParams, TopicPubkeyParams,
    TopicSubnetParams,
};
use hyphae_rpc::{Base64, method};
use hyphae_wire::Prefix;

use crate::authorizer::{Caller, ENTRIES_MAX};
use crate::context::Dispatcher;
use crate::error::{bind_failed, internal, invalid, not_committed, reserved, topic_not_found};
use crate::params::{any_topic, destination, public_key};
use crate::reply::{Outcome, ok_true, rows, value};
use hyphae_store::stored::StoredChange;

/// Most topics that are listed.
const TOPICS_MAX: usize = 16_384;
/// Longest path of a Unix socket, bytes without the terminator.
const SOCKET_PATH_MAX: usize = 107;
/// Longest reply timeout of a forward socket, seconds.
const REPLY_TIMEOUT_MAX: u64 = 300;

impl Dispatcher {
    pub(crate) fn default_topic_action(&self) -> Outcome {
        value(self.files.topics.read().default_action.accepts())
    }

    pub(crate) async fn set_default_topic_action(&self, params: AcceptParams) -> Outcome {
        let mut change = self.files.topics.change().await;
        change.new.default_action = DefaultAction::new(params.accept);
        self.commit(change).await?;
        ok_true()
    }

    pub(crate) async fn listed_topics(&self) -> Outcome {
        let names = self.files.topics.read().topics.keys().cloned().collect();
        rows(names, |topic: Topic| Base64::encode(topic.as_bytes())).await
    }

    pub(crate) fn topic_sources(&self, params: TopicParams) -> Outcome {
        self.show(&params, |config| value(&config.subnets))
    }

    pub(crate) fn topic_pubkey_sources(&self, params: TopicParams) -> Outcome {
        self.show(&params, |config| value(&config.pubkeys))
    }

    pub(crate) fn topic_settings(&self, params: TopicParams) -> Outcome {
        self.show(&params, |config| value(settings(config)))
    }

    pub(crate) fn forward_socket(&self, params: TopicParams) -> Outcome {
        self.show(&params, |config| value(&config.forward_socket))
    }

    pub(crate) fn outbound_socket(&self, params: TopicParams) -> Outcome {
        self.show(&params, |config| {
            value(config.outbound_socket.as_ref().map(shown))
        })
    }

    pub(crate) async fn set_source(&self, params: TopicSubnetParams, add: bool) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let subnet = params.subnet.parse::<Prefix>();
        let subnet = subnet.map_err(|error| Error::new(code::BAD_SUBNET, error.to_string()))?;
        let set = |config: &mut TopicConfig| set_member(&mut config.subnets, subnet, add);
        self.edit(&topic, set).await
    }

    pub(crate) async fn set_pubkey_source(&self, params: TopicPubkeyParams, add: bool) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let key = public_key(&params.pubkey)?;
        let set = |config: &mut TopicConfig| set_member(&mut config.pubkeys, key, add);
        self.edit(&topic, set).await
    }

    pub(crate) async fn set_forward(
        &self,
        caller: &Caller,
        params: ForwardSocketParams,
    ) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let path = socket_path(&params.socket_path)?;
        let framing = params.framing.as_deref().map(framing).transpose()?;
        let timeout = params.reply_timeout;
        if timeout.is_some_and(|seconds| seconds == 0 || seconds > REPLY_TIMEOUT_MAX) {
            let message = format!("reply_timeout is 1 to {REPLY_TIMEOUT_MAX} seconds");
            return Err(invalid(message));
        }
        let set_by = caller.authority();
        self.check_forward(&path, set_by).await?;
        self.edit(&topic, |config| {
            config.forward_socket = Some(path);
            config.forward_set_by = set_by;
            config.framing = framing.unwrap_or(config.framing);
            config.reply_timeout = timeout.or(config.reply_timeout);
            config.keep_alive = params.keep_alive.or(config.keep_alive);
            Ok(true)
        })
        .await
    }

    pub(crate) async fn remove_forward(&self, params: TopicParams) -> Outcome {
        let remove = |config: &mut TopicConfig| Ok(config.forward_socket.take().is_some());
        self.edit(&topic_of(&params.topic)?, remove).await
    }

    /// Binds the sockets that topics.toml names, when the node starts.
    pub fn bind_outbound(&self) {
        for (topic, config) in &self.files.topics.read().topics {
            if let Some(socket) = &config.outbound_socket
                && let Err(error) = self.sockets.bind(topic, &socket.path, socket.set_by)
            {
                tracing::error!(%topic, %error, "outbound socket is not served");
            }
        }
    }

    /// Removes the sockets, when the node ends.
    pub fn unbind_outbound(&self) {
        for config in self.files.topics.read().topics.values() {
            if let Some(socket) = &config.outbound_socket {
                self.sockets.unbind(&socket.path);
            }
        }
    }

    fn show(&self, params: &TopicParams, show: impl FnOnce(&TopicConfig) -> Outcome) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let topics = self.files.topics.read();
        show(topics.topics.get(&topic).ok_or_else(topic_not_found)?)
    }

    /// Applies the topics that an operator has written to the file, with their sockets.
    pub(super) async fn accept_topics(
        &self,
        change: StoredChange<'_, Topics>,
    ) -> Result<(), Error> {
        let outbound = |topics: &Topics| -> Vec<(Topic, PathBuf, Authority)> {
            let socket = |(topic, config): (&Topic, &TopicConfig)| {
                let socket = config.outbound_socket.as_ref()?;
                Some((topic.clone(), socket.path.clone(), socket.set_by))
            };
            topics.topics.iter().filter_map(socket).collect()
        };
        let (before, after) = (outbound(change.old()), outbound(&change.new));
        change.accept();
        let topics = Topics::clone(&self.files.topics.read());
        let set = self.bus.set_topics(topics).await;
        set.map_err(internal)?;
        for (_, path, _) in before.iter().filter(|socket| !after.contains(socket)) {
            self.sockets.unbind(path);
        }
        for (topic, path, set_by) in after.iter().filter(|socket| !before.contains(socket)) {
            if let Err(error) = self.sockets.bind(topic, path, *set_by) {
                tracing::error!(%topic, %error, "outbound socket is not served");
            }
        }
        Ok(())
    }

    pub(crate) async fn add_topic(&self, params: TopicParams) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let mut change = self.files.topics.change().await;
        if !change.new.topics.contains_key(&topic) {
            if change.new.topics.len() >= TOPICS_MAX {
                let message = format!("at most {TOPICS_MAX} topics can be listed");
                return Err(invalid(message));
            }
            let topics = &mut change.new.topics;
            topics.insert(topic, TopicConfig::default());
        }
        self.commit(change).await?;
        ok_true()
    }

    pub(crate) async fn remove_topic(&self, params: TopicParams) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let mut change = self.files.topics.change().await;
        let removed = change.new.topics.remove(&topic);
        let removed = removed.ok_or_else(topic_not_found)?;
        self.commit(change).await?;
        if let Some(socket) = removed.outbound_socket {
            self.sockets.unbind(&socket.path);
        }
        ok_true()
    }

    async fn edit(
        &self,
        topic: &Topic,
        edit: impl FnOnce(&mut TopicConfig) -> Result<bool, Error>,
    ) -> Outcome {
        let mut change = self.files.topics.change().await;
        let config = change
            .new
            .topics
            .get_mut(topic)
            .ok_or_else(topic_not_found)?;
        let result = edit(config)?;
        self.commit(change).await?;
        value(result)
    }

    /// Refuses a path whose server is beyond the authority of the caller. Every connection checks again, since the
    /// server may start or change later.
    async fn check_forward(&self, path: &Path, set_by: Authority) -> Result<(), Error> {
        let checked = self.gate.check(path, set_by).await;
        checked.map_err(|error| Error::new(code::BAD_SOCKET, error.to_string()))
    }

    pub(crate) async fn set_outbound(
        &self,
        caller: &Caller,
        params: OutboundSocketParams,
    ) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let dst = destination(&params.dst)?;
        let path = socket_path(&params.path)?;
        let framing = params.framing.as_deref().map(framing).transpose()?;
        let mut change = self.files.topics.change().await;
        let taken = change.new.topics.iter().any(|(other, config)| {
            let same = |socket: &OutboundSocket| socket.path == path;
            *other != topic && config.outbound_socket.as_ref().is_some_and(same)
        });
        if taken {
            return Err(bind_failed("another topic has that path"));
        }
        let config = change
            .new
            .topics
            .get_mut(&topic)
            .ok_or_else(topic_not_found)?;
        // The authority over a path stays with the caller that has set it.
        let before = config.outbound_socket.as_ref();
        let unchanged = before.filter(|before| before.path == path);
        let set_by = unchanged.map_or(caller.authority(), |before| before.set_by);
        let socket = OutboundSocket {
            path: path.clone(),
            dst,
            set_by,
        };
        config.framing = framing.unwrap_or(config.framing);
        let before = config
            .outbound_socket
            .replace(socket)
            .map(|socket| socket.path);
        // A socket that failed at start is bound again.
        let fresh = !self.sockets.serves(&path);
        if fresh {
            let bound = self.sockets.bind(&topic, &path, set_by);
            bound.map_err(bind_failed)?;
        }
        let committed = self.commit(change).await;
        match (&committed, before) {
            (Ok(()), Some(before)) if before != path => {
                self.sockets.unbind(&before);
            }
            (Err(_), _) if fresh => {
                self.sockets.unbind(&path);
            }
            (Ok(()) | Err(_), _) => {}
        }
        committed?;
        ok_true()
    }

    pub(crate) async fn remove_outbound(&self, params: TopicParams) -> Outcome {
        let topic = topic_of(&params.topic)?;
        let mut change = self.files.topics.change().await;
        let config = change
            .new
            .topics
            .get_mut(&topic)
            .ok_or_else(topic_not_found)?;
        let socket = config.outbound_socket.take();
        self.commit(change).await?;
        if let Some(socket) = &socket {
            self.sockets.unbind(&socket.path);
        }
        value(socket.is_some())
    }

    async fn commit(&self, change: StoredChange<'_, Topics>) -> Result<(), Error> {
        let committed = change.commit().await;
        // Also after a failure: the engine follows the content of the file.
        let topics = Topics::clone(&self.files.topics.read());
        let set = self.bus.set_topics(topics).await;
        set.map_err(internal)?;
        committed.map(drop).map_err(not_committed)
    }
}

/// Adds or removes an entry. Returns whether it is a member after adding, or was before removing.
fn set_member<T: PartialEq>(all: &mut Vec<T>, one: T, add: bool) -> Result<bool, Error> {
    let is_member = all.contains(&one);
    if !add {
        all.retain(|other| *other != one);
        return Ok(is_member);
    }
    if !is_member {
        if all.len() >= ENTRIES_MAX {
            let message = format!("a topic has at most {ENTRIES_MAX} sources of a kind");
            return Err(invalid(message));
        }
        all.push(one);
    }
    Ok(true)
}

/// A topic that can have settings: base64, not the reserved one.
fn topic_of(text: &str) -> Result<Topic, Error> {
    let topic = any_topic(text, code::BAD_TOPIC)?;
    if topic.is_admin() {
        return Err(reserved(code::BAD_TOPIC));
    }
    Ok(topic)
}

fn shown(socket: &OutboundSocket) -> method::OutboundSocket {
    method::OutboundSocket {
        dst: match socket.dst {
            Destination::Address(address) => method::Destination::Ip(address.to_string()),
            Destination::Key(key) => method::Destination::Pk(key.to_string()),
        },
        path: socket.path.display().to_string(),
    }
}

fn settings(config: &TopicConfig) -> method::TopicSettings {
    let path = |path: &PathBuf| path.display().to_string();
    method::TopicSettings {
        subnets: config.subnets.iter().map(ToString::to_string).collect(),
        pubkeys: config.pubkeys.iter().map(ToString::to_string).collect(),
        forward_socket: config.forward_socket.as_ref().map(path),
        outbound_socket: config.outbound_socket.as_ref().map(shown),
        framing: match config.framing {
            Framing::Eof => "eof",
            Framing::Http => "http",
            Framing::JsonLines => "json-lines",
        }
        .to_owned(),
        reply_timeout_seconds: config.socket_timeout().as_secs(),
        keep_alive: config.keeps_connections(),
    }
}

fn socket_path(text: &str) -> Result<PathBuf, Error> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.len() > SOCKET_PATH_MAX || text.contains('\0') {
        let message = format!(
            "'{text}' cannot name a Unix socket: an absolute path of at most {SOCKET_PATH_MAX} bytes"
        );
        return Err(Error::new(code::BAD_SOCKET, message));
    }
    Ok(path)
}

fn framing(text: &str) -> Result<Framing, Error> {
    match text {
        "eof" => Ok(Framing::Eof),
        "http" => Ok(Framing::Http),
        "json-lines" => Ok(Framing::JsonLines),
        _ => {
            let message = format!("framing '{text}' is not one of eof, http, json-lines");
            Err(Error::new(code::BAD_SOCKET, message))
        }
    }
}

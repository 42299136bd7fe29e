//! The method table: one row per method. It generates the calls, the OpenRPC document and the typed client, and is
//! the only list of methods.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use crate::Response;
use crate::client::{Client, ClientError};
use crate::message::code;
use crate::method::{
    AcceptParams, BusCallParams, DrainParams, EndpointParams, ExtendMessagesParams,
    ForwardSocketParams, InboxList, IncomingMessage, Info, IpParams, LeaseResult,
    ListMessagesParams, MessageIdParams, MessageInfo, OutboundSocket, OutboundSocketParams,
    PacketStatistics, PatternsParams, Peer, PingParams, Pong, PopMessageParams, PopMessagesParams,
    PubkeyParams, PushMessageParams, PushMessageReplyParams, PushMessageResult, PushMessagesParams,
    PushMessagesResult, QueriedSubnet, ReloadParams, ReloadResult, Route, RouteParams, StaticRoute,
    Status, TokensParams, TopicParams, TopicPubkeyParams, TopicSettings, TopicSubnetParams,
    TraceHop, TraceParams,
};

/// Callers of a method, in addition to the checks of listener and admin.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Processes of this host: not over the bus, and not with a bearer token.
    Local,
    /// All.
    Remote,
}

/// Persistent effect of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// None, apart from the inbox.
    Transient,
    /// A change of a state file or of the configuration. It completes even if its caller disconnects.
    Durable,
}

/// Whether a call may wait. A disconnect of its caller cancels the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Never.
    Never,
    /// If its parameters request it.
    IfAsked,
    /// It may wait.
    Always,
}

/// One method.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Its number.
    pub id: MethodId,
    /// Its name.
    pub name: &'static str,
    /// Its effect, one line.
    pub summary: &'static str,
    /// Names of its parameters, in the order in which they may be given by position.
    pub params: &'static [&'static str],
    /// Errors of its own.
    pub errors: &'static [i64],
    /// Who may call it.
    pub access: Access,
    /// Its persistent effect.
    pub effect: Effect,
    /// Whether it may wait.
    pub waits: Waits,
    /// Schema of an object of all parameters.
    pub(crate) params_schema: fn(&mut SchemaGenerator) -> Schema,
    /// Schema of the result.
    pub(crate) result_schema: fn(&mut SchemaGenerator) -> Schema,
}

/// Finds a method.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// A method without parameters.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize, JsonSchema)]
pub struct NoParams {}

impl Call {
    /// Its method.
    pub fn method(&self) -> &'static Method {
        &METHODS[self.id() as usize]
    }
}

/// A row: documentation; variant of [`Call`] and function of [`Client`]; name; type and names of the parameters;
/// result; errors of its own; [`Access`], [`Effect`], [`Waits`].
macro_rules! methods {
    ($($(#[doc = $summary:literal])+ $variant:ident $function:ident = $name:literal
        ($($params:ty)?) [$($field:literal),*] -> $result:ty, [$($error:ident),*],
        $access:ident $effect:ident $waits:ident;)*) => {
        /// Every method that a node answers, in the order of [`MethodId`].
        pub static METHODS: &[Method] = &[$(Method {
            id: MethodId::$variant,
            access: Access::$access,
            effect: Effect::$effect,
            waits: Waits::$waits,
            name: $name,
            summary: concat!($($summary),+).trim_ascii_start(),
            params: &[$($field),*],
            errors: &[$(code::$error),*],
            params_schema: methods!(@schema $($params)?),
            result_schema: |generator| generator.subschema_for::<$result>(),
        }),*];

        /// Number of a method.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum MethodId {$(
            $(#[doc = $summary])+
            $variant,
        )*}

        /// A call with its parameters, one variant per method.
        #[derive(Clone, Debug)]
        pub enum Call {$(
            $(#[doc = $summary])+
            $variant $(($params))?,
        )*}

        impl Call {
            /// Reads the parameters of a method, by name or by position. A method without parameters ignores what
            /// is given.
            ///
            /// # Errors
            /// When they are not of the method's type.
            pub fn parse(method: MethodId, params: &str) -> Result<Self, crate::Error> {
                Ok(match method {
                    $(MethodId::$variant => methods!(@parse $variant params $($params)?),)*
                })
            }

            /// Number of its method.
            pub fn id(&self) -> MethodId {
                match self {
                    $(Self::$variant { .. } => MethodId::$variant,)*
                }
            }

            /// Whether it may wait.
            pub fn may_wait(&self) -> bool {
                let call = self;
                match call {
                    $(Self::$variant { .. } => methods!(@waits $waits call $variant),)*
                }
            }
        }

        /// One function per method, with its types.
        impl Client {$(
            $(#[doc = $summary])+
            ///
            /// # Errors
            /// When no node answers, or it answers with an error.
            pub fn $function(&self $(, params: $params)?) -> Result<$result, ClientError> {
                self.call($name, methods!(@value $($params, params)?))
            }
        )*}
    };
    (@parse $variant:ident $text:ident) => {{ Call::$variant }};
    (@parse $variant:ident $text:ident $params:ty) => { Call::$variant(parse_params($text)?) };
    (@waits Never $call:ident $variant:ident) => { false };
    (@waits Always $call:ident $variant:ident) => { true };
    (@waits IfAsked $call:ident $variant:ident) => {
        matches!($call, Call::$variant(params) if params.may_wait())
    };
    (@schema) => { NoParams::json_schema };
    (@schema $params:ty) => { <$params>::json_schema };
    (@value) => { NoParams {} };
    (@value $params:ty, $value:ident) => { $value };
}

methods! {
    /// Key, address and subnet of the node.
    GetInfo get_info = "getInfo" () [] -> Info, [], Remote Transient Never;
    /// Key of the node that owns an overlay address, where it is known.
    GetPublicKeyFromIp get_public_key_from_ip = "getPublicKeyFromIp" (IpParams) ["ip"]
        -> String, [BAD_IP, NO_KEY],
        Remote Transient Never;
    /// All peers, configured and inbound.
    GetPeers get_peers = "getPeers" () [] -> Vec<Peer>, [], Remote Transient Never;
    /// Connect to a peer, now and after every restart.
    AddPeer add_peer = "addPeer" (EndpointParams) ["endpoint"] -> bool,
        [BAD_ENDPOINT, PEER_EXISTS, PERSIST_FAILED], Remote Durable Never;
    /// Stop connecting to a peer and end the link.
    DeletePeer delete_peer = "deletePeer" (EndpointParams) ["endpoint"] -> bool,
        [BAD_ENDPOINT_DELETE, PEER_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Routes in use.
    GetSelectedRoutes get_selected_routes = "getSelectedRoutes" () [] -> Vec<Route>, [],
        Remote Transient Never;
    /// Routes that are known and not in use.
    GetFallbackRoutes get_fallback_routes = "getFallbackRoutes" () [] -> Vec<Route>, [],
        Remote Transient Never;
    /// Subnets for which a route or session is being searched.
    GetQueriedSubnets get_queried_subnets = "getQueriedSubnets" () [] -> Vec<QueriedSubnet>, [],
        Remote Transient Never;
    /// Frames and bytes exchanged with each peer.
    GetPacketStatistics get_packet_statistics = "getPacketStatistics" () [] -> PacketStatistics, [],
        Remote Transient Never;

    /// Send a message; with reply_timeout, wait for the reply.
    PushMessage push_message = "pushMessage" (PushMessageParams) ["message", "reply_timeout", "wait"]
        -> PushMessageResult, [BAD_IP, BAD_KEY, PUSH_REFUSED, REPLY_EMPTY, REPLY_CLOSED, BUSY],
        Remote Transient IfAsked;
    /// Send several messages to one node: all of them, or a number of the first.
    PushMessages push_messages = "pushMessages" (PushMessagesParams)
        ["dst", "topic", "payloads", "attached", "wait"]
        -> PushMessagesResult, [BAD_IP, BAD_KEY, PUSH_REFUSED, BUSY], Remote Transient IfAsked;
    /// Deliver the next message of the inbox, or null without one in time. It leaves the inbox once the answer was
    /// written.
    PopMessage pop_message = "popMessage" (PopMessageParams) ["peek", "timeout", "topic"]
        -> Option<IncomingMessage>, [BAD_TOPIC_FILTER, BUSY], Remote Transient Always;
    /// Deliver several messages of the inbox: at least one, with an optional wait for it, then further ones up to
    /// count and 1 MiB; none without one in time. They leave the inbox once the answer was written, or with a lease
    /// once they are acknowledged.
    PopMessages pop_messages = "popMessages" (PopMessagesParams)
        ["count", "timeout", "topic", "attach", "lease"]
        -> Vec<IncomingMessage>, [BAD_TOPIC_FILTER, BUSY, PERSIST_FAILED], Remote Transient Always;
    /// Acknowledge leased messages: they leave the inbox, and their senders are notified that they were read.
    AckMessages ack_messages = "ackMessages" (TokensParams) ["tokens"] -> LeaseResult,
        [LEASE_ENDED, PERSIST_FAILED], Remote Transient Never;
    /// Set the end of leases.
    ExtendMessages extend_messages = "extendMessages" (ExtendMessagesParams) ["tokens", "lease"]
        -> LeaseResult,
        [LEASE_ENDED], Remote Transient Never;
    /// Return leased messages to the inbox, where they are visible again.
    ReturnMessages return_messages = "returnMessages" (TokensParams) ["tokens"]
        -> LeaseResult, [LEASE_ENDED],
        Remote Transient Never;
    /// Count the messages of the inbox and list the oldest, without their contents.
    ListMessages list_messages = "listMessages" (ListMessagesParams) ["topic", "count", "after"]
        -> InboxList,
        [BAD_TOPIC_FILTER], Remote Transient Never;
    /// Answer a message.
    PushMessageReply push_message_reply = "pushMessageReply" (PushMessageReplyParams) ["id", "message", "ack"]
        -> bool, [BAD_IP, BAD_KEY, PUSH_REFUSED, BAD_ID, LEASE_ENDED, PERSIST_FAILED],
        Remote Transient Never;
    /// State of an outgoing message.
    GetMessageInfo get_message_info = "getMessageInfo" (MessageIdParams) ["id"] -> MessageInfo,
        [NO_MESSAGE, BAD_INFO_ID], Remote Transient Never;

    /// Whether messages on topics that are not listed are accepted.
    GetDefaultTopicAction get_default_topic_action = "getDefaultTopicAction" () [] -> bool, [],
        Remote Transient Never;
    /// Accept or drop messages on topics that are not listed.
    SetDefaultTopicAction set_default_topic_action = "setDefaultTopicAction" (AcceptParams) ["accept"]
        -> bool,
        [PERSIST_FAILED], Remote Durable Never;
    /// Topics that are listed.
    GetTopics get_topics = "getTopics" () [] -> Vec<String>, [], Remote Transient Never;
    /// List a topic; a listed topic without sources drops everything.
    AddTopic add_topic = "addTopic" (TopicParams) ["topic"] -> bool, [BAD_TOPIC, PERSIST_FAILED],
        Remote Durable Never;
    /// Remove a topic from the list, with its sources and sockets.
    RemoveTopic remove_topic = "removeTopic" (TopicParams) ["topic"] -> bool,
        [BAD_TOPIC, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Subnets that may send to a topic.
    GetTopicSources get_topic_sources = "getTopicSources" (TopicParams) ["topic"] -> Vec<String>,
        [BAD_TOPIC, TOPIC_NOT_FOUND], Remote Transient Never;
    /// Allow a subnet to send to a topic.
    AddTopicSource add_topic_source = "addTopicSource" (TopicSubnetParams) ["topic", "subnet"]
        -> bool,
        [BAD_TOPIC, BAD_SUBNET, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Revoke a subnet's permission to send to a topic.
    RemoveTopicSource remove_topic_source = "removeTopicSource" (TopicSubnetParams) ["topic", "subnet"]
        -> bool,
        [BAD_TOPIC, BAD_SUBNET, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Keys that may send to a topic.
    GetTopicPubkeySources get_topic_pubkey_sources = "getTopicPubkeySources" (TopicParams) ["topic"]
        -> Vec<String>,
        [BAD_TOPIC, TOPIC_NOT_FOUND], Remote Transient Never;
    /// Allow the holder of a key to send to a topic.
    AddTopicPubkeySource add_topic_pubkey_source = "addTopicPubkeySource" (TopicPubkeyParams) ["topic", "pubkey"]
        -> bool, [BAD_TOPIC, BAD_KEY, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Revoke a key's permission to send to a topic.
    RemoveTopicPubkeySource remove_topic_pubkey_source = "removeTopicPubkeySource" (TopicPubkeyParams)
        ["topic", "pubkey"] -> bool, [BAD_TOPIC, BAD_KEY, TOPIC_NOT_FOUND, PERSIST_FAILED],
        Remote Durable Never;
    /// Settings of a topic: sources, sockets, and how its sockets are served.
    GetTopicSettings get_topic_settings = "getTopicSettings" (TopicParams) ["topic"]
        -> TopicSettings,
        [BAD_TOPIC, TOPIC_NOT_FOUND], Remote Transient Never;
    /// Local socket that messages on a topic are forwarded to.
    GetTopicForwardSocket get_topic_forward_socket = "getTopicForwardSocket" (TopicParams) ["topic"]
        -> Option<String>,
        [BAD_TOPIC, TOPIC_NOT_FOUND], Remote Transient Never;
    /// Forward messages on a topic to a local socket, and reply with its answers.
    SetTopicForwardSocket set_topic_forward_socket = "setTopicForwardSocket" (ForwardSocketParams)
        ["topic", "socket_path", "framing", "reply_timeout", "keep_alive"] -> bool,
        [BAD_TOPIC, BAD_SOCKET, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Stop forwarding messages on a topic to a local socket.
    RemoveTopicForwardSocket remove_topic_forward_socket = "removeTopicForwardSocket" (TopicParams) ["topic"]
        -> bool,
        [BAD_TOPIC, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;
    /// Local socket whose requests become messages on a topic.
    GetTopicOutboundSocket get_topic_outbound_socket = "getTopicOutboundSocket" (TopicParams) ["topic"]
        -> Option<OutboundSocket>, [BAD_TOPIC, TOPIC_NOT_FOUND], Remote Transient Never;
    /// Bind a local socket whose requests are sent to another node as messages on a topic.
    SetTopicOutboundSocket set_topic_outbound_socket = "setTopicOutboundSocket" (OutboundSocketParams)
        ["topic", "dst", "path", "framing"] -> bool,
        [BAD_IP, BAD_TOPIC, BAD_KEY, BAD_SOCKET, TOPIC_NOT_FOUND, PERSIST_FAILED],
        Remote Durable Never;
    /// Remove the local socket whose requests become messages on a topic.
    RemoveTopicOutboundSocket remove_topic_outbound_socket = "removeTopicOutboundSocket" (TopicParams) ["topic"]
        -> bool,
        [BAD_TOPIC, TOPIC_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;

    /// Keys that may administer this node over the bus.
    AdminList admin_list = "admin.list" () [] -> Vec<String>, [], Remote Transient Never;
    /// Allow the holder of a key to administer this node over the bus.
    AdminAdd admin_add = "admin.add" (PubkeyParams) ["pubkey"] -> bool, [BAD_KEY, PERSIST_FAILED],
        Remote Durable Never;
    /// Revoke a key's permission to administer this node over the bus.
    AdminRemove admin_remove = "admin.remove" (PubkeyParams) ["pubkey"] -> bool,
        [DENIED, BAD_KEY, PERSIST_FAILED], Remote Durable Never;
    /// Methods that administrators may call over the bus.
    AdminGetMethodPatterns admin_get_method_patterns = "admin.getMethodPatterns" () []
        -> Vec<String>, [],
        Remote Transient Never;
    /// Set which methods administrators may call over the bus.
    AdminSetMethodPatterns admin_set_method_patterns = "admin.setMethodPatterns" (PatternsParams) ["patterns"]
        -> bool,
        [DENIED, BAD_PATTERN, PERSIST_FAILED], Remote Durable Never;
    /// Call a method of another node over the bus; the result is its response, unchanged.
    AdminBusCall admin_bus_call = "admin.busCall" (BusCallParams)
        ["dst_pubkey", "dst_ip", "method", "params", "id", "timeout_secs"] -> Response,
        [DENIED, BAD_IP, BAD_KEY, PUSH_REFUSED, REPLY_EMPTY, REPLY_CLOSED, BUSY],
        Local Transient Always;

    /// State of the node: planes, peers, sessions, counters, drops.
    NodeStatus node_status = "node.status" () [] -> Status, [], Remote Transient Never;
    /// Drain the node, so that neighbours use other paths, or end the drain.
    NodeDrain node_drain = "node.drain" (DrainParams) ["on"] -> bool, [NOT_ROUTING, PERSIST_FAILED],
        Remote Durable Never;
    /// End a node that `hyphae up` runs, both planes.
    NodeShutdown node_shutdown = "node.shutdown" () [] -> bool, [NOT_STOPPED],
        Local Transient Never;
    /// Measure the round trip to another node through the overlay.
    NodePing node_ping = "node.ping" (PingParams) ["address", "timeoutMs"]
        -> Pong, [BAD_IP, NO_ANSWER],
        Remote Transient Always;
    /// Identify the node at a number of hops on the path to another node.
    NodeTrace node_trace = "node.trace" (TraceParams) ["address", "hopLimit", "timeoutMs"]
        -> TraceHop,
        [BAD_IP, NO_ANSWER], Remote Transient Always;
    /// Read the configuration file again and apply the settings that can change live; with dryRun, only report them.
    ConfigReload config_reload = "config.reload" (ReloadParams) ["dryRun"]
        -> ReloadResult, [CONFIG_REFUSED],
        Remote Durable Never;
    /// Static routes, in use or not.
    RouteList route_list = "route.list" () [] -> Vec<StaticRoute>, [], Remote Transient Never;
    /// Send packets for a prefix to a peer, now and after every restart.
    RouteAdd route_add = "route.add" (RouteParams) ["prefix", "via"]
        -> bool, [BAD_SUBNET, PERSIST_FAILED],
        Remote Durable Never;
    /// Remove a static route.
    RouteRemove route_remove = "route.remove" (RouteParams) ["prefix", "via"] -> bool,
        [BAD_SUBNET, ROUTE_NOT_FOUND, PERSIST_FAILED], Remote Durable Never;

    /// This document.
    Discover discover = "rpc.discover" () [] -> Value, [], Remote Transient Never;
}

/// Cause of a parse error; with its position only if the text is not JSON.
pub fn cause(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((cause, _)) if error.is_data() => cause.to_owned(),
        _ => message,
    }
}

/// Reads parameters, by name or by position.
///
/// # Errors
/// When they are not of the type.
pub fn parse_params<'de, T: serde::Deserialize<'de>>(text: &'de str) -> Result<T, crate::Error> {
    let invalid = |error| crate::Error::new(code::INVALID_PARAMS, cause(&error));
    let text = match text.trim_ascii() {
        "" | "null" => "{}",
        text => text,
    };
    if !text.starts_with(['{', '[']) {
        let message = "params are an object, or an array in the order of the parameters";
        return Err(crate::Error::new(code::INVALID_PARAMS, message));
    }
    serde_json::from_str(text).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_params_are_those_of_the_types() {
        let names: BTreeSet<_> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(names.len(), METHODS.len());
        assert!(
            METHODS
                .iter()
                .enumerate()
                .all(|(at, method)| method.id as usize == at)
        );
        for method in METHODS {
            let schema = (method.params_schema)(&mut SchemaGenerator::default());
            let fields = schema.get("properties").and_then(Value::as_object);
            let fields: BTreeSet<_> = fields
                .into_iter()
                .flatten()
                .map(|(k, _)| k.as_str())
                .collect();
            let listed: BTreeSet<_> = method.params.iter().copied().collect();
            assert_eq!(fields, listed, "{}", method.name);
        }
    }

    #[test]
    fn an_invalid_destination_is_reported_in_a_sentence() {
        for (given, cause) in [
            (
                r#"{"ip":"400::1","pk":"00"}"#,
                "a destination has `ip` or `pk`, and both are given",
            ),
            (
                "{}",
                "a destination needs `ip` (overlay address) or `pk` (public key, hex)",
            ),
        ] {
            let params = format!(r#"{{"message":{{"dst":{given},"payload":""}}}}"#);
            let error = parse_params::<PushMessageParams>(&params).unwrap_err();
            assert_eq!(
                (error.code, error.message.as_str()),
                (code::INVALID_PARAMS, cause)
            );
        }
        for given in [r#"{"ip":"400::1"}"#, r#"{"pk":"00"}"#] {
            let params = format!(r#"{{"message":{{"dst":{given},"payload":""}}}}"#);
            let params = parse_params::<PushMessageParams>(&params).unwrap();
            assert_eq!(serde_json::to_string(&params.message.dst).unwrap(), given);
        }
    }

    #[test]
    fn parameters_may_be_named_or_in_order() {
        let named: TopicSubnetParams = parse_params(r#"{"subnet":"b","topic":"a"}"#).unwrap();
        let ordered: TopicSubnetParams = parse_params(r#"["a","b"]"#).unwrap();
        assert_eq!(named, ordered);
        let some: PopMessageParams = parse_params("[true]").unwrap();
        assert_eq!((some.peek, some.timeout), (Some(true), None));
        assert_eq!(
            parse_params::<PopMessageParams>("null").unwrap(),
            PopMessageParams::default()
        );
        for bad in ["3", "\"a\"", "[\"a\"]", "[\"a\",\"b\",\"c\"]", "{}"] {
            let error = parse_params::<TopicSubnetParams>(bad).unwrap_err();
            assert_eq!(error.code, code::INVALID_PARAMS, "{bad}");
        }
    }
}

//! The method table: one entry per method, from which come dispatch by name, the OpenRPC document
//! and the typed client. A method that is not here does not exist.

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

/// One method.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// What it does, one line.
    pub summary: &'static str,
    /// Names of its parameters, in the order in which they may be given by position.
    pub params: &'static [&'static str],
    /// Errors of its own.
    pub errors: &'static [i64],
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

macro_rules! methods {
    ($($(#[doc = $summary:literal])+ $function:ident = $name:literal
        ($($params:ty)?) [$($field:literal),*] -> $result:ty, [$($error:ident),*];)*) => {
        /// Every method that a node answers.
        pub static METHODS: &[Method] = &[$(Method {
            name: $name,
            summary: concat!($($summary),+).trim_ascii_start(),
            params: &[$($field),*],
            errors: &[$(code::$error),*],
            params_schema: methods!(@schema $($params)?),
            result_schema: |generator| generator.subschema_for::<$result>(),
        }),*];

        /// One function per method, with its types.
        impl Client {$(
            $(#[doc = $summary])+
            ///
            /// # Errors
            /// When there is no node, or it refuses.
            pub fn $function(&self $(, params: $params)?) -> Result<$result, ClientError> {
                self.call($name, methods!(@value $($params, params)?))
            }
        )*}
    };
    (@schema) => { NoParams::json_schema };
    (@schema $params:ty) => { <$params>::json_schema };
    (@value) => { NoParams {} };
    (@value $params:ty, $value:ident) => { $value };
}

methods! {
    /// Key, address and subnet of the node.
    get_info = "getInfo" () [] -> Info, [];
    /// Key of the node that owns an overlay address, where it is known.
    get_public_key_from_ip = "getPublicKeyFromIp" (IpParams) ["ip"] -> String, [BAD_IP, NO_KEY];
    /// All peers, configured and inbound.
    get_peers = "getPeers" () [] -> Vec<Peer>, [];
    /// Connect to a peer, now and after every restart.
    add_peer = "addPeer" (EndpointParams) ["endpoint"] -> bool,
        [BAD_ENDPOINT, PEER_EXISTS, PERSIST_FAILED];
    /// Stop connecting to a peer and end the link.
    delete_peer = "deletePeer" (EndpointParams) ["endpoint"] -> bool,
        [BAD_ENDPOINT_DELETE, PEER_NOT_FOUND, PERSIST_FAILED];
    /// Routes in use.
    get_selected_routes = "getSelectedRoutes" () [] -> Vec<Route>, [];
    /// Routes that are known and not in use.
    get_fallback_routes = "getFallbackRoutes" () [] -> Vec<Route>, [];
    /// Subnets that a route or session is being looked for.
    get_queried_subnets = "getQueriedSubnets" () [] -> Vec<QueriedSubnet>, [];
    /// Frames and bytes exchanged with each peer.
    get_packet_statistics = "getPacketStatistics" () [] -> PacketStatistics, [];

    /// Send a message; with reply_timeout, wait for the reply.
    push_message = "pushMessage" (PushMessageParams) ["message", "reply_timeout", "wait"]
        -> PushMessageResult, [BAD_IP, BAD_KEY, PUSH_REFUSED, REPLY_EMPTY, REPLY_CLOSED, BUSY];
    /// Send several messages to one node. Either all are under way then, or so many of the first.
    push_messages = "pushMessages" (PushMessagesParams)
        ["dst", "topic", "payloads", "attached", "wait"]
        -> PushMessagesResult, [BAD_IP, BAD_KEY, PUSH_REFUSED, BUSY];
    /// Take the next message out of the inbox, or null when none comes in time. It leaves the inbox once the answer
    /// was written.
    pop_message = "popMessage" (PopMessageParams) ["peek", "timeout", "topic"]
        -> Option<IncomingMessage>, [BAD_TOPIC_FILTER, BUSY];
    /// Take several messages out of the inbox at once: one at least, waiting for it if asked to, then
    /// those that are there, up to count of them and 1 MiB. None when none comes in time. They leave the inbox once the
    /// answer was written; with a lease, once they are acknowledged.
    pop_messages = "popMessages" (PopMessagesParams)
        ["count", "timeout", "topic", "attach", "lease"]
        -> Vec<IncomingMessage>, [BAD_TOPIC_FILTER, BUSY, PERSIST_FAILED];
    /// Acknowledge leased messages: they leave the inbox, and their senders learn that they were read.
    ack_messages = "ackMessages" (TokensParams) ["tokens"] -> LeaseResult,
        [LEASE_ENDED, PERSIST_FAILED];
    /// Let leases end later, or earlier.
    extend_messages = "extendMessages" (ExtendMessagesParams) ["tokens", "lease"] -> LeaseResult,
        [LEASE_ENDED];
    /// Give leased messages back: they are visible in the inbox again.
    return_messages = "returnMessages" (TokensParams) ["tokens"] -> LeaseResult, [LEASE_ENDED];
    /// Count the messages of the inbox and list the oldest, without their contents.
    list_messages = "listMessages" (ListMessagesParams) ["topic", "count", "after"] -> InboxList,
        [BAD_TOPIC_FILTER];
    /// Answer a message.
    push_message_reply = "pushMessageReply" (PushMessageReplyParams) ["id", "message", "ack"]
        -> bool, [BAD_IP, BAD_KEY, PUSH_REFUSED, BAD_ID, LEASE_ENDED, PERSIST_FAILED];
    /// How far a message has come.
    get_message_info = "getMessageInfo" (MessageIdParams) ["id"] -> MessageInfo,
        [NO_MESSAGE, BAD_INFO_ID];

    /// Whether messages on topics that are not listed are accepted.
    get_default_topic_action = "getDefaultTopicAction" () [] -> bool, [];
    /// Accept or drop messages on topics that are not listed.
    set_default_topic_action = "setDefaultTopicAction" (AcceptParams) ["accept"] -> bool,
        [PERSIST_FAILED];
    /// Topics that are listed.
    get_topics = "getTopics" () [] -> Vec<String>, [];
    /// List a topic; a listed topic without sources drops everything.
    add_topic = "addTopic" (TopicParams) ["topic"] -> bool, [BAD_TOPIC, PERSIST_FAILED];
    /// Take a topic off the list, with its sources and sockets.
    remove_topic = "removeTopic" (TopicParams) ["topic"] -> bool,
        [BAD_TOPIC, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Subnets that may send to a topic.
    get_topic_sources = "getTopicSources" (TopicParams) ["topic"] -> Vec<String>,
        [BAD_TOPIC, TOPIC_NOT_FOUND];
    /// Let a subnet send to a topic.
    add_topic_source = "addTopicSource" (TopicSubnetParams) ["topic", "subnet"] -> bool,
        [BAD_TOPIC, BAD_SUBNET, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Let a subnet no longer send to a topic.
    remove_topic_source = "removeTopicSource" (TopicSubnetParams) ["topic", "subnet"] -> bool,
        [BAD_TOPIC, BAD_SUBNET, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Keys that may send to a topic.
    get_topic_pubkey_sources = "getTopicPubkeySources" (TopicParams) ["topic"] -> Vec<String>,
        [BAD_TOPIC, TOPIC_NOT_FOUND];
    /// Let the holder of a key send to a topic.
    add_topic_pubkey_source = "addTopicPubkeySource" (TopicPubkeyParams) ["topic", "pubkey"]
        -> bool, [BAD_TOPIC, BAD_KEY, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Let the holder of a key no longer send to a topic.
    remove_topic_pubkey_source = "removeTopicPubkeySource" (TopicPubkeyParams)
        ["topic", "pubkey"] -> bool, [BAD_TOPIC, BAD_KEY, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// What a topic is set to: sources, sockets, and how its sockets are served.
    get_topic_settings = "getTopicSettings" (TopicParams) ["topic"] -> TopicSettings,
        [BAD_TOPIC, TOPIC_NOT_FOUND];
    /// Local socket that messages on a topic are handed to.
    get_topic_forward_socket = "getTopicForwardSocket" (TopicParams) ["topic"] -> Option<String>,
        [BAD_TOPIC, TOPIC_NOT_FOUND];
    /// Hand messages on a topic to a local socket, and send back what it answers.
    set_topic_forward_socket = "setTopicForwardSocket" (ForwardSocketParams)
        ["topic", "socket_path", "framing", "reply_timeout", "keep_alive"] -> bool,
        [BAD_TOPIC, BAD_SOCKET, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Hand messages on a topic to no socket any more.
    remove_topic_forward_socket = "removeTopicForwardSocket" (TopicParams) ["topic"] -> bool,
        [BAD_TOPIC, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Local socket whose requests become messages on a topic.
    get_topic_outbound_socket = "getTopicOutboundSocket" (TopicParams) ["topic"]
        -> Option<OutboundSocket>, [BAD_TOPIC, TOPIC_NOT_FOUND];
    /// Make a local socket whose requests go to another node as messages on a topic.
    set_topic_outbound_socket = "setTopicOutboundSocket" (OutboundSocketParams)
        ["topic", "dst", "path", "framing"] -> bool,
        [BAD_IP, BAD_TOPIC, BAD_KEY, BAD_SOCKET, TOPIC_NOT_FOUND, PERSIST_FAILED];
    /// Remove the local socket whose requests become messages on a topic.
    remove_topic_outbound_socket = "removeTopicOutboundSocket" (TopicParams) ["topic"] -> bool,
        [BAD_TOPIC, TOPIC_NOT_FOUND, PERSIST_FAILED];

    /// Keys that may administer this node over the bus.
    admin_list = "admin.list" () [] -> Vec<String>, [];
    /// Let the holder of a key administer this node over the bus.
    admin_add = "admin.add" (PubkeyParams) ["pubkey"] -> bool, [BAD_KEY, PERSIST_FAILED];
    /// Let the holder of a key no longer administer this node over the bus.
    admin_remove = "admin.remove" (PubkeyParams) ["pubkey"] -> bool,
        [DENIED, BAD_KEY, PERSIST_FAILED];
    /// Methods that administrators may call over the bus.
    admin_get_method_patterns = "admin.getMethodPatterns" () [] -> Vec<String>, [];
    /// Set which methods administrators may call over the bus.
    admin_set_method_patterns = "admin.setMethodPatterns" (PatternsParams) ["patterns"] -> bool,
        [DENIED, BAD_PATTERN, PERSIST_FAILED];
    /// Call a method of another node over the bus; the result is its response, unchanged.
    admin_bus_call = "admin.busCall" (BusCallParams)
        ["dst_pubkey", "dst_ip", "method", "params", "id", "timeout_secs"] -> Response,
        [DENIED, BAD_IP, BAD_KEY, PUSH_REFUSED, REPLY_EMPTY, REPLY_CLOSED, BUSY];

    /// How the node is doing: planes, peers, sessions, counters, drops.
    node_status = "node.status" () [] -> Status, [];
    /// Let neighbours take other ways than through this node, or end that.
    node_drain = "node.drain" (DrainParams) ["on"] -> bool, [NOT_ROUTING, PERSIST_FAILED];
    /// End a node that `hyphae up` runs, both planes.
    node_shutdown = "node.shutdown" () [] -> bool, [NOT_STOPPED];
    /// Measure the round trip to another node through the overlay.
    node_ping = "node.ping" (PingParams) ["address", "timeoutMs"] -> Pong, [BAD_IP, NO_ANSWER];
    /// Ask whoever is so many hops away on the way to another node who it is.
    node_trace = "node.trace" (TraceParams) ["address", "hopLimit", "timeoutMs"] -> TraceHop,
        [BAD_IP, NO_ANSWER];
    /// Read the configuration file again and change what can change live; with dryRun, only say what
    /// would.
    config_reload = "config.reload" (ReloadParams) ["dryRun"] -> ReloadResult, [CONFIG_REFUSED];
    /// Static routes, in use or not.
    route_list = "route.list" () [] -> Vec<StaticRoute>, [];
    /// Send packets for a prefix to a peer, now and after every restart.
    route_add = "route.add" (RouteParams) ["prefix", "via"] -> bool, [BAD_SUBNET, PERSIST_FAILED];
    /// Remove a static route.
    route_remove = "route.remove" (RouteParams) ["prefix", "via"] -> bool,
        [BAD_SUBNET, ROUTE_NOT_FOUND, PERSIST_FAILED];

    /// This document.
    discover = "rpc.discover" () [] -> Value, [];
}

/// Why JSON is not of a type. The position is left out unless the text is no JSON: nobody counts the columns of a call.
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
    fn what_is_wrong_with_a_destination_is_a_sentence() {
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

//! One dispatcher for every listener: authorizes, calls the function of the method, measures.
//!
//! ```text
//!  socket ┐
//!  HTTP   ├─▶ authorizer ─▶ methods ─▶ bus · state files · node task
//!  REST   │
//!  bus    ┘
//! ```
//!
//! No lock is held while a call waits: it delays no other call. The number of waiting calls is bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::PushMessageParams;
use hyphae_rpc::{Call, Effect};

use super::authorizer::Caller;
use super::context::Dispatcher;
use super::error::internal;
use super::params::{Attached, Incoming};
use super::reply::{Outcome, Reply};

/// Interval of log lines about denials.
const LOG_DENIED_EVERY: Duration = Duration::from_secs(1);

impl Dispatcher {
    /// Whether a caller may call a method.
    pub(crate) fn authorize(&self, caller: &Caller, method: &str) -> Result<(), Error> {
        self.files.admins.read().check(caller, method)
    }

    /// Answers a call. `attach`: payloads may follow its result.
    ///
    /// Dropping the future cancels waits. A durable change completes in a task of its own, so that memory and disk
    /// agree.
    pub(crate) async fn call(
        self: &Arc<Self>,
        caller: &Caller,
        incoming: Incoming,
        attach: bool,
    ) -> Result<Reply, Error> {
        let started = Instant::now();
        let Incoming {
            method,
            call,
            attached,
        } = incoming;
        let checked = self.authorize(caller, &method);
        let result = match (checked, call) {
            (Err(denied), _) => {
                self.log_denied(caller, &method, &denied);
                Err(denied)
            }
            (Ok(()), Err(invalid)) => Err(invalid),
            (Ok(()), Ok(call)) if call.method().effect == Effect::Durable => {
                tracing::debug!(?caller, %method, "durable change");
                let (this, caller) = (Arc::clone(self), caller.clone());
                let change = async move { this.dispatch(&caller, call, attached, attach).await };
                let changed = tokio::spawn(change).await;
                changed.unwrap_or_else(|error| Err(internal(error)))
            }
            (Ok(()), Ok(call)) => self.dispatch(caller, call, attached, attach).await,
        };
        let error = result.as_ref().err().map(|error| error.code);
        self.note(&method, error, started, 1);
        result
    }

    /// Answers several calls of `pushMessage` that wait for no reply.
    pub(crate) async fn push_all(
        &self,
        caller: &Caller,
        calls: Vec<PushMessageParams>,
    ) -> Vec<Outcome> {
        let (method, started) = ("pushMessage", Instant::now());
        let results = match self.authorize(caller, method) {
            Ok(()) => self.push_messages(calls).await,
            Err(denied) => {
                self.log_denied(caller, method, &denied);
                calls.iter().map(|_| Err(denied.clone())).collect()
            }
        };
        let mut codes = BTreeMap::<Option<i64>, usize>::new();
        for result in &results {
            let code = result.as_ref().err().map(|error| error.code);
            *codes.entry(code).or_default() += 1;
        }
        for (code, calls) in codes {
            self.note(method, code, started, calls);
        }
        results
    }

    /// Counts calls for metrics. Unknown methods share one label, and so do unlisted codes: callers choose both.
    fn note(&self, method: &str, error: Option<i64>, started: Instant, calls: usize) {
        let method = hyphae_rpc::find(method).map_or("unknown", |method| method.name);
        let listed = |code: i64| (!code::gloss(code).is_empty()).then_some(code);
        let error = error.map(|code| listed(code).unwrap_or_default());
        self.latency.note(method, error, started.elapsed(), calls);
    }

    async fn dispatch(
        self: &Arc<Self>,
        caller: &Caller,
        call: Call,
        attached: Attached,
        attach: bool,
    ) -> Result<Reply, Error> {
        let result = match call {
            Call::GetInfo => self.info(),
            Call::GetPublicKeyFromIp(params) => self.public_key_of(params).await,
            Call::GetPeers => self.peers().await,
            Call::AddPeer(params) => self.add_peer(params).await,
            Call::DeletePeer(params) => self.delete_peer(params).await,
            Call::GetSelectedRoutes => self.selected_routes().await,
            Call::GetFallbackRoutes => self.fallback_routes().await,
            Call::GetQueriedSubnets => self.queried_subnets().await,
            Call::GetPacketStatistics => self.packet_statistics().await,
            Call::PushMessage(params) => self.push_message(params).await,
            Call::PushMessages(params) => self.push_list(params, attached).await,
            Call::PopMessage(params) => return self.pop_message(params).await,
            Call::PopMessages(params) => return self.pop_messages(params, attach).await,
            Call::AckMessages(params) => self.ack_messages(params).await,
            Call::ExtendMessages(params) => self.extend_messages(params),
            Call::ReturnMessages(params) => self.return_messages(params),
            Call::ListMessages(params) => self.list_messages(params).await,
            Call::PushMessageReply(params) => self.push_reply(params).await,
            Call::GetMessageInfo(params) => self.message_info(params).await,
            Call::GetDefaultTopicAction => self.default_topic_action(),
            Call::SetDefaultTopicAction(params) => self.set_default_topic_action(params).await,
            Call::GetTopics => self.listed_topics().await,
            Call::AddTopic(params) => self.add_topic(params).await,
            Call::RemoveTopic(params) => self.remove_topic(params).await,
            Call::GetTopicSources(params) => self.topic_sources(params),
            Call::AddTopicSource(params) => self.set_source(params, true).await,
            Call::RemoveTopicSource(params) => self.set_source(params, false).await,
            Call::GetTopicPubkeySources(params) => self.topic_pubkey_sources(params),
            Call::AddTopicPubkeySource(params) => self.set_pubkey_source(params, true).await,
            Call::RemoveTopicPubkeySource(params) => self.set_pubkey_source(params, false).await,
            Call::GetTopicSettings(params) => self.topic_settings(params),
            Call::GetTopicForwardSocket(params) => self.forward_socket(params),
            Call::SetTopicForwardSocket(params) => self.set_forward(caller, params).await,
            Call::RemoveTopicForwardSocket(params) => self.remove_forward(params).await,
            Call::GetTopicOutboundSocket(params) => self.outbound_socket(params),
            Call::SetTopicOutboundSocket(params) => self.set_outbound(caller, params).await,
            Call::RemoveTopicOutboundSocket(params) => self.remove_outbound(params).await,
            Call::AdminList => self.admin_list(),
            Call::AdminAdd(params) => self.admin_add(params).await,
            Call::AdminRemove(params) => self.admin_remove(caller, params).await,
            Call::AdminGetMethodPatterns => self.method_patterns(),
            Call::AdminSetMethodPatterns(params) => self.set_patterns(caller, params).await,
            Call::AdminBusCall(params) => self.bus_call(params).await,
            Call::NodeStatus => self.status().await,
            Call::NodeDrain(params) => self.drain(params).await,
            Call::NodeShutdown => self.shut_down(),
            Call::NodePing(params) => self.ping(params).await,
            Call::NodeTrace(params) => self.trace(params).await,
            Call::ConfigReload(params) => self.config_reload(params).await,
            Call::RouteList => self.static_routes().await,
            Call::RouteAdd(params) => self.add_route(params).await,
            Call::RouteRemove(params) => self.remove_route(params).await,
            Call::Discover => Ok(super::methods::document().to_owned()),
        };
        result.map(Reply::from)
    }

    /// Logs a sample of denials, whose rate callers choose; metrics count all.
    fn log_denied(&self, caller: &Caller, method: &str, denied: &Error) {
        let now = Instant::now();
        let mut last = self
            .denied_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| now - at >= LOG_DENIED_EVERY) {
            *last = Some(now);
            tracing::warn!(?caller, method, %denied, "call denied");
        }
    }
}

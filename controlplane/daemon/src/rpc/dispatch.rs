//! One dispatcher for every door: authorizes, finds who answers, measures.
//!
//! ```text
//!  socket ┐
//!  HTTP   ├─▶ authorizer ─▶ messages · topics · admin · engine task (node)
//!  REST   │
//!  bus    ┘
//! ```
//!
//! Nothing here holds a lock while a call waits, so a waiting call keeps no other one back; how many
//! may wait at once is bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyphae_bus::Pool;
use hyphae_bus::topics::Topics;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    BusCallParams, PushMessageParams, PushMessageReplyParams, PushMessagesParams,
};
use hyphae_rpc::parse_params;
use hyphae_wire::PublicKey;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};

use super::authorizer::{Admins, Caller, Listener};
use super::envelope::Attached;
use super::latency::Latency;
use super::messages::Popped;
use super::methods::{Outcome, value};
use crate::node::request::Command;
use crate::node::services::bus;
use crate::proxy::Gate;
use crate::proxy::outbound::Outbound;
use crate::reload::Reloads;
use hyphae_store::stored::Stored;

/// Calls that wait at once.
const WAITS_MAX: usize = 1024;
/// Long requests that are read at once: through `rpc.sock`, and through each of the others.
const LARGE_AT_ONCE: (usize, usize) = (4, 2);
/// Methods that may take long on purpose, beside those of [`Params::may_wait`].
const WAITING: &[&str] = &[
    "popMessage",
    "popMessages",
    "admin.busCall",
    "node.ping",
    "node.trace",
];
/// How often a denial is logged.
const LOG_DENIED_EVERY: Duration = Duration::from_secs(1);
/// Time between the answer to `node.shutdown` and the end.
const FAREWELL: Duration = Duration::from_millis(100);
/// Longest wait of a call; the client asks again.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Parameters of a call: JSON text, or what was read from text that may be long.
pub(crate) enum Params {
    /// Text, or empty.
    Json(String),
    /// Of `pushMessage`.
    Push(PushMessageParams),
    /// Of `pushMessageReply`.
    Reply(PushMessageReplyParams),
    /// Of `pushMessages`, and what came behind it.
    PushList(PushMessagesParams, Attached),
    /// Of one of these, and wrong.
    Invalid(Error),
}

impl Params {
    /// Whether a call with these may take long on purpose.
    pub(crate) fn may_wait(&self, method: &str) -> bool {
        match self {
            Self::Push(params) => params.reply_timeout.is_some() || params.wait.is_some(),
            Self::PushList(params, _) => params.wait.is_some(),
            Self::Reply(_) | Self::Invalid(_) => false,
            Self::Json(_) => WAITING.contains(&method),
        }
    }
}

/// What the dispatcher is made of.
pub(crate) struct Parts {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) bus: bus::Client,
    pub(crate) topics: Arc<Stored<Topics>>,
    pub(crate) admins: Stored<Admins>,
    /// This node.
    pub(crate) key: PublicKey,
    /// Who makes outbound sockets.
    pub(crate) sockets: Outbound<bus::Client>,
    /// Whether `admin.busCall` is offered.
    pub(crate) bus_call: bool,
    pub(crate) gate: Gate,
    /// Reloads, to be counted.
    pub(crate) reloads: Arc<Reloads>,
    /// Whether `node.shutdown` is offered, or else how the node is stopped.
    pub(crate) shutdown: Result<(), String>,
}

/// Answers calls.
pub(crate) struct Dispatcher {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) bus: bus::Client,
    pub(super) topics: Arc<Stored<Topics>>,
    pub(super) admins: Stored<Admins>,
    /// Address and key of this node as text: every message that is taken out shows them.
    pub(super) shown: (String, String),
    pub(super) sockets: Outbound<bus::Client>,
    pub(super) bus_call: bool,
    pub(super) gate: Gate,
    pub(super) reloads: Arc<Reloads>,
    shutdown: Result<(), String>,
    shut_down: AtomicBool,
    latency: Latency,
    waits: Semaphore,
    large: [(Listener, Arc<Semaphore>); 3],
    denied_at: Mutex<Option<Instant>>,
}

impl Dispatcher {
    pub(crate) fn new(parts: Parts, latency: Latency) -> Self {
        Self {
            commands: parts.commands,
            bus: parts.bus,
            topics: parts.topics,
            admins: parts.admins,
            shown: (parts.key.address().to_string(), parts.key.to_string()),
            sockets: parts.sockets,
            bus_call: parts.bus_call,
            gate: parts.gate,
            reloads: parts.reloads,
            shutdown: parts.shutdown,
            shut_down: AtomicBool::new(false),
            latency,
            waits: Semaphore::new(WAITS_MAX),
            large: [
                (Listener::Unix, Arc::new(Semaphore::new(LARGE_AT_ONCE.0))),
                (Listener::Tcp, Arc::new(Semaphore::new(LARGE_AT_ONCE.1))),
                (Listener::Rest, Arc::new(Semaphore::new(LARGE_AT_ONCE.1))),
            ],
            denied_at: Mutex::new(None),
        }
    }

    /// Answers a call.
    ///
    /// If this future is dropped, waits end with it; a change goes on to its end in a task of its own, so that memory
    /// and disk stay the same.
    pub(crate) async fn call(
        self: &Arc<Self>,
        caller: &Caller,
        method: &str,
        params: Params,
    ) -> Outcome {
        let done = self.dispatch(caller, method, params);
        self.checked(caller, method, done).await
    }

    /// Answers a call that hands out messages of the inbox, see [`hands_out`]. `attach`: payloads may follow its
    /// result.
    pub(crate) async fn call_pop(
        &self,
        caller: &Caller,
        method: &str,
        params: &str,
        attach: bool,
    ) -> Result<Popped, Error> {
        let done = async {
            if method == "popMessage" {
                self.pop_message(parse_params(params)?).await
            } else {
                self.pop_messages(parse_params(params)?, attach).await
            }
        };
        self.checked(caller, method, done).await
    }

    async fn checked<T>(
        &self,
        caller: &Caller,
        method: &str,
        done: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let started = Instant::now();
        let checked = self.admins.read().check(caller, method);
        let result = match checked {
            Ok(()) => done.await,
            Err(denied) => {
                self.log_denied(caller, method, &denied);
                Err(denied)
            }
        };
        self.latency.note(method, &result, started.elapsed());
        result
    }

    /// Answers several calls of `pushMessage` that wait for no reply.
    pub(crate) async fn push_all(
        &self,
        caller: &Caller,
        calls: Vec<PushMessageParams>,
    ) -> Vec<Outcome> {
        let (method, started) = ("pushMessage", Instant::now());
        let results = match self.admins.read().check(caller, method) {
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
            self.latency
                .note_many(method, code, started.elapsed(), calls);
        }
        results
    }

    async fn dispatch(self: &Arc<Self>, caller: &Caller, method: &str, params: Params) -> Outcome {
        let text = match params {
            Params::Push(params) => return self.push_message(params).await,
            Params::Reply(params) => return self.push_reply(params).await,
            Params::PushList(params, attached) => return self.push_list(params, attached).await,
            Params::Invalid(error) => return Err(error),
            Params::Json(text) => text,
        };
        match method {
            // Doors that read the parameters of these as text, such as the bus.
            "pushMessage" => self.push_message(parse_params(&text)?).await,
            "pushMessages" => {
                self.push_list(parse_params(&text)?, Attached::default())
                    .await
            }
            "pushMessageReply" => self.push_reply(parse_params(&text)?).await,
            "ackMessages" => self.ack_messages(parse_params(&text)?).await,
            "extendMessages" => self.extend_messages(parse_params(&text)?),
            "returnMessages" => self.return_messages(parse_params(&text)?),
            "listMessages" => self.list_messages(parse_params(&text)?).await,
            "getMessageInfo" => self.message_info(parse_params(&text)?).await,
            "admin.busCall" => self.bus_call(parse_params::<BusCallParams>(&text)?).await,
            "rpc.discover" => Ok(document().to_owned()),
            _ if hyphae_rpc::find(method).is_none() => {
                let message = format!("no method '{method}'; rpc.discover lists them");
                Err(Error::new(code::METHOD_NOT_FOUND, message))
            }
            "node.shutdown" => self.shut_down(),
            "config.reload" => {
                let this = Arc::clone(self);
                let reload = tokio::spawn(async move { this.reload(&text).await });
                reload
                    .await
                    .unwrap_or_else(|error| Err(Error::new(code::INTERNAL, error.to_string())))
            }
            _ if method.starts_with("admin.") || method.contains("Topic") => {
                let (this, caller, method) = (Arc::clone(self), caller.clone(), method.to_owned());
                let change = tokio::spawn(async move {
                    if method.starts_with("admin.") {
                        this.administration(&caller, &method, &text).await
                    } else {
                        this.topic(&caller, &method, &text).await
                    }
                });
                change
                    .await
                    .unwrap_or_else(|error| Err(Error::new(code::INTERNAL, error.to_string())))
            }
            _ => {
                let _wait = match method {
                    "node.ping" | "node.trace" => Some(self.wait()?),
                    _ => None,
                };
                self.ask_node(method, text).await
            }
        }
    }

    /// Ends the node, when the answer has had the time to leave.
    fn shut_down(&self) -> Outcome {
        if let Err(how) = &self.shutdown {
            return Err(Error::new(code::NOT_STOPPED, how.clone()));
        }
        if !self.shut_down.swap(true, Ordering::Relaxed) {
            tracing::info!("node is shut down by a call");
            let commands = self.commands.clone();
            tokio::spawn(async move {
                tokio::time::sleep(FAREWELL).await;
                // The engine task may have ended already.
                let _ = commands.send(Command::Shutdown).await;
            });
        }
        yes()
    }

    /// Whether a call has ended the node.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.shut_down.load(Ordering::Relaxed)
    }

    pub(super) async fn ask_node(&self, method: &str, params: String) -> Outcome {
        let (reply, result) = oneshot::channel();
        let command = Command::Call {
            method: method.to_owned(),
            params,
            reply,
        };
        let ending = || Error::new(code::INTERNAL, "the node is shutting down");
        self.commands.send(command).await.map_err(|_| ending())?;
        result.await.map_err(|_| ending())?
    }

    /// Strangers can be denied as often as they like: the metrics count, the log gets a sample.
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

    /// Room for one more call that waits.
    pub(super) fn wait(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.waits.try_acquire().map_err(|_| {
            let message = format!("{WAITS_MAX} calls wait already; try again later");
            Error::new(code::BUSY, message)
        })
    }

    /// Memory for long payloads.
    pub(crate) fn pool(&self) -> &Pool {
        self.bus.pool()
    }

    /// Room for one more long request through a listener; waits for it.
    pub(crate) async fn room_for_large(&self, listener: Listener) -> Option<OwnedSemaphorePermit> {
        let (_, room) = self.large.iter().find(|(it, _)| *it == listener)?;
        // Never closed.
        Arc::clone(room).acquire_owned().await.ok()
    }

    /// What metrics show of calls.
    pub(crate) fn metrics(&self) -> String {
        self.latency.render()
    }
}

/// The OpenRPC document, made once.
pub(super) fn document() -> &'static RawValue {
    static DOCUMENT: LazyLock<Box<RawValue>> =
        LazyLock::new(|| value(hyphae_rpc::openrpc()).unwrap_or_default());
    &DOCUMENT
}

/// Methods whose answers carry messages out of the inbox: [`Dispatcher::call_pop`] makes them.
pub(crate) fn hands_out(method: &str) -> bool {
    matches!(method, "popMessage" | "popMessages")
}

/// A wait of that many seconds, within bounds.
pub(super) fn seconds(wait: u64) -> Duration {
    Duration::from_secs(wait).min(WAIT_MAX)
}

/// A key, as parameters give it.
pub(super) fn public_key(text: &str) -> Result<PublicKey, Error> {
    text.parse()
        .map_err(|e: hyphae_wire::identity::InvalidPublicKey| {
            Error::new(code::BAD_KEY, e.to_string())
        })
}

/// The result of a change.
pub(super) fn yes() -> Outcome {
    value(true)
}

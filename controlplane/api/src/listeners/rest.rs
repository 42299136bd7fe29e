//! REST of the Mycelium network under `/api/v1`: its paths, shapes and status codes over the same dispatcher, so that
//! its command line works with this node. SOCKS proxies are not offered.
//!
//! | call | done | otherwise |
//! |---|---|---|
//! | GET | 200 | 400, 404; 204 without a message |
//! | POST /messages | 201 with an id, 200 with a reply | 408 without a reply in time |
//! | POST, PUT, DELETE | 201, 204 | 400, 404, 409 |

pub(crate) mod peers;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use hyphae_rpc::Call;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    AcceptParams, EndpointParams, ForwardSocketParams, IpParams, MessageIdParams, PopMessageParams,
    PushMessageParams, PushMessageReplyParams, TopicParams, TopicSubnetParams,
};
use hyphae_rpc::{Base64, method};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::peers::{Peer, spellings};
use super::http::{JSON, delivery, read_body};
use crate::authorizer::Caller;
use crate::context::Dispatcher;
use crate::reply::Reply;

/// The dispatcher and the caller of a request.
struct Api {
    dispatcher: Arc<Dispatcher>,
    caller: Caller,
}

impl FromRequestParts<Arc<Dispatcher>> for Api {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut Parts,
        dispatcher: &Arc<Dispatcher>,
    ) -> Result<Self, Response> {
        let caller = Extension::<Caller>::from_request_parts(parts, dispatcher).await;
        let Extension(caller) = caller.map_err(IntoResponse::into_response)?;
        let dispatcher = Arc::clone(dispatcher);
        Ok(Self { dispatcher, caller })
    }
}

type Answer = Result<Response, Refused>;

/// A failed call as an HTTP status and text.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = match error.code {
            code::NO_KEY
            | code::PEER_NOT_FOUND
            | code::NO_MESSAGE
            | code::TOPIC_NOT_FOUND
            | code::METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
            code::PEER_EXISTS => StatusCode::CONFLICT,
            code::DENIED => StatusCode::FORBIDDEN,
            code::BUSY => StatusCode::SERVICE_UNAVAILABLE,
            code::PERSIST_FAILED | code::INTERNAL => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        Self(status, error.message)
    }
}

/// REST, for a listener of its own.
pub(super) fn router(dispatcher: Arc<Dispatcher>) -> Router {
    let api = Router::new()
        .route("/admin", get(|node: Api| plain(node, Call::GetInfo)))
        .route("/admin/peers", get(peers).post(add_peer))
        .route("/admin/peers/{endpoint}", delete(delete_peer))
        .route(
            "/admin/routes/selected",
            get(|node: Api| plain(node, Call::GetSelectedRoutes)),
        )
        .route(
            "/admin/routes/fallback",
            get(|node: Api| plain(node, Call::GetFallbackRoutes)),
        )
        .route(
            "/admin/routes/queried",
            get(|node: Api| plain(node, Call::GetQueriedSubnets)),
        )
        .route(
            "/admin/stats/packets",
            get(|node: Api| plain(node, Call::GetPacketStatistics)),
        )
        .route(
            "/admin/proxy",
            get(|_: Api| async { json_answer(StatusCode::OK, &json!([])) })
                .post(|_: Api| async { Err::<(), _>(no_proxies(StatusCode::NOT_FOUND)) })
                .delete(|_: Api| async { StatusCode::NO_CONTENT }),
        )
        .route(
            "/admin/proxy/probe",
            get(|_: Api| async { Err::<(), _>(no_proxies(StatusCode::NOT_IMPLEMENTED)) })
                .delete(|_: Api| async { StatusCode::NO_CONTENT }),
        )
        .route("/pubkey/{ip}", get(public_key))
        .route("/messages", get(pop_message).post(push_message))
        .route("/messages/status/{id}", get(message_info))
        .route("/messages/reply/{id}", post(push_reply))
        .route(
            "/messages/topics/default",
            get(default_action).put(set_default_action),
        )
        .route(
            "/messages/topics",
            get(|node: Api| plain(node, Call::GetTopics)).post(add_topic),
        )
        .route("/messages/topics/{topic}", delete(remove_topic))
        .route(
            "/messages/topics/{topic}/sources",
            get(sources).post(add_source),
        )
        .route(
            "/messages/topics/{topic}/sources/{*subnet}",
            delete(remove_source),
        )
        .route(
            "/messages/topics/{topic}/forward",
            get(forward).put(set_forward).delete(remove_forward),
        )
        .with_state(dispatcher);
    Router::new().nest("/api/v1", api)
}

impl Api {
    async fn call(&self, call: Call) -> Result<Reply, Error> {
        (self.dispatcher)
            .call(&self.caller, call.into(), false)
            .await
    }
}

/// The result of a call.
async fn call(node: &Api, call: Call) -> Result<Value, Refused> {
    tree(&node.call(call).await?.result)
}

fn tree(result: &RawValue) -> Result<Value, Refused> {
    let read = serde_json::from_str(result.get());
    Ok(read.map_err(|error| Error::new(code::INTERNAL, error.to_string()))?)
}

/// An unchanged result, which is not parsed again.
async fn plain(node: Api, call: Call) -> Answer {
    let result = node.call(call).await?.result;
    Ok(raw_answer(StatusCode::OK, &result))
}

/// The peers, on the blocking pool: there may be thousands.
async fn peers(node: Api) -> Answer {
    let result = node.call(Call::GetPeers).await?.result;
    let shown = tokio::task::spawn_blocking(move || {
        let peers: Vec<method::Peer> = serde_json::from_str(result.get())?;
        let shown: serde_json::Result<Vec<_>> = peers.into_iter().map(Peer::new).collect();
        serde_json::value::to_raw_value(&shown?)
    });
    let internal = |error: String| Refused::from(Error::new(code::INTERNAL, error));
    let shown = shown.await.map_err(|e| internal(e.to_string()))?;
    let shown = shown.map_err(|e| internal(e.to_string()))?;
    Ok(raw_answer(StatusCode::OK, &shown))
}

fn no_proxies(status: StatusCode) -> Refused {
    Refused(
        status,
        "this node neither finds nor uses SOCKS proxies".to_owned(),
    )
}

/// Makes a change.
async fn change(node: &Api, status: StatusCode, call: Call) -> Answer {
    node.call(call).await?;
    Ok(status.into_response())
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    (status, JSON, value.to_string()).into_response()
}

fn raw_answer(status: StatusCode, value: &RawValue) -> Response {
    (status, JSON, value.get().to_owned()).into_response()
}

async fn body<T: DeserializeOwned>(node: &Api, request: Request<Body>) -> Result<T, Response> {
    let (bytes, _permit) = read_body(&node.dispatcher, node.caller.listener, request)
        .await
        .map_err(IntoResponse::into_response)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Refused(StatusCode::BAD_REQUEST, hyphae_rpc::cause(&error)).into_response()
    })
}

/// The parsed body of a request; answers with its error.
macro_rules! body_or_answer {
    ($node:expr, $request:expr) => {
        match body(&$node, $request).await {
            Ok(body) => body,
            Err(answer) => return Ok(answer),
        }
    };
}

#[derive(Deserialize)]
struct EndpointBody {
    endpoint: String,
}

async fn add_peer(node: Api, request: Request<Body>) -> Answer {
    let given: EndpointBody = body_or_answer!(node, request);
    let endpoint = spellings(&given.endpoint).into_iter().next();
    let endpoint = endpoint.unwrap_or(given.endpoint);
    let call = Call::AddPeer(EndpointParams { endpoint });
    change(&node, StatusCode::NO_CONTENT, call).await
}

async fn delete_peer(node: Api, Path(endpoint): Path<String>) -> Answer {
    let mut result = Err(Error::new(code::PEER_NOT_FOUND, "no such peer"));
    for endpoint in spellings(&endpoint) {
        let params = EndpointParams { endpoint };
        result = node.call(Call::DeletePeer(params)).await.map(|_| ());
        let not_found = |error: &Error| error.code == code::PEER_NOT_FOUND;
        if !result.as_ref().is_err_and(not_found) {
            break;
        }
    }
    result?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn public_key(node: Api, Path(ip): Path<String>) -> Answer {
    let key = call(&node, Call::GetPublicKeyFromIp(IpParams { ip })).await?;
    Ok(json_answer(StatusCode::OK, &json!({ "publicKey": key })))
}

#[derive(Deserialize)]
struct PopQuery {
    peek: Option<bool>,
    timeout: Option<u64>,
    topic: Option<String>,
}

async fn pop_message(node: Api, Query(query): Query<PopQuery>) -> Answer {
    let params = PopMessageParams {
        peek: query.peek,
        timeout: query.timeout,
        // A plus sign of base64 that was not escaped arrives as a space.
        topic: query.topic.map(|topic| topic.replace(' ', "+")),
    };
    let popped = node.call(Call::PopMessage(params)).await?;
    let json = popped.result.get();
    if json == "null" {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let deliveries = popped.delivery.into_iter().collect();
    Ok(delivery(json.as_bytes().to_vec(), deliveries))
}

#[derive(Deserialize)]
struct PushQuery {
    reply_timeout: Option<u64>,
}

async fn push_message(node: Api, Query(query): Query<PushQuery>, request: Request<Body>) -> Answer {
    let params = PushMessageParams {
        message: body_or_answer!(node, request),
        reply_timeout: query.reply_timeout,
        wait: None,
    };
    let result = node.call(Call::PushMessage(params)).await?.result;
    let result = tree(&result)?;
    let status = match (query.reply_timeout, result.get("payload")) {
        (None, _) => StatusCode::CREATED,
        (Some(_), Some(_)) => StatusCode::OK,
        (Some(_), None) => StatusCode::REQUEST_TIMEOUT,
    };
    Ok(json_answer(status, &result))
}

async fn push_reply(node: Api, Path(id): Path<String>, request: Request<Body>) -> Answer {
    let message = body_or_answer!(node, request);
    let params = PushMessageReplyParams {
        id,
        message,
        ack: None,
    };
    node.call(Call::PushMessageReply(params)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn message_info(node: Api, Path(id): Path<String>) -> Answer {
    let info = call(&node, Call::GetMessageInfo(MessageIdParams { id })).await?;
    Ok(json_answer(StatusCode::OK, &info))
}

#[derive(Deserialize)]
struct AcceptBody {
    accept: bool,
}

async fn default_action(node: Api) -> Answer {
    let accept = call(&node, Call::GetDefaultTopicAction).await?;
    Ok(json_answer(StatusCode::OK, &json!({ "accept": accept })))
}

async fn set_default_action(node: Api, request: Request<Body>) -> Answer {
    let given: AcceptBody = body_or_answer!(node, request);
    let call = Call::SetDefaultTopicAction(AcceptParams {
        accept: given.accept,
    });
    change(&node, StatusCode::NO_CONTENT, call).await
}

/// The reference implementation has a topic as an array of bytes here, and as base64 elsewhere.
#[derive(Deserialize)]
#[serde(untagged)]
enum TopicBody {
    Bytes(Vec<u8>),
    Text(String),
}

async fn add_topic(node: Api, request: Request<Body>) -> Answer {
    let topic = match body_or_answer!(node, request) {
        TopicBody::Bytes(bytes) => Base64::encode(bytes),
        TopicBody::Text(text) => text,
    };
    let call = Call::AddTopic(TopicParams { topic });
    change(&node, StatusCode::CREATED, call).await
}

async fn remove_topic(node: Api, Path(topic): Path<String>) -> Answer {
    let call = Call::RemoveTopic(TopicParams { topic });
    change(&node, StatusCode::NO_CONTENT, call).await
}

async fn sources(node: Api, Path(topic): Path<String>) -> Answer {
    plain(node, Call::GetTopicSources(TopicParams { topic })).await
}

#[derive(Deserialize)]
struct SubnetBody {
    subnet: String,
}

async fn add_source(node: Api, Path(topic): Path<String>, request: Request<Body>) -> Answer {
    let given: SubnetBody = body_or_answer!(node, request);
    let subnet = given.subnet;
    let call = Call::AddTopicSource(TopicSubnetParams { topic, subnet });
    change(&node, StatusCode::CREATED, call).await
}

async fn remove_source(node: Api, Path((topic, subnet)): Path<(String, String)>) -> Answer {
    let call = Call::RemoveTopicSource(TopicSubnetParams { topic, subnet });
    change(&node, StatusCode::NO_CONTENT, call).await
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ForwardBody {
    socket_path: String,
}

async fn forward(node: Api, Path(topic): Path<String>) -> Answer {
    plain(node, Call::GetTopicForwardSocket(TopicParams { topic })).await
}

async fn set_forward(node: Api, Path(topic): Path<String>, request: Request<Body>) -> Answer {
    let given: ForwardBody = body_or_answer!(node, request);
    let call = Call::SetTopicForwardSocket(ForwardSocketParams {
        topic,
        socket_path: given.socket_path,
        framing: None,
        reply_timeout: None,
        keep_alive: None,
    });
    change(&node, StatusCode::NO_CONTENT, call).await
}

async fn remove_forward(node: Api, Path(topic): Path<String>) -> Answer {
    let call = Call::RemoveTopicForwardSocket(TopicParams { topic });
    change(&node, StatusCode::NO_CONTENT, call).await
}

//! Checks of every HTTP request before its handler runs.
//!
//! | check | refused with |
//! |---|---|
//! | exactly one `Host`; on loopback an address or localhost, against DNS rebinding | 400, 403 |
//! | no `Origin`, no `Sec-Fetch-Site` of another site: only browsers send them | 403 |
//! | a body is `application/json`, which a page may send to another site after a preflight only | 415 |
//! | the connection's caller is admitted, or the request has the token | 401, 403 |

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyphae_rpc::message::{Error, code};

use super::connections::Slot;
use crate::authorizer::{Caller, Listener};
use crate::envelope::refusal;
use hyphae_store::token::BearerToken;

/// Name of the host in requests to a loopback listener.
const LOCALHOST: &str = "localhost";

/// Admission of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    pub(super) listener: Listener,
    /// The caller, or the cause of its refusal.
    pub(super) caller: Result<Caller, String>,
    /// Token that admits a refused caller.
    pub(super) token: Option<BearerToken>,
    /// Slot that is not evicted once the token was presented.
    pub(super) slot: Option<Arc<Slot>>,
}

impl Admission {
    pub(super) fn of(caller: Caller) -> Self {
        Self {
            listener: caller.listener,
            caller: Ok(caller),
            token: None,
            slot: None,
        }
    }

    /// The caller of a request.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, (StatusCode, String)> {
        let cause = match &self.caller {
            Ok(caller) => return Ok(caller.clone()),
            Err(cause) => cause,
        };
        let given = text(headers, &header::AUTHORIZATION);
        let presented =
            |token: &BearerToken| given.is_some_and(|given| token.is_presented_in(given));
        match &self.token {
            Some(token) if presented(token) => {
                if let Some(slot) = &self.slot {
                    slot.prove();
                }
                Ok(Caller::token(self.listener))
            }
            Some(_) => Err((
                StatusCode::UNAUTHORIZED,
                format!("a bearer token is needed: {cause}"),
            )),
            None => Err((StatusCode::FORBIDDEN, cause.clone())),
        }
    }

    fn denied(&self, status: StatusCode, message: &str) -> Response {
        let close = (header::CONNECTION, "close");
        let mut response = match self.listener {
            Listener::Rest => (status, [close], format!("{message}\n")).into_response(),
            Listener::Unix | Listener::Tcp | Listener::Bus => {
                let json = (header::CONTENT_TYPE, "application/json");
                let body = refusal(Error::new(code::DENIED, message));
                (status, [close, json], body).into_response()
            }
        };
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// Adds the checks to a router. `at`: address of the listener, if it has one.
pub(super) fn checked(router: Router, at: Option<SocketAddr>) -> Router {
    let loopback = at.is_some_and(|at| at.ip().to_canonical().is_loopback());
    router.layer(axum::middleware::from_fn(
        move |mut request: Request<Body>, next: Next| async move {
            if let Err((status, cause)) = well_formed(&request, loopback) {
                let close = [(header::CONNECTION, "close")];
                return (status, close, format!("{cause}\n")).into_response();
            }
            // Absent on listeners without authorization, such as metrics.
            if let Some(admission) = request.extensions_mut().remove::<Admission>() {
                match admission.caller(request.headers()) {
                    Ok(caller) => request.extensions_mut().insert(caller),
                    Err((status, cause)) => return admission.denied(status, &cause),
                };
            }
            next.run(request).await
        },
    ))
}

fn well_formed(request: &Request<Body>, loopback: bool) -> Result<(), (StatusCode, &'static str)> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default(),
        _ => return Err((StatusCode::BAD_REQUEST, "exactly one Host header is needed")),
    };
    // A target in absolute form overrides Host: they must not differ.
    let target = request.uri().authority();
    if target.is_some_and(|target| !target.as_str().eq_ignore_ascii_case(host)) {
        return Err((StatusCode::BAD_REQUEST, "the target and Host differ"));
    }
    if loopback && !is_local_name(host) {
        let cause = "call this node by address or as localhost";
        return Err((StatusCode::FORBIDDEN, cause));
    }
    if headers.contains_key(header::ORIGIN) {
        return Err((StatusCode::FORBIDDEN, "not for pages in browsers"));
    }
    let site = HeaderName::from_static("sec-fetch-site");
    if text(headers, &site).is_some_and(|site| site != "none" && site != "same-origin") {
        return Err((StatusCode::FORBIDDEN, "not for pages of other sites"));
    }
    let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
    if has_body && !is_json(headers) {
        let cause = "Content-Type must be application/json";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, cause));
    }
    Ok(())
}

/// Whether `Host` is an address or localhost, with or without a port.
fn is_local_name(host: &str) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, port)) if port.is_empty() || port.starts_with(':') => {
            return inside.parse::<std::net::Ipv6Addr>().is_ok();
        }
        Some(_) => return false,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    bare.eq_ignore_ascii_case(LOCALHOST) || bare.parse::<IpAddr>().is_ok()
}

/// Whether the only `Content-Type` is `application/json`, with no charset or UTF-8.
fn is_json(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return false;
    };
    let mut parts = kind.to_str().unwrap_or_default().split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let charset = |part: &str| {
        let lower = part.to_ascii_lowercase();
        ["charset=utf-8", "charset=\"utf-8\""].contains(&lower.as_str())
    };
    essence.eq_ignore_ascii_case("application/json") && parts.all(charset)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, uri: &str, headers: &[(&str, &str)], loopback: bool) -> u16 {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        well_formed(&request, loopback).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn one_host_is_needed_and_on_loopback_no_name_but_localhost() {
        let get = |hosts: &[&str], loopback| {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            status("GET", "/", &headers, loopback)
        };
        for local in [
            "localhost",
            "LOCALHOST:8990",
            "127.0.0.1:8990",
            "[::1]:8990",
            "[::1]",
        ] {
            assert_eq!(get(&[local], true), 200, "{local}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example:8990",
            "127.0.0.1.evil.example",
            "[::1]evil.example",
            "[localhost]",
            "::1",
            "",
        ] {
            assert_eq!(get(&[other], true), 403, "{other}");
            assert_eq!(get(&[other], false), 200, "{other}");
        }
        assert_eq!(get(&[], false), 400);
        assert_eq!(get(&["localhost", "evil.example"], false), 400);
        let absolute = |host| status("GET", "http://evil.example/", &[("host", host)], true);
        assert_eq!(absolute("localhost"), 400);
        assert_eq!(absolute("evil.example"), 403);
    }

    #[test]
    fn pages_of_browsers_are_refused() {
        let get = |name, value| status("GET", "/", &[("host", "localhost"), (name, value)], false);
        assert_eq!(get("origin", "http://localhost:8990"), 403);
        assert_eq!(get("origin", "null"), 403);
        assert_eq!(get("sec-fetch-site", "cross-site"), 403);
        assert_eq!(get("sec-fetch-site", "none"), 200);
    }

    #[test]
    fn a_body_is_json_and_nothing_that_looks_like_it() {
        let post = |kinds: &[&str]| {
            let kinds = kinds.iter().map(|kind| ("content-type", *kind));
            let headers: Vec<_> = kinds.chain([("host", "localhost")]).collect();
            status("POST", "/rpc", &headers, true)
        };
        for json in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert_eq!(post(&[json]), 200, "{json}");
        }
        for other in [
            "application/jsonp",
            "application/json-patch+json",
            "text/plain; application/json",
            "application/json, text/plain",
            "application/json; charset=utf-7",
            "application/x-www-form-urlencoded",
            "",
        ] {
            assert_eq!(post(&[other]), 415, "{other}");
        }
        assert_eq!(post(&[]), 415);
        assert_eq!(post(&["application/json", "text/plain"]), 415);
    }
}

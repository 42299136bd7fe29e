//! A blocking client over the Unix socket or HTTP: one HTTP/1.1 request per call. The functions per
//! method are made by the method table.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::connection::{Answer, Call};
use crate::message::{Error, Response};

/// Longest response, bytes: a message of 64 MiB in base64, and its envelope.
const RESPONSE_MAX: u64 = 96 << 20;

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens.
    #[error(
        "no node answers at {place}: is `hyphae up` running? If it uses another directory, name it \
         with --socket-dir ({source})"
    )]
    Absent {
        /// The socket.
        place: String,
        /// Cause.
        source: io::Error,
    },
    /// The caller may not use the socket.
    #[error("{place}: permission denied; run as the user that the node runs as, or as root")]
    Denied {
        /// The socket.
        place: String,
    },
    /// The connection failed.
    #[error("{place}: {source}")]
    Io {
        /// The socket.
        place: String,
        /// Cause.
        source: io::Error,
    },
    /// The response is not JSON-RPC.
    #[error("{place}: not a Hyphae node: {what}")]
    Protocol {
        /// The socket.
        place: String,
        /// Cause.
        what: String,
    },
    /// The node answered with an error.
    #[error(transparent)]
    Call(#[from] Error),
}

#[derive(Clone, Debug)]
enum Place {
    Unix(PathBuf),
    /// HOST:PORT
    Http(String),
}

/// A client of one node.
///
/// ```no_run
/// use hyphae_rpc::Client;
///
/// let client = Client::new("/run/hyphae/rpc.sock");
/// let status = client.node_status()?;
/// assert!(status.dataplane.is_some(), "{} does not forward", status.info.node_ip);
/// # Ok::<(), hyphae_rpc::ClientError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    timeout: Duration,
}

impl Client {
    /// A client of the node whose `rpc.sock` is at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            place: Place::Unix(path.as_ref().to_owned()),
            timeout: Duration::from_secs(70),
        }
    }

    /// A client of the node that serves JSON-RPC over HTTP at `address`, such as `127.0.0.1:8990`.
    pub fn http(address: impl Into<String>) -> Self {
        Self {
            place: Place::Http(address.into()),
            timeout: Duration::from_secs(70),
        }
    }

    /// Limits the wait for a response to `timeout`, beyond the wait that the call itself requests.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Calls a method by name. The functions named after the methods do this with their types.
    ///
    /// # Errors
    /// When no node answers, or it answers with an error.
    pub fn call<R: DeserializeOwned>(
        &self,
        method: &str,
        params: impl Serialize,
    ) -> Result<R, ClientError> {
        let protocol = |what: String| self.protocol(what);
        let params = serde_json::value::to_raw_value(&params);
        let params = params.map_err(|e| protocol(e.to_string()))?;
        let timeout = self.timeout.saturating_add(asked_to_wait(params.get()));
        let call = Call {
            jsonrpc: "2.0",
            method,
            params: Some(params).filter(|params| params.get() != "null"),
            id: 1,
        };
        let body = serde_json::to_vec(&call);
        // A message may have 64 MiB: buffers are dropped as early as possible.
        drop(call);
        let body = self.post(&body.map_err(|e| protocol(e.to_string()))?, timeout)?;
        let answer: Answer<R> =
            serde_json::from_slice(&body).map_err(|e| protocol(e.to_string()))?;
        answer
            .outcome()
            .map_err(|e| protocol(e.to_string()))?
            .map_err(ClientError::from)
    }

    fn post(&self, body: &[u8], timeout: Duration) -> Result<Vec<u8>, ClientError> {
        let fail = |source| self.fail(source);
        let timeout = Some(timeout);
        match &self.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(fail)?;
                stream.set_read_timeout(timeout).map_err(fail)?;
                stream.set_write_timeout(timeout).map_err(fail)?;
                self.exchange(stream, "hyphae", body)
            }
            Place::Http(address) => {
                let stream = TcpStream::connect(address).map_err(fail)?;
                stream.set_read_timeout(timeout).map_err(fail)?;
                stream.set_write_timeout(timeout).map_err(fail)?;
                stream.set_nodelay(true).map_err(fail)?;
                self.exchange(stream, address, body)
            }
        }
    }

    fn exchange(
        &self,
        mut stream: impl Read + Write,
        host: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, ClientError> {
        let fail = |source| self.fail(source);
        let head = format!(
            "POST /rpc HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let written = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body));
        let mut reader = BufReader::new(stream.take(RESPONSE_MAX));
        let mut line = String::new();
        // A node that refuses a body early answers before it closes: the answer is read first.
        let read = reader.read_line(&mut line);
        match (written, read) {
            (_, Ok(n)) if n > 0 => {}
            (Err(error), _) | (Ok(()), Err(error)) => return Err(fail(error)),
            (Ok(()), Ok(_)) => return Err(self.protocol("no response".to_owned())),
        }
        let status = line.trim().to_owned();
        let mut length = None;
        loop {
            line.clear();
            let n = reader.read_line(&mut line).map_err(fail)?;
            let header = line.trim();
            if n == 0 || header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<u64>().ok();
            }
        }
        let length = length.ok_or_else(|| self.protocol("response without a length".to_owned()))?;
        let mut body = Vec::with_capacity(usize::try_from(length.min(RESPONSE_MAX)).unwrap_or(0));
        reader.take(length).read_to_end(&mut body).map_err(fail)?;
        // Other statuses may carry a JSON-RPC error.
        if !status.starts_with("HTTP/1.1 200") && serde_json::from_slice::<Response>(&body).is_err()
        {
            let text = String::from_utf8_lossy(&body);
            return Err(self.protocol(format!("{status}: {}", text.trim())));
        }
        Ok(body)
    }

    fn named(&self) -> String {
        match &self.place {
            Place::Unix(path) => path.display().to_string(),
            Place::Http(address) => address.clone(),
        }
    }

    fn protocol(&self, what: String) -> ClientError {
        let place = self.named();
        ClientError::Protocol { place, what }
    }

    fn fail(&self, source: io::Error) -> ClientError {
        fail(self.named(), source)
    }
}

/// Error of a connection as an error of the client.
pub(crate) fn fail(place: String, source: io::Error) -> ClientError {
    let kind = source.kind();
    if kind == io::ErrorKind::PermissionDenied {
        ClientError::Denied { place }
    } else if matches!(
        kind,
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    ) {
        ClientError::Absent { place, source }
    } else {
        ClientError::Io { place, source }
    }
}

/// The wait that the parameters of a call request.
fn asked_to_wait(params: &str) -> Duration {
    #[derive(Default, Deserialize)]
    struct Waits {
        timeout: Option<Value>,
        reply_timeout: Option<Value>,
        wait: Option<Value>,
        timeout_secs: Option<Value>,
        #[serde(rename = "timeoutMs")]
        timeout_ms: Option<Value>,
    }
    // By position they have no names.
    if !params.starts_with('{') {
        return Duration::ZERO;
    }
    let waits: Waits = serde_json::from_str(params).unwrap_or_default();
    let number = |value: &Option<Value>| value.as_ref().and_then(Value::as_u64);
    let seconds = [&waits.timeout, &waits.reply_timeout, &waits.timeout_secs];
    let seconds = seconds.into_iter().filter_map(number);
    let millis = number(&waits.timeout_ms).map(Duration::from_millis);
    let longest = seconds.map(Duration::from_secs).chain(millis).max();
    // A message waits for room first, then for its reply.
    let room = number(&waits.wait).map(Duration::from_secs);
    longest
        .unwrap_or_default()
        .saturating_add(room.unwrap_or_default())
}

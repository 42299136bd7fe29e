//! A blocking client over the Unix socket: one HTTP/1.1 request per call.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::message::{Error, Request, Response};

/// Largest response taken.
const RESPONSE_MAX: u64 = 64 << 20;

/// A call did not come back with a result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no node answers at {path}: is `hyphae up` running? If it uses another directory, name it \
         with --socket-dir ({source})"
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// Not ours to use.
    #[error("{path}: permission denied; run as the user that the node runs as, or as root")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// The other side does not speak JSON-RPC.
    #[error("{path}: not a Hyphae node: {what}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The node said no.
    #[error(transparent)]
    Call(#[from] Error),
}

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the node whose `rpc.sock` is at `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            timeout: Duration::from_secs(70),
        }
    }

    /// Gives up waiting for a response after `timeout`.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Calls a method.
    ///
    /// # Errors
    /// When there is no node, or it refuses.
    pub fn call<R: DeserializeOwned>(
        &self,
        method: &str,
        params: impl Serialize,
    ) -> Result<R, ClientError> {
        let protocol = |what: String| ClientError::Protocol {
            path: self.path.clone(),
            what,
        };
        let params = serde_json::to_value(params).map_err(|e| protocol(e.to_string()))?;
        let request = Request {
            jsonrpc: "2.0".to_owned(),
            method: method.to_owned(),
            params,
            id: Some(Value::from(1)),
        };
        let body = serde_json::to_vec(&request).map_err(|e| protocol(e.to_string()))?;
        let body = self.post(&body)?;
        let response: Response =
            serde_json::from_slice(&body).map_err(|e| protocol(e.to_string()))?;
        if let Some(error) = response.error {
            return Err(error.into());
        }
        serde_json::from_value(response.result.unwrap_or(Value::Null))
            .map_err(|e| protocol(e.to_string()))
    }

    fn post(&self, body: &[u8]) -> Result<Vec<u8>, ClientError> {
        let fail = |source: io::Error| {
            let (path, kind) = (self.path.clone(), source.kind());
            if kind == io::ErrorKind::PermissionDenied {
                ClientError::Denied { path }
            } else if matches!(
                kind,
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) {
                ClientError::Absent { path, source }
            } else {
                ClientError::Io { path, source }
            }
        };
        let protocol = |what: &str| ClientError::Protocol {
            path: self.path.clone(),
            what: what.to_owned(),
        };
        let mut stream = UnixStream::connect(&self.path).map_err(fail)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(fail)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(fail)?;
        let head = format!(
            "POST /rpc HTTP/1.1\r\nHost: hyphae\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream
            .write_all(&[head.as_bytes(), body].concat())
            .map_err(fail)?;
        let mut reader = BufReader::new(stream.take(RESPONSE_MAX));
        let mut line = String::new();
        reader.read_line(&mut line).map_err(fail)?;
        if !line.starts_with("HTTP/1.1 200") {
            return Err(protocol(line.trim()));
        }
        let mut length = None;
        loop {
            line.clear();
            reader.read_line(&mut line).map_err(fail)?;
            let header = line.trim();
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<u64>().ok();
            }
        }
        let length = length.ok_or_else(|| protocol("response without a length"))?;
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body).map_err(fail)?;
        Ok(body)
    }
}

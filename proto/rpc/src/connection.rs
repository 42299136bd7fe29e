//! One connection that stays open, for many calls: batches over newline-delimited JSON-RPC, several
//! under way at once. [`crate::Client`] makes a connection per call, which is simpler and costs more.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::client::{ClientError, fail};
use crate::message::Error;

/// Calls of one batch at most; a node takes no longer ones.
pub const BATCH_MAX: usize = 1000;

/// What a batch came back with: for each call its result, or why there is none.
pub type Answers<R> = Vec<Result<R, Error>>;

/// A batch that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(u64);

/// A connection to `rpc.sock` of a node.
#[derive(Debug)]
pub struct Connection {
    place: PathBuf,
    reader: BufReader<UnixStream>,
    /// Id of the first call of the next batch.
    next: u64,
    /// Calls of each batch under way.
    sizes: BTreeMap<BatchId, usize>,
    /// Answers that came before somebody asked for them.
    early: BTreeMap<BatchId, String>,
}

/// [`crate::Request`] with typed parameters.
#[derive(Serialize)]
pub(crate) struct Call<'a, P> {
    pub(crate) jsonrpc: &'static str,
    pub(crate) method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) params: Option<P>,
    pub(crate) id: u64,
}

/// [`crate::Response`] with a typed result.
#[derive(Deserialize)]
pub(crate) struct Answer<R> {
    #[serde(rename = "jsonrpc")]
    _version: IgnoredAny,
    #[serde(default = "Option::default")]
    result: Option<R>,
    error: Option<Error>,
}

impl<R: DeserializeOwned> Answer<R> {
    /// The result, or why there is none.
    pub(crate) fn outcome(self) -> serde_json::Result<Result<R, Error>> {
        match (self.error, self.result) {
            (Some(error), _) => Ok(Err(error)),
            (None, Some(result)) => Ok(Ok(result)),
            // Null is a result, too, of types that know it.
            (None, None) => serde_json::from_str("null").map(Ok),
        }
    }
}

/// The ids alone, to find which batch an answer belongs to.
#[derive(Deserialize)]
struct Id {
    id: Option<u64>,
    error: Option<Error>,
}

impl Connection {
    /// Connects to the node whose `rpc.sock` is at `path`. Answers may take `timeout`.
    ///
    /// # Errors
    /// When there is no node.
    pub fn open(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let place = path.as_ref().to_owned();
        let connected = UnixStream::connect(&place).and_then(|stream| {
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        });
        let stream = connected.map_err(|error| fail(place.display().to_string(), error))?;
        Ok(Self {
            place,
            reader: BufReader::with_capacity(256 << 10, stream),
            next: 1,
            sizes: BTreeMap::new(),
            early: BTreeMap::new(),
        })
    }

    /// Sends one method's calls as a batch of at most [`BATCH_MAX`], and does not wait.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send<P: Serialize>(
        &mut self,
        method: &str,
        calls: &[P],
    ) -> Result<BatchId, ClientError> {
        let batch = BatchId(self.next);
        let calls: Vec<_> = (self.next..)
            .zip(calls)
            .map(|(id, params)| Call {
                jsonrpc: "2.0",
                method,
                params: Some(params),
                id,
            })
            .collect();
        let mut line = serde_json::to_vec(&calls).map_err(|e| self.protocol(e.to_string()))?;
        line.push(b'\n');
        let written = self.reader.get_mut().write_all(&line);
        written.map_err(|error| fail(self.place.display().to_string(), error))?;
        self.next += calls.len() as u64;
        self.sizes.insert(batch, calls.len());
        Ok(batch)
    }

    /// Waits for the answers of a batch, in the order of its calls.
    ///
    /// # Errors
    /// When the connection fails, or what comes is no answer.
    pub fn receive<R: DeserializeOwned>(
        &mut self,
        batch: BatchId,
    ) -> Result<Answers<R>, ClientError> {
        let line = loop {
            if let Some(line) = self.early.remove(&batch) {
                break line;
            }
            let (found, line) = self.read()?;
            if found == batch {
                break line;
            }
            self.early.insert(found, line);
        };
        self.sizes.remove(&batch);
        let answers: Vec<Answer<R>> =
            serde_json::from_str(&line).map_err(|e| self.protocol(e.to_string()))?;
        answers
            .into_iter()
            .map(|answer| answer.outcome().map_err(|e| self.protocol(e.to_string())))
            .collect()
    }

    /// Sends a batch and waits for its answers.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`].
    pub fn call<P: Serialize, R: DeserializeOwned>(
        &mut self,
        method: &str,
        calls: &[P],
    ) -> Result<Answers<R>, ClientError> {
        let batch = self.send(method, calls)?;
        self.receive(batch)
    }

    /// The next answer, and whose it is.
    fn read(&mut self) -> Result<(BatchId, String), ClientError> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        let read = read.map_err(|error| fail(self.place.display().to_string(), error))?;
        if read == 0 {
            return Err(self.protocol("the connection was closed".to_owned()));
        }
        if !line.starts_with('[') {
            // One answer for a whole batch is a refusal.
            let refusal: Id =
                serde_json::from_str(&line).map_err(|e| self.protocol(e.to_string()))?;
            return Err(refusal.error.map_or_else(
                || self.protocol(format!("an answer to nothing: {:?}", refusal.id)),
                ClientError::Call,
            ));
        }
        let mut first = serde_json::Deserializer::from_str(&line[1..]).into_iter::<Id>();
        let id = first.next().and_then(Result::ok).and_then(|first| first.id);
        let batch = id.and_then(|id| self.sizes.range(..=BatchId(id)).next_back());
        match batch {
            Some((batch, _)) => Ok((*batch, line)),
            None => Err(self.protocol("an answer to nothing".to_owned())),
        }
    }

    fn protocol(&self, what: String) -> ClientError {
        let place = self.place.display().to_string();
        ClientError::Protocol { place, what }
    }
}

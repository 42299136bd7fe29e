//! A persistent connection for many calls: pipelined batches over newline-delimited JSON-RPC. [`crate::Client`] opens a
//! connection per call, which is simpler and costs more.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::Base64;
use crate::client::{ClientError, fail};
use crate::message::Error;
use crate::method::{
    AttachedMessage, Destination, PopMessagesParams, PushMessagesParams, PushMessagesResult,
};

/// Most calls of a batch; a node refuses longer ones.
pub const BATCH_MAX: usize = 1000;

/// Results of a batch, one per call.
pub type Answers<R> = Vec<Result<R, Error>>;

/// A batch that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(u64);

/// A connection to `rpc.sock` of a node.
#[derive(Debug)]
pub struct Connection {
    place: PathBuf,
    reader: BufReader<UnixStream>,
    /// Id of the first call of the next batch.
    next: u64,
    /// Calls of each batch that was sent.
    sizes: BTreeMap<BatchId, usize>,
    /// Answers that were received before they were requested.
    early: BTreeMap<BatchId, Line>,
}

/// A received answer.
#[derive(Debug)]
struct Line {
    json: String,
    /// Its attached bytes.
    attached: Vec<u8>,
}

/// Longest attachment, bytes: a message of 64 MiB, and short ones.
const ATTACHED_MAX: u64 = 128 << 20;

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
    /// The result, or the error.
    pub(crate) fn outcome(self) -> serde_json::Result<Result<R, Error>> {
        match (self.error, self.result) {
            (Some(error), _) => Ok(Err(error)),
            (None, Some(result)) => Ok(Ok(result)),
            // Null is a result for types that accept it.
            (None, None) => serde_json::from_str("null").map(Ok),
        }
    }
}

/// The ids of an answer, which identify its batch.
#[derive(Deserialize)]
struct Id {
    id: Option<u64>,
    error: Option<Error>,
}

impl Connection {
    /// Connects to the node whose `rpc.sock` is at `path`. Answers may take `timeout`.
    ///
    /// # Errors
    /// When no node listens.
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

    /// Sends calls of one method as a batch of at most [`BATCH_MAX`], without waiting for the answers.
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
        let line = serde_json::to_vec(&calls).map_err(|e| self.protocol(e.to_string()))?;
        self.write(line)?;
        self.next += calls.len() as u64;
        self.sizes.insert(batch, calls.len());
        Ok(batch)
    }

    /// Sends messages to one node, with unencoded payloads, at most [`BATCH_MAX`] of together 64 MiB.
    /// [`Self::sent_messages`] waits for the result.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send_messages<P: AsRef<[u8]>>(
        &mut self,
        dst: &Destination,
        topic: Option<&[u8]>,
        payloads: &[P],
    ) -> Result<BatchId, ClientError> {
        let lengths = payloads.iter().map(|payload| payload.as_ref().len() as u64);
        let params = PushMessagesParams {
            dst: dst.clone(),
            topic: topic.map(Base64::from),
            payloads: Vec::new(),
            attached: lengths.collect(),
            wait: None,
        };
        let all: Vec<&[u8]> = payloads.iter().map(AsRef::as_ref).collect();
        self.send_one("pushMessages", params, &all)
    }

    /// Waits for the result of [`Self::send_messages`].
    ///
    /// # Errors
    /// When the connection fails, or the node refuses all of them.
    pub fn sent_messages(&mut self, batch: BatchId) -> Result<PushMessagesResult, ClientError> {
        let line = self.line(batch)?;
        self.result(&line)
    }

    /// Requests messages of the inbox, with unencoded payloads. [`Self::taken_messages`] waits for them.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn take_messages(&mut self, params: PopMessagesParams) -> Result<BatchId, ClientError> {
        let attach = Some(true);
        self.send_one("popMessages", PopMessagesParams { attach, ..params }, &[])
    }

    /// Waits for the result of [`Self::take_messages`]: messages and their payloads.
    ///
    /// # Errors
    /// When the connection fails, or the node answers with an error.
    pub fn taken_messages(
        &mut self,
        batch: BatchId,
    ) -> Result<Vec<(AttachedMessage, Vec<u8>)>, ClientError> {
        let line = self.line(batch)?;
        let messages: Vec<AttachedMessage> = self.result(&line)?;
        if let [message] = &messages[..]
            && message.attached == line.attached.len() as u64
        {
            // It may be a long one.
            return Ok(messages.into_iter().zip([line.attached]).collect());
        }
        let mut rest = &line.attached[..];
        let mut taken = Vec::with_capacity(messages.len());
        for message in messages {
            let split = usize::try_from(message.attached).ok();
            let split = split.and_then(|at| rest.split_at_checked(at));
            let short = || self.protocol("fewer bytes are attached than announced".to_owned());
            let (payload, behind) = split.ok_or_else(short)?;
            taken.push((message, payload.to_vec()));
            rest = behind;
        }
        Ok(taken)
    }

    /// Sends a call with attached bytes.
    fn send_one<P: Serialize>(
        &mut self,
        method: &str,
        params: P,
        attached: &[&[u8]],
    ) -> Result<BatchId, ClientError> {
        let batch = BatchId(self.next);
        let call = Call {
            jsonrpc: "2.0",
            method,
            params: Some(params),
            id: self.next,
        };
        let len: usize = attached.iter().map(|bytes| bytes.len()).sum();
        let mut line = if len > 0 {
            format!("+{len} ").into_bytes()
        } else {
            Vec::new()
        };
        serde_json::to_writer(&mut line, &call).map_err(|e| self.protocol(e.to_string()))?;
        if let [long] = attached
            && long.len() > 1 << 20
        {
            self.write(line)?;
            let written = self.reader.get_mut().write_all(long);
            written.map_err(|error| fail(self.place.display().to_string(), error))?;
        } else {
            line.push(b'\n');
            attached
                .iter()
                .for_each(|bytes| line.extend_from_slice(bytes));
            let written = self.reader.get_mut().write_all(&line);
            written.map_err(|error| fail(self.place.display().to_string(), error))?;
        }
        self.next += 1;
        self.sizes.insert(batch, 1);
        Ok(batch)
    }

    fn write(&mut self, mut line: Vec<u8>) -> Result<(), ClientError> {
        line.push(b'\n');
        let written = self.reader.get_mut().write_all(&line);
        written.map_err(|error| fail(self.place.display().to_string(), error))
    }

    /// The result of a single call.
    fn result<R: DeserializeOwned>(&self, line: &Line) -> Result<R, ClientError> {
        let answer: serde_json::Result<Answer<R>> = serde_json::from_str(&line.json);
        let outcome = answer.and_then(Answer::outcome);
        outcome
            .map_err(|error| self.protocol(error.to_string()))?
            .map_err(ClientError::Call)
    }

    /// Waits for the answers of a batch, in the order of its calls.
    ///
    /// # Errors
    /// When the connection fails, or the data is no answer.
    pub fn receive<R: DeserializeOwned>(
        &mut self,
        batch: BatchId,
    ) -> Result<Answers<R>, ClientError> {
        let line = self.line(batch)?;
        let answers: Vec<Answer<R>> =
            serde_json::from_str(&line.json).map_err(|e| self.protocol(e.to_string()))?;
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

    /// The answer to a batch.
    fn line(&mut self, batch: BatchId) -> Result<Line, ClientError> {
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
        Ok(line)
    }

    /// The next answer, and the id of its batch.
    fn read(&mut self) -> Result<(BatchId, Line), ClientError> {
        let mut json = String::new();
        let read = self.reader.read_line(&mut json);
        let read = read.map_err(|error| fail(self.place.display().to_string(), error))?;
        if read == 0 {
            return Err(self.protocol("the connection was closed".to_owned()));
        }
        let mut attached = Vec::new();
        if let Some((len, rest)) = json.strip_prefix('+').and_then(|rest| rest.split_once(' ')) {
            let len = len.parse().ok().filter(|len| *len <= ATTACHED_MAX);
            let len = len.ok_or_else(|| self.protocol("an attachment without end".to_owned()))?;
            json = rest.to_owned();
            let read = Read::take(&mut self.reader, len).read_to_end(&mut attached);
            read.map_err(|error| fail(self.place.display().to_string(), error))?;
        }
        let first = json.strip_prefix('[').unwrap_or(&json);
        let mut first = serde_json::Deserializer::from_str(first).into_iter::<Id>();
        let (id, error) = match first.next() {
            Some(Ok(first)) => (first.id, first.error),
            Some(Err(_)) | None => (None, None),
        };
        let batch = id.and_then(|id| self.sizes.range(..=BatchId(id)).next_back());
        match (batch, error) {
            (Some((batch, _)), _) => Ok((*batch, Line { json, attached })),
            // One answer for a whole batch is a refusal.
            (None, Some(error)) => Err(ClientError::Call(error)),
            (None, None) => Err(self.protocol(format!("an answer to nothing: {id:?}"))),
        }
    }

    fn protocol(&self, what: String) -> ClientError {
        let place = self.place.display().to_string();
        ClientError::Protocol { place, what }
    }
}

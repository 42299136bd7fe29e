//! The Unix socket: admission of callers, and two protocols.
//!
//! ```text
//!  accept ─ SO_PEERCRED ─ first byte ┬ letter: HTTP/1.1, served as on TCP
//!                                    └ anything else: newline-delimited JSON
//! ```
//!
//! On a newline-delimited connection every line is a request and is answered by a line, except notifications. Answers
//! are sent as calls complete: a waiting call delays no other one. A hang-up cancels waits, and undelivered messages
//! return to the inbox; a caller that has half-closed gets its answers.
//!
//! A line that begins with `+`, a number and a space is followed by that many bytes outside of JSON: payloads of
//! messages, as the request or answer in the line describes them.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyphae_bus::{Buffer, Pool};
use hyphae_rpc::message::{Error, code};
use hyphae_wire::message::MESSAGE_MAX;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::connections::{Holder, REFUSED_AT_ONCE, Reserve, Slots, Unaccepted, within_descriptors};
use super::credentials;
use super::gate::Admission;
use super::http::BODY_WITHIN;
use super::socket_file::{SOCKET_NAME, SocketFile};
use super::tcp::serve_connection;
use crate::authorizer::Caller;
use crate::context::Dispatcher;
use crate::disconnect::{Connected, Disconnect};
use crate::envelope::{Answer, LARGE_MAX, Parsed, SMALL_MAX, delivered, over_limit, refusal};
use crate::params::Attached;
use hyphae_config::Allowed;
use hyphae_node::DIGEST_APART;
use hyphae_proxy::Hangup;

/// Limit of the time to the first byte.
const FIRST_BYTE_WITHIN: Duration = Duration::from_secs(60);
/// Time for a refused caller to read the answer.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Connections that have sent a byte, of two descriptors each, and their share of the process's descriptors.
const CONNECTIONS: (usize, usize) = (2048, 8);
/// Connections that have not sent a byte.
const SILENT: (usize, usize) = (512, 8);
/// Size of the read buffer, bytes.
const READ_AHEAD: usize = 32 << 10;
/// Concurrent requests of one connection.
const LINES_AT_ONCE: usize = 64;

/// Interval of checks that the socket file exists.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Accepts connections and serves each in its protocol. Does not return.
pub(super) async fn serve_unix(
    (socket, mut listener): (SocketFile, UnixListener),
    allowed: Allowed,
    dispatcher: Arc<Dispatcher>,
    router: axum::Router,
) {
    let group = |path: &Path| std::fs::metadata(path).map_or(u32::MAX, |file| file.gid());
    let mut file_gid = group(socket.path());
    let reserve = Reserve::default();
    let serving = Serving {
        dispatcher,
        router,
        reserve: reserve.clone(),
        slots: Slots::new(within_descriptors(CONNECTIONS.0, CONNECTIONS.1)),
    };
    let mut silent = Silent::new(within_descriptors(SILENT.0, SILENT.1));
    let mut silent_refused = Silent::new(REFUSED_AT_ONCE);
    let mut unaccepted = Unaccepted::new(SOCKET_NAME);
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = poll.tick() => {
                reserve.fill();
                if let Some(again) = socket.restore(&allowed) {
                    (listener, file_gid) = (again, group(socket.path()));
                }
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // An operator can connect although other parts have used up the descriptors.
            Err(error) if reserve.helps(&error) => continue,
            Err(error) => {
                unaccepted.failed(&error).await;
                continue;
            }
        };
        let admitted = credentials::admitted(&stream, &allowed, file_gid);
        let serving = serving.clone();
        let list = match &admitted {
            Some(_) => &mut silent,
            None => &mut silent_refused,
        };
        let greeting = tokio::spawn(async move {
            // The caller notices a broken connection.
            if let Ok(Some(greeted)) = greet(stream).await {
                tokio::spawn(serving.serve(greeted, admitted));
            }
        });
        list.add(greeting.abort_handle());
    }
}

/// Connections that have not sent a byte; the oldest is closed for a new one.
struct Silent {
    greetings: VecDeque<AbortHandle>,
    most: usize,
}

impl Silent {
    fn new(most: usize) -> Self {
        let greetings = VecDeque::new();
        Self { greetings, most }
    }

    fn add(&mut self, greeting: AbortHandle) {
        if self.greetings.len() >= self.most {
            self.greetings.retain(|greeting| !greeting.is_finished());
        }
        self.greetings.push_back(greeting);
        while self.greetings.len() > self.most {
            if let Some(oldest) = self.greetings.pop_front() {
                oldest.abort();
            }
        }
    }
}

/// Reads the first byte that is not white space.
async fn greet(mut stream: UnixStream) -> io::Result<Option<(UnixStream, u8)>> {
    let mut first = [b' '];
    let reading = async {
        while first[0].is_ascii_whitespace() {
            if stream.read(&mut first).await? == 0 {
                return io::Result::Ok(false);
            }
        }
        Ok(true)
    };
    let some = timeout(FIRST_BYTE_WITHIN, reading).await??;
    Ok(some.then_some((stream, first[0])))
}

/// Shared state of connections.
#[derive(Clone)]
struct Serving {
    dispatcher: Arc<Dispatcher>,
    router: axum::Router,
    slots: Slots,
    reserve: Reserve,
}

impl Serving {
    async fn serve(self, (stream, first): (UnixStream, u8), admitted: Option<Caller>) {
        let speaks_http = first.is_ascii_alphabetic();
        let Some(caller) = admitted else {
            let message = "your user may not use this socket; rpc.allow_uids and rpc.allow_gids of the \
                           configuration say who may";
            return refuse(stream, speaks_http, Error::new(code::DENIED, message)).await;
        };
        let Some(_slot) = self.slots.take(Holder::of(caller.authority())) else {
            let message = "too many connections to this socket are open; close some";
            return refuse(stream, speaks_http, Error::new(code::BUSY, message)).await;
        };
        let hangup = loop {
            match Hangup::watch(&stream) {
                Ok(hangup) => break hangup,
                Err(error) if self.reserve.helps(&error) => {}
                Err(_) => return,
            }
        };
        let stream = Rewound {
            read: VecDeque::from([first]),
            stream,
        };
        if speaks_http {
            let admission = Admission::of(caller);
            serve_connection(stream, self.router, Some(admission), Some(hangup)).await;
        } else {
            // As above.
            let _ = serve_lines(stream, hangup, &self.dispatcher, &caller).await;
        }
    }
}

/// Answers with the cause, in the protocol of the caller, which may not read it.
async fn refuse(mut stream: UnixStream, speaks_http: bool, cause: Error) {
    let status = match cause.code {
        code::BUSY => "503 Service Unavailable",
        _ => "403 Forbidden",
    };
    let body = refusal(cause);
    let mut answer = Vec::new();
    if speaks_http {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        answer.extend_from_slice(head.as_bytes());
    }
    answer.extend_from_slice(&body);
    let writing = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing with unread data resets the connection, and the answer may be lost.
        let mut unread = [0; 4096];
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(REFUSED_WITHIN, writing).await;
}

async fn serve_lines(
    stream: Rewound,
    hangup: Hangup,
    dispatcher: &Arc<Dispatcher>,
    caller: &Caller,
) -> io::Result<()> {
    let (connected, disconnect) = Connected::new();
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
    let (answers, mut written) = mpsc::channel::<Answer>(LINES_AT_ONCE);
    let writing = tokio::spawn(async move {
        loop {
            let answer = tokio::select! {
                biased;
                () = hangup.happened() => break,
                answer = written.recv() => answer,
            };
            let Some(answer) = answer else { break };
            if write_answer(&mut writer, answer).await.is_err() {
                break;
            }
        }
        // Without a reader no message may be delivered.
        connected.close();
        // The caller may have disconnected.
        let _ = writer.shutdown().await;
    });
    let read = read_lines(&mut reader, (dispatcher, caller), answers, &disconnect).await;
    if read.is_ok() {
        // Ends when the last answer is written.
        let _ = writing.await;
    }
    read
}

/// Answers lines until the end of the connection.
async fn read_lines<R: AsyncRead + Unpin>(
    reader: &mut BufReader<R>,
    (dispatcher, caller): (&Arc<Dispatcher>, &Caller),
    answers: mpsc::Sender<Answer>,
    disconnect: &Disconnect,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(LINES_AT_ONCE));
    loop {
        let (line, large) = match read_line(reader, dispatcher, caller).await? {
            Line::End => break,
            Line::TooLong => {
                // The next line cannot be found within the limit.
                let _ = answers.send(refusal(over_limit()).into()).await;
                break;
            }
            Line::Some(line, large) => (line, large),
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            break;
        };
        let (json, attached, more) = match attachment(&line) {
            None => (&line[..], Attached::default(), None),
            Some((len, json)) if len <= MESSAGE_MAX => {
                let more = if len > SMALL_MAX {
                    dispatcher.room_for_large(caller.listener).await
                } else {
                    None
                };
                let reading = read_attached(reader, len, dispatcher.pool());
                let attached = timeout(BODY_WITHIN, reading).await??;
                (json, attached, more)
            }
            Some(_) => {
                // As above.
                let _ = answers.send(refusal(over_limit()).into()).await;
                break;
            }
        };
        let parsed = Parsed::with(json, attached, &|method| {
            dispatcher.authorize(caller, method)
        });
        drop((line, large, more));
        let (answers, dispatcher) = (answers.clone(), Arc::clone(dispatcher));
        let (caller, disconnect) = (caller.clone(), disconnect.clone());
        tokio::spawn(async move {
            let answer = parsed.answer(&dispatcher, &caller, &disconnect).await;
            if let Some(answer) = answer {
                // As above.
                let _ = answers.send(answer).await;
            }
            drop(permit);
        });
    }
    Ok(())
}

/// Reads the bytes after a line. The digest of a long payload is computed while its blocks are in the cache.
async fn read_attached<R: AsyncRead + Unpin>(
    reader: &mut R,
    len: usize,
    pool: &Pool,
) -> io::Result<Attached> {
    let mut buffer = Buffer::to_fill(len, pool);
    let mut hasher = (len >= DIGEST_APART).then(Box::<blake3::Hasher>::default);
    for block in buffer.as_mut().chunks_mut(DIGEST_APART) {
        reader.read_exact(block).await?;
        if let Some(hasher) = &mut hasher {
            hasher.update(block);
            // Other tasks share this thread.
            tokio::task::yield_now().await;
        }
    }
    Ok(Attached {
        bytes: buffer.into(),
        digest: hasher.map(|hasher| Box::new(*hasher.finalize().as_bytes())),
    })
}

/// The number of bytes that follow a line, and its JSON; `None` for a line without attached bytes.
fn attachment(line: &[u8]) -> Option<(usize, &[u8])> {
    let rest = line.trim_ascii_start().strip_prefix(b"+")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, json) = rest.split_at_checked(digits)?;
    let number = std::str::from_utf8(number).ok()?.parse().ok()?;
    Some((number, json.strip_prefix(b" ")?))
}

async fn write_answer<W: AsyncWrite + Unpin>(writer: &mut W, answer: Answer) -> io::Result<()> {
    let Answer {
        json,
        attached,
        deliveries,
    } = answer;
    write_bytes(writer, json, attached).await?;
    if !deliveries.is_empty() {
        // The next answer does not wait for the disk.
        tokio::spawn(delivered(deliveries));
    }
    Ok(())
}

async fn write_bytes<W: AsyncWrite + Unpin>(
    writer: &mut W,
    mut json: Vec<u8>,
    attached: Vec<Bytes>,
) -> io::Result<()> {
    json.push(b'\n');
    if attached.is_empty() {
        return writer.write_all(&json).await;
    }
    let len: usize = attached.iter().map(Bytes::len).sum();
    let mut bytes = format!("+{len} ").into_bytes();
    bytes.reserve(json.len() + len.min(SMALL_MAX));
    bytes.extend_from_slice(&json);
    // Short payloads are written together; a long one is not copied.
    for payload in attached {
        if bytes.len() + payload.len() > 2 * SMALL_MAX {
            writer.write_all(&bytes).await?;
            bytes.clear();
            writer.write_all(&payload).await?;
        } else {
            bytes.extend_from_slice(&payload);
        }
    }
    writer.write_all(&bytes).await
}

enum Line {
    Some(Vec<u8>, Option<tokio::sync::OwnedSemaphorePermit>),
    TooLong,
    End,
}

/// Reads a line; a long one with a permit of the listener.
async fn read_line<R: AsyncRead + Unpin>(
    reader: &mut BufReader<R>,
    dispatcher: &Dispatcher,
    caller: &Caller,
) -> io::Result<Line> {
    let mut line = Vec::new();
    let read = take_line(reader, &mut line, SMALL_MAX + 1).await?;
    if read == 0 {
        return Ok(Line::End);
    }
    if line.ends_with(b"\n") || line.len() <= SMALL_MAX {
        return Ok(Line::Some(line, None));
    }
    let permit = dispatcher.room_for_large(caller.listener).await;
    let reading = take_line(reader, &mut line, LARGE_MAX - SMALL_MAX);
    timeout(BODY_WITHIN, reading).await??;
    if line.ends_with(b"\n") || line.len() <= LARGE_MAX {
        return Ok(Line::Some(line, permit));
    }
    Ok(Line::TooLong)
}

async fn take_line<R: AsyncRead + Unpin>(
    reader: &mut BufReader<R>,
    line: &mut Vec<u8>,
    most: usize,
) -> io::Result<usize> {
    let limit = u64::try_from(most).unwrap_or(u64::MAX);
    reader.take(limit).read_until(b'\n', line).await
}

/// A stream whose first bytes were already read.
struct Rewound {
    read: VecDeque<u8>,
    stream: UnixStream,
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() || out.remaining() == 0 {
            return Pin::new(&mut self.stream).poll_read(context, out);
        }
        while out.remaining() > 0 {
            match self.read.pop_front() {
                Some(byte) => out.put_slice(&[byte]),
                None => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

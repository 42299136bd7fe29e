//! Requests through the socket proxy, against requests to the server's socket.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use hyphae_rpc::Base64;
use hyphae_rpc::method::{
    Destination, ForwardSocketParams, OutboundSocketParams, TopicParams, TopicPubkeyParams,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::node::{Pair, TIMEOUT, eventually};
use crate::stats::Times;

/// Sockets of a server behind B's forward socket, and of its proxy on A.
pub(super) struct Proxy {
    pub(super) direct: PathBuf,
    pub(super) proxied: PathBuf,
}

/// Starts a JSON-lines server, which runs until this program ends, and proxies a socket of A to it.
pub(super) fn prepare(pair: &Pair) -> anyhow::Result<Proxy> {
    let directory = pair.directory.path();
    let (direct, proxied) = (directory.join("server.sock"), directory.join("remote.sock"));
    let listener = UnixListener::bind(&direct)?;
    listener.set_nonblocking(true)?;
    let runtime = runtime()?;
    std::thread::spawn(move || runtime.block_on(serve(listener)));
    let topic = Base64::encode("bench");
    let named = || TopicParams {
        topic: topic.clone(),
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    pair.b.client.add_topic(named())?;
    pair.b.client.add_topic_pubkey_source(TopicPubkeyParams {
        topic: topic.clone(),
        pubkey: pair.a.key.clone(),
    })?;
    pair.b
        .client
        .set_topic_forward_socket(ForwardSocketParams {
            topic: topic.clone(),
            socket_path: text(&direct),
            framing: Some("json-lines".to_owned()),
            reply_timeout: None,
            keep_alive: Some(true),
        })?;
    pair.a.client.add_topic(named())?;
    pair.a
        .client
        .set_topic_outbound_socket(OutboundSocketParams {
            topic,
            dst: Destination::Pk(pair.b.key.clone()),
            path: text(&proxied),
            framing: Some("json-lines".to_owned()),
        })?;
    let proxy = Proxy { direct, proxied };
    eventually("the proxy answers", || {
        Ok(measure(&proxy.proxied, 1, Duration::ZERO).is_ok())
    })?;
    Ok(proxy)
}

/// One thread for all clients and one for the server. With a thread per connection, the benchmark would measure thread
/// wakeups.
fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Answers every line on every connection.
async fn serve(listener: UnixListener) -> std::io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).await? > 0 {
                stream.write_all(answer().as_bytes()).await?;
                line.clear();
            }
            std::io::Result::Ok(())
        });
    }
}

/// The server's answer.
fn answer() -> String {
    let answer = json!({ "jsonrpc": "2.0", "id": 1, "result": "y".repeat(64) });
    format!("{answer}\n")
}

/// Runs one client for `time`; returns the latencies of its requests, at least one.
async fn client(path: PathBuf, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let mut stream = BufReader::new(UnixStream::connect(path).await?);
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "say", "params": ["x".repeat(64)] });
    let (request, expected) = (format!("{request}\n"), answer());
    let (mut times, mut answer) = (Vec::new(), String::new());
    let started = Instant::now();
    loop {
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        answer.clear();
        timeout(TIMEOUT, stream.read_line(&mut answer)).await??;
        times.push(asked.elapsed());
        ensure!(answer == expected, "the server's answer, not {answer:?}");
        if started.elapsed() >= time {
            return Ok(times);
        }
    }
}

/// Runs concurrent clients; returns requests per second and latencies.
pub(super) fn measure(path: &Path, clients: usize, time: Duration) -> anyhow::Result<(f64, Times)> {
    let started = Instant::now();
    let times = runtime()?.block_on(async {
        let mut running: JoinSet<_> = (0..clients)
            .map(|_| client(path.to_owned(), time))
            .collect();
        let mut times = Vec::new();
        while let Some(one) = running.join_next().await {
            times.extend(one??);
        }
        anyhow::Ok(times)
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let times = Times::new(times);
    Ok((times.len() as f64 / seconds, times))
}

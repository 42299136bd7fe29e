//! Requests through the socket proxy, and the same to the server's socket directly.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use hyphae_rpc::Base64;
use hyphae_rpc::method::{
    Destination, ForwardSocketParams, OutboundSocketParams, TopicParams, TopicPubkeyParams,
};
use serde_json::json;

use super::node::{PATIENCE, Pair, eventually};
use crate::stats::Times;

/// A server behind B's forward socket, and the way to it from A.
pub(super) struct Way {
    pub(super) direct: PathBuf,
    pub(super) proxied: PathBuf,
}

/// Starts a server of JSON lines, which runs until this program ends, and leads a socket of A to it.
pub(super) fn prepare(pair: &Pair) -> anyhow::Result<Way> {
    let directory = pair.directory.path();
    let (direct, proxied) = (directory.join("server.sock"), directory.join("remote.sock"));
    let listener = UnixListener::bind(&direct)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    // A client that has gone is no error here.
                    if (&stream).write_all(answer().as_bytes()).is_err() {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
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
    let way = Way { direct, proxied };
    eventually("the proxy answers", || {
        Ok(client(&way.proxied, Duration::ZERO).is_ok())
    })?;
    Ok(way)
}

/// What the server says to everything.
fn answer() -> String {
    let answer = json!({ "jsonrpc": "2.0", "id": 1, "result": "y".repeat(64) });
    format!("{answer}\n")
}

/// One client for so long: the times of its requests, at least one.
fn client(path: &Path, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(&stream);
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "say", "params": ["x".repeat(64)] });
    let (request, expected) = (format!("{request}\n"), answer());
    let (mut times, mut answer) = (Vec::new(), String::new());
    let started = Instant::now();
    loop {
        let asked = Instant::now();
        (&stream).write_all(request.as_bytes())?;
        answer.clear();
        reader.read_line(&mut answer)?;
        times.push(asked.elapsed());
        ensure!(answer == expected, "the server's answer, not {answer:?}");
        if started.elapsed() >= time {
            return Ok(times);
        }
    }
}

/// So many clients at once: requests per second, and how long one takes.
pub(super) fn measure(path: &Path, clients: usize, time: Duration) -> anyhow::Result<(f64, Times)> {
    let started = Instant::now();
    let times = std::thread::scope(|scope| {
        let running: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| client(path, time)))
            .collect();
        running
            .into_iter()
            .map(|one| one.join().map_err(|_| anyhow::anyhow!("a panic"))?)
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let times: Vec<Duration> = times.into_iter().flatten().collect();
    let times = Times::new(times);
    Ok((times.len() as f64 / seconds, times))
}

//! Messages from one node to another: rate, latency, long messages, a burst of unread messages.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyphae_rpc::method::{
    Destination, IncomingMessage, MessageIdParams, MessageInfo, MessageState, OutgoingMessage,
    PopMessageParams, PopMessagesParams, PushMessageParams, PushMessageResult,
};
use hyphae_rpc::{Base64, BatchId, ClientError, code};

use super::node::{Node, Pair, TIMEOUT, eventually};
use crate::stats::Times;

/// Result of the rate part.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    /// CPU time per message: control plane and dataplane of the sender, then of the receiver.
    pub(super) cpu_micros: [f64; 4],
}

/// Messages per batch, and batches in flight.
const BATCH: usize = 500;
const PIPELINE: usize = 6;
/// Messages received per call.
const RECEIVE: u32 = 1000;

pub(super) fn outgoing(to: &Node, payload: &[u8]) -> PushMessageParams {
    PushMessageParams {
        message: OutgoingMessage {
            dst: Destination::Pk(to.key.clone()),
            topic: None,
            payload: Base64::from(payload),
        },
        reply_timeout: None,
        wait: None,
    }
}

/// A payload with a number in its first 8 bytes.
fn numbered(number: usize, len: usize) -> Vec<u8> {
    let mut payload = vec![0x5a; len.max(8)];
    payload[..8].copy_from_slice(&(number as u64).to_le_bytes());
    payload
}

fn number(payload: &[u8]) -> anyhow::Result<usize> {
    let bytes = payload.get(..8).context("a numbered message")?;
    Ok(usize::try_from(u64::from_le_bytes(bytes.try_into()?))?)
}

/// Sends numbered messages in a pipeline; retries those refused for want of room.
fn send(from: &Node, to: &Node, count: usize, len: usize) -> anyhow::Result<Vec<String>> {
    let mut connection = from.connection()?;
    let mut waiting: std::collections::VecDeque<(BatchId, Vec<usize>)> = Default::default();
    let (mut next, mut retry) = (0, Vec::new());
    let (to, mut ids) = (Destination::Pk(to.key.clone()), Vec::new());
    loop {
        while waiting.len() < PIPELINE && (next < count || !retry.is_empty()) {
            let mut numbers: Vec<usize> = std::mem::take(&mut retry);
            let more = BATCH.saturating_sub(numbers.len()).min(count - next);
            numbers.extend(next..next + more);
            next += more;
            retry = numbers.split_off(numbers.len().min(BATCH));
            let payloads: Vec<_> = numbers.iter().map(|n| numbered(*n, len)).collect();
            waiting.push_back((connection.send_messages(&to, None, &payloads)?, numbers));
        }
        let Some((batch, mut numbers)) = waiting.pop_front() else {
            return Ok(ids);
        };
        let sent = match connection.sent_messages(batch) {
            Err(ClientError::Call(error)) if error.code == code::PUSH_REFUSED => Vec::new(),
            sent => sent?.ids,
        };
        let refused = numbers.split_off(sent.len());
        ids.extend(sent);
        if !refused.is_empty() {
            retry.extend(refused);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Receives `count` distinct messages.
fn receive(at: &Node, count: usize) -> anyhow::Result<()> {
    let mut connection = at.connection()?;
    let mut seen = vec![false; count];
    let mut left = count;
    let ask = PopMessagesParams {
        count: RECEIVE,
        timeout: Some(TIMEOUT.as_secs()),
        topic: None,
        attach: None,
        lease: None,
    };
    let mut waiting = connection.take_messages(ask.clone())?;
    while left > 0 {
        let messages = connection.taken_messages(waiting)?;
        ensure!(!messages.is_empty(), "{left} messages are missing");
        left = left.saturating_sub(messages.len());
        if left > 0 {
            waiting = connection.take_messages(ask.clone())?;
        }
        for (_, payload) in &messages {
            let number = number(payload)?;
            ensure!(!seen[number], "message {number} was delivered twice");
            seen[number] = true;
        }
    }
    ensure!(
        seen.iter().all(|seen| *seen),
        "every message is delivered once"
    );
    Ok(())
}

/// Measures messages per second from a sender to a receiver.
pub(super) fn rate(pair: &Pair, count: usize, len: usize) -> anyhow::Result<Rate> {
    let Pair { a, b, .. } = pair;
    let before = (a.cpu()?, b.cpu()?);
    let started = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let taking = scope.spawn(|| receive(b, count));
        send(a, b, count, len)?;
        taking.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let after = (a.cpu()?, b.cpu()?);
    let micros = |after: Duration, before: Duration| {
        after.saturating_sub(before).as_secs_f64() * 1e6 / count as f64
    };
    Ok(Rate {
        per_second: count as f64 / seconds,
        cpu_micros: [
            micros(after.0[0], before.0[0]),
            micros(after.0[1], before.0[1]),
            micros(after.1[0], before.1[0]),
            micros(after.1[1], before.1[1]),
        ],
    })
}

/// Time from the call that sends to the result of the call that receives, one message at a time.
pub(super) fn latency(pair: &Pair, count: usize, len: usize) -> anyhow::Result<Times> {
    let (mut from, mut to) = (pair.a.connection()?, pair.b.connection()?);
    let mut times = Vec::with_capacity(count);
    let pop = PopMessageParams {
        timeout: Some(TIMEOUT.as_secs()),
        ..PopMessageParams::default()
    };
    for n in 0..count {
        let call = [outgoing(&pair.b, &numbered(n, len))];
        let waiting = to.send("popMessage", &[&pop])?;
        let started = Instant::now();
        let pushed = from.send("pushMessage", &call)?;
        let popped = to.receive::<Option<IncomingMessage>>(waiting)?;
        times.push(started.elapsed());
        let message = popped.into_iter().next().context("an answer")??;
        let message = message.context("a message")?;
        ensure!(number(&message.payload.0)? == n, "in order");
        for answer in from.receive::<PushMessageResult>(pushed)? {
            answer?;
        }
    }
    Ok(Times::new(times))
}

/// Seconds until a long message is acknowledged, and until the receiver has it.
pub(super) fn large(pair: &Pair, len: usize) -> anyhow::Result<[f64; 2]> {
    let payload: Vec<u8> = (0..len).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let (mut from, mut at) = (pair.a.connection()?, pair.b.connection()?);
    let to = Destination::Pk(pair.b.key.clone());
    let waiting = at.take_messages(PopMessagesParams {
        count: 1,
        timeout: Some(TIMEOUT.as_secs()),
        topic: None,
        attach: None,
        lease: None,
    })?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let messages = at.taken_messages(waiting)?;
            let seconds = started.elapsed().as_secs_f64();
            let whole = messages.first().is_some_and(|(_, came)| *came == payload);
            ensure!(whole, "the payload is complete");
            anyhow::Ok(seconds)
        });
        let batch = from.send_messages(&to, None, &[&payload])?;
        let sent = from.sent_messages(batch)?;
        let id = sent.ids.first().context("it is taken")?;
        eventually("the long message is acknowledged", || {
            let id = id.clone();
            let info = pair.a.client.get_message_info(MessageIdParams { id })?;
            settled(&info)
        })?;
        let received = started.elapsed().as_secs_f64();
        let taken = taking.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        Ok([received, taken])
    })
}

fn settled(info: &MessageInfo) -> anyhow::Result<bool> {
    match info.state {
        MessageState::Pending | MessageState::Sending { .. } => Ok(false),
        MessageState::Received | MessageState::Read => Ok(true),
        MessageState::Aborted => bail!("aborted: {}", info.reason.as_deref().unwrap_or("?")),
    }
}

/// Seconds for as many bytes over TCP on loopback.
pub(super) fn tcp(len: usize) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let place = listener.local_addr()?;
    let payload = vec![0x5a; len];
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || -> anyhow::Result<usize> {
            let (mut stream, _) = listener.accept()?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            stream.write_all(b"!")?;
            Ok(all.len())
        });
        let started = Instant::now();
        let mut stream = TcpStream::connect(place)?;
        stream.write_all(&payload)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_exact(&mut [0])?;
        let seconds = started.elapsed().as_secs_f64();
        let read = reading.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(read == len, "the payload is complete");
        Ok(seconds)
    })
}

/// Memory of the receiver before a burst, with all messages in its inbox, and after all are received, bytes.
pub(super) fn burst(pair: &Pair, count: usize, len: usize) -> anyhow::Result<[u64; 3]> {
    let before = pair.b.resident()?;
    let ids = send(&pair.a, &pair.b, count, len)?;
    // Newest first: the states of the oldest may be forgotten.
    let mut connection = pair.a.connection()?;
    for batch in ids[ids.len().saturating_sub(50_000)..].rchunks(BATCH) {
        eventually("the burst is received", || {
            let calls: Vec<_> = batch
                .iter()
                .map(|id| MessageIdParams { id: id.clone() })
                .collect();
            for answer in connection.call::<_, MessageInfo>("getMessageInfo", &calls)? {
                if !settled(&answer?)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
    }
    let full = pair.b.resident()?;
    receive(&pair.b, count)?;
    Ok([before, full, pair.b.resident()?])
}

//! Outgoing messages: taking them, sending their chunks, hearing what became of them.

use std::time::Duration;

use bytes::Bytes;
use hyphae_wire::message::{
    AckRange, Body, Cut, MESSAGE_HEADER_LEN, MESSAGE_MAX, OPEN_HEADER_LEN, Status,
};
use hyphae_wire::{Nanos, OverlayAddress, PublicKey};

use crate::config::{REPLY_CLEAR_DELAY, TRY_DURATION_DEFAULT, TRY_DURATION_MAX};
use crate::engine::{Answer, Bare, Finished, Timer, Waiting, packet};
use crate::outgoing::{Phase, Send, SendKey};
use crate::path::{Flight, Path, TURN};
use crate::{
    AbortReason, Bus, Destination, Event, MessageId, MessageState, Outgoing, PushError, Rejection,
    Transmit,
};

/// First wait after a refusal for want of room, and after an attempt at a session; doubles.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

fn back_off(attempts: u32) -> Duration {
    (BACK_OFF * (1 << attempts.min(6))).min(BACK_OFF_MAX)
}

impl Bus {
    /// Takes a message for sending.
    ///
    /// # Errors
    /// When it cannot be sent, or too much waits already.
    pub fn push(&mut self, now: Nanos, message: Outgoing) -> Result<MessageId, PushError> {
        let subnet = message.destination.address().subnet_id();
        let id = loop {
            let id = MessageId(self.rng.array());
            let reply = false;
            let key = SendKey { id, reply, subnet };
            let taken = self.sends.contains_key(&key)
                || self.finished.contains_key(&key)
                || self.waiting.contains_key(&id);
            if !taken {
                break id;
            }
        };
        self.begin(now, id, false, message)?;
        Ok(id)
    }

    /// Takes the reply to the message `id` of another node, which is the destination.
    ///
    /// # Errors
    /// As [`Self::push`], and when that message has been answered.
    pub fn reply(&mut self, now: Nanos, id: MessageId, message: Outgoing) -> Result<(), PushError> {
        self.begin(now, id, true, message)
    }

    fn begin(
        &mut self,
        now: Nanos,
        id: MessageId,
        reply: bool,
        message: Outgoing,
    ) -> Result<(), PushError> {
        let (address, len) = (message.destination.address(), message.payload.len());
        if len > MESSAGE_MAX {
            return Err(PushError::TooLong(len));
        }
        if !address.is_overlay() {
            return Err(PushError::NotOverlay(address));
        }
        let subnet = address.subnet_id();
        let key = SendKey { id, reply, subnet };
        let done = self.finished.get(&key);
        let answered = done.is_some_and(|done| done.info.state != MessageState::Aborted);
        if self.sends.contains_key(&key) || answered {
            return Err(PushError::Answered(id));
        }
        let full = self.sends.len() >= self.config.outgoing_max
            || self.waiting.len() >= self.config.outgoing_max
            || self.outgoing_bytes + len > self.config.outgoing_bytes_max;
        if full {
            return Err(PushError::QueueFull {
                messages: self.sends.len(),
                bytes: self.outgoing_bytes,
            });
        }
        let try_for = message.try_for.unwrap_or(TRY_DURATION_DEFAULT);
        let deadline = now + try_for.min(TRY_DURATION_MAX);
        if let Some(within) = message.reply_within.filter(|_| !reply) {
            let deadline = now + within;
            let waiting = Waiting {
                key: None,
                deadline,
                over: false,
            };
            self.waiting.insert(id, waiting);
            self.timers.set(Timer::Waiting(id), deadline);
        }
        let own = self.config.key.address().subnet_id() == subnet;
        let first = self.config.mtu - OPEN_HEADER_LEN - message.topic.as_bytes().len();
        let send = Send {
            destination: message.destination,
            key: match message.destination {
                Destination::Key(key) => Some(key),
                Destination::Address(_) if own => Some(self.config.key),
                Destination::Address(_) => None,
            },
            digest: message
                .digest
                .unwrap_or_else(|| *blake3::hash(&message.payload).as_bytes()),
            cut: Cut {
                len,
                first: first.min(len),
                chunk: self.config.mtu - MESSAGE_HEADER_LEN,
            },
            topic: message.topic,
            payload: message.payload,
            created: now,
            deadline,
            phase: Phase::Transfer,
            attempts: 0,
            next: 0,
            flights: std::collections::BTreeMap::new(),
            lost: std::collections::BTreeSet::new(),
            opened_by: 0,
            opened: false,
            begun: own,
            place: None,
        };
        self.timers.set(Timer::Send(key), send.due());
        self.outgoing_bytes += len;
        self.stats.pushed += 1;
        self.sends.insert(key, Box::new(send));
        if own {
            self.deliver_own(now, key);
            return Ok(());
        }
        let (packet, window) = (self.config.mtu, self.config.window_max);
        let path = self
            .paths
            .entry(subnet)
            .or_insert_with(|| Path::new(address, packet, window));
        let lonely = path.session.is_none() && path.messages.is_empty();
        path.messages.insert(key);
        if lonely {
            self.need_due(now, subnet);
        }
        self.make_ready(key);
        Ok(())
    }

    /// Withdraws an outgoing message, and the wait for its reply. False when it is not being sent.
    pub fn cancel(&mut self, now: Nanos, id: MessageId) -> bool {
        self.forget_waiting(id);
        let sends = self.sends.range(SendKey::any(id, false));
        let keys: Vec<SendKey> = sends.map(|(key, _)| *key).collect();
        for key in &keys {
            self.finish(now, *key, Some(AbortReason::Cancelled));
        }
        !keys.is_empty()
    }

    /// There is a session with the node of this address.
    pub fn session_up(&mut self, now: Nanos, address: OverlayAddress, key: PublicKey) {
        let subnet = address.subnet_id();
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.session = Some(key);
        path.needs = 0;
        self.timers.set(Timer::Need(subnet), Nanos::NEVER);
        let messages: Vec<SendKey> = path.messages.iter().copied().collect();
        for send in messages {
            let held = self.sends.get_mut(&send).is_some_and(|send| {
                let held = matches!(send.phase, Phase::Held(_));
                if held {
                    send.phase = Phase::Transfer;
                }
                held
            });
            if held {
                self.schedule_send(send);
            }
            self.make_ready(send);
        }
        self.schedule_path(now, subnet);
    }

    /// The last session with the node of this address has ended.
    pub fn session_down(&mut self, now: Nanos, address: OverlayAddress) {
        let subnet = address.subnet_id();
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let flights = path.reset();
        self.lose(flights);
        self.schedule_path(now, subnet);
        self.need_due(now, subnet);
        self.close_path(subnet);
    }

    /// A session is asked for, less and less often.
    pub(crate) fn need_due(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        if path.session.is_some() || path.messages.is_empty() {
            return;
        }
        let wait = back_off(path.needs);
        path.needs += 1;
        self.events.push_back(Event::NeedSession(path.address));
        self.timers.set(Timer::Need(subnet), now + wait);
    }

    /// Lets a message take part in sending if it has something to send.
    fn make_ready(&mut self, key: SendKey) {
        let Some(send) = self.sends.get_mut(&key) else {
            return;
        };
        let Some(path) = self.paths.get_mut(&key.subnet) else {
            return;
        };
        if send.has_more() && send.place.is_none() {
            send.place = Some(path.queue(key));
        }
        self.activate(key.subnet);
    }

    fn activate(&mut self, subnet: u64) {
        if let Some(path) = self.paths.get_mut(&subnet)
            && !path.active
            && !path.ready.is_empty()
            && path.has_room()
        {
            path.active = true;
            self.active.push_back(subnet);
        }
    }

    /// The next chunk: paths take turns, and so do the messages of a path.
    pub(crate) fn poll_chunk(&mut self, now: Nanos) -> Option<Transmit> {
        while let Some(subnet) = self.active.pop_front() {
            let Some(path) = self.paths.get_mut(&subnet) else {
                continue;
            };
            path.active = false;
            let (Some(session), true) = (path.session, path.has_room()) else {
                continue;
            };
            let Some(key) = path.ready.first_key_value().map(|(_, key)| *key) else {
                continue;
            };
            // Whoever is finished has left the queue.
            let Some(send) = self.sends.get_mut(&key) else {
                continue;
            };
            if *send.key.get_or_insert(session) != session {
                self.finish(now, key, Some(AbortReason::OtherKey));
                self.activate(subnet);
                continue;
            }
            let transmit = self.transmit_chunk(now, key, session);
            self.activate(subnet);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }

    fn transmit_chunk(&mut self, now: Nanos, key: SendKey, session: PublicKey) -> Option<Transmit> {
        let send = self.sends.get_mut(&key)?;
        let path = self.paths.get_mut(&key.subnet)?;
        let Some((chunk, again)) = send.take_chunk() else {
            path.leave(send.place.take());
            return None;
        };
        let range = send.cut.range(chunk)?;
        let data = send.payload.get(range)?;
        let sequence = path.next_sequence();
        let body = if chunk == 0 {
            send.opened_by = sequence;
            Body::Open {
                cut: send.cut,
                digest: &send.digest,
                topic: send.topic.as_bytes(),
                data,
            }
        } else {
            let number = chunk;
            Body::Data { number, data }
        };
        let transmit = packet(path.address, key.id, key.reply, sequence, body);
        send.flights.insert(chunk, sequence);
        if !send.begun {
            send.begun = true;
            if let Some(waiting) = self.waiting.get_mut(&key.id).filter(|_| !key.reply) {
                waiting.key = Some(session);
            }
        }
        self.stats.retransmissions += u64::from(again);
        path.sent(
            sequence,
            Flight {
                send: key,
                chunk,
                bytes: transmit.payload.len(),
                at: now,
            },
        );
        path.turn += 1;
        let more = send.has_more();
        if !more || path.turn >= TURN {
            path.leave(send.place.take());
            if more {
                send.place = Some(path.queue(key));
            }
        }
        let deadline = path.deadline();
        self.timers.set(Timer::Path(key.subnet), deadline);
        Some(transmit)
    }

    fn schedule_path(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get(&subnet) else {
            return;
        };
        // Never in the past: what is due is found by the timer, not by a loop.
        let at = path.deadline().max(now);
        self.timers.set(Timer::Path(subnet), at);
    }

    /// Something on the way to a node may be lost.
    pub(crate) fn path_due(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let mut lost = path.take_lost(now);
        lost.extend(path.take_timed_out(now));
        self.lose(lost);
        self.activate(subnet);
        self.schedule_path(now, subnet);
    }

    /// Chunks that did not arrive are to be sent again.
    fn lose(&mut self, flights: Vec<Flight>) {
        for flight in flights {
            if let Some(send) = self.sends.get_mut(&flight.send) {
                send.flights.remove(&flight.chunk);
                send.lost.insert(flight.chunk);
            }
            self.make_ready(flight.send);
        }
    }

    /// The receiver of a message says something about it.
    pub(crate) fn handle_ack(
        &mut self,
        now: Nanos,
        key: SendKey,
        sequence: u64,
        status: Status,
        (number, ranges): (u32, &[AckRange]),
    ) {
        let Some(path) = self.paths.get_mut(&key.subnet) else {
            return;
        };
        path.answered(now, key, sequence);
        match status {
            Status::Progress => self.handle_progress(now, key, sequence, number, ranges),
            Status::Received => self.finish(now, key, None),
            Status::Forbidden => self.rejected(now, key, Rejection::Forbidden),
            Status::Unasked => self.rejected(now, key, Rejection::Unasked),
            Status::Late => self.rejected(now, key, Rejection::Late),
            Status::Malformed => self.rejected(now, key, Rejection::Malformed),
            Status::Full => self.handle_full(now, key, sequence, number),
            Status::Unknown => self.handle_unknown(key, sequence),
            Status::Resume => {
                if let Some(send) = self.sends.get_mut(&key)
                    && matches!(send.phase, Phase::Held(_))
                {
                    send.phase = Phase::Transfer;
                    self.schedule_send(key);
                    self.make_ready(key);
                }
            }
        }
        if let Some(path) = self.paths.get_mut(&key.subnet) {
            let lost = path.take_lost(now);
            self.lose(lost);
        }
        self.activate(key.subnet);
        self.schedule_path(now, key.subnet);
        self.close_path(key.subnet);
    }

    fn rejected(&mut self, now: Nanos, key: SendKey, rejection: Rejection) {
        self.finish(now, key, Some(AbortReason::Rejected(rejection)));
    }

    fn handle_progress(
        &mut self,
        now: Nanos,
        key: SendKey,
        sequence: u64,
        number: u32,
        ranges: &[AckRange],
    ) {
        let Some(send) = self.sends.get_mut(&key) else {
            return;
        };
        // One from before a restart speaks of chunks that are gone.
        if sequence < send.opened_by && !send.opened {
            return;
        }
        let count = send.next;
        let mut arrived = send.acknowledge(0, number.min(count));
        for range in ranges {
            arrived.extend(send.acknowledge(range.first.get(), range.end.get().min(count)));
        }
        if number > 0 {
            send.opened = true;
            send.attempts = 0;
        }
        if send.phase == Phase::Transfer && send.is_through() {
            let wait = self.paths.get(&key.subnet).map(|path| path.timeout());
            let wait = wait.unwrap_or(BACK_OFF).max(BACK_OFF);
            send.phase = Phase::Verdict(now + wait);
        }
        self.land(key.subnet, arrived);
        self.schedule_send(key);
    }

    /// These packets have arrived.
    fn land(&mut self, subnet: u64, sequences: Vec<u64>) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let (mut bytes, mut latest) = (0, Nanos(0));
        for flight in sequences.into_iter().filter_map(|s| path.take(s)) {
            bytes += flight.bytes;
            latest = latest.max(flight.at);
        }
        path.arrived(bytes, latest);
    }

    /// The receiver has no room: it has forgotten the message, which begins again later.
    fn handle_full(&mut self, now: Nanos, key: SendKey, sequence: u64, millis: u32) {
        let Some(send) = self.sends.get_mut(&key) else {
            return;
        };
        if sequence < send.opened_by {
            return;
        }
        let gone = send.restart();
        let asked = Duration::from_millis(millis.into());
        let wait = back_off(send.attempts).max(asked).min(BACK_OFF_MAX);
        send.attempts += 1;
        send.phase = Phase::Held(now + self.rng.jitter(wait));
        self.land(key.subnet, gone);
        self.schedule_send(key);
    }

    /// The receiver knows nothing of the message.
    fn handle_unknown(&mut self, key: SendKey, sequence: u64) {
        let Some(send) = self.sends.get_mut(&key) else {
            return;
        };
        if sequence < send.opened_by {
            return;
        }
        if send.opened {
            // It has been restarted.
            let gone = send.restart();
            self.land(key.subnet, gone);
            self.schedule_send(key);
        } else {
            // A later chunk came before the first: the receiver could not keep it.
            let flight = self
                .paths
                .get_mut(&key.subnet)
                .filter(|path| path.flights.get(&sequence).is_some_and(|f| f.send == key))
                .and_then(|path| path.take(sequence));
            self.lose(flight.into_iter().collect());
        }
        self.make_ready(key);
    }

    fn schedule_send(&mut self, key: SendKey) {
        let at = self.sends.get(&key).map_or(Nanos::NEVER, |send| send.due());
        self.timers.set(Timer::Send(key), at);
    }

    /// A message is past its deadline, or wants a verdict, or tries again.
    pub(crate) fn send_due(&mut self, now: Nanos, key: SendKey) {
        let own = self.config.key.address().subnet_id() == key.subnet;
        let Some(send) = self.sends.get_mut(&key) else {
            return;
        };
        if send.deadline <= now {
            self.finish(now, key, Some(AbortReason::Deadline));
            return;
        }
        match send.phase {
            Phase::Held(at) if at <= now => {
                send.phase = Phase::Transfer;
                if own {
                    self.deliver_own(now, key);
                } else {
                    self.make_ready(key);
                }
            }
            Phase::Verdict(at) if at <= now => {
                send.phase = Phase::Verdict(now + back_off(send.attempts));
                send.attempts += 1;
                if let Some(path) = self.paths.get_mut(&key.subnet)
                    && path.session.is_some()
                {
                    let (address, sequence) = (path.address, path.next_sequence());
                    self.answer(Answer::Bare {
                        address,
                        id: key.id,
                        reply: key.reply,
                        sequence,
                        body: Bare::Query,
                    });
                }
            }
            Phase::Transfer | Phase::Held(_) | Phase::Verdict(_) => {}
        }
        self.schedule_send(key);
    }

    /// A message to this node itself found no room: it tries again like any other.
    pub(crate) fn hold_own(&mut self, now: Nanos, key: SendKey) {
        if let Some(send) = self.sends.get_mut(&key) {
            let wait = back_off(send.attempts);
            send.attempts += 1;
            send.phase = Phase::Held(now + self.rng.jitter(wait));
            self.schedule_send(key);
        }
    }

    /// Ends an outgoing message: received when there is no reason. Its memory is freed at once.
    pub(crate) fn finish(&mut self, now: Nanos, key: SendKey, reason: Option<AbortReason>) {
        let Some(send) = self.sends.remove(&key) else {
            return;
        };
        self.timers.set(Timer::Send(key), Nanos::NEVER);
        self.outgoing_bytes -= send.payload.len();
        let state = if reason.is_none() {
            MessageState::Received
        } else {
            MessageState::Aborted
        };
        let mut info = send.info(state);
        info.reason = reason;
        match reason {
            None => self.stats.received += 1,
            Some(reason) => {
                *self.stats.aborted.entry(reason.name()).or_default() += 1;
                if !key.reply {
                    self.forget_waiting(key.id);
                }
            }
        }
        let told = !matches!(reason, None | Some(AbortReason::Rejected(_)));
        let flights: Vec<u64> = send.flights.values().copied().collect();
        if let Some(path) = self.paths.get_mut(&key.subnet) {
            path.messages.remove(&key);
            path.leave(send.place);
            let address = path.address;
            if told && send.begun && path.session == send.key && send.key.is_some() {
                self.answer(Answer::Bare {
                    address,
                    id: key.id,
                    reply: key.reply,
                    sequence: 0,
                    body: Bare::Abort,
                });
            }
        }
        if reason.is_none() {
            self.land(key.subnet, flights);
        } else if let Some(path) = self.paths.get_mut(&key.subnet) {
            for sequence in flights {
                path.take(sequence);
            }
        }
        let done = Finished {
            info,
            key: send.key,
        };
        if self.finished.insert(key, Box::new(done)).is_none() {
            self.finished_order.push_back((now, key));
        }
        self.forget_finished(now);
        self.events.push_back(Event::Finished {
            id: key.id,
            reply: key.reply,
            state,
            reason,
        });
        self.activate(key.subnet);
        self.schedule_path(now, key.subnet);
        self.close_path(key.subnet);
    }

    fn forget_finished(&mut self, now: Nanos) {
        let (max, hold) = (self.config.finished_max, self.config.finished_hold);
        while let Some((at, key)) = self.finished_order.front().copied()
            && (self.finished_order.len() > max || now.since(at) > hold)
        {
            self.finished_order.pop_front();
            self.finished.remove(&key);
        }
    }

    /// A path without messages is only kept while it knows of a session.
    fn close_path(&mut self, subnet: u64) {
        let empty = |path: &Path| path.messages.is_empty() && path.session.is_none();
        if self.paths.get(&subnet).is_some_and(empty) {
            self.paths.remove(&subnet);
            self.timers.set(Timer::Path(subnet), Nanos::NEVER);
            self.timers.set(Timer::Need(subnet), Nanos::NEVER);
        }
    }

    /// Nobody waits for this reply any more.
    pub(crate) fn forget_waiting(&mut self, id: MessageId) {
        if self.waiting.remove(&id).is_some() {
            self.timers.set(Timer::Waiting(id), Nanos::NEVER);
        }
    }

    pub(crate) fn waiting_due(&mut self, now: Nanos, id: MessageId) {
        let Some(waiting) = self.waiting.get_mut(&id) else {
            return;
        };
        if waiting.over {
            self.waiting.remove(&id);
            return;
        }
        waiting.over = true;
        let at = now.max(waiting.deadline) + REPLY_CLEAR_DELAY;
        self.timers.set(Timer::Waiting(id), at);
        self.events.push_back(Event::ReplyTimeout(id));
    }

    pub(crate) fn own_payload(&self, key: SendKey) -> Option<(Bytes, crate::Topic)> {
        let send = self.sends.get(&key)?;
        Some((send.payload.clone(), send.topic.clone()))
    }
}

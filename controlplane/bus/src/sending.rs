//! Outgoing messages: taking them, sending their chunks, hearing what became of them.

use std::time::Duration;

use hyphae_time::Nanos;
use hyphae_wire::message::{AckRange, Body, MESSAGE_MAX, Status};
use hyphae_wire::report::INNER_MTU_MIN;

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::config::REPLY_CLEAR_DELAY;
use crate::engine::{Answer, Bare, Timer, Waiting, packet};
use crate::outgoing::{Chunk, Phase, Send, SendKey};
use crate::path::{Flight, Landing, Path, TURN};
use crate::sends::SendRef;
use crate::{
    AbortReason, Bus, Destination, Event, MessageId, MessageInfo, MessageState, Outgoing,
    PushError, Rejection, Transmit,
};

/// First wait after a refusal for want of room, and after an attempt at a session; doubles.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// Places in the queues of a path that may be of messages that have left, beside as many as have not.
const STALE_MIN: usize = 64;

fn back_off(attempts: u32) -> Duration {
    (BACK_OFF * (1 << attempts.min(6))).min(BACK_OFF_MAX)
}

impl Bus {
    /// Takes a message for sending.
    ///
    /// # Errors
    /// When it cannot be sent, or too much waits already.
    pub fn push(&mut self, now: Nanos, message: Outgoing) -> Result<MessageId, PushError> {
        let id = loop {
            let id = MessageId(self.rng.array());
            if !self.sends.has_own(id) && !self.waiting.contains_key(&id) {
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

    /// Whether a message of so many bytes would be taken for sending now.
    pub fn has_room(&self, len: usize) -> bool {
        self.sends.len() < self.config.outgoing_max
            && self.waiting.len() < self.config.outgoing_max
            && self.outgoing_bytes + len <= self.config.outgoing_bytes_max
    }

    fn begin(
        &mut self,
        now: Nanos,
        id: MessageId,
        reply: bool,
        message: Outgoing,
    ) -> Result<(), PushError> {
        let address = match message.destination {
            Destination::Key(key) => self.address_of(key),
            Destination::Address(address) => address,
        };
        let len = message.payload.len();
        if len > MESSAGE_MAX {
            return Err(PushError::TooLong(len));
        }
        if !address.is_overlay() {
            return Err(PushError::NotOverlay(address));
        }
        let subnet = address.subnet_id();
        let name = SendKey { id, reply, subnet };
        if reply {
            let done = self.sends.done_mut(name);
            let answered = done.is_some_and(|done| done.info.state != MessageState::Aborted);
            if answered || self.sends.live(name).is_some() {
                return Err(PushError::Answered(id));
            }
        }
        if !self.has_room(len) {
            return Err(PushError::QueueFull {
                messages: self.sends.len(),
                bytes: self.outgoing_bytes,
            });
        }
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
        let own = self.address.subnet_id() == subnet;
        let (mut packet, mut lonely) = (self.config.mtu, false);
        if !own {
            let (rng, window) = (&mut self.rng, self.config.window_max);
            let path = self
                .paths
                .entry(subnet)
                .or_insert_with(|| Path::new(address, rng.number(), packet, window));
            lonely = path.session.is_none() && path.messages == 0;
            path.messages += 1;
            packet = path.packet();
        }
        let mut send = Send::new(now, name, message, packet);
        if own {
            send.key.get_or_insert(self.config.key);
            send.begun = true;
        }
        let of = self.sends.insert(send);
        self.sends.schedule(of);
        self.outgoing_bytes += len;
        self.stats.pushed += 1;
        if own {
            self.deliver_own(now, of);
            return Ok(());
        }
        if lonely {
            self.need_due(now, subnet);
        }
        self.make_ready(of);
        Ok(())
    }

    /// Withdraws an outgoing message, and the wait for its reply. False when it is not being sent.
    pub fn cancel(&mut self, now: Nanos, id: MessageId) -> bool {
        self.forget_waiting(id);
        let Some(of) = self.sends.live_any(id, false) else {
            return false;
        };
        self.finish(now, of, Some(AbortReason::Cancelled));
        true
    }

    /// The way to the node of this address carries payloads of so many bytes, as far as known. Messages in larger
    /// packets begin again, in smaller ones; how many bytes more a way carries is of use to the next messages.
    pub fn path_mtu(&mut self, address: OverlayAddress, mtu: usize) {
        let subnet = address.subnet_id();
        let mtu = mtu.max(INNER_MTU_MIN.into()).min(self.config.mtu);
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let less = mtu < path.packet();
        path.set_packet(mtu);
        if !less || path.messages == 0 {
            return;
        }
        if self
            .next
            .as_ref()
            .is_some_and(|next| next.payload.len() > mtu && next.address.subnet_id() == subnet)
        {
            // A chunk on its way like others, which is lost with them.
            self.next = None;
        }
        for of in path.unfinished() {
            let cut = self.sends.get_mut(of).filter(|send| !send.fits(mtu));
            // All of it is there, and it waits for its verdict.
            let Some(send) = cut.filter(|send| !send.is_undecided()) else {
                continue;
            };
            let phase = send.phase;
            if let Some(path) = self.paths.get_mut(&subnet) {
                for sequence in send.on_the_way() {
                    path.take(sequence);
                }
            }
            send.restart(mtu);
            send.phase = phase;
            self.make_ready(of);
        }
    }

    /// There is a session with the node of this address, and packets of so many bytes pass, as far as known.
    pub fn session_up(&mut self, now: Nanos, address: OverlayAddress, key: PublicKey, mtu: usize) {
        let subnet = address.subnet_id();
        self.path_mtu(address, mtu);
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.session = Some(key);
        path.needs = 0;
        self.timers.set(Timer::Need(subnet), Nanos::NEVER);
        for of in std::mem::take(&mut path.held) {
            if let Some(send) = self.sends.get_mut(of)
                && matches!(send.phase, Phase::Held(_))
            {
                send.phase = Phase::Transfer;
                self.sends.schedule(of);
                self.make_ready(of);
            }
        }
        self.activate(subnet);
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
        if path.session.is_some() || path.messages == 0 {
            return;
        }
        let wait = back_off(path.needs);
        path.needs += 1;
        self.events.push_back(Event::NeedSession(path.address));
        self.timers.set(Timer::Need(subnet), now + wait);
    }

    /// Lets a message take part in sending if it has something to send.
    fn make_ready(&mut self, of: SendRef) {
        let Some(send) = self.sends.get_mut(of) else {
            return;
        };
        let subnet = send.name.subnet;
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        if send.has_more() && !send.queued {
            send.queued = true;
            path.ready.push_back(of);
            if path.ready.len() > 2 * path.messages + STALE_MIN {
                let sends = &self.sends;
                let queued = |of: &SendRef| sends.get(*of).is_some_and(|send| send.queued);
                path.ready.retain(queued);
            }
        }
        self.activate(subnet);
    }

    /// A message waits for room at the receiver.
    fn hold(&mut self, now: Nanos, of: SendRef, least: Duration) {
        let Some(send) = self.sends.get_mut(of) else {
            return;
        };
        let wait = back_off(send.attempts).max(least).min(BACK_OFF_MAX);
        send.attempts += 1;
        send.phase = Phase::Held(now + self.rng.jitter(wait));
        let subnet = send.name.subnet;
        self.sends.schedule(of);
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.held.push(of);
        if path.held.len() > 2 * path.messages + STALE_MIN {
            let sends = &self.sends;
            let held = |of: &SendRef| {
                let send = sends.get(*of);
                send.is_some_and(|send| matches!(send.phase, Phase::Held(_)))
            };
            path.held.retain(held);
            path.held.sort_unstable();
            path.held.dedup();
        }
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
            let Some(of) = path.ready.front().copied() else {
                continue;
            };
            let Some(send) = self.sends.get_mut(of) else {
                path.leave();
                self.activate(subnet);
                continue;
            };
            if *send.key.get_or_insert(session) != session {
                self.finish(now, of, Some(AbortReason::OtherKey));
                self.activate(subnet);
                continue;
            }
            let transmit = self.transmit_chunk(now, of, session);
            self.activate(subnet);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }

    fn transmit_chunk(&mut self, now: Nanos, of: SendRef, session: PublicKey) -> Option<Transmit> {
        let send = self.sends.get_mut(of)?;
        let SendKey { id, reply, subnet } = send.name;
        let path = self.paths.get_mut(&subnet)?;
        let Some(Chunk { number, again }) = send.take_chunk() else {
            send.queued = false;
            path.leave();
            return None;
        };
        let range = send.cut.range(number)?;
        let data = send.payload.get(range)?;
        let sequence = path.next_sequence();
        let body = if number == 0 {
            send.opened_by = sequence;
            Body::Open {
                cut: send.cut,
                digest: &send.digest,
                topic: send.topic.as_bytes(),
                failure: send.failure,
                data,
            }
        } else {
            Body::Data { number, data }
        };
        let spare = std::mem::take(&mut self.spare);
        let transmit = packet(spare, path.address, id, reply, sequence, body);
        send.sent(number, sequence);
        if !send.begun {
            send.begun = true;
            if let Some(waiting) = self.waiting.get_mut(&id).filter(|_| !reply) {
                waiting.key = Some(session);
            }
        }
        self.stats.retransmissions += u64::from(again);
        path.sent(
            sequence,
            Flight {
                send: of,
                chunk: number,
                bytes: transmit.payload.len(),
                at: now,
            },
        );
        path.turn += 1;
        let more = send.has_more();
        if !more || path.turn >= TURN {
            path.leave();
            send.queued = more;
            if more {
                path.ready.push_back(of);
            }
        }
        self.schedule_path(now, subnet);
        Some(transmit)
    }

    fn schedule_path(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        // Never in the past: what is due is found by the timer, not by a loop. One that is looked at too
        // early is scheduled again, which is rarer than a later deadline.
        let at = path.deadline().max(now);
        if at < path.alarm {
            path.alarm = at;
            self.timers.set(Timer::Path(subnet), at);
        }
    }

    /// After the answers of a packet: what else they say about the way.
    pub(crate) fn judge_path(&mut self, now: Nanos, subnet: u64) {
        if let Some(path) = self.paths.get_mut(&subnet) {
            let lost = path.take_lost(now);
            self.lose(lost);
            self.activate(subnet);
            self.schedule_path(now, subnet);
            self.close_path(subnet);
        }
    }

    /// Something on the way to a node may be lost.
    pub(crate) fn path_due(&mut self, now: Nanos, subnet: u64) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        path.alarm = Nanos::NEVER;
        let mut lost = path.take_lost(now);
        lost.extend(path.take_timed_out(now));
        self.lose(lost);
        self.activate(subnet);
        self.schedule_path(now, subnet);
    }

    /// Chunks that did not arrive are to be sent again.
    fn lose(&mut self, flights: Vec<(u64, Flight)>) {
        for (sequence, flight) in flights {
            if let Some(send) = self.sends.get_mut(flight.send) {
                send.lose(flight.chunk, sequence);
            }
            self.make_ready(flight.send);
        }
    }

    /// The receiver of a message says something about it.
    pub(crate) fn handle_ack(
        &mut self,
        now: Nanos,
        of: SendRef,
        sequence: u64,
        status: Status,
        (number, ranges): (u32, &[AckRange]),
    ) {
        let subnet = self.sends.get(of).map(|send| send.name.subnet);
        if let Some(path) = subnet.and_then(|subnet| self.paths.get_mut(&subnet)) {
            let flight = path.flight(sequence).filter(|flight| flight.send == of);
            if let Some(at) = flight.map(|flight| flight.at) {
                path.answered(now, sequence, at, Duration::ZERO);
            }
        }
        match status {
            Status::Progress => self.handle_progress(now, of, sequence, number, ranges),
            Status::Received => self.finish(now, of, None),
            Status::Forbidden => self.rejected(now, of, Rejection::Forbidden),
            Status::Unasked => self.rejected(now, of, Rejection::Unasked),
            Status::Late => self.rejected(now, of, Rejection::Late),
            Status::Malformed => self.rejected(now, of, Rejection::Malformed),
            Status::Full => self.handle_full(now, of, sequence, number),
            Status::Unknown => self.handle_unknown(of, sequence),
            Status::Resume => {
                if let Some(send) = self.sends.get_mut(of)
                    && matches!(send.phase, Phase::Held(_))
                {
                    send.phase = Phase::Transfer;
                    self.sends.schedule(of);
                    self.make_ready(of);
                }
            }
        }
    }

    /// The receiver has the messages that were in these packets, each of them whole: it keeps them, or they
    /// are there.
    pub(crate) fn handle_kept(
        &mut self,
        now: Nanos,
        (from, subnet): (PublicKey, u64),
        first: u64,
        waited: Duration,
        (kept, there): (&[AckRange], &[AckRange]),
    ) {
        let Some(path) = self.paths.get_mut(&subnet) else {
            return;
        };
        let single = |send: &Send| send.key == Some(from) && send.is_single();
        let (mut done, mut landing, mut last) = (Vec::new(), Landing::default(), None);
        let all = kept.iter().map(|range| (range, true));
        for (range, keeps) in all.chain(there.iter().map(|range| (range, false))) {
            let at = |offset: u32| first.saturating_add(offset.into());
            let (begin, end) = (at(range.first.get()), at(range.end.get()));
            if keeps {
                let sends = &self.sends;
                let single = |of: &SendRef| sends.get(*of).is_some_and(single);
                done.extend(path.there(begin, end).filter(single));
            }
            for sequence in path.among(begin, end) {
                let Some(Flight { send: of, at, .. }) = path.flight(sequence).copied() else {
                    continue;
                };
                let Some(send) = self.sends.get_mut(of).filter(|send| single(send)) else {
                    continue;
                };
                landing.take(path, sequence);
                last = last.max(Some((sequence, at)));
                if keeps {
                    done.push(of);
                } else if send.phase == Phase::Transfer {
                    send.acknowledge(0, 1, |_| {});
                    send.opened = true;
                    send.phase = Phase::Verdict(now + path.timeout().max(BACK_OFF));
                    path.wait_for_verdict(send.opened_by, of);
                    self.sends.schedule(of);
                }
            }
        }
        if let Some((sequence, sent_at)) = last {
            path.answered(now, sequence, sent_at, waited);
        }
        path.arrived(landing.bytes, landing.latest);
        for of in done {
            self.end(now, of, None);
        }
    }

    fn rejected(&mut self, now: Nanos, of: SendRef, rejection: Rejection) {
        self.finish(now, of, Some(AbortReason::Rejected(rejection)));
    }

    fn handle_progress(
        &mut self,
        now: Nanos,
        of: SendRef,
        sequence: u64,
        number: u32,
        ranges: &[AckRange],
    ) {
        let Some(send) = self.sends.get_mut(of) else {
            return;
        };
        // One from before it was opened last may speak of other chunks.
        if sequence < send.opened_by {
            return;
        }
        let Some(path) = self.paths.get_mut(&send.name.subnet) else {
            return;
        };
        let mut landing = Landing::default();
        let count = send.next;
        send.acknowledge(0, number.min(count), |sequence| {
            landing.take(path, sequence)
        });
        for range in ranges {
            let (first, end) = (range.first.get(), range.end.get().min(count));
            send.acknowledge(first, end, |sequence| landing.take(path, sequence));
        }
        path.arrived(landing.bytes, landing.latest);
        let waited = send.waits();
        if number > 0 {
            send.opened = true;
            send.attempts = 0;
        }
        if send.phase == Phase::Transfer && send.is_through() {
            path.wait_for_verdict(send.opened_by, of);
            send.phase = Phase::Verdict(now + path.timeout().max(BACK_OFF));
        }
        self.sends.schedule(of);
        if waited {
            self.make_ready(of);
        }
    }

    /// The receiver has no room: it has forgotten the message, which begins again later.
    fn handle_full(&mut self, now: Nanos, of: SendRef, sequence: u64, millis: u32) {
        if self.start_over(of, sequence) {
            self.hold(now, of, Duration::from_millis(millis.into()));
        }
    }

    /// The receiver knows nothing of the message.
    fn handle_unknown(&mut self, of: SendRef, sequence: u64) {
        let Some(send) = self.sends.get_mut(of) else {
            return;
        };
        if sequence < send.opened_by {
            return;
        }
        if send.opened {
            // It has been restarted.
            self.start_over(of, sequence);
            self.sends.schedule(of);
        } else {
            // A later chunk came before the first: the receiver could not keep it.
            let flight = self
                .paths
                .get_mut(&send.name.subnet)
                .filter(|path| path.flight(sequence).is_some_and(|f| f.send == of))
                .and_then(|path| path.take(sequence));
            let flight = flight.map(|flight| (sequence, flight));
            self.lose(flight.into_iter().collect());
        }
        self.make_ready(of);
    }

    /// Takes a message back to its beginning, unless the answer is one from before it was opened last.
    fn start_over(&mut self, of: SendRef, sequence: u64) -> bool {
        let Some(send) = self.sends.get_mut(of).filter(|s| sequence >= s.opened_by) else {
            return false;
        };
        let mut packet = self.config.mtu;
        if let Some(path) = self.paths.get_mut(&send.name.subnet) {
            packet = path.packet();
            path.land(send.on_the_way());
            if send.is_undecided() {
                path.verdict(send.opened_by);
            }
        }
        send.restart(packet);
        true
    }

    /// A message is past its deadline, or wants a verdict, or tries again.
    pub(crate) fn send_due(&mut self, now: Nanos, of: SendRef) {
        let Some(send) = self.sends.get_mut(of) else {
            return;
        };
        let SendKey { id, reply, subnet } = send.name;
        if send.deadline <= now {
            self.finish(now, of, Some(AbortReason::Deadline));
            return;
        }
        match send.phase {
            Phase::Held(at) if at <= now => {
                send.phase = Phase::Transfer;
                if subnet == self.address.subnet_id() {
                    self.deliver_own(now, of);
                } else {
                    self.make_ready(of);
                }
            }
            Phase::Verdict(at) if at <= now => {
                send.phase = Phase::Verdict(now + back_off(send.attempts));
                send.attempts += 1;
                if let Some(path) = self.paths.get_mut(&subnet)
                    && path.session.is_some()
                {
                    let (address, sequence) = (path.address, path.next_sequence());
                    self.answer(Answer::Bare {
                        address,
                        id,
                        reply,
                        sequence,
                        body: Bare::Query,
                    });
                }
            }
            Phase::Transfer | Phase::Held(_) | Phase::Verdict(_) => {}
        }
        self.sends.schedule(of);
    }

    /// A message to this node itself found no room: it tries again like any other.
    pub(crate) fn hold_own(&mut self, now: Nanos, of: SendRef) {
        self.hold(now, of, Duration::ZERO);
    }

    /// Ends an outgoing message: received when there is no reason. Its memory is freed at once.
    pub(crate) fn finish(&mut self, now: Nanos, of: SendRef, reason: Option<AbortReason>) {
        if let Some(subnet) = self.end(now, of, reason) {
            self.activate(subnet);
            self.schedule_path(now, subnet);
            self.close_path(subnet);
        }
    }

    /// The same, but for what then becomes of its path, which it gives.
    fn end(&mut self, now: Nanos, of: SendRef, reason: Option<AbortReason>) -> Option<u64> {
        let state = if reason.is_none() {
            MessageState::Received
        } else {
            MessageState::Aborted
        };
        let info = |send: &Send| MessageInfo {
            reason,
            ..send.info(state)
        };
        let send = self.sends.finish(now, of, info)?;
        let SendKey { id, reply, subnet } = send.name;
        self.outgoing_bytes -= send.payload.len();
        match reason {
            None => self.stats.received += 1,
            Some(reason) => {
                *self.stats.aborted.entry(reason.name()).or_default() += 1;
                if !reply {
                    self.forget_waiting(id);
                }
            }
        }
        let told = !matches!(reason, None | Some(AbortReason::Rejected(_)));
        if let Some(path) = self.paths.get_mut(&subnet) {
            path.messages -= 1;
            if send.is_undecided() {
                path.verdict(send.opened_by);
            }
            if reason.is_none() {
                path.land(send.on_the_way());
            } else {
                for sequence in send.on_the_way() {
                    path.take(sequence);
                }
            }
            let address = path.address;
            if told && send.begun && path.session == send.key && send.key.is_some() {
                self.answer(Answer::Bare {
                    address,
                    id,
                    reply,
                    sequence: 0,
                    body: Bare::Abort,
                });
            }
        }
        let (max, hold) = (self.config.finished_max, self.config.finished_hold);
        self.sends.forget(max, |at| now.since(at) > hold);
        self.events.push_back(Event::Finished {
            id,
            reply,
            state,
            reason,
        });
        Some(subnet)
    }

    /// A path without messages is only kept while it knows of a session.
    fn close_path(&mut self, subnet: u64) {
        let empty = |path: &Path| path.messages == 0 && path.session.is_none();
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
}

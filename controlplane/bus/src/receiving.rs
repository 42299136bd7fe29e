//! Incoming messages: who may send what, how much, and what becomes of it.

use std::collections::HashMap;
use std::collections::btree_map::Entry;

use ahash::RandomState;
use hyphae_time::Nanos;
use hyphae_wire::message::{Body, Cut, Packet, Status};

use hyphae_wire::{OverlayAddress, PublicKey};

use crate::engine::{Answer, Timer};
use crate::incoming::{Incoming, OVERHEAD, Stage, Took};
use crate::kept::{ACK_DELAY, Kept};
use crate::outgoing::SendKey;
use crate::sends::SendRef;
use crate::topics::TopicClass;
use crate::{AbortReason, Bus, DeliveryKey, Event, Inbound, Refuse, Rejection, Room, Topic};

/// Peers that are told of their messages many at a time.
const KEPT_MAX: usize = 16_384;
/// Bytes of the longest call on the topic of administration.
const ADMIN_MAX: usize = 1 << 20;
/// Silence after which an unfinished message gives way to another one.
const STALE: std::time::Duration = std::time::Duration::from_secs(2);

/// When the last packet of an unfinished message came.
fn silent_since(
    incoming: &HashMap<DeliveryKey, Box<Incoming>, RandomState>,
    key: &DeliveryKey,
) -> Option<Nanos> {
    let found = incoming.get(key);
    let partial = found.filter(|incoming| incoming.stage == Stage::Partial);
    partial.map(|incoming| incoming.progress_at)
}

fn rejection(status: Status) -> Option<Rejection> {
    match status {
        Status::Forbidden => Some(Rejection::Forbidden),
        Status::Unasked => Some(Rejection::Unasked),
        Status::Late => Some(Rejection::Late),
        Status::Malformed => Some(Rejection::Malformed),
        Status::Progress | Status::Received | Status::Full | Status::Unknown | Status::Resume => {
            None
        }
    }
}

impl Bus {
    pub(crate) fn receive(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        address: OverlayAddress,
        packet: &Packet<'_>,
    ) {
        let sequence = packet.sequence;
        // Most packets of long messages end here.
        if let Body::Data { number, data } = packet.body
            && self.take_chunk(now, key, sequence, number, data)
        {
            return;
        }
        if let Some(status) = self.completed.get(&key) {
            if let Body::Open { .. } = packet.body {
                self.stats.duplicates += 1;
            }
            if !matches!(packet.body, Body::Abort) {
                self.say(key, address, sequence, status);
            }
            return;
        }
        match packet.body {
            Body::Open {
                cut,
                digest,
                topic,
                failure,
                data,
            } => {
                let opening = (sequence, cut, digest, topic);
                if let Err(status) = self.open(now, key, address, opening) {
                    self.refuse_opening(key, address, sequence, status, topic);
                    return;
                }
                if let Some(incoming) = self.incoming.get_mut(&key) {
                    incoming.failure = failure;
                }
                self.take_chunk(now, key, sequence, 0, data);
            }
            Body::Data { .. } => self.say(key, address, sequence, Status::Unknown),
            Body::Query => {
                if self.incoming.contains_key(&key) {
                    self.note_progress(key, sequence);
                } else {
                    self.say(key, address, sequence, Status::Unknown);
                }
            }
            Body::Abort => {
                if self
                    .incoming
                    .get(&key)
                    .is_some_and(|i| i.stage == Stage::Partial)
                {
                    self.drop_incoming(key);
                }
                self.held.remove(&key);
            }
            Body::Ack { .. } | Body::Read { .. } | Body::ReadAck | Body::Kept { .. } => {}
        }
    }

    /// Lets a message begin, unless it has begun already; anew if its sender has found out that the way carries
    /// less, or more, than it was cut for.
    fn open(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        address: OverlayAddress,
        (sequence, cut, digest, topic): (u64, Cut, &[u8; 32], &[u8]),
    ) -> Result<(), Status> {
        if let Some(known) = self.incoming.get_mut(&key) {
            let same = known.cut.len == cut.len
                && known.digest == *digest
                && known.topic.as_bytes() == topic;
            if !same {
                return Err(Status::Malformed);
            }
            let partial = known.stage == Stage::Partial;
            if partial && known.cut != cut && sequence > known.opened_by {
                let topic = known.topic.clone();
                let mut anew = Incoming::new(now, address, topic, cut, *digest);
                (anew.opened_by, anew.sequence) = (sequence, known.sequence);
                anew.answering = known.answering;
                **known = anew;
            }
            return Ok(());
        }
        if self.last_topic.as_bytes() != topic {
            self.last_topic = Topic::new(topic.to_vec()).map_err(|_| Status::Malformed)?;
        }
        let topic = self.last_topic.clone();
        if key.reply {
            self.check_waiting(key)?;
        } else {
            let access = self.topics.access(&topic, &key.peer, address);
            if !access.allowed {
                return Err(Status::Forbidden);
            }
            if access.class == TopicClass::Reserved && cut.len > ADMIN_MAX {
                return Err(Status::Malformed);
            }
        }
        self.check_room(now, key, &topic, cut.len)?;
        let mut incoming = Incoming::new(now, address, topic, cut, *digest);
        incoming.opened_by = sequence;
        self.incoming_bytes += incoming.cost();
        self.shares.add(key.peer, incoming.cost());
        // One that comes whole waits for nothing but the caller.
        let single = incoming.is_single();
        self.incoming.insert(key, Box::new(incoming));
        if !single {
            let at = now + self.config.incoming_idle;
            self.timers.set(Timer::Incoming(key), at);
            let time = |key: &DeliveryKey| silent_since(&self.incoming, key);
            self.partial.push(now, key, self.incoming.len(), time);
            self.shares.begin(now, key, time);
        }
        Ok(())
    }

    /// A reply is taken from whom the message was sent to, while somebody waits for it.
    fn check_waiting(&self, key: DeliveryKey) -> Result<(), Status> {
        let waiting = self.waiting.get(&key.id).ok_or(Status::Unasked)?;
        if waiting.key != Some(key.peer) {
            return Err(Status::Unasked);
        }
        if waiting.over {
            Err(Status::Late)
        } else {
            Ok(())
        }
    }

    fn check_room(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        topic: &Topic,
        len: usize,
    ) -> Result<(), Status> {
        let forwarded = || {
            let config = self.topics.topics.get(topic);
            config.is_some_and(|config| config.forward_socket.is_some())
        };
        let inbox = !key.reply && !topic.is_admin() && !forwarded();
        if inbox && (self.room.messages == 0 || self.room.bytes < len) {
            return Err(Status::Full);
        }
        let cost = len + OVERHEAD;
        let share = self.shares.of(&key.peer);
        if share.messages >= self.config.incoming_per_peer_max
            || share.bytes + cost > self.config.incoming_per_peer_bytes_max
        {
            return Err(Status::Full);
        }
        let over = |bus: &Self| {
            bus.incoming.len() >= bus.config.incoming_max
                || bus.incoming_bytes + cost > bus.config.incoming_bytes_max
        };
        let wanted = Room {
            messages: share.messages + 1,
            bytes: share.bytes + cost,
        };
        // Only under attack, or with very many senders at once.
        while over(self) {
            let victim = self.victim(now, wanted).ok_or(Status::Full)?;
            self.drop_incoming(victim);
        }
        Ok(())
    }

    /// The unfinished message that gives way to one of a peer that would then have `wanted`: the one that has been
    /// silent longest; else one of whoever has most, if that still is no less afterwards.
    fn victim(&mut self, now: Nanos, wanted: Room) -> Option<DeliveryKey> {
        let time = |key: &DeliveryKey| silent_since(&self.incoming, key);
        let stale = u64::try_from(STALE.as_nanos()).unwrap_or(u64::MAX);
        if let Some(until) = now.0.checked_sub(stale)
            && let Some(stale) = self.partial.pop(Nanos(until), time)
        {
            self.stats.expired += 1;
            return Some(stale);
        }
        let found = self.shares.heaviest(time)?;
        let held = self.shares.of(&found.peer);
        let cost = self
            .incoming
            .get(&found)
            .map_or(0, |incoming| incoming.cost());
        let left = Room {
            messages: held.messages - 1,
            bytes: held.bytes - cost,
        };
        if self.shares.weight(left) >= self.shares.weight(wanted) {
            self.stats.displaced += 1;
            return Some(found);
        }
        // It stays, and may have to go another time.
        let at = time(&found)?;
        self.shares.begin(at, found, time);
        None
    }

    fn refuse_opening(
        &mut self,
        key: DeliveryKey,
        address: OverlayAddress,
        sequence: u64,
        status: Status,
        topic: &[u8],
    ) {
        if let Some(rejection) = rejection(status) {
            let topic = Topic::new(topic.to_vec()).unwrap_or_default();
            let class = self.topics.class(&topic);
            *self.stats.rejected.entry((rejection, class)).or_default() += 1;
        } else {
            self.push_back(key, address);
        }
        self.say(key, address, sequence, status);
    }

    fn push_back(&mut self, key: DeliveryKey, address: OverlayAddress) {
        self.stats.pushed_back += 1;
        self.held.insert(key, address);
    }

    /// False when no such message is coming in.
    fn take_chunk(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        sequence: u64,
        number: u32,
        data: &[u8],
    ) -> bool {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return false;
        };
        if sequence < incoming.opened_by {
            return true;
        }
        let took = incoming.take(now, number, data, &self.config.pool);
        let address = incoming.address;
        match took {
            Took::Mismatch => {
                self.stats.malformed += 1;
                // Without a deadline nobody else would forget it.
                if incoming.is_single() && incoming.stage == Stage::Partial {
                    self.drop_incoming(key);
                    return true;
                }
            }
            Took::Nothing | Took::Chunk => {
                if incoming.noted(sequence) {
                    return true;
                }
            }
            Took::Whole(true) => {
                let inbound = Inbound {
                    id: key.id,
                    reply: key.reply,
                    source_key: key.peer,
                    source_address: address,
                    topic: incoming.topic.clone(),
                    payload: incoming.hand_over(),
                    digest: incoming.digest,
                    failure: incoming.failure,
                };
                let single = incoming.is_single();
                incoming.sequence = sequence;
                self.events.push_back(Event::Deliver(inbound));
                if single && self.wait_for_verdict(now, key, address, sequence) {
                    return true;
                }
                self.timers.set(Timer::Incoming(key), Nanos::NEVER);
            }
            Took::Whole(false) => {
                let class = self.topics.class(&incoming.topic);
                let entry = self.stats.rejected.entry((Rejection::Malformed, class));
                *entry.or_default() += 1;
                self.drop_incoming(key);
                self.completed.insert(now, key, Status::Malformed);
                self.say(key, address, sequence, Status::Malformed);
                return true;
            }
        }
        self.note_progress(key, sequence);
        true
    }

    /// The sender of a message of one packet is told of it together with the verdict, if that comes soon;
    /// false when it has to be told now.
    fn wait_for_verdict(
        &mut self,
        now: Nanos,
        key: DeliveryKey,
        address: OverlayAddress,
        sequence: u64,
    ) -> bool {
        let Some(kept) = self.kept_of(key.peer, address) else {
            return false;
        };
        if !kept.wait(now, sequence, key) {
            return false;
        }
        if !std::mem::replace(&mut kept.alarmed, true) {
            self.timers.set(Timer::Late(key.peer), now + ACK_DELAY);
        }
        true
    }

    /// What a peer is told of its messages; `None` when too many are told something just now.
    fn kept_of(&mut self, peer: PublicKey, address: OverlayAddress) -> Option<&mut Kept> {
        if self.kept.len() >= KEPT_MAX && !self.kept.contains_key(&peer) {
            // A sweep is paid for by as many in vain.
            match self.kept_sweep_in.checked_sub(1) {
                Some(less) => self.kept_sweep_in = less,
                None => {
                    self.kept_sweep_in = KEPT_MAX;
                    self.kept
                        .retain(|_, kept| kept.queued || kept.due().is_some());
                }
            }
        }
        let room = self.kept.len() < KEPT_MAX;
        match self.kept.entry(peer) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) if room => Some(entry.insert(Kept::new(address))),
            Entry::Vacant(_) => None,
        }
    }

    /// Messages of a peer may have waited long for their verdicts: then it is told that they are there.
    pub(crate) fn late_due(&mut self, now: Nanos, peer: PublicKey) {
        let Some(kept) = self.kept.get_mut(&peer) else {
            return;
        };
        let Some(due) = kept.due() else {
            kept.alarmed = false;
            return;
        };
        // That may not be possible at once, or not of all.
        let again = if due <= now { now + ACK_DELAY } else { due };
        self.timers.set(Timer::Late(peer), again);
        if due <= now {
            self.tell(peer);
        }
    }

    /// A peer is told of its messages.
    fn tell(&mut self, peer: PublicKey) {
        if let Some(kept) = self.kept.get_mut(&peer)
            && !std::mem::replace(&mut kept.queued, true)
            && !self.answer(Answer::Kept(peer))
            && let Some(kept) = self.kept.get_mut(&peer)
        {
            kept.queued = false;
        }
    }

    /// An answer about an incoming message is due; one for all that came of it since the last.
    fn note_progress(&mut self, key: DeliveryKey, sequence: u64) {
        let Some(incoming) = self.incoming.get_mut(&key) else {
            return;
        };
        if !incoming.noted(sequence) {
            incoming.answering = true;
            if !self.answer(Answer::Progress(key))
                && let Some(incoming) = self.incoming.get_mut(&key)
            {
                incoming.answering = false;
            }
        }
    }

    fn say(&mut self, key: DeliveryKey, address: OverlayAddress, sequence: u64, status: Status) {
        if key.peer == self.config.key {
            return;
        }
        self.answer(Answer::Status {
            address,
            key,
            sequence,
            status,
        });
    }

    /// A message to this node itself.
    pub(crate) fn deliver_own(&mut self, now: Nanos, send: SendRef) {
        let Some(own) = self.sends.get(send) else {
            return;
        };
        let SendKey { id, reply, .. } = own.name;
        let (payload, digest, topic) = (own.payload.clone(), own.digest, own.topic.clone());
        let failure = own.failure;
        let (peer, address) = (self.config.key, self.address);
        let key = DeliveryKey { peer, id, reply };
        if let Some(waiting) = self.waiting.get_mut(&id).filter(|_| !reply) {
            waiting.key = Some(peer);
        }
        let cut = Cut {
            len: payload.len(),
            first: payload.len(),
            chunk: usize::from(u16::MAX),
        };
        // The digest is of no use on a way without wires; the caller's own bytes come out.
        match self.open(now, key, address, (0, cut, &[0; 32], topic.as_bytes())) {
            Ok(()) => {
                if let Some(incoming) = self.incoming.get_mut(&key) {
                    incoming.hand_over();
                }
                self.timers.set(Timer::Incoming(key), Nanos::NEVER);
                self.events.push_back(Event::Deliver(Inbound {
                    id,
                    reply,
                    source_key: peer,
                    source_address: address,
                    topic,
                    payload,
                    digest,
                    failure,
                }));
            }
            Err(status) => {
                if let Some(rejection) = rejection(status) {
                    let class = self.topics.class(&topic);
                    *self.stats.rejected.entry((rejection, class)).or_default() += 1;
                    self.finish(now, send, Some(AbortReason::Rejected(rejection)));
                } else {
                    self.stats.pushed_back += 1;
                    self.hold_own(now, send);
                }
            }
        }
    }

    /// A delivered message is kept (durably, where that was promised): its sender is told so, of a reply
    /// not at once.
    pub fn accepted(&mut self, now: Nanos, key: DeliveryKey) {
        self.accept(now, key, key.reply);
    }

    /// The same of a message that is likely to be answered soon: its sender is told with the reply, or shortly
    /// after the message came.
    pub fn accepted_to_answer(&mut self, now: Nanos, key: DeliveryKey) {
        self.accept(now, key, true);
    }

    fn accept(&mut self, now: Nanos, key: DeliveryKey, late: bool) {
        if self.decide(now, key, Status::Received, late) {
            self.stats.accepted += 1;
            if key.reply {
                self.forget_waiting(key.id);
            }
        }
    }

    /// A delivered message is not kept.
    pub fn refused(&mut self, now: Nanos, key: DeliveryKey, refuse: Refuse) {
        match refuse {
            Refuse::Rejected => {
                let topic = self.incoming.get(&key).map(|i| i.topic.clone());
                // A reply is refused when whoever asked for it has gone.
                let (status, rejection) = if key.reply {
                    (Status::Late, Rejection::Late)
                } else {
                    (Status::Forbidden, Rejection::Forbidden)
                };
                if self.decide(now, key, status, false) {
                    let class = self.topics.class(&topic.unwrap_or_default());
                    *self.stats.rejected.entry((rejection, class)).or_default() += 1;
                }
            }
            Refuse::Full => {
                let found = self.incoming.get(&key);
                let Some(incoming) = found.filter(|i| i.stage == Stage::Undecided) else {
                    return;
                };
                let (address, sequence) = (incoming.address, incoming.sequence);
                self.drop_incoming(key);
                if key.peer == self.config.key {
                    self.stats.pushed_back += 1;
                    if let Some(own) = self.own_send(key) {
                        self.hold_own(now, own);
                    }
                } else {
                    self.push_back(key, address);
                    self.say(key, address, sequence, Status::Full);
                }
            }
        }
    }

    fn decide(&mut self, now: Nanos, key: DeliveryKey, status: Status, late: bool) -> bool {
        let found = self.incoming.get(&key);
        let Some(incoming) = found.filter(|i| i.stage == Stage::Undecided) else {
            return false;
        };
        let (address, sequence) = (incoming.address, incoming.sequence);
        let (came, single) = (incoming.progress_at, incoming.is_single());
        self.drop_incoming(key);
        if key.peer == self.config.key {
            let reason = rejection(status).map(AbortReason::Rejected);
            if let Some(own) = self.own_send(key) {
                self.finish(now, own, reason);
            }
        } else {
            self.completed.insert(now, key, status);
            let kept = status == Status::Received && single;
            if !(kept && self.say_kept(key.peer, address, (sequence, came), late)) {
                self.say(key, address, sequence, status);
            }
        }
        true
    }

    /// The message in this packet of a peer is kept; false when that cannot be said together with others.
    fn say_kept(
        &mut self,
        peer: PublicKey,
        address: OverlayAddress,
        (sequence, came): (u64, Nanos),
        late: bool,
    ) -> bool {
        let Some(kept) = self.kept_of(peer, address) else {
            return false;
        };
        kept.keep(sequence, came);
        if !(late && kept.is_late(sequence)) {
            self.tell(peer);
        }
        true
    }

    /// Tells how much room is left for messages that come in. When there is more than before, those
    /// who were told to wait may go on, as many as there is room for.
    pub fn set_room(&mut self, room: Room) {
        let more = room.messages > self.room.messages || room.bytes > self.room.bytes;
        self.room = room;
        if !more || room.bytes == 0 {
            return;
        }
        for _ in 0..room.messages {
            let Some((key, address)) = self.held.pop() else {
                break;
            };
            self.say(key, address, 0, Status::Resume);
        }
    }

    /// Nothing has come of a message for some time.
    pub(crate) fn incoming_due(&mut self, now: Nanos, key: DeliveryKey) {
        let Some(incoming) = self.incoming.get(&key) else {
            return;
        };
        let at = incoming.progress_at + self.config.incoming_idle;
        if incoming.stage == Stage::Partial && at <= now {
            self.stats.expired += 1;
            self.drop_incoming(key);
        } else if incoming.stage == Stage::Partial {
            self.timers.set(Timer::Incoming(key), at);
        }
    }

    fn drop_incoming(&mut self, key: DeliveryKey) {
        let Some(incoming) = self.incoming.remove(&key) else {
            return;
        };
        if !incoming.is_single() {
            self.timers.set(Timer::Incoming(key), Nanos::NEVER);
        }
        let cost = incoming.cost();
        self.incoming_bytes -= cost;
        self.shares.remove(key.peer, cost);
    }

    /// The outgoing side of a message to this node itself.
    fn own_send(&self, key: DeliveryKey) -> Option<SendRef> {
        self.sends.live(SendKey {
            id: key.id,
            reply: key.reply,
            subnet: self.address.subnet_id(),
        })
    }
}

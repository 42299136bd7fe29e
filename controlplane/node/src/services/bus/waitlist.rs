//! Messages that wait for room at the sender: per destination in the order in which they came, destinations in turn.
//!
//! The room is that of the engine, for messages to all nodes, so one node that takes nothing must not keep others'
//! messages behind its own: destinations take turns message by message. A turn is not passed on for want of room, or
//! a long message would wait for ever behind short ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use ahash::RandomState;
use hyphae_bus::Outgoing;

use super::request::{Ticket, Waiter};

/// Bytes that wait at most.
const BYTES_MAX: usize = 256 << 20;
/// Bytes that a message costs besides its own.
const OVERHEAD: usize = 1024;

fn cost(message: &Outgoing) -> usize {
    message.payload.len() + OVERHEAD
}

fn total_cost(waiter: &Waiter) -> usize {
    waiter.messages.iter().map(cost).sum()
}

#[derive(Default)]
pub(super) struct Waitlist {
    waiting: HashMap<Ticket, (u64, Waiter), RandomState>,
    queues: BTreeMap<u64, BTreeSet<Ticket>>,
    /// Destinations with a queue, the next one first.
    turns: VecDeque<u64>,
    bytes: usize,
}

impl Waitlist {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Messages to the node of this /64 wait already.
    pub(super) fn has(&self, subnet: u64) -> bool {
        self.queues.contains_key(&subnet)
    }

    /// Puts a call at the end of its queue; gives it back when too many bytes wait.
    pub(super) fn push(
        &mut self,
        ticket: Ticket,
        subnet: u64,
        waiter: Waiter,
    ) -> Result<(), Waiter> {
        let bytes = self.bytes + total_cost(&waiter);
        if bytes > BYTES_MAX {
            return Err(waiter);
        }
        self.bytes = bytes;
        if !self.has(subnet) {
            self.turns.push_back(subnet);
        }
        self.queues.entry(subnet).or_default().insert(ticket);
        self.waiting.insert(ticket, (subnet, waiter));
        Ok(())
    }

    /// The call whose turn it is.
    pub(super) fn first(&mut self) -> Option<(Ticket, &mut Waiter)> {
        let queue = self.queues.get(self.turns.front()?)?;
        let ticket = *queue.first()?;
        let (_, waiter) = self.waiting.get_mut(&ticket)?;
        Some((ticket, waiter))
    }

    /// The first message of the call whose turn it is; then it is the next destination's turn.
    pub(super) fn take(&mut self) -> Option<(Ticket, Outgoing)> {
        let (ticket, waiter) = self.first()?;
        let message = waiter.messages.pop_front()?;
        self.bytes -= cost(&message);
        let subnet = self.turns.pop_front()?;
        self.turns.push_back(subnet);
        Some((ticket, message))
    }

    pub(super) fn get(&mut self, ticket: Ticket) -> Option<&mut Waiter> {
        self.waiting.get_mut(&ticket).map(|(_, waiter)| waiter)
    }

    /// Takes a call out.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiter> {
        let (subnet, waiter) = self.waiting.remove(&ticket)?;
        self.bytes -= total_cost(&waiter);
        if let Some(queue) = self.queues.get_mut(&subnet) {
            queue.remove(&ticket);
            if queue.is_empty() {
                self.queues.remove(&subnet);
                self.turns.retain(|turn| *turn != subnet);
            }
        }
        Some(waiter)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use hyphae_bus::{Destination, Topic};
    use hyphae_wire::PublicKey;
    use tokio::sync::oneshot;

    use super::super::request::Completion;
    use super::*;

    fn waiter(payloads: &[usize]) -> Waiter {
        let message = |len: &usize| Outgoing {
            destination: Destination::Key(PublicKey([1; 32])),
            topic: Topic::default(),
            payload: vec![0; *len].into(),
            digest: None,
            try_for: None,
            reply_within: None,
            failure: None,
        };
        Waiter::new(
            payloads.iter().map(message),
            Completion::Each(oneshot::channel().0),
        )
    }

    #[test]
    fn destinations_take_turns_and_each_has_its_order() {
        let mut list = Waitlist::default();
        for (ticket, subnet, payloads) in [
            (1, 7, &[1, 2][..]),
            (2, 7, &[3]),
            (3, 8, &[4]),
            (4, 9, &[5]),
        ] {
            assert!(list.push(ticket, subnet, waiter(payloads)).is_ok());
        }
        assert!(list.remove(4).is_some() && !list.has(9));
        let mut order = Vec::new();
        while let Some((ticket, message)) = list.take() {
            order.push((ticket, message.payload.len()));
            if list
                .get(ticket)
                .is_some_and(|waiter| waiter.messages.is_empty())
            {
                list.remove(ticket);
            }
        }
        assert_eq!(order, [(1, 1), (3, 4), (1, 2), (2, 3)]);
        assert!(list.is_empty() && list.turns.is_empty());
        assert_eq!(list.bytes(), 0);
    }

    #[test]
    fn bytes_that_wait_are_bounded_and_freed_when_a_call_goes() {
        let mut list = Waitlist::default();
        let long = [64 << 20];
        let pushed = (0..10).map(|n| list.push(n, n, waiter(&long)).is_ok());
        assert_eq!(pushed.filter(|ok| *ok).count(), 3);
        list.remove(1);
        assert!(list.push(11, 11, waiter(&long)).is_ok());
        assert!(list.push(12, 12, waiter(&long)).is_err());
    }
}

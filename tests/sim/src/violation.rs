//! What must never happen, and what must have happened after some quiet time.

use hyphae_time::Nanos;

use hyphae_wire::Prefix;

use crate::topology::NodeId;

/// A promise of the routing protocol that was broken. Times are those of the world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A packet would go round.
    #[error("at {at:?}: packets for node {destination} loop: {way:?}")]
    Loop {
        /// When.
        at: Nanos,
        /// Where the packets should go.
        destination: NodeId,
        /// The nodes that they pass, over and over.
        way: Vec<NodeId>,
    },
    /// An entry of a FIB leads to a peer that there is no session with.
    #[error("at {at:?}: node {node} sends packets for node {destination} to {peer}, which is down")]
    DownPeer {
        /// When.
        at: Nanos,
        /// Whose FIB.
        node: NodeId,
        /// Where the packets should go.
        destination: NodeId,
        /// Where they are sent.
        peer: NodeId,
    },
    /// A node that has one link, and lies, is on the way of packets for somebody else.
    #[error(
        "at {at:?}: node {node} sends packets for node {destination} to {attacker}, the attacker"
    )]
    Attracted {
        /// When.
        at: Nanos,
        /// Who believed it.
        node: NodeId,
        /// Where the packets should go.
        destination: NodeId,
        /// Where they are sent.
        attacker: NodeId,
    },
    /// A route to what no node owns.
    #[error("at {at:?}: node {node} has a route to {prefix}, which nobody owns")]
    Invented {
        /// When.
        at: Nanos,
        /// Who believed it.
        node: NodeId,
        /// The prefix.
        prefix: Prefix,
    },
    /// One event made a node send more than its neighbours and routes can explain.
    #[error("at {at:?}: one event made node {node} send {packets} packets, at most {most}")]
    Burst {
        /// When.
        at: Nanos,
        /// Who.
        node: NodeId,
        /// Packets sent.
        packets: usize,
        /// Packets that are acceptable.
        most: usize,
    },
    /// Over a time, nodes sent more than is acceptable.
    #[error("{packets} packets per second and session in quiet times, at most {most}")]
    Chatter {
        /// What was measured, rounded up.
        packets: u64,
        /// What is acceptable.
        most: u64,
    },
    /// A timer fires without time passing.
    #[error("at {at:?}: the timer of node {node} has fired {times} times in a row")]
    Spinning {
        /// When.
        at: Nanos,
        /// Whose.
        node: NodeId,
        /// How often.
        times: u32,
    },
    /// Two nodes that are connected do not reach each other.
    #[error(
        "at {at:?}: packets of node {source_node} do not reach node {destination}; {missing} such pairs"
    )]
    Unreachable {
        /// When.
        at: Nanos,
        /// The sender of the first pair found.
        source_node: NodeId,
        /// The receiver of the first pair found.
        destination: NodeId,
        /// Pairs of which this is true.
        missing: usize,
    },
    /// A route to a node that cannot be reached is still there.
    #[error("at {at:?}: node {node} has a route to node {destination}, which is cut off")]
    Stale {
        /// When.
        at: Nanos,
        /// Whose FIB.
        node: NodeId,
        /// Where it leads.
        destination: NodeId,
    },
}

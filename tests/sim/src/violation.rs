//! Invariants: at any time, and after a quiet time.

use hyphae_time::Nanos;

use hyphae_wire::Prefix;

use crate::topology::NodeId;

/// A violated invariant. Times are virtual.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A packet would loop.
    #[error("at {at:?}: packets for node {destination} loop: {path:?}")]
    Loop {
        /// When.
        at: Nanos,
        /// Destination of the packets.
        destination: NodeId,
        /// The nodes of the loop.
        path: Vec<NodeId>,
    },
    /// A FIB entry has a next hop without a session.
    #[error("at {at:?}: node {node} sends packets for node {destination} to {peer}, which is down")]
    DownPeer {
        /// When.
        at: Nanos,
        /// Whose FIB.
        node: NodeId,
        /// Destination of the packets.
        destination: NodeId,
        /// Their next hop.
        peer: NodeId,
    },
    /// A hostile node with one link attracts packets for another node.
    #[error(
        "at {at:?}: node {node} sends packets for node {destination} to {attacker}, the attacker"
    )]
    Attracted {
        /// When.
        at: Nanos,
        /// The node with the route.
        node: NodeId,
        /// Destination of the packets.
        destination: NodeId,
        /// Their next hop.
        attacker: NodeId,
    },
    /// A route to a prefix without an owner.
    #[error("at {at:?}: node {node} has a route to {prefix}, which has no owner")]
    Invented {
        /// When.
        at: Nanos,
        /// The node with the route.
        node: NodeId,
        /// The prefix.
        prefix: Prefix,
    },
    /// One event caused more packets than neighbours and routes explain.
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
    /// A route to an unreachable node remains.
    #[error("at {at:?}: node {node} has a route to node {destination}, which is cut off")]
    Stale {
        /// When.
        at: Nanos,
        /// Whose FIB.
        node: NodeId,
        /// Its destination.
        destination: NodeId,
    },
}

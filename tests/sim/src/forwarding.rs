//! What all nodes together would do to a packet: the next hops of every node for every destination,
//! and the questions asked about them.

use crate::topology::NodeId;

/// Next hops that an entry can have.
const HOPS_MAX: usize = 8;

/// The entry of one node for one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hops {
    count: u8,
    to: [NodeId; HOPS_MAX],
}

impl Hops {
    /// An entry with these next hops, at most 8; without any, there is no route.
    pub fn new(to: impl IntoIterator<Item = NodeId>) -> Self {
        let mut hops = Self::default();
        for (slot, node) in hops.to.iter_mut().zip(to) {
            *slot = node;
            hops.count += 1;
        }
        hops
    }

    /// Whether a node is among them.
    pub fn leads_to(&self, node: NodeId) -> bool {
        self.nodes().contains(&node)
    }

    /// The next hops.
    pub fn nodes(&self) -> &[NodeId] {
        &self.to[..usize::from(self.count)]
    }
}

/// The FIBs of all nodes.
#[derive(Debug)]
pub struct Forwarding {
    nodes: usize,
    /// Of each node that is a destination, its row.
    rows: Vec<usize>,
    /// By row, then by node.
    hops: Vec<Hops>,
    /// Entries with a next hop.
    entries: usize,
    /// Marks of the search that is running: a node was seen if its mark is the search's number.
    seen: Vec<u32>,
    search: u32,
}

impl Forwarding {
    /// Empty FIBs. `is_destination` says which nodes there can be entries for.
    pub fn new(nodes: NodeId, is_destination: impl Fn(NodeId) -> bool) -> Self {
        let mut destinations = 0;
        let rows = (0..nodes).map(|node| {
            let row = destinations;
            destinations += usize::from(is_destination(node));
            row
        });
        let rows = rows.collect();
        let nodes = usize::from(nodes);
        Self {
            nodes,
            rows,
            hops: vec![Hops::default(); nodes * destinations],
            entries: 0,
            seen: vec![0; nodes],
            search: 0,
        }
    }

    fn at(&self, destination: NodeId, node: NodeId) -> usize {
        self.rows[usize::from(destination)] * self.nodes + usize::from(node)
    }

    /// The entry of a node.
    pub fn hops(&self, destination: NodeId, node: NodeId) -> &Hops {
        &self.hops[self.at(destination, node)]
    }

    /// Sets the entry of a node.
    pub fn set(&mut self, destination: NodeId, node: NodeId, hops: Hops) {
        let at = self.at(destination, node);
        self.entries -= usize::from(self.hops[at].count > 0);
        self.entries += usize::from(hops.count > 0);
        self.hops[at] = hops;
    }

    /// Entries with a next hop, of all nodes together.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// A way on which a packet for `destination` comes back to `node`, if there is one. Every loop
    /// goes through the node whose entry closed it, so asking after each change about the changed
    /// entry misses none. `carries` tells whether what a node sends to another would arrive.
    pub fn loop_through(
        &mut self,
        destination: NodeId,
        node: NodeId,
        carries: impl Fn(NodeId, NodeId) -> bool,
    ) -> Option<Vec<NodeId>> {
        self.search += 1;
        // The way to the node that is being looked at, each with the number of next hops tried.
        let mut way: Vec<(NodeId, usize)> = vec![(node, 0)];
        while let Some((at, tried)) = way.last_mut() {
            let (at, index) = (*at, *tried);
            *tried += 1;
            let Some(next) = self.hops(destination, at).nodes().get(index).copied() else {
                way.pop();
                continue;
            };
            if !carries(at, next) {
                continue;
            }
            if next == node {
                return Some(way.iter().map(|(node, _)| *node).collect());
            }
            let seen = &mut self.seen[usize::from(next)];
            if next != destination && *seen != self.search {
                *seen = self.search;
                way.push((next, 0));
            }
        }
        None
    }

    /// For one destination: whether a packet of each node arrives there, whichever of several next
    /// hops it takes.
    pub fn arrivals(
        &self,
        destination: NodeId,
        carries: impl Fn(NodeId, NodeId) -> bool,
    ) -> Vec<bool> {
        let mut arrives = vec![false; self.nodes];
        let mut known = vec![false; self.nodes];
        arrives[usize::from(destination)] = true;
        known[usize::from(destination)] = true;
        for start in 0..self.nodes {
            let start = NodeId::try_from(start).unwrap_or(0);
            // A node is decided after all its next hops; one met again on the way is a loop.
            let mut way = vec![start];
            while let Some(at) = way.last().copied() {
                if known[usize::from(at)] {
                    way.pop();
                    continue;
                }
                let hops = self.hops(destination, at).nodes();
                let open = hops.iter().find(|next| !known[usize::from(**next)]);
                match open {
                    Some(next) if !way.contains(next) => way.push(*next),
                    _ => {
                        let arrived =
                            |next: &NodeId| arrives[usize::from(*next)] && carries(at, *next);
                        arrives[usize::from(at)] = !hops.is_empty() && hops.iter().all(arrived);
                        known[usize::from(at)] = true;
                        way.pop();
                    }
                }
            }
        }
        arrives
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarding(entries: &[(NodeId, &[NodeId])]) -> Forwarding {
        let mut forwarding = Forwarding::new(6, |_| true);
        for (node, hops) in entries {
            forwarding.set(0, *node, Hops::new(hops.iter().copied()));
        }
        forwarding
    }

    #[test]
    fn loops_are_found_wherever_they_close() {
        let mut f = forwarding(&[(1, &[0]), (2, &[1]), (3, &[2, 4]), (4, &[5]), (5, &[1])]);
        let all = |_, _| true;
        for node in 1..6 {
            assert_eq!(f.loop_through(0, node, all), None);
        }
        f.set(0, 5, Hops::new([1, 3]));
        for node in [3, 4, 5] {
            let way = f.loop_through(0, node, all).unwrap();
            assert_eq!((way.len(), way[0]), (3, node));
        }
        for node in [1, 2] {
            assert_eq!(f.loop_through(0, node, all), None);
        }
        // A link that carries nothing closes no loop.
        assert_eq!(f.loop_through(0, 3, |from, to| (from, to) != (4, 5)), None);
        // Not even the destination's own entry is a loop: it keeps what is for it.
        f.set(0, 0, Hops::new([1]));
        assert_eq!(f.loop_through(0, 1, all), None);
    }

    #[test]
    fn a_packet_arrives_if_every_choice_leads_there() {
        let f = forwarding(&[(1, &[0]), (2, &[1, 3]), (3, &[4]), (5, &[1])]);
        let all = f.arrivals(0, |_, _| true);
        assert_eq!(all, [true, true, false, false, false, true]);
        let cut = f.arrivals(0, |from, to| (from, to) != (5, 1));
        assert!(!cut[5] && cut[1]);
        let looped = forwarding(&[(1, &[2]), (2, &[1])]).arrivals(0, |_, _| true);
        assert_eq!(looped, [true, false, false, false, false, false]);
        assert_eq!((f.entries(), f.hops(0, 3).nodes()), (4, &[4][..]));
    }
}

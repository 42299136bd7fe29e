//! FIBs of all nodes, and the checks of forwarding over them.

use crate::topology::NodeId;

/// Most next hops of an entry.
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

    /// Whether a node is one of the next hops.
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
    /// Row of each destination.
    rows: Vec<usize>,
    /// By row, then by node.
    hops: Vec<Hops>,
    /// Entries with a next hop.
    entries: usize,
    /// Marks of the running search: a node is visited if its mark is the number of the search.
    seen: Vec<u32>,
    search: u32,
}

impl Forwarding {
    /// Empty FIBs. `is_destination` selects the nodes that have entries.
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

    /// A path on which a packet for `destination` returns to `node`, if one exists. Every loop contains the
    /// node whose entry closed it, so checking changed entries after each change finds all. `carries` returns
    /// whether a packet from one node would arrive at another.
    pub fn loop_through(
        &mut self,
        destination: NodeId,
        node: NodeId,
        carries: impl Fn(NodeId, NodeId) -> bool,
    ) -> Option<Vec<NodeId>> {
        self.search += 1;
        // Path to the current node, with the number of next hops tried at each.
        let mut path: Vec<(NodeId, usize)> = vec![(node, 0)];
        while let Some((at, tried)) = path.last_mut() {
            let (at, index) = (*at, *tried);
            *tried += 1;
            let Some(next) = self.hops(destination, at).nodes().get(index).copied() else {
                path.pop();
                continue;
            };
            if !carries(at, next) {
                continue;
            }
            if next == node {
                return Some(path.iter().map(|(node, _)| *node).collect());
            }
            let seen = &mut self.seen[usize::from(next)];
            if next != destination && *seen != self.search {
                *seen = self.search;
                path.push((next, 0));
            }
        }
        None
    }

    /// Whether a packet of each node arrives at a destination, whichever next hops it takes.
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
            // A node is decided after all its next hops; one that is met again on the path closes a loop.
            let mut path = vec![start];
            while let Some(at) = path.last().copied() {
                if known[usize::from(at)] {
                    path.pop();
                    continue;
                }
                let hops = self.hops(destination, at).nodes();
                let open = hops.iter().find(|next| !known[usize::from(**next)]);
                match open {
                    Some(next) if !path.contains(next) => path.push(*next),
                    _ => {
                        let arrived =
                            |next: &NodeId| arrives[usize::from(*next)] && carries(at, *next);
                        arrives[usize::from(at)] = !hops.is_empty() && hops.iter().all(arrived);
                        known[usize::from(at)] = true;
                        path.pop();
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
            let path = f.loop_through(0, node, all).unwrap();
            assert_eq!((path.len(), path[0]), (3, node));
        }
        for node in [1, 2] {
            assert_eq!(f.loop_through(0, node, all), None);
        }
        // A cut link closes no loop.
        assert_eq!(f.loop_through(0, 3, |from, to| (from, to) != (4, 5)), None);
        // The destination's own entry closes no loop, because it delivers.
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

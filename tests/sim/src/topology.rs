//! Shapes of meshes. All are connected.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::random::Random;

/// Number of a node.
pub type NodeId = u16;

/// Topology of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A ring.
    Ring,
    /// A ring with links to the node after the next: 4 neighbours each.
    Lattice,
    /// A random tree plus as many random links as nodes: 4 neighbours on average.
    Random,
    /// Preferential attachment: each new node links to two others, by their degree.
    ScaleFree,
    /// A grid.
    Grid,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 5] = [
        Self::Ring,
        Self::Lattice,
        Self::Random,
        Self::ScaleFree,
        Self::Grid,
    ];

    /// Its name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Lattice => "lattice",
            Self::Random => "random",
            Self::ScaleFree => "scale-free",
            Self::Grid => "grid",
        }
    }

    /// The links of a mesh of `nodes` nodes, each as (lower, higher), in order.
    pub fn links(self, nodes: NodeId, random: &mut Random) -> Vec<(NodeId, NodeId)> {
        let mut links = BTreeSet::new();
        let mut join = |a: NodeId, b: NodeId| a != b && links.insert((a.min(b), a.max(b)));
        let mut pick =
            |below: NodeId| NodeId::try_from(random.below(u64::from(below.max(1)))).unwrap_or(0);
        match self {
            Self::Ring => {
                for node in 0..nodes {
                    join(node, (node + 1) % nodes);
                }
            }
            Self::Lattice => {
                for node in 0..nodes {
                    join(node, (node + 1) % nodes);
                    join(node, (node + 2) % nodes);
                }
            }
            Self::Random => {
                for node in 1..nodes {
                    join(node, pick(node));
                }
                let possible = u32::from(nodes) * u32::from(nodes.saturating_sub(1)) / 2;
                let extra = u32::from(nodes).min(possible.saturating_sub(u32::from(nodes) - 1));
                let mut added = 0;
                while added < extra {
                    added += u32::from(join(pick(nodes), pick(nodes)));
                }
            }
            Self::ScaleFree => {
                // The end of a random link is a node with a probability by its degree.
                let mut ends: Vec<NodeId> = vec![0];
                for node in 1..nodes {
                    let mut chosen = BTreeSet::new();
                    while chosen.len() < usize::from(node.min(2)) {
                        let at = pick(NodeId::try_from(ends.len()).unwrap_or(NodeId::MAX));
                        chosen.insert(ends[usize::from(at)]);
                    }
                    for other in chosen {
                        join(node, other);
                        ends.extend([node, other]);
                    }
                }
            }
            Self::Grid => {
                let width = (1..=nodes).find(|w| u32::from(*w) * u32::from(*w) >= u32::from(nodes));
                let width = width.unwrap_or(1);
                for node in 0..nodes {
                    if node % width > 0 {
                        join(node, node - 1);
                    }
                    if node >= width {
                        join(node, node - width);
                    }
                }
            }
        }
        links.into_iter().collect()
    }
}

/// Error of parsing a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no shape of a mesh; there are ring, lattice, random, scale-free and grid")]
pub struct InvalidShape(String);

impl FromStr for Shape {
    type Err = InvalidShape;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|shape| shape.name() == text);
        found.ok_or_else(|| InvalidShape(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mesh_is_connected_and_has_no_link_twice() {
        for shape in Shape::ALL {
            for nodes in [1, 2, 3, 5, 50, 333] {
                let links = shape.links(nodes, &mut Random::new(u64::from(nodes)));
                let mut reached = BTreeSet::from([0]);
                let mut before = 0;
                while reached.len() > before {
                    before = reached.len();
                    for (a, b) in &links {
                        assert!(a < b && *b < nodes);
                        if reached.contains(a) || reached.contains(b) {
                            reached.extend([*a, *b]);
                        }
                    }
                }
                assert_eq!(reached.len(), usize::from(nodes), "{}", shape.name());
                let distinct: BTreeSet<_> = links.iter().collect();
                assert_eq!(distinct.len(), links.len());
            }
            assert_eq!(shape.name().parse(), Ok(shape));
        }
        assert!("star".parse::<Shape>().is_err());
    }
}

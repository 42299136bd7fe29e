//! Problems of the host's side of the TUN device, and counts of repairs: for status, metrics, doctor and the log. Each
//! change is logged once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use hyphae_wire::Prefix;

/// Part of the host's state, the unit of repairs and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The device itself, created again.
    Device,
    /// Its MTU.
    Mtu,
    /// Whether IPv6 is enabled.
    Ipv6,
    /// Its address.
    Address,
    /// Routes.
    Route,
    /// Rules of policy routing.
    Rule,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 6] = [
        Self::Device,
        Self::Mtu,
        Self::Ipv6,
        Self::Address,
        Self::Route,
        Self::Rule,
    ];

    /// Its label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Mtu => "mtu",
            Self::Ipv6 => "ipv6",
            Self::Address => "address",
            Self::Route => "route",
            Self::Rule => "rule",
        }
    }
}

/// Why this host's traffic does not pass the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// A problem that may be transient: shown, not logged.
    Briefly(Box<Self>),
    /// The device does not exist.
    Absent(String),
    /// It is in another network namespace.
    Moved(String),
    /// The device of this name is no TUN device.
    Foreign(String),
    /// It was set down.
    Down(String),
    /// It is changed repeatedly; repairs are delayed.
    BackingOff(Vec<Part>),
    /// Routes would capture underlay packets, and are withdrawn.
    Captured {
        /// Their destinations.
        prefixes: Vec<Prefix>,
        /// Why underlay packets cannot be distinguished.
        why: String,
    },
    /// A repair failed.
    Failed(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Briefly(problem) => problem.fmt(f),
            Self::Absent(name) => write!(
                f,
                "there is no TUN device {name}: it was deleted, and the dataplane has not made it again"
            ),
            Self::Moved(name) => write!(
                f,
                "TUN device {name} was moved to another network namespace; move it back, or restart the node"
            ),
            Self::Foreign(name) => write!(
                f,
                "device {name} is not this node's TUN device but another one of that name; delete or rename it"
            ),
            Self::Down(name) => write!(
                f,
                "TUN device {name} was set down; `ip link set {name} up` sets it up again"
            ),
            Self::BackingOff(parts) => {
                let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
                write!(
                    f,
                    "something else on this host changes the TUN device again and again ({}); it is repaired less \
                     and less often: find what does (`ip -6 monitor`)",
                    names.join(", ")
                )
            }
            Self::Captured { prefixes, why } => {
                let prefixes: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "no route to {}: it would lead packets to peers into the TUN device, because {why}",
                    prefixes.join(", ")
                )
            }
            Self::Failed(error) => f.write_str(error),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    problem: Option<Problem>,
    repairs: BTreeMap<Part, u64>,
}

/// Shared between the task that repairs and its observers.
#[derive(Debug, Default)]
pub struct Report(Mutex<State>);

impl Report {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the current problem; changes are logged.
    pub(crate) fn problem(&self, problem: Option<Problem>) {
        let before = self.with(|state| std::mem::replace(&mut state.problem, problem.clone()));
        let logged = |problem: Option<Problem>| {
            problem.filter(|problem| !matches!(problem, Problem::Briefly(_)))
        };
        match (logged(before), logged(problem)) {
            (None, None) => {}
            (Some(_), None) => tracing::info!("this host's traffic passes the TUN device again"),
            (before, Some(problem)) if before.as_ref() == Some(&problem) => {}
            (_, Some(problem)) => {
                tracing::error!("this host's traffic does not pass: {problem}");
            }
        }
    }

    /// Counts and logs repairs.
    pub(crate) fn repaired(&self, device: &str, parts: &BTreeMap<Part, usize>) {
        let names: Vec<_> = parts.keys().map(|part| part.name()).collect();
        let parts = parts.keys();
        self.with(|state| parts.for_each(|part| *state.repairs.entry(*part).or_default() += 1));
        tracing::warn!(
            device,
            repaired = names.join(", "),
            "the TUN device was changed by something else, and is as it was"
        );
    }

    pub(crate) fn is_broken(&self) -> bool {
        let broken = |problem: &Problem| !matches!(problem, Problem::Captured { .. });
        self.with(|state| state.problem.as_ref().is_some_and(broken))
    }

    /// The problem as a sentence.
    pub fn sentence(&self) -> Option<String> {
        self.with(|state| state.problem.as_ref().map(ToString::to_string))
    }

    /// Counts of repairs by part.
    pub fn repairs(&self) -> BTreeMap<Part, u64> {
        self.with(|state| state.repairs.clone())
    }
}

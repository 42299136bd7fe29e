//! Which cores the workers get.

use std::fmt;
use std::str::FromStr;

use hyphae_wire::index::WORKERS_MAX;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The `--cores` setting: one worker per entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// All cores that the process may use but the first; that one when there is no other.
    #[default]
    Auto,
    /// One worker pinned to each of these cores.
    List(Vec<usize>),
    /// This many workers, left to the scheduler: for hosts where cores are shared.
    Unpinned(u16),
}

/// A core list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoresError {
    /// Not a list.
    #[error(
        "'{0}' is not a core list: use auto, numbers and ranges such as 1-3,6, or any:N for N \
         workers that are not pinned"
    )]
    Form(String),
    /// Named twice.
    #[error("core {0} is named twice; every worker needs a core of its own")]
    Twice(usize),
    /// More than the protocol can name.
    #[error("{0} workers asked for; a node has at most {WORKERS_MAX}")]
    TooMany(usize),
    /// Not available to this process.
    #[error("core {core} is not available to this process (available: {available})")]
    Absent {
        /// The one asked for.
        core: usize,
        /// Those that may be used.
        available: String,
    },
}

impl FromStr for Cores {
    type Err = CoresError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let form = || CoresError::Form(s.to_owned());
        if s == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(count) = s.strip_prefix("any:") {
            let count: u16 = count.parse().ok().filter(|n| *n > 0).ok_or_else(form)?;
            if count > WORKERS_MAX {
                return Err(CoresError::TooMany(count.into()));
            }
            return Ok(Self::Unpinned(count));
        }
        let mut cores = Vec::new();
        for part in s.split(',') {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let low: usize = low.trim().parse().map_err(|_| form())?;
            let high: usize = high.trim().parse().map_err(|_| form())?;
            if low > high || high - low > usize::from(WORKERS_MAX) {
                return Err(form());
            }
            for core in low..=high {
                if cores.contains(&core) {
                    return Err(CoresError::Twice(core));
                }
                cores.push(core);
            }
        }
        if cores.len() > usize::from(WORKERS_MAX) {
            return Err(CoresError::TooMany(cores.len()));
        }
        Ok(Self::List(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Unpinned(count) => write!(f, "any:{count}"),
            Self::List(cores) => f.write_str(&join(cores)),
        }
    }
}

impl Cores {
    /// One entry per worker: the core to pin it to, or `None` for an unpinned one.
    ///
    /// # Errors
    /// When a core of the list is not available to this process.
    pub fn resolve(&self) -> Result<Vec<Option<usize>>, CoresError> {
        let available = available();
        match self {
            Self::Unpinned(count) => Ok(vec![None; usize::from(*count)]),
            Self::Auto => {
                let rest = available.iter().skip(1).take(usize::from(WORKERS_MAX));
                let cores: Vec<_> = rest.map(|core| Some(*core)).collect();
                Ok(if cores.is_empty() {
                    vec![available.first().copied()]
                } else {
                    cores
                })
            }
            Self::List(cores) => cores
                .iter()
                .map(|core| match available.contains(core) {
                    true => Ok(Some(*core)),
                    false => Err(CoresError::Absent {
                        core: *core,
                        available: join(&available),
                    }),
                })
                .collect(),
        }
    }
}

/// Pins the calling thread to a core.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(core: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
}

fn available() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return vec![0];
    };
    (0..CpuSet::MAX_CPU)
        .filter(|core| set.is_set(*core))
        .collect()
}

fn join(cores: &[usize]) -> String {
    cores
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_parse() {
        assert_eq!("auto".parse(), Ok(Cores::Auto));
        assert_eq!("1-3,6".parse(), Ok(Cores::List(vec![1, 2, 3, 6])));
        assert_eq!("any:4".parse(), Ok(Cores::Unpinned(4)));
        assert_eq!("1-3,6".parse::<Cores>().unwrap().to_string(), "1,2,3,6");
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!("1,1".parse::<Cores>(), Err(CoresError::Twice(1)));
        assert_eq!("any:65".parse::<Cores>(), Err(CoresError::TooMany(65)));
        for bad in ["", "a", "3-1", "any:0", "any:", "1,,2", "-1"] {
            assert!(
                matches!(bad.parse::<Cores>(), Err(CoresError::Form(_))),
                "{bad}"
            );
        }
        let absent = Cores::List(vec![100_000]).resolve();
        assert!(matches!(
            absent,
            Err(CoresError::Absent { core: 100_000, .. })
        ));
    }

    #[test]
    fn automatic_choice_has_at_least_one_worker() {
        assert!(!Cores::Auto.resolve().unwrap().is_empty());
        assert_eq!(Cores::Unpinned(2).resolve().unwrap(), vec![None, None]);
    }
}

//! Which cores the workers get.
//!
//! Two workers on one core, each of which could move to another, take turns where both could run. So `auto` looks which
//! cores have threads of other processes pinned to them, those of another node or of a packet processor, and leaves the
//! workers that would come to such a core to the scheduler. Their number, and so their ports, does not depend on
//! others.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use hyphae_wire::index::WORKERS_MAX;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The `--cores` setting: one worker per entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cores {
    /// All cores that the process may use but the first; that one when there is no other. Where a thread of another
    /// process is pinned to one of them, its worker is not.
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
            // Where others cannot be seen nothing is known to be taken.
            Self::Auto => Ok(choose(&available, &taken().unwrap_or_default())),
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

/// A core per worker, `None` where that core is taken.
fn choose(available: &[usize], taken: &BTreeSet<usize>) -> Vec<Option<usize>> {
    match available {
        // There is no choice, and so nothing to gain.
        [] | [_] => vec![available.first().copied()],
        [_, rest @ ..] => rest
            .iter()
            .take(usize::from(WORKERS_MAX))
            .map(|core| Some(*core).filter(|core| !taken.contains(core)))
            .collect(),
    }
}

/// Cores to which threads of other processes are pinned; `None` where this process does not see others
/// (a PID namespace, `hidepid=`, `ProtectProc=`).
pub fn taken() -> Option<BTreeSet<usize>> {
    taken_in(Path::new("/proc"), &[std::process::id()])
}

/// The same in the eyes of `hyphae doctor`: without the threads of the processes `own`.
pub fn taken_besides(own: &[u32]) -> Option<BTreeSet<usize>> {
    taken_in(Path::new("/proc"), own)
}

fn taken_in(proc: &Path, own: &[u32]) -> Option<BTreeSet<usize>> {
    let pid = |name: &std::ffi::OsStr| name.to_str()?.parse::<u32>().ok();
    // The first process is everybody's; who cannot read it is not shown the others either.
    fs::read_to_string(proc.join("1/status")).ok()?;
    let mut taken = BTreeSet::new();
    for process in fs::read_dir(proc).ok()?.flatten() {
        if pid(&process.file_name()).is_none_or(|pid| own.contains(&pid)) {
            continue;
        }
        // One that ends meanwhile has nothing pinned.
        let threads = fs::read_dir(process.path().join("task"));
        for thread in threads.into_iter().flatten().flatten() {
            let status = fs::read_to_string(thread.path().join("status"));
            taken.extend(status.ok().as_deref().and_then(pinned_to));
        }
    }
    Some(taken)
}

/// The core to which a thread is pinned, by its proc(5) `status`. Threads of the kernel, which have no memory of their
/// own, have their cores for good.
fn pinned_to(status: &str) -> Option<usize> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    field("VmSize")?;
    field("Cpus_allowed_list")?.trim().parse().ok()
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
    fn automatic_choice_leaves_taken_cores_to_others_and_keeps_the_number_of_workers() {
        let taken = |cores: &[usize]| cores.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(choose(&[0, 1, 2], &taken(&[])), [Some(1), Some(2)]);
        assert_eq!(choose(&[0, 1, 2], &taken(&[0])), [Some(1), Some(2)]);
        assert_eq!(choose(&[0, 1, 2], &taken(&[2])), [Some(1), None]);
        assert_eq!(choose(&[0, 1, 2], &taken(&[1, 2])), [None, None]);
        assert_eq!(choose(&[3], &taken(&[3])), [Some(3)], "there is no other");
    }

    #[test]
    fn a_core_is_taken_by_a_pinned_thread_of_another_process_and_by_nothing_else() {
        let proc = std::env::temp_dir().join(format!("hyphae-cores-{}", std::process::id()));
        let thread = |pid: u32, tid: u32, memory: &str, cores: &str| {
            let task = proc.join(format!("{pid}/task/{tid}"));
            fs::create_dir_all(&task).unwrap();
            let status =
                format!("Name:\tx\n{memory}Cpus_allowed:\tf\nCpus_allowed_list:\t{cores}\n");
            fs::write(task.join("status"), &status).unwrap();
            fs::write(proc.join(format!("{pid}/status")), status).unwrap();
        };
        let user = "VmSize:\t   100 kB\n";
        thread(2, 2, "", "5");
        thread(10, 10, user, "0-7");
        thread(10, 11, user, "3");
        thread(20, 20, user, "4");
        thread(30, 30, user, "0,6");
        assert_eq!(taken_in(&proc, &[20]), None, "others are hidden");
        thread(1, 1, user, "0-7");
        assert_eq!(taken_in(&proc, &[20]), Some(BTreeSet::from([3])));
        assert_eq!(taken_in(&proc, &[]), Some(BTreeSet::from([3, 4])));
        fs::remove_dir_all(&proc).unwrap();
    }

    #[test]
    fn automatic_choice_has_at_least_one_worker() {
        assert!(!Cores::Auto.resolve().unwrap().is_empty());
        assert_eq!(Cores::Unpinned(2).resolve().unwrap(), vec![None, None]);
    }
}

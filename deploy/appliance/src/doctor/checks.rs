//! The checks.

mod info;
mod network;
mod storage;
mod system;

use rustix::thread::CapabilitySet;

use super::facts::Facts;
use super::{Check, Level};

fn check(name: &'static str, level: Level, found: impl Into<String>) -> Check {
    Check {
        name,
        level,
        found: found.into(),
        why: String::new(),
        fix: String::new(),
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    check(name, Level::Ok, found)
}

fn unknown(name: &'static str, what: &str) -> Check {
    check(
        name,
        Level::Unknown,
        format!("{what} is not readable by this user"),
    )
}

impl Check {
    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

impl Facts {
    fn may(&self, capability: CapabilitySet) -> bool {
        self.capabilities
            .is_some_and(|set| set.contains(capability))
    }
}

fn bytes(n: u64) -> String {
    match n {
        n if n >= 10 << 20 => format!("{} MiB", n >> 20),
        n if n >= 10 << 10 => format!("{} KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}

/// Runs all checks, in the order of the output.
pub(super) fn evaluate(host: &Facts) -> Vec<Check> {
    let mut checks = vec![
        storage::configuration(host),
        system::kernel(host),
        system::io_uring(host),
        system::capabilities(host),
        system::tun(host),
        system::cores(host),
        system::locked_memory(host),
        system::files(host),
        network::buffers(host),
        network::ports(host),
        network::ipv6(host),
        network::reverse_path(host),
        network::mtu(host),
        storage::clock(host),
        storage::state(host),
        storage::disk(host),
        network::peers(host),
    ];
    checks.extend(info::informational(host));
    checks
}

//! Kernel, privileges, cores and resource limits.

use hyphae_dataplane::DriverKind;
use rustix::thread::CapabilitySet;

use super::{bytes, check, ok, unknown};
use crate::doctor::facts::{Availability, Facts};
use crate::doctor::{Check, Level};

/// Locked memory of one worker, bytes: its program ring, which holds keys.
const LOCKED_PER_WORKER: u64 = 256 << 10;
/// Open files of a node with a few hundred TCP links and clients.
const FILES: u64 = 1024;

/// Major and minor number.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn kernel(host: &Facts) -> Check {
    const NAME: &str = "kernel";
    match version(&host.kernel) {
        None => unknown(NAME, "the version"),
        Some(at) if at < (5, 0) => check(NAME, Level::Fail, format!("Linux {}", host.kernel))
            .why("the dataplane needs UDP segmentation offloads (UDP_SEGMENT, UDP_GRO), available since 5.0")
            .fix("run a kernel of 6.1 or later"),
        Some(at) if at < (6, 1) => check(NAME, Level::Warn, format!("Linux {}", host.kernel))
            .why("the io_uring driver needs 6.1; the epoll driver needs more CPU time per packet")
            .fix("run a kernel of 6.1 or later"),
        Some(_) => ok(NAME, format!("Linux {}", host.kernel)),
    }
}

pub(super) fn io_uring(host: &Facts) -> Check {
    const NAME: &str = "io_uring";
    let disabled = match host.io_uring_disabled {
        Some(0) | None => "",
        Some(1) => " (kernel.io_uring_disabled is 1: only for kernel.io_uring_group)",
        Some(_) => " (kernel.io_uring_disabled is 2: for no process)",
    };
    let Some(why) = &host.io_uring else {
        return ok(NAME, "all features of the driver work");
    };
    let level = match host.driver {
        DriverKind::Uring => Level::Fail,
        DriverKind::Auto => Level::Warn,
        DriverKind::Epoll => Level::Ok,
    };
    let found = check(NAME, level, format!("{why}{disabled}"));
    let fix = match host.io_uring_disabled {
        Some(1 | 2) => {
            "sysctl -w kernel.io_uring_disabled=0 (and in /etc/sysctl.d), or driver = \"epoll\""
        }
        Some(_) | None => {
            "allow the system calls io_uring_setup, io_uring_enter and io_uring_register (seccomp profile \
                   of a container), or set driver = \"epoll\""
        }
    };
    match level {
        Level::Ok => ok(NAME, format!("not used: driver is epoll ({why}{disabled})")),
        Level::Fail => found
            .why("driver = \"uring\" requires it, so no node starts")
            .fix(fix),
        Level::Warn | Level::Unknown => found
            .why("the epoll driver needs more CPU time per packet")
            .fix(fix),
    }
}

pub(super) fn capabilities(host: &Facts) -> Check {
    const NAME: &str = "capabilities";
    match host.capabilities {
        None => unknown(NAME, "the capability set"),
        Some(_) if host.may(CapabilitySet::NET_ADMIN) => ok(NAME, "CAP_NET_ADMIN"),
        Some(_) if host.tun.is_none() => ok(NAME, "no CAP_NET_ADMIN, and no TUN device configured"),
        Some(_) => check(NAME, Level::Warn, "no CAP_NET_ADMIN")
            .why(
                "a TUN device needs it: without one, `hyphae up` starts as a relay that does not carry this host's \
                 own traffic",
            )
            .fix(
                "run as root or by systemd, `setcap cap_net_admin+ep` on the binary, or --no-tun for a relay",
            ),
    }
}

pub(super) fn tun(host: &Facts) -> Check {
    const NAME: &str = "TUN device";
    match &host.tun {
        None => ok(NAME, "none configured"),
        Some(Availability::Free) => ok(NAME, "can be created"),
        Some(Availability::Ours) => ok(NAME, "in use by the running node"),
        Some(Availability::Broken(problem)) => check(NAME, Level::Fail, problem.clone())
            .why("this host's own traffic goes through it")
            .fix("undo the change reported above; the node repairs what it has the rights for, and recovers by itself"),
        Some(Availability::Refused(why)) => {
            let level = if host.may(CapabilitySet::NET_ADMIN) {
                Level::Fail
            } else {
                Level::Warn
            };
            check(NAME, level, why.clone())
                .why("this host's own traffic goes through it")
                .fix(
                    "no such file: `modprobe tun`; permission denied: `chmod 666 /dev/net/tun`; not permitted: pass \
                     the device to the container (--device /dev/net/tun) or unit (DeviceAllow=); exists already: \
                     another name in tun.name; or --no-tun",
                )
        }
    }
}

pub(super) fn cores(host: &Facts) -> Check {
    const NAME: &str = "workers";
    match &host.workers {
        None => unknown(NAME, "the list of cores"),
        Some(Ok(_)) if !host.shared_cores.is_empty() => {
            let cores: Vec<_> = host.shared_cores.iter().map(ToString::to_string).collect();
            let found = format!(
                "other processes have threads pinned to core {}",
                cores.join(", ")
            );
            check(NAME, Level::Warn, found)
                .why("pinned threads compete for the core while other cores idle")
                .fix(
                    "restart the node: cores = \"auto\" avoids cores with pinned threads; or configure disjoint cores, or \
                     \"any:N\"",
                )
        }
        Some(Ok(workers)) => ok(NAME, format!("{workers}")),
        Some(Err(why)) => check(NAME, Level::Fail, why.clone())
            .why("each worker is pinned to one of these cores")
            .fix("set `cores` to available cores, \"auto\", or \"any:N\""),
    }
}

fn worker_count(host: &Facts) -> u64 {
    match &host.workers {
        Some(Ok(workers)) => *workers as u64,
        Some(Err(_)) | None => 1,
    }
}

pub(super) fn locked_memory(host: &Facts) -> Check {
    const NAME: &str = "locked memory";
    let needed = LOCKED_PER_WORKER * worker_count(host);
    match host.memlock {
        None => ok(NAME, "no limit"),
        Some(limit) if limit >= needed || host.may(CapabilitySet::IPC_LOCK) => ok(
            NAME,
            format!("limit {}, {} needed", bytes(limit), bytes(needed)),
        ),
        Some(limit) => {
            let found = format!(
                "RLIMIT_MEMLOCK is {}, {} needed",
                bytes(limit),
                bytes(needed)
            );
            check(NAME, Level::Warn, found)
                .why("session keys in the program rings could be written to swap")
                .fix(format!(
                    "LimitMEMLOCK={needed} in the unit, or `ulimit -l {}`",
                    needed >> 10
                ))
        }
    }
}

pub(super) fn files(host: &Facts) -> Check {
    const NAME: &str = "open files";
    match host.files {
        None => ok(NAME, "no limit"),
        Some(limit) if limit >= FILES => ok(NAME, format!("limit {limit}")),
        Some(limit) => check(NAME, Level::Warn, format!("RLIMIT_NOFILE is {limit}"))
            .why("each TCP link and each client of RPC or a socket proxy needs a descriptor")
            .fix(format!(
                "LimitNOFILE={FILES} in the unit, or `ulimit -n {FILES}`"
            )),
    }
}

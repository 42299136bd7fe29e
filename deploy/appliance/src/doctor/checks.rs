//! What readings mean.

use hyphae_dataplane::DriverKind;
use hyphae_wire::frame::OVERHEAD;

use super::readings::{Place, Readings};
use super::{Check, Level};

const CAP_NET_ADMIN: u32 = 12;
const CAP_IPC_LOCK: u32 = 14;
/// Program rings of one worker, which hold keys.
const LOCKED_PER_WORKER: u64 = 256 << 10;
/// Descriptors that a node with a few hundred TCP links and clients needs, at the hard limit.
const FILES: u64 = 1024;
/// Headers of UDP over IPv6 and IPv4.
const UNDERLAY_HEADERS: u32 = 48;
/// What has to be free for a node to work at all, and beside a full inbox.
const FREE_MIN: u64 = 1 << 20;
const FREE_BESIDE: u64 = 64 << 20;

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
        format!("{what} could not be looked at by this user"),
    )
}

impl Check {
    fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

impl Readings {
    fn may(&self, capability: u32) -> bool {
        self.capabilities
            .is_some_and(|bits| bits >> capability & 1 == 1)
    }
}

fn bytes(n: u64) -> String {
    match n {
        n if n >= 10 << 20 => format!("{} MiB", n >> 20),
        n if n >= 10 << 10 => format!("{} KiB", n >> 10),
        n => format!("{n} bytes"),
    }
}

/// All checks, in the order in which they are shown.
pub(super) fn judge(host: &Readings) -> Vec<Check> {
    let mut checks = vec![
        configuration(host),
        kernel(host),
        io_uring(host),
        capabilities(host),
        tun(host),
        cores(host),
        locked_memory(host),
        files(host),
        buffers(host),
        ports(host),
        ipv6(host),
        reverse_path(host),
        mtu(host),
        clock(host),
        state(host),
        disk(host),
        peers(host),
    ];
    checks.extend(informational(host));
    checks
}

fn configuration(host: &Readings) -> Check {
    const NAME: &str = "configuration";
    match &host.configuration {
        None => ok(NAME, "all right"),
        Some(error) => check(NAME, Level::Fail, error.replace('\n', ";"))
            .because("no node starts with it; everything below is judged with the defaults")
            .fix("correct the file; `hyphae config check` tells when it is all right"),
    }
}

/// Major and minor number.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(host: &Readings) -> Check {
    const NAME: &str = "kernel";
    match version(&host.kernel) {
        None => unknown(NAME, "the version"),
        Some(at) if at < (5, 0) => check(NAME, Level::Fail, format!("Linux {}", host.kernel))
            .because("the kernel has to split and join UDP datagrams (UDP_SEGMENT, UDP_GRO), which came with 5.0")
            .fix("run a kernel of 6.1 or later"),
        Some(at) if at < (6, 1) => check(NAME, Level::Warn, format!("Linux {}", host.kernel))
            .because("the io_uring driver needs 6.1, so packets go through epoll, at more CPU each")
            .fix("run a kernel of 6.1 or later"),
        Some(_) => ok(NAME, format!("Linux {}", host.kernel)),
    }
}

fn io_uring(host: &Readings) -> Check {
    const NAME: &str = "io_uring";
    let disabled = match host.io_uring_disabled {
        Some(0) | None => "",
        Some(1) => " (kernel.io_uring_disabled is 1: only for the group of io_uring_group)",
        Some(_) => " (kernel.io_uring_disabled is 2: for nobody)",
    };
    let Some(why) = &host.io_uring else {
        return ok(NAME, "all that the driver uses works");
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
            "allow io_uring_setup, io_uring_enter and io_uring_register to the process (seccomp \
                   of a container), or set driver = \"epoll\""
        }
    };
    match level {
        Level::Ok => ok(NAME, format!("not used: driver is epoll ({why}{disabled})")),
        Level::Fail => found
            .because("driver = \"uring\" insists on it, so no node starts")
            .fix(fix),
        Level::Warn | Level::Unknown => found
            .because("packets go through epoll, at more CPU each")
            .fix(fix),
    }
}

fn capabilities(host: &Readings) -> Check {
    const NAME: &str = "capabilities";
    match host.capabilities {
        None => unknown(NAME, "/proc/self/status"),
        Some(_) if host.may(CAP_NET_ADMIN) => ok(NAME, "CAP_NET_ADMIN"),
        Some(_) if host.tun.is_none() => ok(NAME, "no CAP_NET_ADMIN, and no TUN device wanted"),
        Some(_) => check(NAME, Level::Warn, "no CAP_NET_ADMIN")
            .because(
                "without it there is no TUN device: `hyphae up` starts as a relay that does not carry this \
                 host's own traffic",
            )
            .fix(
                "run as root or by systemd, `setcap cap_net_admin+ep` on the binary, or say that it is meant: \
                 --no-tun",
            ),
    }
}

fn tun(host: &Readings) -> Check {
    const NAME: &str = "TUN device";
    match &host.tun {
        None => ok(NAME, "none wanted"),
        Some(Place::Free) => ok(NAME, "can be made"),
        Some(Place::Ours) => ok(NAME, "there, of the running node"),
        Some(Place::Broken(problem)) => check(NAME, Level::Fail, problem.clone())
            .because("this host's own traffic goes through it")
            .fix("undo what is said above; the node repairs what it may by itself, and goes on by itself"),
        Some(Place::Refused(why)) => {
            let level = if host.may(CAP_NET_ADMIN) {
                Level::Fail
            } else {
                Level::Warn
            };
            check(NAME, level, why.clone())
                .because("this host's own traffic goes through it")
                .fix(
                    "no such file: `modprobe tun`; permission denied: `chmod 666 /dev/net/tun`; not permitted: pass \
                     the device to the container (--device /dev/net/tun) or unit (DeviceAllow=); there already: \
                     another name in tun.name; or --no-tun",
                )
        }
    }
}

fn cores(host: &Readings) -> Check {
    const NAME: &str = "workers";
    match &host.workers {
        None => unknown(NAME, "the list of cores"),
        Some(Ok(_)) if !host.shared_cores.is_empty() => {
            let cores: Vec<_> = host.shared_cores.iter().map(ToString::to_string).collect();
            let found = format!(
                "other processes have threads pinned to core {}, too",
                cores.join(", ")
            );
            check(NAME, Level::Warn, found)
                .because("a worker that is pinned to a core that others do not leave waits for it, while other cores idle")
                .fix(
                    "restart the node: with cores = \"auto\" it keeps off cores that are taken; or give each node cores of \
                     its own, or \"any:N\"",
                )
        }
        Some(Ok(workers)) => ok(NAME, format!("{workers}")),
        Some(Err(why)) => check(NAME, Level::Fail, why.clone())
            .because("each worker is pinned to a core that it has to have")
            .fix("set `cores` to cores that there are, \"auto\", or \"any:N\""),
    }
}

fn worker_count(host: &Readings) -> u64 {
    match &host.workers {
        Some(Ok(workers)) => *workers as u64,
        Some(Err(_)) | None => 1,
    }
}

fn locked_memory(host: &Readings) -> Check {
    const NAME: &str = "locked memory";
    let wanted = LOCKED_PER_WORKER * worker_count(host);
    match host.memlock {
        None => ok(NAME, "no limit"),
        Some(limit) if limit >= wanted || host.may(CAP_IPC_LOCK) => ok(
            NAME,
            format!("limit {}, {} wanted", bytes(limit), bytes(wanted)),
        ),
        Some(limit) => {
            let found = format!(
                "RLIMIT_MEMLOCK is {}, {} wanted",
                bytes(limit),
                bytes(wanted)
            );
            check(NAME, Level::Warn, found)
                .because("session keys on their way to the workers could be written to swap")
                .fix(format!(
                    "LimitMEMLOCK={wanted} in the unit, or `ulimit -l {}`",
                    wanted >> 10
                ))
        }
    }
}

fn files(host: &Readings) -> Check {
    const NAME: &str = "open files";
    match host.files {
        None => ok(NAME, "no limit"),
        Some(limit) if limit >= FILES => ok(NAME, format!("limit {limit}")),
        Some(limit) => check(NAME, Level::Warn, format!("RLIMIT_NOFILE is {limit}"))
            .because("each TCP link and each client of RPC or a socket proxy needs one")
            .fix(format!(
                "LimitNOFILE={FILES} in the unit, or `ulimit -n {FILES}`"
            )),
    }
}

fn buffers(host: &Readings) -> Check {
    const NAME: &str = "socket buffers";
    if host.may(CAP_NET_ADMIN) {
        return ok(
            NAME,
            "as large as wanted: CAP_NET_ADMIN goes above the limits",
        );
    }
    let (Some(receive), Some(transmit)) = (host.receive_bytes_max, host.transmit_bytes_max) else {
        return unknown(NAME, "net.core.rmem_max");
    };
    let mut low = Vec::new();
    for (name, limit, wanted) in [
        ("net.core.rmem_max", receive, host.receive_bytes_wanted),
        ("net.core.wmem_max", transmit, host.transmit_bytes_wanted),
    ] {
        if limit < wanted {
            low.push((name, limit, wanted));
        }
    }
    if low.is_empty() {
        return ok(
            NAME,
            format!("receive {}, send {}", bytes(receive), bytes(transmit)),
        );
    }
    let found: Vec<_> = low
        .iter()
        .map(|(name, limit, wanted)| {
            format!("{name} is {}, {} wanted", bytes(*limit), bytes(*wanted))
        })
        .collect();
    let fix: Vec<_> = low
        .iter()
        .map(|(name, _, wanted)| format!("sysctl -w {name}={wanted}"))
        .collect();
    check(NAME, Level::Warn, found.join(", "))
        .because("bursts that the buffer does not hold are dropped by the kernel (socket_overruns counts them)")
        .fix(format!("{} (and in /etc/sysctl.d)", fix.join("; ")))
}

fn ports(host: &Readings) -> Check {
    const NAME: &str = "ports";
    let refused = |(name, place): &(String, Place)| match place {
        Place::Refused(why) => Some(format!("{name}: {why}")),
        Place::Free | Place::Ours | Place::Broken(_) => None,
    };
    let refused: Vec<_> = host.ports.iter().filter_map(refused).collect();
    if !refused.is_empty() {
        return check(NAME, Level::Fail, refused.join(", "))
            .because("each worker needs its UDP port, and TCP links come in on the first number")
            .fix("stop what has them (`ss -lntup` names it), or set another `listen`");
    }
    let names: Vec<_> = host.ports.iter().map(|(name, _)| name.as_str()).collect();
    match host.ports.iter().any(|(_, place)| *place == Place::Ours) {
        true => ok(
            NAME,
            format!("{}: the running node has them", names.join(", ")),
        ),
        false if names.is_empty() => ok(NAME, "any"),
        false => ok(NAME, format!("{}: free", names.join(", "))),
    }
}

fn ipv6(host: &Readings) -> Check {
    const NAME: &str = "IPv6";
    match host.ipv6_disabled {
        None => unknown(NAME, "net.ipv6.conf.default.disable_ipv6"),
        Some(false) => ok(NAME, "on"),
        Some(true) => {
            let level = if host.tun.is_some() {
                Level::Fail
            } else {
                Level::Warn
            };
            check(NAME, level, "switched off on this host")
                .because("the overlay is IPv6: the TUN device gets no address, and neighbours are not found")
                .fix("sysctl -w net.ipv6.conf.all.disable_ipv6=0, without ipv6.disable=1 on the kernel's line; a node that \
                      may write there (no ProtectKernelTunables=) switches it on for its own device")
        }
    }
}

/// The kernel has no such filter for IPv6; firewalld brings one.
fn reverse_path(host: &Readings) -> Check {
    const NAME: &str = "reverse path";
    match host.ipv6_rpfilter.as_deref() {
        Some(value @ ("yes" | "true" | "strict")) if host.reaches => {
            check(NAME, Level::Warn, format!("firewalld has IPv6_rpfilter={value}"))
                .because(
                    "routing.reach leads answers to the addresses of peers into the overlay as this filter sees it, so \
                     it drops what they send from addresses within those prefixes",
                )
                .fix("IPv6_rpfilter=loose in /etc/firewalld/firewalld.conf, then `firewall-cmd --complete-reload`")
        }
        Some(value) => ok(NAME, format!("firewalld has IPv6_rpfilter={value}")),
        None => ok(NAME, "no filter for IPv6 (firewalld does not run)"),
    }
}

/// Bytes of the largest packet of the underlay.
fn mtu_wanted(mtu: u16) -> u32 {
    let overhead = u32::try_from(OVERHEAD).unwrap_or(u32::MAX);
    u32::from(mtu) + overhead + UNDERLAY_HEADERS
}

fn mtu(host: &Readings) -> Check {
    const NAME: &str = "link MTU";
    let wanted = mtu_wanted(host.mtu);
    let names = |small: bool| -> Vec<String> {
        let links = host
            .links
            .iter()
            .filter(|link| (link.mtu < wanted) == small);
        links
            .map(|link| format!("{} {}", link.name, link.mtu))
            .collect()
    };
    let small = names(true);
    if host.links.is_empty() {
        return check(NAME, Level::Unknown, "no link of the underlay is up");
    }
    if small.is_empty() {
        return ok(
            NAME,
            format!("{} (at least {wanted} wanted)", names(false).join(", ")),
        );
    }
    check(NAME, Level::Warn, format!("{}, at least {wanted} wanted", small.join(", ")))
        .because("full packets of the overlay go in two parts over such a link, at twice the work")
        .fix("raise the MTU where the link can carry more; a tunnel or PPPoE often cannot, and all works as it is")
}

fn clock(host: &Readings) -> Check {
    const NAME: &str = "clock";
    match host.clock_synchronised {
        None => unknown(NAME, "adjtimex"),
        Some(true) => ok(NAME, "synchronised"),
        Some(false) => check(NAME, Level::Warn, "nothing synchronises it")
            .because(
                "time since start decides about sessions and routes, so the node runs; but announcements of a \
                 node that starts with its clock set back are first taken for old ones, and times in logs mislead",
            )
            .fix("run chrony or systemd-timesyncd"),
    }
}

fn state(host: &Readings) -> Check {
    const NAME: &str = "state directory";
    let at = &host.state;
    let path = at.path.display();
    if !at.writable {
        return check(
            NAME,
            Level::Fail,
            format!("{path} cannot be written or made by user {}", host.user),
        )
        .because("the key, what is set at run time and messages that wait are kept there")
        .fix(format!(
            "`chown {} {path}`, run as its owner, or --state-dir",
            host.user
        ));
    }
    if !at.exists {
        return ok(NAME, format!("{path} will be made"));
    }
    if at.owner != host.user && host.user != 0 {
        return check(
            NAME,
            Level::Fail,
            format!("{path} belongs to user {}", at.owner),
        )
        .because("a node uses only a directory of its own")
        .fix(format!(
            "`chown {} {path}`, run as user {}, or --state-dir",
            host.user, at.owner
        ));
    }
    if at.mode & 0o022 != 0 {
        return check(
            NAME,
            Level::Fail,
            format!("{path} may be written by others (mode {:04o})", at.mode),
        )
        .because("whoever can write there can replace the node's key")
        .fix(format!("`chmod go-w {path}`"));
    }
    match at.key_mode {
        Some(mode) if mode & 0o027 != 0 => {
            let found = format!("the key file may be used by others (mode {mode:04o})");
            check(NAME, Level::Fail, found)
                .because("whoever reads it can be this node; no node starts with it")
                .fix(format!(
                    "`chmod 600 {path}/{}`",
                    hyphae_controlplane::state::KEY_FILE
                ))
        }
        Some(_) => ok(NAME, format!("{path}")),
        None => ok(
            NAME,
            format!("{path}, no key yet: the first start makes one"),
        ),
    }
}

fn disk(host: &Readings) -> Check {
    const NAME: &str = "free disk";
    let Some(free) = host.state.free_bytes else {
        return unknown(NAME, "the file system");
    };
    let full = |found: String, level| {
        check(NAME, level, found)
            .because("what is set at run time is refused, and senders of messages wait, when there is no room")
            .fix("make room, lower inbox.bytes_max, or --state-dir on another file system")
    };
    if host.state.free_files == Some(0) {
        return full("no inodes are free".to_owned(), Level::Fail);
    }
    if free < FREE_MIN {
        return full(format!("{} are free", bytes(free)), Level::Fail);
    }
    let wanted = host
        .inbox_bytes_max
        .unwrap_or(0)
        .saturating_add(FREE_BESIDE);
    if free < wanted {
        let found = format!(
            "{} are free, a full inbox takes {}",
            bytes(free),
            bytes(wanted)
        );
        return full(found, Level::Warn);
    }
    ok(NAME, format!("{} are free", bytes(free)))
}

fn peers(host: &Readings) -> Check {
    const NAME: &str = "peers";
    let bad = |(peer, found): &(String, Result<usize, String>)| match found {
        Ok(0) => Some(format!("{peer}: no address")),
        Ok(_) => None,
        Err(why) => Some(format!("{peer}: {why}")),
    };
    let bad: Vec<_> = host.peers.iter().filter_map(bad).collect();
    match (bad.len(), host.peers.len()) {
        (_, 0) => ok(NAME, "none in the configuration"),
        (0, all) => ok(NAME, format!("{all}, and all names resolve")),
        (some, all) => {
            let level = if some == all {
                Level::Fail
            } else {
                Level::Warn
            };
            check(NAME, level, bad.join(", "))
                .because("a peer without an address is not dialled; its name is tried again within half a minute")
                .fix("correct the name in `peers`, or the resolver (/etc/resolv.conf)")
        }
    }
}

/// What authenticates callers over TCP, and what it cannot tell apart.
fn rpc_callers(host: &Readings) -> Check {
    const NAME: &str = "RPC callers over TCP";
    if host.rpc.is_empty() {
        return ok(NAME, "none: it is off");
    }
    let places: Vec<_> = host.rpc.iter().map(ToString::to_string).collect();
    let token = if host.rpc_token { ", or the token" } else { "" };
    let found = format!(
        "{}: by their user{token}. Root in a container on this host's network counts as root, and so does \
         whoever a proxy passes on that runs as root; `--rpc off` leaves rpc.sock only",
        places.join(", ")
    );
    ok(NAME, found)
}

/// What is neither good nor bad by itself.
fn informational(host: &Readings) -> Vec<Check> {
    let mut checks = vec![rpc_callers(host)];
    if !host.governors.is_empty() {
        let governors: Vec<_> = host.governors.iter().map(String::as_str).collect();
        let note = match governors.as_slice() {
            ["performance"] => "",
            _ => ": `cpupower frequency-set -g performance` gives steadier latency",
        };
        checks.push(ok(
            "CPU governor",
            format!("{}{note}", governors.join(", ")),
        ));
    }
    if let Some(polled) = host.idle_polled {
        let note = match polled {
            0 => {
                ": waking an idle core may take the hypervisor tens of microseconds; where latency counts \
                  more than idle power, `echo 200000 > /sys/module/haltpoll/parameters/guest_halt_poll_ns`"
            }
            _ => "",
        };
        let found = format!("a virtual core polls for {polled} ns before it halts{note}");
        checks.push(ok("idle cores", found));
    }
    let isolated = host.isolated.as_deref().unwrap_or_default();
    let found = match isolated {
        "" => "none; workers share their cores with other programs".to_owned(),
        cores => format!("{cores}; give them to the workers with `cores`"),
    };
    checks.push(ok("isolated cores", found));
    if let Some(pages) = &host.huge_pages {
        let chosen = pages.split(['[', ']']).nth(1).unwrap_or(pages);
        checks.push(ok(
            "huge pages",
            format!("{chosen}; packet buffers do not ask for them"),
        ));
    }
    checks
}

//! State of the host. Reading it changes nothing, except that ports are bound for a moment.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hyphae_config::Config;
use hyphae_dataplane::{Cores, DriverKind, SocketOptions, clock, probe, taken_besides};
use hyphae_rpc::Client;
use hyphae_rpc::method::Status;
use hyphae_store::files::KEY_FILE;
use rustix::fs::Access;
use rustix::process::{Resource, geteuid, getrlimit};
use rustix::thread::CapabilitySet;

use crate::cli::NodeArgs;

/// Time limit of name resolution.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Availability of a port or device that the node needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Availability {
    /// Available.
    Free,
    /// In use by the running node of these directories.
    Ours,
    /// Not available, with the cause.
    Refused(String),
    /// In use by the running node, and defective.
    Broken(String),
}

/// A network device of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mtu: u32,
}

/// The state directory; if it does not exist, its nearest ancestor that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateDirectory {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
    /// Whether this user may write to or create it.
    pub(super) writable: bool,
    pub(super) owner: u32,
    pub(super) mode: u32,
    pub(super) free_bytes: Option<u64>,
    pub(super) free_files: Option<u64>,
    /// Permissions of the key file, if it exists and is visible.
    pub(super) key_mode: Option<u32>,
}

/// Facts about the host. `None`: not readable, unless noted otherwise.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Why the configuration was refused.
    pub(super) configuration: Option<String>,
    pub(super) user: u32,
    /// Effective capabilities.
    pub(super) capabilities: Option<CapabilitySet>,
    pub(super) kernel: String,
    pub(super) driver: DriverKind,
    /// Why io_uring is not usable; `None` when it is.
    pub(super) io_uring: Option<String>,
    /// `kernel.io_uring_disabled`.
    pub(super) io_uring_disabled: Option<u64>,
    /// Soft limit of locked memory, bytes; `None` for no limit.
    pub(super) memlock: Option<u64>,
    /// Hard limit of open files, to which a control plane raises its soft limit.
    pub(super) files: Option<u64>,
    /// Listeners of RPC over TCP, and whether a bearer token is configured.
    pub(super) rpc: Vec<SocketAddr>,
    pub(super) rpc_token: bool,
    pub(super) workers: Option<Result<usize, String>>,
    /// Cores of the running node's workers on which other processes have pinned threads.
    pub(super) shared_cores: Vec<usize>,
    pub(super) receive_bytes_max: Option<u64>,
    pub(super) transmit_bytes_max: Option<u64>,
    pub(super) receive_bytes_needed: u64,
    pub(super) transmit_bytes_needed: u64,
    /// `None` when no device is configured.
    pub(super) tun: Option<Availability>,
    /// UDP ports of the workers, then the TCP port.
    pub(super) ports: Vec<(String, Availability)>,
    pub(super) ipv6_disabled: Option<bool>,
    /// Whether routes to gateways are configured.
    pub(super) reaches: bool,
    /// `IPv6_rpfilter` of a running firewalld.
    pub(super) ipv6_rpfilter: Option<String>,
    /// MTU of the overlay, bytes.
    pub(super) mtu: u16,
    pub(super) links: Vec<Link>,
    pub(super) clock_synchronised: Option<bool>,
    pub(super) state: StateDirectory,
    pub(super) inbox_bytes_max: Option<u64>,
    /// Peers with their number of addresses, or the error of the resolver.
    pub(super) peers: Vec<(String, Result<usize, String>)>,
    pub(super) governors: BTreeSet<String>,
    /// Time that an idle virtual core polls before it halts, nanoseconds; with the haltpoll governor only.
    pub(super) idle_polled: Option<u64>,
    pub(super) isolated: Option<String>,
    pub(super) huge_pages: Option<String>,
}

/// Collects the facts for a node with these settings.
pub(super) fn collect(config: &Config, args: &NodeArgs) -> anyhow::Result<Facts> {
    let (state, sockets) = args.directory_paths()?;
    let running = Client::new(sockets.join("rpc.sock"))
        .with_timeout(Duration::from_secs(2))
        .node_status()
        .ok();
    let cores: Result<Cores, _> = config.cores.parse();
    let workers = match cores {
        Ok(cores) => cores.resolve().map(|cores| cores.len()),
        Err(error) => Err(error),
    };
    let workers = workers.map_err(|error| error.to_string());
    let needed = SocketOptions::default();
    Ok(Facts {
        configuration: None,
        user: geteuid().as_raw(),
        capabilities: rustix::thread::capabilities(None)
            .ok()
            .map(|sets| sets.effective),
        kernel: read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default(),
        driver: config.driver.parse().unwrap_or_default(),
        io_uring: probe().err().map(|error| error.to_string()),
        io_uring_disabled: read_number("/proc/sys/kernel/io_uring_disabled"),
        memlock: getrlimit(Resource::Memlock).current,
        files: getrlimit(Resource::Nofile).maximum,
        rpc: [config.rpc, config.rest].into_iter().flatten().collect(),
        rpc_token: config.rpc_token.is_some(),
        receive_bytes_max: read_number("/proc/sys/net/core/rmem_max"),
        transmit_bytes_max: read_number("/proc/sys/net/core/wmem_max"),
        receive_bytes_needed: needed.receive_bytes as u64,
        transmit_bytes_needed: needed.send_bytes as u64,
        tun: config.tun.as_ref().map(|name| tun(name, running.as_ref())),
        ports: ports(config, *workers.as_ref().unwrap_or(&1), running.as_ref()),
        workers: Some(workers),
        shared_cores: shared_cores(running.as_ref()),
        // The value for new devices; writing to `all` sets it as well.
        ipv6_disabled: read_number("/proc/sys/net/ipv6/conf/default/disable_ipv6")
            .map(|value| value == 1)
            .or_else(|| (!Path::new("/proc/sys/net/ipv6").exists()).then_some(true)),
        reaches: !config.routing.reach.is_empty(),
        ipv6_rpfilter: ipv6_rpfilter(),
        mtu: config.mtu,
        links: links(config.tun.as_deref()),
        clock_synchronised: clock::is_synchronised().ok(),
        state: state_directory(state),
        inbox_bytes_max: config
            .inbox
            .durable
            .then_some(config.inbox.bytes_max as u64),
        peers: peers(config),
        governors: governors(),
        idle_polled: idle_polled(),
        isolated: read_trimmed("/sys/devices/system/cpu/isolated"),
        huge_pages: read_trimmed("/sys/kernel/mm/transparent_hugepage/enabled"),
    })
}

fn read_trimmed(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn read_number(path: &str) -> Option<u64> {
    read_trimmed(path)?.parse().ok()
}

/// Reverse-path filter of firewalld for IPv6; `None` when firewalld does not run.
fn ipv6_rpfilter() -> Option<String> {
    let pid = read_number("/run/firewalld.pid")?;
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return None;
    }
    let file = fs::read_to_string("/etc/firewalld/firewalld.conf").unwrap_or_default();
    let given = file
        .lines()
        .find_map(|line| line.trim().strip_prefix("IPv6_rpfilter="));
    Some(given.unwrap_or("yes").trim().to_ascii_lowercase())
}

fn shared_cores(running: Option<&Status>) -> Vec<usize> {
    let Some(plane) = running.and_then(|status| status.dataplane.as_ref()) else {
        return Vec::new();
    };
    let taken = taken_besides(&[plane.pid]).unwrap_or_default();
    let ours = plane.workers.iter().filter_map(|worker| worker.core);
    ours.map(usize::from)
        .filter(|core| taken.contains(core))
        .collect()
}

fn tun(name: &str, running: Option<&Status>) -> Availability {
    let ours = running.and_then(|status| status.dataplane.as_ref()?.tun.as_deref());
    if ours == Some(name) {
        let problem = running.and_then(|status| status.host_problem.clone());
        return problem.map_or(Availability::Ours, Availability::Broken);
    }
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    match opened {
        Err(error) => Availability::Refused(format!("/dev/net/tun: {error}")),
        Ok(_) if Path::new("/sys/class/net").join(name).exists() => {
            Availability::Refused(format!("a device {name} exists already"))
        }
        Ok(_) => Availability::Free,
    }
}

fn ports(config: &Config, workers: usize, running: Option<&Status>) -> Vec<(String, Availability)> {
    let ours: Vec<u16> = running
        .and_then(|status| status.dataplane.as_ref())
        .map(|plane| plane.workers.iter().map(|worker| worker.port).collect())
        .unwrap_or_default();
    let base = config.listen.port();
    let availability = |port: u16, bound: std::io::Result<()>| match bound {
        Ok(()) => Availability::Free,
        Err(_) if ours.contains(&port) => Availability::Ours,
        Err(error) => Availability::Refused(error.to_string()),
    };
    let mut all = Vec::new();
    if base == 0 {
        return all;
    }
    for worker in 0..u16::try_from(workers).unwrap_or(u16::MAX) {
        let Some(port) = base.checked_add(worker) else {
            let state = Availability::Refused("not a port number: `listen` is too high".to_owned());
            all.push((format!("UDP {base} + {worker}"), state));
            break;
        };
        let bound = UdpSocket::bind(SocketAddr::new(config.listen.ip(), port)).map(drop);
        all.push((format!("UDP {port}"), availability(port, bound)));
    }
    if config.stream.listen {
        let bound = TcpListener::bind(config.listen).map(drop);
        all.push((format!("TCP {base}"), availability(base, bound)));
    }
    all
}

/// Devices that are up, except loopback and the TUN device.
fn links(own: Option<&str>) -> Vec<Link> {
    let entries = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut links: Vec<_> = names
        .filter(|name| name != "lo" && Some(name.as_str()) != own)
        .filter(|name| {
            let state = read_trimmed(&format!("/sys/class/net/{name}/operstate"));
            state.is_some_and(|state| state == "up" || state == "unknown")
        })
        .filter_map(|name| {
            let mtu = read_number(&format!("/sys/class/net/{name}/mtu"))?;
            let mtu = u32::try_from(mtu).ok()?;
            Some(Link { name, mtu })
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

fn state_directory(path: PathBuf) -> StateDirectory {
    let found = fs::metadata(&path);
    // A missing directory is created in its nearest ancestor.
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let space = rustix::fs::statvfs(existing).ok();
    let hidden = found
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
    StateDirectory {
        exists: found.is_ok() || hidden,
        writable: rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK).is_ok()
            && !hidden,
        owner: found.as_ref().map_or(0, MetadataExt::uid),
        mode: found.as_ref().map_or(0, |found| found.mode() & 0o777),
        free_bytes: space
            .as_ref()
            .map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
        // File systems without a fixed number of inodes report 0 of 0.
        free_files: space
            .filter(|space| space.f_files > 0)
            .map(|space| space.f_favail),
        key_mode: fs::metadata(path.join(KEY_FILE))
            .ok()
            .map(|file| file.mode() & 0o777),
        path,
    }
}

fn peers(config: &Config) -> Vec<(String, Result<usize, String>)> {
    let (sender, results) = mpsc::channel();
    for (n, peer) in config.peers.iter().enumerate() {
        let (sender, place) = (sender.clone(), (peer.host.clone(), peer.port));
        std::thread::spawn(move || {
            let found = place.to_socket_addrs().map(Iterator::count);
            // The receiver may have timed out.
            let _ = sender.send((n, found.map_err(|error| error.to_string())));
        });
    }
    drop(sender);
    let late = || Err(format!("no answer within {} s", RESOLVE_TIMEOUT.as_secs()));
    let mut all: Vec<_> = config
        .peers
        .iter()
        .map(|peer| (peer.to_string(), late()))
        .collect();
    let deadline = std::time::Instant::now() + RESOLVE_TIMEOUT;
    while let Ok((n, found)) =
        results.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()))
    {
        all[n].1 = found;
    }
    all
}

fn governors() -> BTreeSet<String> {
    let cores = fs::read_dir("/sys/devices/system/cpu")
        .into_iter()
        .flatten()
        .flatten();
    let paths = cores.map(|core| core.path().join("cpufreq/scaling_governor"));
    paths
        .filter_map(|path| read_trimmed(path.to_str()?))
        .collect()
}

fn idle_polled() -> Option<u64> {
    let governor = read_trimmed("/sys/devices/system/cpu/cpuidle/current_governor")?;
    (governor == "haltpoll")
        .then(|| read_number("/sys/module/haltpoll/parameters/guest_halt_poll_ns"))?
}

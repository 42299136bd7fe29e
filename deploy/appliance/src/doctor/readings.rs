//! What a host is like. Nothing here judges, and nothing changes anything but for sockets that are
//! bound for a moment.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hyphae_config::Config;
use hyphae_controlplane::state::KEY_FILE;
use hyphae_dataplane::{Cores, DriverKind, SocketOptions, clock, probe, taken_besides};
use hyphae_rpc::Client;
use hyphae_rpc::method::Status;
use rustix::fs::Access;
use rustix::process::{Resource, geteuid, getrlimit};

use crate::cli::NodeArgs;

/// How long a name may take to resolve.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// A port, or the name of a device or file, that the node wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To be had.
    Free,
    /// The running node of these directories has it.
    Ours,
    /// Not to be had, and why.
    Refused(String),
    /// The running node has it, and it does not work.
    Broken(String),
}

/// A device of the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mtu: u32,
}

/// The state directory, or where it is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateDirectory {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
    /// Whether this user may write there, or make it.
    pub(super) writable: bool,
    pub(super) owner: u32,
    pub(super) mode: u32,
    pub(super) free_bytes: Option<u64>,
    pub(super) free_files: Option<u64>,
    /// Permissions of the key file, if it is there and may be looked at.
    pub(super) key_mode: Option<u32>,
}

/// What was found. `None`: it could not be looked at.
#[derive(Clone, Debug)]
pub(super) struct Readings {
    /// Why the configuration was refused.
    pub(super) configuration: Option<String>,
    pub(super) user: u32,
    /// Effective capabilities, by number.
    pub(super) capabilities: Option<u64>,
    pub(super) kernel: String,
    pub(super) driver: DriverKind,
    /// Why io_uring does not work.
    pub(super) io_uring: Option<String>,
    /// `kernel.io_uring_disabled`.
    pub(super) io_uring_disabled: Option<u64>,
    /// Soft limit; `None` for no limit.
    pub(super) memlock: Option<u64>,
    /// Hard limit, which a control plane makes its soft one.
    pub(super) files: Option<u64>,
    /// Where RPC is served over TCP, and whether a bearer token admits.
    pub(super) rpc: Vec<SocketAddr>,
    pub(super) rpc_token: bool,
    pub(super) workers: Option<Result<usize, String>>,
    /// Cores of the running node's workers to which other processes have pinned threads too.
    pub(super) shared_cores: Vec<usize>,
    pub(super) receive_bytes_max: Option<u64>,
    pub(super) transmit_bytes_max: Option<u64>,
    pub(super) receive_bytes_wanted: u64,
    pub(super) transmit_bytes_wanted: u64,
    /// `None` where no device is wanted.
    pub(super) tun: Option<Place>,
    /// UDP ports of the workers, then the TCP port.
    pub(super) ports: Vec<(String, Place)>,
    pub(super) ipv6_disabled: Option<bool>,
    /// Whether routes to gateways are wanted.
    pub(super) reaches: bool,
    /// `IPv6_rpfilter` of a firewalld that runs.
    pub(super) ipv6_rpfilter: Option<String>,
    /// Bytes of the largest packet of the overlay.
    pub(super) mtu: u16,
    pub(super) links: Vec<Link>,
    pub(super) clock_synchronised: Option<bool>,
    pub(super) state: StateDirectory,
    pub(super) inbox_bytes_max: Option<u64>,
    /// Peers with how many addresses they have, or why none.
    pub(super) peers: Vec<(String, Result<usize, String>)>,
    pub(super) governors: BTreeSet<String>,
    /// Where the guest's own governor decides: how long an idle core polls.
    pub(super) idle_polled: Option<u64>,
    pub(super) isolated: Option<String>,
    pub(super) huge_pages: Option<String>,
}

/// Looks at this host as a node with these settings would.
pub(super) fn take(config: &Config, args: &NodeArgs) -> anyhow::Result<Readings> {
    let (state, sockets) = args.places()?;
    let running = Client::new(sockets.join("rpc.sock"))
        .with_timeout(Duration::from_secs(2))
        .call::<Status>("node.status", serde_json::json!({}))
        .ok();
    let cores: Result<Cores, _> = config.cores.parse();
    let workers = match cores {
        Ok(cores) => cores.resolve().map(|cores| cores.len()),
        Err(error) => Err(error),
    };
    let workers = workers.map_err(|error| error.to_string());
    let wanted = SocketOptions::default();
    Ok(Readings {
        configuration: None,
        user: geteuid().as_raw(),
        capabilities: capabilities(),
        kernel: word("/proc/sys/kernel/osrelease").unwrap_or_default(),
        driver: config.driver.parse().unwrap_or_default(),
        io_uring: probe().err().map(|error| error.to_string()),
        io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
        memlock: getrlimit(Resource::Memlock).current,
        files: getrlimit(Resource::Nofile).maximum,
        rpc: [config.rpc, config.rest].into_iter().flatten().collect(),
        rpc_token: config.rpc_token.is_some(),
        receive_bytes_max: number("/proc/sys/net/core/rmem_max"),
        transmit_bytes_max: number("/proc/sys/net/core/wmem_max"),
        receive_bytes_wanted: wanted.receive_bytes as u64,
        transmit_bytes_wanted: wanted.send_bytes as u64,
        tun: config.tun.as_ref().map(|name| tun(name, running.as_ref())),
        ports: ports(config, *workers.as_ref().unwrap_or(&1), running.as_ref()),
        workers: Some(workers),
        shared_cores: shared_cores(running.as_ref()),
        // What a new device gets; writing to `all` changes it too.
        ipv6_disabled: number("/proc/sys/net/ipv6/conf/default/disable_ipv6")
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
        isolated: word("/sys/devices/system/cpu/isolated"),
        huge_pages: word("/sys/kernel/mm/transparent_hugepage/enabled"),
    })
}

fn word(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    word(path)?.parse().ok()
}

/// What firewalld checks of the sources of IPv6 packets; `None` where it does not run.
fn ipv6_rpfilter() -> Option<String> {
    let pid = number("/run/firewalld.pid")?;
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return None;
    }
    let file = fs::read_to_string("/etc/firewalld/firewalld.conf").unwrap_or_default();
    let given = file
        .lines()
        .find_map(|line| line.trim().strip_prefix("IPv6_rpfilter="));
    Some(given.unwrap_or("yes").trim().to_ascii_lowercase())
}

fn capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
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

fn tun(name: &str, running: Option<&Status>) -> Place {
    let ours = running.and_then(|status| status.dataplane.as_ref()?.tun.as_deref());
    if ours == Some(name) {
        let problem = running.and_then(|status| status.host_problem.clone());
        return problem.map_or(Place::Ours, Place::Broken);
    }
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    match opened {
        Err(error) => Place::Refused(format!("/dev/net/tun: {error}")),
        Ok(_) if Path::new("/sys/class/net").join(name).exists() => {
            Place::Refused(format!("there is a device {name} already"))
        }
        Ok(_) => Place::Free,
    }
}

fn ports(config: &Config, workers: usize, running: Option<&Status>) -> Vec<(String, Place)> {
    let ours: Vec<u16> = running
        .and_then(|status| status.dataplane.as_ref())
        .map(|plane| plane.workers.iter().map(|worker| worker.port).collect())
        .unwrap_or_default();
    let base = config.listen.port();
    let place = |port: u16, bound: std::io::Result<()>| match bound {
        Ok(()) => Place::Free,
        Err(_) if ours.contains(&port) => Place::Ours,
        Err(error) => Place::Refused(error.to_string()),
    };
    let mut all = Vec::new();
    if base == 0 {
        return all;
    }
    for worker in 0..u16::try_from(workers).unwrap_or(u16::MAX) {
        let Some(port) = base.checked_add(worker) else {
            let place = Place::Refused("there is no such port: `listen` is too high".to_owned());
            all.push((format!("UDP {base} + {worker}"), place));
            break;
        };
        let bound = UdpSocket::bind(SocketAddr::new(config.listen.ip(), port)).map(drop);
        all.push((format!("UDP {port}"), place(port, bound)));
    }
    if config.stream.listen {
        let bound = TcpListener::bind(config.listen).map(drop);
        all.push((format!("TCP {base}"), place(base, bound)));
    }
    all
}

/// Devices that are up, but loopback and the overlay's own.
fn links(own: Option<&str>) -> Vec<Link> {
    let entries = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut links: Vec<_> = names
        .filter(|name| name != "lo" && Some(name.as_str()) != own)
        .filter(|name| {
            let state = word(&format!("/sys/class/net/{name}/operstate"));
            state.is_some_and(|state| state == "up" || state == "unknown")
        })
        .filter_map(|name| {
            let mtu = number(&format!("/sys/class/net/{name}/mtu"))?;
            let mtu = u32::try_from(mtu).ok()?;
            Some(Link { name, mtu })
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

fn state_directory(path: PathBuf) -> StateDirectory {
    let found = fs::metadata(&path);
    // Where it has to be made, its nearest ancestor says what may be done.
    let place = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let room = rustix::fs::statvfs(place).ok();
    let hidden = found
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
    StateDirectory {
        exists: found.is_ok() || hidden,
        writable: rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK).is_ok() && !hidden,
        owner: found.as_ref().map_or(0, MetadataExt::uid),
        mode: found.as_ref().map_or(0, |found| found.mode() & 0o777),
        free_bytes: room
            .as_ref()
            .map(|room| room.f_bavail.saturating_mul(room.f_frsize)),
        // File systems without a table of inodes say 0 of 0.
        free_files: room
            .filter(|room| room.f_files > 0)
            .map(|room| room.f_favail),
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
            // Whoever waits may have had enough.
            let _ = sender.send((n, found.map_err(|error| error.to_string())));
        });
    }
    drop(sender);
    let late = || Err(format!("no answer within {} s", RESOLVE_WITHIN.as_secs()));
    let mut all: Vec<_> = config
        .peers
        .iter()
        .map(|peer| (peer.to_string(), late()))
        .collect();
    let deadline = std::time::Instant::now() + RESOLVE_WITHIN;
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
    paths.filter_map(|path| word(path.to_str()?)).collect()
}

fn idle_polled() -> Option<u64> {
    let governor = word("/sys/devices/system/cpu/cpuidle/current_governor")?;
    (governor == "haltpoll")
        .then(|| number("/sys/module/haltpoll/parameters/guest_halt_poll_ns"))?
}

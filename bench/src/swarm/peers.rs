//! Idle peers on one relay: join rate, and cost once the network is idle.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args as ClapArgs;
use hyphae_wire::PublicKey;
use serde::{Deserialize, Serialize};

use super::loopback::Swarm;
use super::place;
use super::relay::{Options, Relay};
use crate::output::{self, Table, number};
use crate::process::{Activity, Usage};
use hyphae_test_hostile::Target;
use hyphae_test_light::Spec;
use hyphae_time::monotonic;

/// Processes that the nodes are spread over.
const PROCESSES_MAX: usize = 4;
/// Time for a relay without peers to become idle.
const EMPTY: Duration = Duration::from_secs(3);
/// Limit for all nodes to join.
const JOIN_MAX: Duration = Duration::from_secs(600);
/// Maximum of `--peers`: the relay is configured for this number, which is below its limit.
const PEERS_MAX: usize = 12_000;
/// Measured scrapes.
const SCRAPES: usize = 51;
/// Limits of the memory per peer and of the CPU time of all.
const PEER_KIB_MAX: f64 = 16.0;
const CPU_PERCENT_MAX: f64 = 5.0;

/// What to measure.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    /// Numbers of peers, one row each.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    peers: Vec<usize>,
    /// Measured idle time, seconds.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Seconds between the last join and the measurement: routes are advertised, round-trip times measured.
    #[arg(long, default_value_t = 60.0)]
    settle: f64,
    /// Maximum number of peers with full route advertisements, whose cost is quadratic. With more, the relay advertises
    /// no routes, as a hub whose peers have a static route to it.
    #[arg(long, default_value_t = 1000)]
    tell_max: usize,
    /// Cores of the relay's workers, as `hyphae up --cores`.
    #[arg(long, default_value = "any:1")]
    cores: String,
}

/// A process of light nodes.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct SwarmArgs {
    /// Address of the relay.
    #[arg(long)]
    relay: SocketAddr,
    /// Its key.
    #[arg(long)]
    key: PublicKey,
    /// Number of nodes.
    #[arg(long)]
    nodes: usize,
    /// Number of the first node, which determines its address.
    #[arg(long)]
    first: usize,
}

/// One process of the relay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) resident_kib_before: u64,
    pub(crate) resident_kib_after: u64,
    pub(crate) anonymous_kib_before: u64,
    pub(crate) anonymous_kib_after: u64,
    pub(crate) kib_per_peer: f64,
    #[serde(flatten)]
    pub(crate) idle: Activity,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) peers: usize,
    /// From the start of the processes until every node has a link.
    pub(crate) join_seconds: f64,
    pub(crate) handshakes_per_second: f64,
    /// The relay advertised all routes to all peers.
    #[serde(rename = "told", default = "default_advertised")]
    pub(crate) routes_advertised: bool,
    /// Of both processes, once all had joined.
    #[serde(default)]
    pub(crate) kib_per_peer_joined: f64,
    pub(crate) dataplane: Process,
    pub(crate) controlplane: Process,
    /// Of both processes.
    pub(crate) kib_per_peer: f64,
    pub(crate) cpu_percent: f64,
    pub(crate) wakeups_per_second: f64,
    /// Scrape of the metrics, without per-peer families.
    #[serde(default)]
    pub(crate) scrape: Scrapes,
    /// Scrape with per-peer families.
    #[serde(default)]
    pub(crate) scrape_each_peer: Scrapes,
    /// At most 16 KiB per peer and below 5 % of a core.
    pub(crate) within_limits: bool,
}

/// Rows written before the field existed.
fn default_advertised() -> bool {
    true
}

/// Durations of consecutive scrapes over loopback, from connect to the last byte.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Scrapes {
    pub(crate) bytes: usize,
    pub(crate) median_ms: f64,
    pub(crate) max_ms: f64,
}

impl Scrapes {
    fn of(relay: &Relay) -> anyhow::Result<Self> {
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..SCRAPES {
            let (took, len) = relay.scrape()?;
            times.push(took);
            bytes = len;
        }
        times.sort_unstable();
        let ms = |n: usize| times[n].as_secs_f64() * 1e3;
        Ok(Self {
            bytes,
            median_ms: ms(SCRAPES / 2),
            max_ms: ms(SCRAPES - 1),
        })
    }

    fn shown(&self) -> String {
        match self.bytes {
            0 => "–".to_owned(),
            _ => format!("{} ≤ {}", number(self.median_ms), number(self.max_ms)),
        }
    }
}

pub(crate) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(
        args.seconds > 0.0 && args.settle >= 0.0,
        "idling takes some time"
    );
    let mut rows = Vec::new();
    for peers in &args.peers {
        ensure!((1..=PEERS_MAX).contains(peers), "1 to {PEERS_MAX} peers");
        rows.push(row(args, *peers)?);
    }
    output::show("peers", &rows, &table(&rows), json)
}

fn row(args: &Args, peers: usize) -> anyhow::Result<Row> {
    eprintln!("{peers} peers: starting the relay");
    let routes_advertised = peers <= args.tell_max;
    let routing = match routes_advertised {
        true => "",
        false => "[routing]\nexport = [{ action = \"refuse\" }]\n",
    };
    let relay = Relay::start(&Options {
        peers_max: peers,
        cores: &args.cores,
        settings: routing,
        ..Options::default()
    })?;
    std::thread::sleep(EMPTY);
    let before = relay.usage()?;
    let began = Instant::now();
    let mut swarms = SwarmProcesses::start(relay.target, peers)?;
    swarms.wait()?;
    let join = began.elapsed().as_secs_f64();
    let joined = relay.usage()?;
    let up = relay.status()?.peers_up;
    ensure!(
        up == peers,
        "of {peers} nodes that have a link, the relay knows {up}"
    );
    eprintln!("{peers} peers: joined in {join:.2} s; settling");
    std::thread::sleep(Duration::from_secs_f64(args.settle));
    eprintln!("{peers} peers: idling");
    let start = relay.usage()?;
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    let end = relay.usage()?;
    let states = relay.peers()?;
    ensure!(
        states.get("alive") == Some(&peers),
        "peers were lost while idling: {states:?}"
    );
    let scrape = Scrapes::of(&relay)?;
    relay.show_peers(peers)?;
    let scrape_each_peer = Scrapes::of(&relay)?;
    drop(swarms);
    let process = |n: usize| Process {
        resident_kib_before: before[n].resident_kib,
        resident_kib_after: end[n].resident_kib,
        anonymous_kib_before: before[n].anonymous_kib,
        anonymous_kib_after: end[n].anonymous_kib,
        kib_per_peer: grown(&before[n], &end[n]) / peers as f64,
        idle: start[n].until(&end[n]),
    };
    let (dataplane, controlplane) = (process(0), process(1));
    let kib_per_peer = dataplane.kib_per_peer + controlplane.kib_per_peer;
    let cpu_percent = dataplane.idle.cpu_percent + controlplane.idle.cpu_percent;
    Ok(Row {
        peers,
        join_seconds: join,
        handshakes_per_second: peers as f64 / join,
        routes_advertised,
        kib_per_peer_joined: [0, 1]
            .map(|n| grown(&before[n], &joined[n]))
            .iter()
            .sum::<f64>()
            / peers as f64,
        kib_per_peer,
        cpu_percent,
        scrape,
        scrape_each_peer,
        wakeups_per_second: dataplane.idle.wakeups_per_second
            + controlplane.idle.wakeups_per_second,
        within_limits: kib_per_peer <= PEER_KIB_MAX && cpu_percent < CPU_PERCENT_MAX,
        dataplane,
        controlplane,
    })
}

fn grown(before: &Usage, after: &Usage) -> f64 {
    after.resident_kib as f64 - before.resident_kib as f64
}

/// Processes of light nodes; they end when dropped.
struct SwarmProcesses(Vec<Child>);

impl Drop for SwarmProcesses {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Fails if it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl SwarmProcesses {
    fn start(relay: Target, nodes: usize) -> anyhow::Result<Self> {
        let processes = PROCESSES_MAX.min(nodes);
        let mut swarms = Self(Vec::new());
        let mut first = 0;
        for n in 0..processes {
            let share = (nodes - first) / (processes - n);
            let child = Command::new(std::env::current_exe()?)
                .arg("swarm")
                .args(["--relay", &relay.at.to_string()])
                .args(["--key", &relay.key.to_string()])
                .args(["--nodes", &share.to_string()])
                .args(["--first", &first.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("starting light nodes")?;
            swarms.0.push(child);
            first += share;
        }
        Ok(swarms)
    }

    /// Waits until every process says that its nodes are up.
    fn wait(&mut self) -> anyhow::Result<()> {
        for child in &mut self.0 {
            let out = child.stdout.as_mut().context("standard output")?;
            let mut line = String::new();
            // At most one line, so nothing is lost with the reader.
            BufReader::new(out).read_line(&mut line)?;
            ensure!(line == "up\n", "light nodes did not connect; see above");
        }
        Ok(())
    }
}

/// The work of a swarm process.
pub(crate) fn swarm(args: &SwarmArgs) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        // Ends or fails when the parent process has ended.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    allow_sockets(args.nodes)?;
    let mut swarm = Swarm::new()?;
    for n in 0..args.nodes {
        swarm.add(&Spec {
            at: place(args.first + n),
            relay: args.relay,
            relay_key: args.key,
            learns: false,
            rekey_after: None,
        })?;
    }
    let give_up = monotonic() + JOIN_MAX;
    while swarm.up(args.key) < args.nodes {
        if monotonic() > give_up {
            let up = swarm.up(args.key);
            bail!("{up} of {} nodes connected in {JOIN_MAX:?}", args.nodes);
        }
        swarm.run_until(monotonic() + Duration::from_millis(20))?;
    }
    writeln!(std::io::stdout(), "up")?;
    loop {
        swarm.run_until(monotonic() + Duration::from_secs(60))?;
    }
}

/// A socket per node, which is more than a process may have by default.
fn allow_sockets(nodes: usize) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = u64::try_from(nodes)? + 64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let current = Some(needed);
    setrlimit(Resource::Nofile, Rlimit { current, maximum })
        .with_context(|| format!("{needed} open files in one process; raise ulimit -n"))
}

/// All rows.
pub(crate) fn table(rows: &[Row]) -> Table {
    let columns = [
        "peers",
        "join s",
        "hs/s",
        "dataplane KiB",
        "control KiB",
        "KiB/peer joined",
        "KiB/peer",
        "CPU % dp+cp",
        "wakeups/s dp+cp",
        "scrape ms",
        "with each peer",
        "limits",
    ];
    Table::new(columns, rows, |row| {
        let kib = |p: &Process| format!("{} > {}", p.resident_kib_before, p.resident_kib_after);
        let (data, control) = (&row.dataplane.idle, &row.controlplane.idle);
        [
            match row.routes_advertised {
                true => row.peers.to_string(),
                false => format!("{}, no routes advertised", row.peers),
            },
            number(row.join_seconds),
            number(row.handshakes_per_second),
            kib(&row.dataplane),
            kib(&row.controlplane),
            match row.kib_per_peer_joined {
                0.0 => "–".to_owned(),
                joined => number(joined),
            },
            number(row.kib_per_peer),
            format!("{:.2} + {:.2}", data.cpu_percent, control.cpu_percent),
            format!(
                "{:.0} + {:.0}",
                data.wakeups_per_second, control.wakeups_per_second
            ),
            row.scrape.shown(),
            row.scrape_each_peer.shown(),
            if row.within_limits { "kept" } else { "missed" }.to_owned(),
        ]
    })
}

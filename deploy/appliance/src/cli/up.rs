//! Flags of a node, shared by `up` and the two planes, so that a supervisor can hand them on.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_config::{Config, ConfigError, Overrides, Problem, Settings};
use hyphae_controlplane::state::{self, StateError};
use hyphae_files::Directory;

use super::NodeRef;

/// Settings of a node; each overrides the configuration file only when given.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// Configuration file (TOML); deploy/default.toml documents every key [default: config.toml in the
    /// state directory, if it is there].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the key, messages that wait, and what was set at run time are kept [default:
    /// $HYPHAE_STATE_DIR, else /var/lib/hyphae as root, else $XDG_STATE_HOME/hyphae].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where sockets are made [default: $HYPHAE_SOCKET_DIR, else /run/hyphae as root, else
    /// $XDG_RUNTIME_DIR/hyphae].
    #[arg(long, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
    /// Underlay address of worker 0 [default: [::]:9670, which serves IPv4 too]. Worker 1 takes the
    /// next port, and so on; links over TCP are accepted on the port of worker 0.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Peer to keep connecting to; may be given several times. #KEY accepts only that key there.
    /// tcp:// uses TCP only; udp:// falls back to TCP where UDP does not pass.
    #[arg(long = "peer", value_name = "udp|tcp://HOST:PORT[#KEY]")]
    pub peers: Vec<PeerUrl>,
    /// Static route of an overlay prefix; may be given several times. It wins over routes that the
    /// routing protocol finds.
    #[arg(long = "route", value_name = "PREFIX=KEY|ADDRESS")]
    pub routes: Vec<RouteSpec>,
    /// Largest packet of the overlay, 1280 to 9000 bytes: what links carry, less 152 [default: 1340].
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Name of the TUN device [default: hyphae0].
    #[arg(long, value_name = "NAME", conflicts_with = "no_tun")]
    pub tun_name: Option<String>,
    /// Do not carry this host's own traffic.
    #[arg(long)]
    pub no_tun: bool,
    /// One worker per core: 'auto', a list such as 1-3,6, or 'any:N' for N unpinned [default:
    /// auto].
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Prometheus metrics over HTTP, or 'off' [default: 127.0.0.1:9469].
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub metrics: Option<String>,
    /// JSON-RPC over HTTP, or 'off' [default: 127.0.0.1:8990].
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub rpc: Option<String>,
    /// REST over HTTP, or 'off' [default: 127.0.0.1:8989; off with --rpc off].
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub rest: Option<String>,
    /// 'auto', 'uring' or 'epoll' [default: auto].
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// 'auto', 'chacha20-poly1305' or 'aes-256-gcm' [default: auto].
    #[arg(long, value_name = "SUITE")]
    pub suite: Option<String>,
    /// Private network: only nodes with the same name and key connect.
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Key file of the private network, made by `hyphae key network`.
    #[arg(long, value_name = "FILE")]
    pub network_key: Option<PathBuf>,
    /// Where to search for nodes on local networks: 'all', 'none', or interfaces such as eth0,eth1
    /// [default: all].
    #[arg(long, value_name = "all|none|IF,IF")]
    pub discovery: Option<String>,
    /// error, warn, info, debug or trace, or a filter by module [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// 'text' or 'json' [default: text].
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
}

impl NodeArgs {
    /// The flags as the configuration takes them.
    ///
    /// # Errors
    /// Never yet; values are checked where they are used.
    pub fn overrides(&self) -> anyhow::Result<Overrides> {
        Ok(Overrides {
            listen: self.listen.clone(),
            peers: self.peers.clone(),
            routes: self.routes.clone(),
            mtu: self.mtu,
            tun_name: self.tun_name.clone(),
            no_tun: self.no_tun,
            cores: self.cores.clone(),
            driver: self.driver.clone(),
            suite: self.suite.clone(),
            metrics: self.metrics.clone(),
            rpc: self.rpc.clone(),
            rest: self.rest.clone(),
            log_level: self.log_level.clone(),
            log_format: self.log_format.clone(),
            network: self.network.clone(),
            network_key: self.network_key.clone(),
            discovery: self.discovery.clone(),
        })
    }

    /// File and flags together, checked.
    ///
    /// # Errors
    /// With file and, for all that is wrong, line, key and cause.
    pub fn load(&self) -> anyhow::Result<Config> {
        Ok(self.settings()?.config()?)
    }

    /// The same, value by value.
    ///
    /// # Errors
    /// The same.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        read(self.file().as_deref(), &self.overrides()?).context("configuration")
    }

    /// The file that holds the settings, if there is one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        // Where nobody says where state is, planes say so themselves.
        let usual = || Some(self.node().state_directory().ok()?.join(state::CONFIG_FILE));
        let usual = || usual().filter(|path| path.exists());
        self.config.clone().or_else(usual)
    }

    fn node(&self) -> NodeRef {
        NodeRef {
            socket_dir: self.socket_dir.clone(),
            state_dir: self.state_dir.clone(),
        }
    }

    /// State and socket directory, made or not.
    ///
    /// # Errors
    /// When nobody says where state is.
    pub(crate) fn places(&self) -> Result<(PathBuf, PathBuf), StateError> {
        let node = self.node();
        Ok((node.state_directory()?, node.socket_directory()))
    }

    /// State and socket directory, made if needed.
    ///
    /// # Errors
    /// When either cannot be made, is another user's, or can be written or replaced by one.
    pub fn directories(&self) -> anyhow::Result<(Directory, Directory)> {
        let (state, sockets) = self.places()?;
        let state = state::prepare_directory(&state).context("--state-dir")?;
        let sockets = state::prepare_directory(&sockets).context("--socket-dir")?;
        Ok((state, sockets))
    }

    /// The command line of a plane that is to run with these settings.
    pub fn to_command_line(&self, plane: &str, tun: bool) -> Vec<String> {
        let mut line = vec![plane.to_owned()];
        let mut give = |flag: &str, value: String| line.extend([flag.to_owned(), value]);
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        for (flag, value) in [
            ("--config", self.config.as_ref().map(path)),
            ("--state-dir", self.state_dir.as_ref().map(path)),
            ("--socket-dir", self.socket_dir.as_ref().map(path)),
            ("--listen", self.listen.clone()),
            ("--mtu", self.mtu.map(|mtu| mtu.to_string())),
            ("--tun-name", self.tun_name.clone().filter(|_| tun)),
            ("--cores", self.cores.clone()),
            ("--metrics", self.metrics.clone()),
            ("--rpc", self.rpc.clone()),
            ("--rest", self.rest.clone()),
            ("--driver", self.driver.clone()),
            ("--suite", self.suite.clone()),
            ("--log-level", self.log_level.clone()),
            ("--log-format", self.log_format.clone()),
            ("--network", self.network.clone()),
            ("--network-key", self.network_key.as_ref().map(path)),
            ("--discovery", self.discovery.clone()),
        ] {
            if let Some(value) = value {
                give(flag, value);
            }
        }
        self.peers
            .iter()
            .for_each(|peer| give("--peer", peer.to_string()));
        self.routes
            .iter()
            .for_each(|route| give("--route", route.to_string()));
        if self.no_tun || !tun {
            line.push("--no-tun".to_owned());
        }
        line
    }
}

/// Reads a file and puts flags on top; what only the planes know how to read is checked too.
pub(crate) fn read(file: Option<&Path>, overrides: &Overrides) -> Result<Settings, ConfigError> {
    let settings = Settings::load(file, overrides)?;
    let problems = outside(&settings);
    match problems.is_empty() {
        true => Ok(settings),
        false => Err(ConfigError::Refused {
            path: file.map(Path::to_owned),
            problems,
        }),
    }
}

/// What is wrong with values that the control plane does not read itself.
pub(crate) fn outside(settings: &Settings) -> Vec<Problem> {
    let Ok(config) = settings.config() else {
        return Vec::new();
    };
    let cores = config.cores.parse::<hyphae_dataplane::Cores>().err();
    let driver = config.driver.parse::<hyphae_dataplane::DriverKind>().err();
    let level = crate::log::check_level(&config.log_level).err();
    let problem = |key: &str, message: String| Problem {
        line: None,
        key: key.to_owned(),
        message,
        suggestion: None,
    };
    [
        cores.map(|error| problem("cores", format!("{error} (flag --cores)"))),
        driver.map(|error| problem("driver", format!("{error} (flag --driver)"))),
        level.map(|message| problem("log_level", message)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

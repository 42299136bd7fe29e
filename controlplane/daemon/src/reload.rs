//! Settings change while the node runs: by `config.reload`, which SIGHUP calls too.
//!
//! All is read and checked first: the file with its flags, topics.toml and admin.toml. Only then is
//! anything changed, so a bad file changes nothing. What needs a restart is named and left as it is,
//! and is named again by every reload until the restart.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hyphae_overlay::Live;
use hyphae_routing::Via;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{ConfigChange, ReloadParams, ReloadResult};
use hyphae_rpc::parse_params;
use hyphae_time::Nanos;

use hyphae_wire::{Network, NetworkId};

use crate::node::Node;
use hyphae_config::endpoint::{PeerUrl, RouteSpec};
use hyphae_config::{Change, Config, ConfigError, Settings};
use hyphae_store::files::{self, ROUTES_FILE, RoutesFile};

type Read = dyn Fn() -> Result<Settings, ConfigError> + Send + Sync;
type SetLogLevel = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// What whoever starts a control plane gives it for reloads.
#[derive(Clone)]
pub struct Reloader {
    /// Reads the file again, with the flags that the node was started with.
    pub read: Arc<Read>,
    /// Changes the level of the log of this process.
    pub set_log_level: Arc<SetLogLevel>,
    /// Told when a signal asks for a reload.
    pub asked: Arc<tokio::sync::Notify>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reloader")
    }
}

/// Reloads since start, for metrics.
#[derive(Debug)]
pub(crate) struct Reloads {
    done: AtomicU64,
    refused: AtomicU64,
    last_unix: AtomicU64,
}

impl Reloads {
    /// The start counts as the first success of its kind, as what is in force is from then.
    pub(crate) fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            last_unix: AtomicU64::new(unix_seconds()),
        }
    }

    pub(crate) fn note(&self, done: bool) {
        if done {
            self.done.fetch_add(1, Ordering::Relaxed);
            self.last_unix.store(unix_seconds(), Ordering::Relaxed);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Done, refused, time of the last that was done.
    pub(crate) fn read(&self) -> (u64, u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.done), of(&self.refused), of(&self.last_unix))
    }
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The part of the settings that the overlay takes while it runs.
pub(crate) fn live(config: &Config, aes_hardware: bool) -> Live {
    Live {
        suites: config.suites(aes_hardware),
        rekey_after: config.session.rekey_after,
        keepalive: config.session.keepalive,
        dead_after: config.session.dead_after,
        lost_after: config.session.lost_after,
        retry_max: config.session.retry_max,
        peers_max: config.peering.peers_max,
        half_open_per_source_max: config.peering.handshakes_per_source_max,
        stream_fallback_after: config.stream.fallback_after,
        stream_upgrade_every: config.stream.upgrade_every,
    }
}

/// The error of a reload that is refused.
pub(crate) fn refused(error: impl fmt::Display) -> Error {
    let message = format!("not reloaded, all stays as it was: {error}");
    Error::new(code::CONFIG_REFUSED, message)
}

fn told(change: &Change) -> ConfigChange {
    ConfigChange {
        key: change.key.to_owned(),
        old: change.old.clone(),
        new: change.new.clone(),
    }
}

/// Number of the private network that a configuration is about.
pub(crate) fn network_id(config: &Config) -> Result<Option<NetworkId>, impl fmt::Display + use<>> {
    let Some(network) = &config.peering.network else {
        return Ok(None);
    };
    let key = hyphae_store::network_key::read(&network.key_file);
    key.map(|key| Some(Network::new(&network.name, &key).id()))
}

impl Node {
    /// `config.reload`, of what is this task's.
    pub(crate) fn rpc_reload(&mut self, now: Nanos, params: &str) -> Result<ReloadResult, Error> {
        let ReloadParams { dry_run } = parse_params(params)?;
        let new = (self.reloader.read)().map_err(refused)?;
        let settings = self.settings.with_live(&new);
        let config = settings.config().map_err(refused)?;
        self.check_routes(&config).map_err(refused)?;
        let (live, restart): (Vec<_>, Vec<_>) = self
            .settings
            .changes(&new)
            .into_iter()
            .partition(|change| change.live);
        let mut result = ReloadResult {
            dry_run,
            applied: live.iter().map(told).collect(),
            restart: restart.iter().map(told).collect(),
        };
        let network = network_id(&new.config().map_err(refused)?).map_err(refused)?;
        if network != self.network
            && restart
                .iter()
                .all(|change| !change.key.starts_with("network."))
        {
            result.restart.push(ConfigChange {
                key: "network.key_file".to_owned(),
                old: None,
                new: Some("another key in the same file".to_owned()),
            });
        }
        if !dry_run {
            self.apply(now, config);
            self.settings = settings;
        }
        Ok(result)
    }

    /// Static routes that could never carry anything are refused before anything changes.
    fn check_routes(&self, config: &Config) -> Result<(), String> {
        let mut trial = hyphae_routing::Rib::new(self.identity.public_key().address());
        config.routes.iter().try_for_each(|route| {
            let added = trial.add_static(route.route());
            added
                .map(|_| ())
                .map_err(|error| format!("route {route}: {error}"))
        })
    }

    fn apply(&mut self, now: Nanos, new: Config) {
        let old = std::mem::replace(&mut self.config, new);
        let new = self.config.clone();
        // Before the peers: whom it refuses is not dialled.
        if new.peering.policy != old.peering.policy {
            self.overlay.set_policy(now, new.peering.policy.clone());
        }
        self.overlay.set_live(&live(&new, self.aes_hardware));
        self.apply_peers(now, &old.peers, &new.peers);
        self.apply_routes(&old.routes, &new.routes);
        self.apply_routing(now, &old, &new);
        if new.log_level != old.log_level {
            self.apply_log_level(&new.log_level);
        }
        self.drain();
    }

    /// Peers of the file come and go; those added by RPC stay.
    fn apply_peers(&mut self, now: Nanos, old: &[PeerUrl], new: &[PeerUrl]) {
        for url in old.iter().filter(|url| !new.contains(url)) {
            let given = self.configured.iter().find(|(_, configured)| {
                configured.url == *url && !configured.stored && !configured.lan
            });
            if let Some(id) = given.map(|(id, _)| *id) {
                self.remove_peer(now, id);
            }
        }
        for url in new.iter().filter(|url| !old.contains(url)) {
            let mut all = self.configured.values();
            if !all.any(|configured| configured.url == *url && !configured.lan) {
                self.add_peer(now, url.clone(), false);
            }
        }
    }

    /// The same of static routes.
    fn apply_routes(&mut self, old: &[RouteSpec], new: &[RouteSpec]) {
        if old == new {
            return;
        }
        let file = files::read_toml::<RoutesFile>(&self.state_directory, ROUTES_FILE);
        let stored = match file {
            Ok(file) => file.routes,
            Err(error) => {
                tracing::warn!(%error, "routes of the file are kept, as some may be stored too");
                old.to_vec()
            }
        };
        let [before, after] = [old, new].map(|all| all.iter().collect::<BTreeSet<_>>());
        for route in old.iter().filter(|route| !after.contains(route)) {
            if !stored.contains(route) {
                let via: Via = route.route().via;
                self.rib.remove_static(route.prefix, Some(via));
            }
        }
        for route in new.iter().filter(|route| !before.contains(route)) {
            // Tried before.
            if let Err(error) = self.rib.add_static(route.route()) {
                tracing::error!(%error, %route, "route was not added");
            }
        }
    }

    fn apply_routing(&mut self, now: Nanos, old: &Config, new: &Config) {
        let (old, new) = (&old.routing, &new.routing);
        if old == new {
            return;
        }
        if let Some(routing) = &mut self.routing {
            let speaker = &mut routing.speaker;
            for prefix in old
                .announce
                .iter()
                .filter(|prefix| !new.announce.contains(prefix))
            {
                speaker.withdraw(now, *prefix);
            }
            for prefix in new
                .announce
                .iter()
                .filter(|prefix| !old.announce.contains(prefix))
            {
                speaker.announce(now, *prefix);
            }
            speaker.set_filters(now, new.import.clone(), new.export.clone());
            speaker.set_routes_max(now, new.routes_max);
        }
        if (&old.announce, &old.reach) == (&new.announce, &new.reach) {
            return;
        }
        self.rib.set_gateways(&new.announce, &new.reach);
        let prefixes = self.rib.routes().map(|route| route.prefix);
        let reached: BTreeSet<_> = prefixes.filter(|prefix| self.rib.uses(*prefix)).collect();
        if let Some(routes) = &self.host_routes {
            routes.reach_only(reached);
        }
    }

    fn apply_log_level(&self, level: &str) {
        // Checked when the file was read.
        if let Err(error) = (self.reloader.set_log_level)(level) {
            tracing::error!(error, "log level was not changed");
        }
        // The dataplane reads the level again when it is told to.
        let process = self
            .attachment
            .as_ref()
            .map(|attachment| attachment.hello.pid.get());
        let process = process.and_then(|pid| i32::try_from(pid).ok());
        let Some(process) = process.and_then(rustix::process::Pid::from_raw) else {
            return;
        };
        if let Err(error) = rustix::process::kill_process(process, rustix::process::Signal::HUP) {
            tracing::warn!(%error, "the dataplane keeps its log level");
        }
    }
}

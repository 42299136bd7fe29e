//! `config.reload`: the settings, and the state files that an operator may have edited.
//!
//! All files are read and checked before anything changes: the configuration with the flags, topics.toml, admin.toml.
//! An invalid file changes nothing. Settings that need a restart are reported by every reload until the restart.

use std::fmt::Display;
use std::sync::Arc;

use hyphae_bus::topics::Topics;
use hyphae_config::{Config, SettingChange, Settings};
use hyphae_rpc::message::Error;
use hyphae_rpc::method::{ConfigChange, ReloadParams, ReloadResult};
use hyphae_wire::{Network, NetworkId};

use crate::authorizer::Admins;
use crate::context::Dispatcher;
use crate::error::{internal, not_reloaded};
use crate::reloader::Configuration;
use crate::reply::{Outcome, value};
use hyphae_node::request::Request;
use hyphae_store::files::{ADMIN_FILE, TOPICS_FILE};
use hyphae_store::network_key;

/// Number of the private network of a configuration.
fn network_id(config: &Config) -> Result<Option<NetworkId>, impl Display + use<>> {
    let Some(network) = &config.peering.network else {
        return Ok(None);
    };
    let key = network_key::read(&network.key_file);
    key.map(|key| Some(Network::new(&network.name, &key).id()))
}

impl Dispatcher {
    pub(crate) async fn config_reload(&self, params: ReloadParams) -> Outcome {
        value(self.reload(params).await?)
    }

    /// Reloads at every request of the reloader. Does not return.
    pub async fn reload_when_asked(self: Arc<Self>) {
        let asked = Arc::clone(&self.configuration.lock().await.reloader.asked);
        loop {
            asked.notified().await;
            // The outcome is logged.
            let _ = self.reload(ReloadParams::default()).await;
        }
    }

    /// Reads all files again and applies all changes or none. Log and metrics show the result.
    ///
    /// # Errors
    /// When a file is refused; nothing has changed then.
    async fn reload(&self, params: ReloadParams) -> Result<ReloadResult, Error> {
        let result = self.reload_all(params).await;
        if params.dry_run {
            return result;
        }
        self.reloads.note(result.is_ok());
        match &result {
            Ok(result) => log(result),
            Err(error) => tracing::error!(%error, "configuration was not reloaded"),
        }
        result
    }

    /// Holds the guards of all state files that it reads.
    async fn reload_all(&self, params: ReloadParams) -> Result<ReloadResult, Error> {
        let ReloadParams { dry_run } = params;
        let topics = self.files.topics.reread().await.map_err(not_reloaded)?;
        let admins = self.files.admins.reread().await.map_err(not_reloaded)?;
        let mut configuration = self.configuration.lock().await;
        let read = Arc::clone(&configuration.reloader.read);
        let new = tokio::task::spawn_blocking(move || read()).await;
        let new = new.map_err(internal)?.map_err(not_reloaded)?;
        let settings = configuration.settings.with_live(&new);
        let config = settings.config().map_err(not_reloaded)?;
        for route in &config.routes {
            let checked = self.check_route(route);
            checked.map_err(|error| not_reloaded(format!("route {route}: {error}")))?;
        }
        let mut result = configuration.changes(&new, dry_run)?;
        if !dry_run {
            let _peers = self.files.peers.change().await;
            let old = configuration.settings.config().map_err(not_reloaded)?;
            // Routes in the state file stay, also those that an operator added to it.
            let file = self.files.routes.reread().await;
            let stored = match &file {
                Ok(file) => file.new.routes.clone(),
                Err(error) => {
                    tracing::warn!(%error, "routes of the configuration are kept, as some may be stored too");
                    old.routes.clone()
                }
            };
            let level = Some(config.log_level.clone()).filter(|level| *level != old.log_level);
            let apply = |reply| Request::Apply(Box::new(config), stored, reply);
            self.ask(apply).await?;
            // Checked when the file was read.
            if let Some(level) = level
                && let Err(error) = (configuration.reloader.set_log_level)(&level)
            {
                tracing::error!(error, "log level was not changed");
            }
            configuration.settings = settings;
        }
        let changed = topic_changes(topics.old(), &topics.new);
        let topics_changed = !changed.is_empty();
        result.applied.extend(changed);
        result
            .applied
            .extend(admin_changes(admins.old(), &admins.new));
        if !dry_run {
            admins.accept();
            if topics_changed {
                self.accept_topics(topics).await?;
            }
        }
        Ok(result)
    }
}

impl Configuration {
    /// Differences of new settings from those in force.
    fn changes(&self, new: &Settings, dry_run: bool) -> Result<ReloadResult, Error> {
        let changes = self.settings.changes(new).into_iter();
        let (live, restart): (Vec<_>, Vec<_>) = changes.partition(|change| change.live);
        let mut result = ReloadResult {
            dry_run,
            applied: live.iter().map(rendered).collect(),
            restart: restart.iter().map(rendered).collect(),
        };
        let network = network_id(&new.config().map_err(not_reloaded)?).map_err(not_reloaded)?;
        let named = |change: &SettingChange| change.key.starts_with("network.");
        if network != self.network && !restart.iter().any(named) {
            result.restart.push(ConfigChange {
                key: "network.key_file".to_owned(),
                old: None,
                new: Some("another key in the same file".to_owned()),
            });
        }
        Ok(result)
    }
}

fn rendered(change: &SettingChange) -> ConfigChange {
    ConfigChange {
        key: change.key.to_owned(),
        old: change.old.clone(),
        new: change.new.clone(),
    }
}

fn log(result: &ReloadResult) {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not set)".to_owned());
    for ConfigChange { key, old, new } in &result.applied {
        tracing::info!(key, old = shown(old), new = shown(new), "setting changed");
    }
    for ConfigChange { key, old, new } in &result.restart {
        let (old, new) = (shown(old), shown(new));
        tracing::warn!(
            key,
            old,
            new,
            "setting differs in the file; the node has to be restarted"
        );
    }
    let (changed, restart) = (result.applied.len(), result.restart.len());
    tracing::info!(changed, restart, "configuration reloaded");
}

fn change(key: String, old: Option<String>, new: Option<String>) -> Option<ConfigChange> {
    (old != new).then_some(ConfigChange { key, old, new })
}

fn topic_changes(old: &Topics, new: &Topics) -> Vec<ConfigChange> {
    let mut changes = Vec::new();
    let action = |topics: &Topics| Some(topics.default_action.accepts().to_string());
    let key = format!("{TOPICS_FILE}: accepts topics that are not listed");
    changes.extend(change(key, action(old), action(new)));
    let mut names: Vec<_> = old.topics.keys().chain(new.topics.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let shown = |topics: &Topics| {
            let config = topics.topics.get(name)?;
            serde_json::to_string(config).ok()
        };
        changes.extend(change(
            format!("{TOPICS_FILE}: {name}"),
            shown(old),
            shown(new),
        ));
    }
    changes
}

fn admin_changes(old: &Admins, new: &Admins) -> Option<ConfigChange> {
    let shown = |admins: &Admins| serde_json::to_string(admins).ok();
    change(ADMIN_FILE.to_owned(), shown(old), shown(new))
}

//! `config.reload`: the settings, which are the engine task's, and the state files that an operator
//! may have edited by hand.

use std::sync::Arc;

use hyphae_bus::topics::Topics;
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{ConfigChange, ReloadParams, ReloadResult};
use hyphae_rpc::parse_params;

use super::authorizer::Admins;
use super::dispatch::Dispatcher;
use super::methods::{Outcome, value};
use crate::reload::refused;
use hyphae_store::files::{ADMIN_FILE, TOPICS_FILE};

impl Dispatcher {
    /// Reads everything again and puts it in force, or refuses all of it. Log and metrics tell.
    pub(crate) async fn reload(self: &Arc<Self>, params: &str) -> Outcome {
        let ReloadParams { dry_run } = parse_params(params)?;
        let result = self.reload_all(params).await;
        if dry_run {
            return result.and_then(value);
        }
        self.reloads.note(result.is_ok());
        match &result {
            Ok(result) => log(result),
            Err(error) => tracing::error!(%error, "configuration was not reloaded"),
        }
        result.and_then(value)
    }

    async fn reload_all(self: &Arc<Self>, params: &str) -> Result<ReloadResult, Error> {
        let topics = self.topics.reread().await.map_err(refused)?;
        let admins = self.admins.reread().await.map_err(refused)?;
        let answer = self.ask_node("config.reload", params.to_owned()).await?;
        let mut result: ReloadResult = serde_json::from_str(answer.get())
            .map_err(|error| Error::new(code::INTERNAL, error.to_string()))?;
        let changed = topic_changes(topics.old(), &topics.new);
        let topics_changed = !changed.is_empty();
        result.applied.extend(changed);
        result
            .applied
            .extend(admin_changes(admins.old(), &admins.new));
        if !result.dry_run {
            admins.accept();
            if topics_changed {
                self.accept_topics(topics).await?;
            }
        }
        Ok(result)
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

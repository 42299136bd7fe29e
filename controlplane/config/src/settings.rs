//! Settings as they are written: one value for each key of the table, from file, flags and defaults.
//!
//! A file is read into these, all that is wrong with it is found, and [`Config`] is checked from them.
//! What `config show` prints and what a reload compares are these too, so both know every key.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::de::DeTable;
use toml::{Spanned, Table, Value};

use crate::config::Config;
use crate::error::{ConfigError, Problem};
use crate::keys::{self, KEYS_ALL, Key, Kind};
use crate::overrides::Overrides;
use crate::raw::Raw;

/// A value that is another one now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// Key.
    pub key: &'static str,
    /// Before, as TOML; `None` where it was not set.
    pub old: Option<String>,
    /// Now.
    pub new: Option<String>,
    /// Whether a reload is enough.
    pub live: bool,
}

impl std::fmt::Display for SettingChange {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "(not set)".to_owned());
        let (old, new) = (text(&self.old), text(&self.new));
        write!(out, "{}: {old} → {new}", self.key)
    }
}

/// Values by key. A key without a default may be absent; all others are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    values: BTreeMap<&'static str, Value>,
}

/// What a file says.
#[derive(Default)]
struct Written {
    values: BTreeMap<&'static str, Value>,
    lines: BTreeMap<&'static str, usize>,
    problems: Vec<Problem>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::complete(BTreeMap::new())
    }
}

impl Settings {
    /// Reads a file, if one is named, and puts flags on top.
    ///
    /// # Errors
    /// With all that is wrong: line, key, cause.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let text = match path {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?,
        };
        let (settings, problems) = Self::read(&text, path, overrides);
        if problems.is_empty() {
            return Ok(settings);
        }
        Err(ConfigError::Refused {
            path: path.map(Path::to_owned),
            problems,
        })
    }

    /// Reads the text of a file. What is wrong is left out of the settings.
    pub fn read(text: &str, path: Option<&Path>, overrides: &Overrides) -> (Self, Vec<Problem>) {
        let mut written = Written::parse(text);
        for key in ["network.key_file", "rpc.token_file"] {
            if let (Some(directory), Some(Value::String(file))) =
                (path.and_then(Path::parent), written.values.get_mut(key))
                && Path::new(file).is_relative()
            {
                *file = directory.join(&*file).to_string_lossy().into_owned();
            }
        }
        written.flags(overrides);
        let mut problems = written.problems;
        let mut values = written.values;
        // One cause at a time, until the rest is fine: a value that was refused counts as not given.
        while let Err(error) = Self::complete(values.clone()).config() {
            let (key, message) = match error {
                ConfigError::Value { key, message } => (key, message),
                other @ (ConfigError::Read { .. } | ConfigError::Refused { .. }) => {
                    ("", other.to_string())
                }
            };
            problems.push(Problem {
                line: written.lines.get(key).copied(),
                key: key.to_owned(),
                message,
                suggestion: None,
            });
            let section = key.split('.').next().unwrap_or_default();
            let before = values.len();
            if values.remove(key).is_none() {
                values.retain(|other, _| other.split('.').next() != Some(section));
            }
            if values.len() == before {
                break;
            }
        }
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        (Self::complete(values), problems)
    }

    /// Defaults for what is not given.
    fn complete(mut values: BTreeMap<&'static str, Value>) -> Self {
        // `listen = "off"` disables both unless the other one is set.
        let off = Value::from("off");
        if values.get("rpc.listen") == Some(&off) {
            values.entry("rpc.rest").or_insert(off);
        }
        for key in KEYS_ALL {
            if let Some(value) = default(key) {
                values.entry(key.path).or_insert(value);
            }
        }
        Self { values }
    }

    /// Checked.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let raw = raw(&self.values).map_err(|message| ConfigError::Value { key: "", message })?;
        Config::check(raw)
    }

    /// The value of a key as TOML.
    pub fn show(&self, key: &str) -> Option<String> {
        self.values.get(key).map(ToString::to_string)
    }

    /// What differs in `new`.
    pub fn changes(&self, new: &Self) -> Vec<SettingChange> {
        let differs = |key: &&Key| self.values.get(key.path) != new.values.get(key.path);
        let change = |key: &Key| SettingChange {
            key: key.path,
            old: self.show(key.path),
            new: new.show(key.path),
            live: key.live,
        };
        KEYS_ALL.iter().filter(differs).map(change).collect()
    }

    /// These, with what can change live taken from `new`.
    pub fn with_live(&self, new: &Self) -> Self {
        let mut values = self.values.clone();
        for key in KEYS_ALL.iter().filter(|key| key.live) {
            match new.values.get(key.path) {
                Some(value) => values.insert(key.path, value.clone()),
                None => values.remove(key.path),
            };
        }
        Self { values }
    }

    /// As a file: all keys, or only those that differ from the defaults.
    pub fn to_toml(&self, only_changed: bool) -> String {
        let defaults = Self::default();
        let mut text = String::new();
        for (section, _) in keys::SECTIONS {
            let mut lines = String::new();
            for key in KEYS_ALL.iter().filter(|key| key.section() == *section) {
                let value = self.values.get(key.path);
                let Some(value) = value
                    .filter(|value| !only_changed || defaults.values.get(key.path) != Some(*value))
                else {
                    continue;
                };
                let _ = writeln!(lines, "{} = {value}", key.name());
            }
            if lines.is_empty() {
                continue;
            }
            if !section.is_empty() {
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}[{section}]");
            }
            text.push_str(&lines);
        }
        text
    }

    /// The same as a JSON object, values by key.
    pub fn to_json(&self, only_changed: bool) -> serde_json::Value {
        let defaults = Self::default();
        let wanted = |(key, value): &(&&'static str, &Value)| {
            !only_changed || defaults.values.get(**key) != Some(*value)
        };
        let entry = |(key, value): (&&'static str, &Value)| {
            (
                (*key).to_owned(),
                serde_json::to_value(value).unwrap_or_default(),
            )
        };
        serde_json::Value::Object(self.values.iter().filter(wanted).map(entry).collect())
    }
}

impl Config {
    /// Reads a file, if one is named, and puts flags on top.
    ///
    /// # Errors
    /// With file, line, key and cause.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Settings::load(path, &overrides)?.config()
    }
}

/// The default of a key.
pub(crate) fn default(key: &Key) -> Option<Value> {
    let table: Table = format!("value = {}", key.default).parse().ok()?;
    table.get("value").cloned()
}

/// Values as the nested form that serde reads.
fn raw(values: &BTreeMap<&'static str, Value>) -> Result<Raw, String> {
    let mut table = Table::new();
    for (path, value) in values {
        match path.split_once('.') {
            None => {
                table.insert((*path).to_owned(), value.clone());
            }
            Some((section, name)) => {
                let section = table
                    .entry(section.to_owned())
                    .or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(section) = section {
                    section.insert(name.to_owned(), value.clone());
                }
            }
        }
    }
    Raw::deserialize(Value::Table(table)).map_err(|error| error.message().trim().to_owned())
}

impl Written {
    fn parse(text: &str) -> Self {
        let mut written = Self::default();
        let (spans, table) = match (DeTable::parse(text), text.parse::<Table>()) {
            (Ok(spans), Ok(table)) => (spans, table),
            (Err(error), _) | (_, Err(error)) => {
                // Nothing can be said of a file that is no TOML but where it ceases to be.
                written.problems.push(Problem {
                    line: error.span().map(|span| line_of(text, span.start)),
                    key: String::new(),
                    message: error.message().trim().replace('\n', ", "),
                    suggestion: None,
                });
                return written;
            }
        };
        for (name, value) in spans.get_ref() {
            let line = |spanned: &Spanned<_>| line_of(text, Spanned::span(spanned).start);
            let outer: &str = name.get_ref();
            let found = &table[outer];
            if let (Some(inner), Value::Table(values)) = (value.get_ref().as_table(), found)
                && keys::is_section(outer)
            {
                for (name, _) in inner {
                    let path = format!("{outer}.{}", name.get_ref());
                    written.take(
                        &path,
                        line_of(text, name.span().start),
                        &values[&**name.get_ref()],
                    );
                }
            } else if outer == "rpc" {
                written.take("rpc.listen", line(name), found);
            } else if let Value::Table(_) = found {
                written.problems.push(Problem {
                    line: Some(line(name)),
                    key: outer.to_owned(),
                    message: "there is no such section".to_owned(),
                    suggestion: keys::nearest_section(outer).map(|near| format!("[{near}]")),
                });
            } else {
                written.take(outer, line(name), found);
            }
        }
        written
    }

    /// Takes the value of a key, if it is one and of the right form.
    fn take(&mut self, path: &str, line: usize, value: &Value) {
        let mut problem = |key: &str, message: &str, suggestion: Option<String>| {
            self.problems.push(Problem {
                line: Some(line),
                key: key.to_owned(),
                message: message.to_owned(),
                suggestion,
            });
        };
        let Some(key) = keys::find(path) else {
            let message = if keys::is_section(path) {
                "is a section, not a key"
            } else {
                "there is no such key"
            };
            return problem(path, message, keys::nearest(path).map(str::to_owned));
        };
        let entries = value.as_array().into_iter().flatten().enumerate();
        let mut refused = false;
        for (n, entry) in entries {
            let names = entry.as_table().into_iter().flat_map(|table| table.keys());
            for name in names.filter(|name| !key.entries.contains(&name.as_str())) {
                let near = key
                    .entries
                    .iter()
                    .min_by_key(|known| keys::distance(name, known));
                let near = near.filter(|known| keys::distance(name, known) <= 2);
                let place = format!("{path}[{n}].{name}");
                problem(
                    &place,
                    "there is no such key",
                    near.map(|near| (*near).to_owned()),
                );
                refused = true;
            }
        }
        if refused {
            return;
        }
        if let Err(message) = raw(&BTreeMap::from([(key.path, value.clone())])) {
            let wanted = match key.kind {
                Kind::Text | Kind::Switch | Kind::Number | Kind::TextOrList => {
                    format!("is not {}: {message}", key.kind.name())
                }
                Kind::List => message,
            };
            return problem(path, &wanted, None);
        }
        self.values.insert(key.path, value.clone());
        self.lines.insert(key.path, line);
    }

    fn flags(&mut self, over: &Overrides) {
        let mut set = |key: &'static str, value: Value| {
            self.values.insert(key, value);
            self.lines.remove(key);
        };
        for (key, flag) in [
            ("listen", &over.listen),
            ("cores", &over.cores),
            ("driver", &over.driver),
            ("suite", &over.suite),
            ("metrics", &over.metrics),
            ("rpc.listen", &over.rpc),
            ("rpc.rest", &over.rest),
            ("log_level", &over.log_level),
            ("log.format", &over.log_format),
            ("tun.name", &over.tun_name),
            ("network.name", &over.network),
        ] {
            if let Some(value) = flag {
                set(key, Value::from(value.as_str()));
            }
        }
        if let Some(mtu) = over.mtu {
            set("mtu", Value::from(i64::from(mtu)));
        }
        if over.no_tun || over.tun_name.is_some() {
            set("tun.enabled", Value::from(!over.no_tun));
        }
        if let Some(file) = &over.network_key {
            set("network.key_file", Value::from(&*file.to_string_lossy()));
        }
        match over.discovery.as_deref() {
            None => {}
            Some(word @ ("all" | "none")) => set("discovery.mode", Value::from(word)),
            Some(list) => {
                let names: Vec<Value> = list.split(',').map(Value::from).collect();
                set("discovery.mode", Value::from(names));
            }
        }
        let mut add = |key: &'static str, more: Vec<String>| {
            let list = self
                .values
                .entry(key)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                for text in more.into_iter().map(Value::from) {
                    if !list.contains(&text) {
                        list.push(text);
                    }
                }
            }
        };
        if !over.peers.is_empty() {
            add(
                "peers",
                over.peers.iter().map(ToString::to_string).collect(),
            );
        }
        if !over.routes.is_empty() {
            add(
                "routes",
                over.routes.iter().map(ToString::to_string).collect(),
            );
        }
    }
}

/// Line of a byte, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text
        .as_bytes()
        .iter()
        .take(at)
        .filter(|byte| **byte == b'\n')
        .count()
}

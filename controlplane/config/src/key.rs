//! One setting, as the table describes it.

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// true or false.
    Switch,
    /// A whole number.
    Number,
    /// A list.
    List,
    /// A string, or a list of strings.
    TextOrList,
}

impl Kind {
    /// Its name, for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Switch => "true or false",
            Self::Number => "whole number",
            Self::List => "list",
            Self::TextOrList => "text or list",
        }
    }
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section and name, such as `session.keepalive_seconds`.
    pub path: &'static str,
    /// Type of its value.
    pub kind: Kind,
    /// Unit of a number; empty for none.
    pub unit: &'static str,
    /// Default as TOML; empty where there is none.
    pub default: &'static str,
    /// Example for a key without a default, as TOML.
    pub example: &'static str,
    /// Smallest and largest number.
    pub range: Option<(u64, u64)>,
    /// Allowed values if not a range of numbers; empty if the kind describes them.
    pub values: &'static str,
    /// Allowed keys of tables in the list; empty if it has no tables.
    pub entries: &'static [&'static str],
    /// Whether `hyphae reload` applies it; otherwise a restart is needed.
    pub live: bool,
    /// Description. A line that begins with two spaces is an example and is not wrapped.
    pub help: &'static str,
}

pub(crate) const fn key(
    path: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key {
        path,
        kind,
        unit: "",
        default,
        example: "",
        range: None,
        values: "",
        entries: &[],
        live: false,
        help,
    }
}

impl Key {
    pub(crate) const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    pub(crate) const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    pub(crate) const fn range(mut self, low: u64, high: u64) -> Self {
        self.range = Some((low, high));
        self
    }

    pub(crate) const fn values(mut self, values: &'static str) -> Self {
        self.values = values;
        self
    }

    pub(crate) const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    pub(crate) const fn entries(mut self, entries: &'static [&'static str]) -> Self {
        self.entries = entries;
        self
    }

    /// Name of its section; empty for a key outside of any.
    pub fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }

    /// Its name within the section.
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or(self.path, |(_, name)| name)
    }

    /// Allowed values, for messages.
    pub fn allowed(&self) -> String {
        match self.range {
            Some((low, high)) => format!("{low} to {high}"),
            None if self.values.is_empty() => self.kind.name().to_owned(),
            None => self.values.to_owned(),
        }
    }
}

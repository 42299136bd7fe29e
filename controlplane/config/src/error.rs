//! Errors of settings.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// File.
        path: PathBuf,
        /// How.
        source: std::io::Error,
    },
    /// The file, or a flag, is not what it should be.
    #[error("{}", refused(path.as_deref(), problems))]
    Refused {
        /// File, if one was read.
        path: Option<PathBuf>,
        /// All that was found.
        problems: Vec<Problem>,
    },
    /// A value out of range or of the wrong form.
    #[error("{key}: {message}")]
    Value {
        /// Key or flag.
        key: &'static str,
        /// Cause and way out.
        message: String,
    },
}

/// One line for one problem, a line each for several.
fn refused(path: Option<&Path>, problems: &[Problem]) -> String {
    let place = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
    match problems {
        [one] => format!("{place}{one}"),
        several => several.iter().fold(
            format!("{place}{} problems", several.len()),
            |text, problem| format!("{text}\n  {problem}"),
        ),
    }
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, from 1; `None` where it is not about one.
    pub line: Option<usize>,
    /// Key, as far as there is one.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub suggestion: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(out, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(out, "{}: ", self.key)?;
        }
        out.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(out, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}

/// A value that cannot be used.
pub(crate) fn value(key: &'static str, message: impl ToString) -> ConfigError {
    ConfigError::Value {
        key,
        message: message.to_string(),
    }
}

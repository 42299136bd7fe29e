//! Errors of an inbox.

use std::path::PathBuf;

/// The inbox cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum InboxError {
    /// The file cannot be read or written.
    #[error("inbox {path}: {source}{hint}")]
    Io {
        /// File.
        path: PathBuf,
        /// How.
        source: std::io::Error,
        /// Remedy.
        hint: &'static str,
    },
    /// Another process has it open.
    #[error(
        "inbox {0} is in use by another process: stop it, or name another state directory with --state-dir"
    )]
    InUse(PathBuf),
    /// Written by a version with another format.
    #[error(
        "inbox {path} has format {found}, this version reads {expected}: run the version that made it, or \
         move the file away to start with an empty inbox"
    )]
    Format {
        /// File.
        path: PathBuf,
        /// As read.
        found: u64,
        /// As written by this version.
        expected: u64,
    },
    /// The content is damaged.
    #[error("inbox {path} is damaged: {message}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// Damage.
        message: String,
    },
    /// The thread of the inbox has ended.
    #[error("the inbox has been closed")]
    Closed,
}

impl InboxError {
    /// A copy, for another caller of the same transaction.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Io { path, source, hint } => Self::Io {
                path: path.clone(),
                source: std::io::Error::new(source.kind(), source.to_string()),
                hint,
            },
            Self::InUse(path) => Self::InUse(path.clone()),
            Self::Format {
                path,
                found,
                expected,
            } => Self::Format {
                path: path.clone(),
                found: *found,
                expected: *expected,
            },
            Self::Damaged { path, message } => Self::Damaged {
                path: path.clone(),
                message: message.clone(),
            },
            Self::Closed => Self::Closed,
        }
    }
}

/// A message was not stored. Its sender gets no acknowledgement.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The limits of the inbox are reached.
    #[error("the inbox is full")]
    Full,
    /// It could not be written.
    #[error(transparent)]
    Failed(#[from] InboxError),
}

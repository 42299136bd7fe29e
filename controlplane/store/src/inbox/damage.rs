//! Errors of the store, and the handling of a damaged file.

#![allow(
    clippy::result_large_err,
    reason = "errors of the library, which stay inside the inbox and are rare"
)]

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

use hyphae_files::Directory;
use redb::{DatabaseError, Error, StorageError};

use super::error::InboxError;
use super::types::{INBOX_FILE, path_in};

/// Moves a damaged file away.
pub(super) fn move_aside(directory: &Directory) -> Result<PathBuf, InboxError> {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut number = unix.as_secs();
    let target = loop {
        let target = format!("{INBOX_FILE}.damaged-{number}");
        if !directory.contains(&target) {
            break target;
        }
        number += 1;
    };
    let renamed = directory.rename(INBOX_FILE, &target);
    renamed.map_err(|source| io_error(&path_in(directory), source))?;
    Ok(directory.path_of(&target))
}

thread_local! {
    /// Directory of the file that this thread has open.
    static IN_HAND: RefCell<Option<Directory>> = const { RefCell::new(None) };
}

/// Moves the file aside if this thread panics while this exists.
///
/// The library asserts properties that a damaged file violates, and in a release build a panic ends the process without
/// unwinding. The panic hook still runs: the next start does not fail on the same file, and the damaged one remains.
pub(super) struct InHand;

impl InHand {
    pub(super) fn take(directory: &Directory) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let hand = IN_HAND.with(|hand| hand.try_borrow_mut().ok()?.take());
                if let Some(directory) = hand.filter(|directory| directory.contains(INBOX_FILE)) {
                    match move_aside(&directory) {
                        Ok(moved) => tracing::error!(
                            inbox = %path_in(&directory).display(),
                            moved_to = %moved.display(),
                            "inbox is damaged; it is moved aside and kept, the next start makes a new one"
                        ),
                        Err(error) => tracing::error!(%error, "inbox is damaged: move it away"),
                    }
                }
                before(info);
            }));
        });
        IN_HAND.with(|hand| *hand.borrow_mut() = Some(directory.clone()));
        Self
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        IN_HAND.with(|hand| *hand.borrow_mut() = None);
    }
}

/// Error of opening; a file of another kind counts as damaged.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum of the library is open; what is not named here means what it says"
)]
pub(super) fn opening(error: DatabaseError) -> Error {
    match error {
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Error::Corrupted(error.to_string())
        }
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => {
            Error::Corrupted(error.to_string())
        }
        other => other.into(),
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> InboxError {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let kind = source.kind();
    let hint = if matches!(kind, StorageFull | QuotaExceeded | FileTooLarge) {
        "; make room on its disk"
    } else if matches!(kind, PermissionDenied | ReadOnlyFilesystem) {
        "; make it writable, or name another state directory with --state-dir"
    } else {
        ""
    };
    InboxError::Io {
        path: path.to_owned(),
        source,
        hint,
    }
}

/// Error of the store as an error of the inbox.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum of the library is open; whatever else there is means that the content is not as written"
)]
pub(super) fn explain(path: &Path, error: Error) -> InboxError {
    match error {
        Error::Io(source) => io_error(path, source),
        Error::PreviousIo => io_error(path, io::Error::other("an earlier write failed")),
        Error::DatabaseAlreadyOpen => InboxError::InUse(path.to_owned()),
        other => InboxError::Damaged {
            path: path.to_owned(),
            message: other.to_string(),
        },
    }
}

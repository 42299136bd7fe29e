//! The state directory: its lock, the key file, and state files.
//!
//! A file is replaced atomically: a temporary file is written, synced and renamed, and the directory synced. A kill
//! at any instant leaves the old file or the new one. All have mode 0600 and are opened relative to the descriptor of
//! the directory ([`Directory`]). The node writes no empty file: one was truncated by something else, and is refused
//! instead of being read as defaults.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyphae_files::{Directory, DirectoryError};
use hyphae_shm::LockedPage;
use hyphae_wire::SecretKey;
use hyphae_wire::identity::{InvalidSecretKey, KEY_LEN, KeyPlace};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use hyphae_config::endpoint::{PeerUrl, RouteSpec};

/// Whether a user may own the secrets of this node: root, and the node's own user.
pub(crate) fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

const LOCK_FILE: &str = "lock";
/// File of the key.
pub const KEY_FILE: &str = "priv_key.bin";
/// File of peers added at run time.
pub const PEERS_FILE: &str = "peers.toml";
/// File of the drain.
pub const DRAIN_FILE: &str = "drain.toml";
/// File of routes added at run time.
pub const ROUTES_FILE: &str = "routes.toml";
/// File of topics.
pub const TOPICS_FILE: &str = "topics.toml";
/// File of administrators over the bus.
pub const ADMIN_FILE: &str = "admin.toml";
/// File of settings, unless another is named.
pub const CONFIG_FILE: &str = "config.toml";

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be created, or others may write it.
    #[error("directory {source}{}", directory_remedy(source))]
    Directory {
        /// Cause, with the path.
        source: DirectoryError,
    },
    /// No variable names it.
    #[error("neither HOME nor XDG_STATE_HOME is set: name a directory with --state-dir")]
    NoHome,
    /// Another process holds the lock.
    #[error(
        "state directory {0} is in use by another node: stop it, or name another with --state-dir"
    )]
    InUse(PathBuf),
    /// The key file cannot be read or written.
    #[error("key file {path}: {source}{}", remedy(source))]
    KeyIo {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The key file is not one.
    #[error(
        "key file {path}: {source}; restore it from a backup, or remove it to get a new identity"
    )]
    Key {
        /// File.
        path: PathBuf,
        /// Cause.
        source: InvalidSecretKey,
    },
    /// Others may read or write it.
    #[error(
        "key file {path} may be read by everybody or written by others (mode {mode:04o}): whoever reads it can \
         be this node. `chmod 600 {path}`, and if somebody may have read it, `hyphae key generate --force` \
         makes another"
    )]
    KeyExposed {
        /// File.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It exists.
    #[error("key file {0} exists; --force replaces it, and with it the node's address")]
    KeyExists(PathBuf),
    /// A state file cannot be read or written.
    #[error("{path}: {source}{}", remedy(source))]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A state file is malformed. It is left as it is.
    #[error("{path}: {message}; correct or remove it")]
    Malformed {
        /// File.
        path: PathBuf,
        /// Line and cause.
        message: String,
    },
    /// A state file is empty. It is left as it is.
    #[error(
        "{0} is empty, which the node never leaves it: restore it from a backup, or remove it to start with \
         defaults"
    )]
    Empty(PathBuf),
    /// No randomness.
    #[error("cannot make a key: {0}")]
    Random(String),
}

fn directory_remedy(error: &DirectoryError) -> &'static str {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match error {
        DirectoryError::Io { source, .. }
            if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) =>
        {
            "; run as root, or name another with --state-dir or --socket-dir"
        }
        DirectoryError::Owner { .. } => {
            ": run as that user, or name another with --state-dir or --socket-dir"
        }
        DirectoryError::Writable { .. } => ", or name another with --state-dir or --socket-dir",
        DirectoryError::Io { .. } => "",
    }
}

/// Remedy for a file that cannot be read or written.
fn remedy(error: &io::Error) -> &'static str {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let kind = error.kind();
    if kind == ReadOnlyFilesystem {
        "; make the file system writable (after errors of a disk: check it first), or name another directory \
         with --state-dir"
    } else if kind == PermissionDenied {
        "; run as the owner of the state directory, or name another with --state-dir"
    } else if matches!(kind, StorageFull | QuotaExceeded) {
        "; make room there, or name another directory with --state-dir"
    } else {
        ""
    }
}

/// Default state directory: `HYPHAE_STATE_DIR`, `MYCELIUM_STATE_DIR`, /var/lib/hyphae for root, else below
/// `XDG_STATE_HOME`.
///
/// # Errors
/// When no variable names one.
pub fn default_directory() -> Result<PathBuf, StateError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("HYPHAE_STATE_DIR").or_else(|| variable("MYCELIUM_STATE_DIR")) {
        return Ok(path.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/hyphae".into());
    }
    let base = variable("XDG_STATE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".local/state")));
    Ok(base.ok_or(StateError::NoHome)?.join("hyphae"))
}

/// Default socket directory: `HYPHAE_SOCKET_DIR`, /run/hyphae for root, else below `XDG_RUNTIME_DIR`, else in the state
/// directory, or /run/hyphae without one.
pub fn default_socket_directory(state: Option<&Path>) -> PathBuf {
    if let Some(path) = std::env::var_os("HYPHAE_SOCKET_DIR").filter(|value| !value.is_empty()) {
        return path.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/run/hyphae".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path).join("hyphae"),
        None => state.map_or_else(|| "/run/hyphae".into(), |state| state.join("run")),
    }
}

/// Opens a directory, created with mode 0700 if it is missing, and checks that only this user may write it.
///
/// # Errors
/// When it cannot be created, belongs to another user, or others may write it or one above it.
pub fn prepare_directory(path: &Path) -> Result<Directory, StateError> {
    Directory::create(path).map_err(|source| StateError::Directory { source })
}

/// Lock of the state directory, until it is dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "holding the descriptor is the point")] File);

/// Longest time that the kernel needs to release the resources of a killed process, and time between attempts.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Acquires a resource that a process killed a moment ago may still hold. Blocks up to `BUSY_TIMEOUT`: not for the
/// thread of a runtime.
///
/// # Errors
/// The last one of `attempt`.
pub fn retry_while_busy<T, E>(
    is_busy: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match attempt() {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_POLL_INTERVAL);
            }
            result => return result,
        }
    }
}

/// Locks a state directory.
///
/// # Errors
/// When another process holds the lock.
pub fn lock(directory: &Directory) -> Result<Lock, StateError> {
    let io = |source| StateError::Io {
        path: directory.path_of(LOCK_FILE),
        source,
    };
    let file = directory.open_or_create(LOCK_FILE).map_err(io)?;
    let locked = retry_while_busy(
        |error| *error == Errno::WOULDBLOCK,
        || flock(&file, FlockOperation::NonBlockingLockExclusive),
    );
    locked.map_err(|error| match error {
        Errno::WOULDBLOCK => StateError::InUse(directory.path().to_owned()),
        error => io(error.into()),
    })?;
    directory.remove_leftovers().map_err(io)?;
    Ok(Lock(file))
}

/// Reads the key of a state directory; `None` when the file is missing.
///
/// # Errors
/// When the file cannot be read or is not a key.
pub fn read_key(directory: &Path) -> Result<Option<SecretKey>, StateError> {
    let path = directory.join(KEY_FILE);
    match File::open(&path) {
        Ok(file) => key_of(file, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::KeyIo { path, source }),
    }
}

fn key_of(mut file: File, path: PathBuf) -> Result<SecretKey, StateError> {
    let read = file.metadata().and_then(|found| {
        let mut page = LockedPage::new()?;
        // Into the locked page only, without a buffer in between. One read gets all of a file.
        let len = file.read(page.bytes_mut())?;
        Ok((found.mode() & 0o777, page, len))
    });
    let (mode, page, len) = match read {
        Ok(read) => read,
        Err(source) => return Err(StateError::KeyIo { path, source }),
    };
    let key = match len {
        KEY_LEN => keep_key(page),
        _ => Err(InvalidSecretKey::Length(len)),
    };
    match key {
        Err(source) => Err(StateError::Key { path, source }),
        Ok(_) if mode & 0o027 != 0 => Err(StateError::KeyExposed { path, mode }),
        Ok(key) => Ok(key),
    }
}

/// The locked page with the key of this process.
struct KeyPage(LockedPage);

impl KeyPlace for KeyPage {
    fn bytes(&self) -> &[u8; KEY_LEN] {
        match self.0.bytes().first_chunk() {
            Some(bytes) => bytes,
            None => unreachable!("a page has more bytes than a key"),
        }
    }
}

fn keep_key(page: LockedPage) -> Result<SecretKey, InvalidSecretKey> {
    if !page.is_locked() {
        tracing::warn!(
            "the node's key may be written to swap space: RLIMIT_MEMLOCK does not let this process \
             lock a page (LimitMEMLOCK= of the service, `ulimit -l`)"
        );
    }
    SecretKey::in_place(Arc::new(KeyPage(page)))
}

/// Generates and stores a key.
///
/// # Errors
/// When one exists and `force` is false, or it cannot be written.
pub fn generate_key(directory: &Directory, force: bool) -> Result<SecretKey, StateError> {
    let path = directory.path_of(KEY_FILE);
    if !force && directory.contains(KEY_FILE) {
        return Err(StateError::KeyExists(path));
    }
    let mut page = LockedPage::new().map_err(|source| StateError::KeyIo {
        path: path.clone(),
        source,
    })?;
    getrandom::fill(&mut page.bytes_mut()[..KEY_LEN])
        .map_err(|error| StateError::Random(error.to_string()))?;
    let key = keep_key(page).map_err(|source| StateError::Key {
        path: path.clone(),
        source,
    })?;
    let written = replace(directory, KEY_FILE, key.as_bytes());
    written.map_err(|source| StateError::KeyIo { path, source })?;
    Ok(key)
}

/// Reads the key; generates one if the file is missing.
///
/// # Errors
/// As [`read_key`] and [`generate_key`].
pub fn load_or_create_key(directory: &Directory) -> Result<SecretKey, StateError> {
    let path = directory.path_of(KEY_FILE);
    // The mode is checked before it is tightened: a key that others could read is refused.
    match directory.read_keeping_mode(KEY_FILE) {
        Ok(file) => {
            let key = key_of(file, path.clone())?;
            let tightened = directory.read(KEY_FILE).map(drop);
            tightened.map_err(|source| StateError::KeyIo { path, source })?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => generate_key(directory, false),
        Err(source) => Err(StateError::KeyIo { path, source }),
    }
}

/// Content of [`PEERS_FILE`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersFile {
    /// The peers.
    pub peers: Vec<PeerUrl>,
}

/// Content of [`DRAIN_FILE`]: the drain persists over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainFile {
    /// Whether the node is drained.
    pub drained: bool,
}

/// Content of [`ROUTES_FILE`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesFile {
    /// The routes.
    pub routes: Vec<RouteSpec>,
}

/// Reads a state file; defaults when it is missing.
///
/// # Errors
/// When it cannot be read, is malformed or empty; it is left as it is.
pub fn read_toml<T>(directory: &Directory, name: &str) -> Result<T, StateError>
where
    T: DeserializeOwned + Default,
{
    let path = directory.path_of(name);
    let text = match directory.read_to_string(name) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(source) => return Err(StateError::Io { path, source }),
    };
    let parsed = toml::from_str::<toml::Table>(&text).and_then(|table| {
        let empty = table.is_empty();
        Ok((toml::from_str(&text)?, empty))
    });
    match parsed {
        Ok((value, false)) => Ok(value),
        // The node writes at least one key.
        Ok((_, true)) => Err(StateError::Empty(path)),
        Err(error) => Err(StateError::Malformed {
            path,
            message: parse_error(&text, &error),
        }),
    }
}

/// Position and cause of a parse error in one line; the text of the parser has several.
fn parse_error(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', ", ");
    let before = error.span().and_then(|span| text.get(..span.start));
    let Some(before) = before else {
        return message;
    };
    let (at, column) = (before.matches('\n').count(), before.chars().rev());
    let column = column.take_while(|c| *c != '\n').count() + 1;
    let line = text.lines().nth(at).unwrap_or_default().trim();
    format!("line {}, column {column} (`{line}`): {message}", at + 1)
}

/// As [`read_toml`]; writes the defaults if the file is missing. A failure to do so is logged only.
///
/// # Errors
/// As [`read_toml`].
pub fn read_toml_or_create<T>(directory: &Directory, name: &str) -> Result<T, StateError>
where
    T: Serialize + DeserializeOwned + Default,
{
    if !directory.contains(name)
        && let Err(error) = write_toml(directory, name, &T::default())
    {
        tracing::warn!(%error, "state file with defaults was not written; going on without");
    }
    read_toml(directory, name)
}

/// Replaces a state file.
///
/// # Errors
/// When it cannot be written; the old one remains, or the new one if only the last sync failed.
pub fn write_toml<T: Serialize>(
    directory: &Directory,
    name: &str,
    value: &T,
) -> Result<(), StateError> {
    let io = |source| StateError::Io {
        path: directory.path_of(name),
        source,
    };
    let text = toml::to_string_pretty(value).map_err(|error| io(io::Error::other(error)))?;
    replace(directory, name, text.as_bytes()).map_err(io)
}

/// Failed writes of state files since start.
static WRITE_FAILURES: AtomicU64 = AtomicU64::new(0);

/// Failed writes of state files since start.
pub fn write_failures() -> u64 {
    WRITE_FAILURES.load(Ordering::Relaxed)
}

pub(crate) fn replace(directory: &Directory, name: &str, bytes: &[u8]) -> io::Result<()> {
    directory.replace(name, bytes).inspect_err(|_| {
        WRITE_FAILURES.fetch_add(1, Ordering::Relaxed);
    })
}

#[cfg(test)]
mod tests;

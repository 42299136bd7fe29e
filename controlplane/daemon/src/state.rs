//! The state directory: key file, peers and routes added at run time, lock.
//!
//! A file is replaced whole: written beside, synced, renamed, and the directory synced. A kill at
//! any instant leaves the old file or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyphae_wire::SecretKey;
use hyphae_wire::identity::InvalidSecretKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::endpoint::{PeerUrl, RouteSpec};

pub mod network_key;
pub mod token;

/// File of the key.
pub const KEY_FILE: &str = "priv_key.bin";
/// File of peers added at run time.
pub const PEERS_FILE: &str = "peers.toml";
/// Whether the node is drained.
pub const DRAIN_FILE: &str = "drain.toml";
/// File of routes added at run time.
pub const ROUTES_FILE: &str = "routes.toml";
/// File of topics.
pub const TOPICS_FILE: &str = "topics.toml";
/// File of who may administer this node over the bus.
pub const ADMIN_FILE: &str = "admin.toml";
/// File of settings, read when no other is named.
pub const CONFIG_FILE: &str = "config.toml";

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not found where it should be made, or not ours.
    #[error("state directory {path}: {source}{hint}")]
    Directory {
        /// Directory.
        path: PathBuf,
        /// How.
        source: io::Error,
        /// Way out.
        hint: &'static str,
    },
    /// Belongs to another user.
    #[error(
        "state directory {path} belongs to user {owner}, this process runs as user {us}: run as that \
         user, or name another with --state-dir"
    )]
    Owner {
        /// Directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Effective user.
        us: u32,
    },
    /// Another process holds the lock.
    #[error(
        "state directory {0} is in use by another node: stop it, or name another with --state-dir"
    )]
    InUse(PathBuf),
    /// The key file cannot be read or written.
    #[error("key file {path}: {source}{}", way_out(source))]
    KeyIo {
        /// File.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// The key file is not one.
    #[error(
        "key file {path}: {source}; restore it from a backup, or remove it to get a new identity"
    )]
    Key {
        /// File.
        path: PathBuf,
        /// How.
        source: InvalidSecretKey,
    },
    /// Others may use it.
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
    /// There is one already.
    #[error("key file {0} exists; --force replaces it, and with it the node's address")]
    KeyExists(PathBuf),
    /// A state file cannot be read or written.
    #[error("{path}: {source}{}", way_out(source))]
    Io {
        /// File.
        path: PathBuf,
        /// How.
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
    /// No randomness.
    #[error("cannot make a key: {0}")]
    Random(String),
}

/// What to do about a file that cannot be read or written.
fn way_out(error: &io::Error) -> &'static str {
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

/// Where state is kept unless told otherwise: `HYPHAE_STATE_DIR`, `MYCELIUM_STATE_DIR`,
/// /var/lib/hyphae for root, else below `XDG_STATE_HOME`.
pub fn default_directory() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("HYPHAE_STATE_DIR").or_else(|| variable("MYCELIUM_STATE_DIR")) {
        return path.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/lib/hyphae".into();
    }
    let base = variable("XDG_STATE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            PathBuf::from(variable("HOME").unwrap_or_else(|| "/tmp".into())).join(".local/state")
        });
    base.join("hyphae")
}

/// Where sockets are unless told otherwise: /run/hyphae for root, else below `XDG_RUNTIME_DIR`,
/// else in the state directory.
pub fn default_socket_directory(state: &Path) -> PathBuf {
    if let Some(path) = std::env::var_os("HYPHAE_SOCKET_DIR").filter(|value| !value.is_empty()) {
        return path.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/run/hyphae".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path).join("hyphae"),
        None => state.join("run"),
    }
}

/// Makes a directory, 0700, if it is not there, and checks that it is ours.
///
/// # Errors
/// When it cannot be made or belongs to another user.
pub fn prepare_directory(path: &Path) -> Result<(), StateError> {
    let fail = |source: io::Error| {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let hint = if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) {
            "; run as root, or name another with --state-dir"
        } else {
            ""
        };
        StateError::Directory {
            path: path.to_owned(),
            source,
            hint,
        }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(fail)?;
    let (owner, us) = (
        fs::metadata(path).map_err(fail)?.uid(),
        rustix::process::geteuid().as_raw(),
    );
    if owner != us && us != 0 {
        return Err(StateError::Owner {
            path: path.to_owned(),
            owner,
            us,
        });
    }
    Ok(())
}

/// Proof that no other node uses the state directory; ends with the process.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "holding the descriptor is the point")] File);

/// How long a process that was killed may take to let go of what it had, and how often that is looked at.
const LET_GO_WITHIN: Duration = Duration::from_secs(2);
const LET_GO_LOOK: Duration = Duration::from_millis(20);

/// Tries for something that a process which was killed may not have let go of yet.
pub(crate) async fn let_go<T, E>(
    is_held: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let given_up = Instant::now() + LET_GO_WITHIN;
    loop {
        match attempt() {
            Err(error) if is_held(&error) && Instant::now() < given_up => {
                tokio::time::sleep(LET_GO_LOOK).await;
            }
            done => return done,
        }
    }
}

/// Takes the lock of a state directory. A node that was killed a moment ago may still have it.
///
/// # Errors
/// When another process has it.
pub fn lock(directory: &Path) -> Result<Lock, StateError> {
    let path = directory.join("lock");
    let io = |source| StateError::Io {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    let given_up = Instant::now() + LET_GO_WITHIN;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < given_up => {
                std::thread::sleep(LET_GO_LOOK);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateError::InUse(directory.to_owned()));
            }
            Err(error) => return Err(io(error.into())),
        }
    }
}

/// Reads the key of a state directory; `None` when there is none yet.
///
/// # Errors
/// When the file cannot be read or is not a key.
pub fn read_key(directory: &Path) -> Result<Option<SecretKey>, StateError> {
    let path = directory.join(KEY_FILE);
    let mut bytes = Vec::with_capacity(64);
    let read = File::open(&path).and_then(|file| {
        let mode = file.metadata()?.mode() & 0o777;
        file.take(64).read_to_end(&mut bytes).map(|_| mode)
    });
    let (key, exposed) = match read {
        Ok(mode) => {
            let exposed = Some(mode).filter(|mode| mode & 0o027 != 0);
            (SecretKey::from_bytes(&bytes), exposed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::KeyIo { path, source }),
    };
    zeroize::Zeroize::zeroize(&mut bytes);
    match (key, exposed) {
        (Err(source), _) => Err(StateError::Key { path, source }),
        (Ok(_), Some(mode)) => Err(StateError::KeyExposed { path, mode }),
        (Ok(key), None) => Ok(Some(key)),
    }
}

/// Makes and stores a key.
///
/// # Errors
/// When there is one and `force` is false, or it cannot be written.
pub fn generate_key(directory: &Path, force: bool) -> Result<SecretKey, StateError> {
    let path = directory.join(KEY_FILE);
    if !force && path.exists() {
        return Err(StateError::KeyExists(path));
    }
    let key = SecretKey::generate().map_err(|error| StateError::Random(error.to_string()))?;
    write_atomic(&path, key.as_bytes(), 0o640).map_err(|source| StateError::KeyIo {
        path: path.clone(),
        source,
    })?;
    Ok(key)
}

/// Reads the key, or makes one where there is none.
///
/// # Errors
/// As [`read_key`] and [`generate_key`].
pub fn load_or_create_key(directory: &Path) -> Result<SecretKey, StateError> {
    match read_key(directory)? {
        Some(key) => Ok(key),
        None => generate_key(directory, false),
    }
}

/// Peers added at run time, as on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersFile {
    /// The peers.
    pub peers: Vec<PeerUrl>,
}

/// Whether the node is drained, as on disk: it stays so over restarts, until somebody ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainFile {
    /// It is.
    pub drained: bool,
}

/// Routes added at run time, as on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesFile {
    /// The routes.
    pub routes: Vec<RouteSpec>,
}

/// Reads a state file; defaults when there is none.
///
/// # Errors
/// When it cannot be read or is malformed; it is left as it is.
pub fn read_toml<T: DeserializeOwned + Default>(path: &Path) -> Result<T, StateError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
        Err(source) => {
            return Err(StateError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    toml::from_str(&text).map_err(|error| StateError::Malformed {
        path: path.to_owned(),
        message: error.to_string().trim_end().replace('\n', " "),
    })
}

/// The same, and writes the defaults where there is no file. When that fails, the node does without.
///
/// # Errors
/// As [`read_toml`].
pub fn read_toml_or_create<T>(path: &Path) -> Result<T, StateError>
where
    T: Serialize + DeserializeOwned + Default,
{
    if !path.exists()
        && let Err(error) = write_toml(path, &T::default())
    {
        tracing::warn!(%error, "state file with defaults was not written; going on without");
    }
    read_toml(path)
}

/// Replaces a state file.
///
/// # Errors
/// When it cannot be written; the old one is then still there.
pub fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let io = |source| StateError::Io {
        path: path.to_owned(),
        source,
    };
    let text = toml::to_string_pretty(value).map_err(|error| io(io::Error::other(error)))?;
    write_atomic(path, text.as_bytes(), 0o644).map_err(io)
}

/// Writes of state files that failed since start.
static WRITE_FAILURES: AtomicU64 = AtomicU64::new(0);

/// How often a state file could not be written since start.
pub fn write_failures() -> u64 {
    WRITE_FAILURES.load(Ordering::Relaxed)
}

fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        WRITE_FAILURES.fetch_add(1, Ordering::Relaxed);
        // Best effort: a leftover is harmless, its name is never read.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_stays_and_is_not_for_everybody() {
        let directory = tempfile::tempdir().unwrap();
        let first = load_or_create_key(directory.path()).unwrap();
        let second = load_or_create_key(directory.path()).unwrap();
        assert_eq!(first.public_key(), second.public_key());
        let mode = fs::metadata(directory.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777 & !0o640, 0);
        assert!(matches!(
            generate_key(directory.path(), false),
            Err(StateError::KeyExists(_))
        ));
        let third = generate_key(directory.path(), true).unwrap();
        assert_ne!(first.public_key(), third.public_key());
    }

    #[test]
    fn a_key_of_the_wrong_length_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(KEY_FILE);
        for bytes in [&[1u8; 31][..], &[1; 33], &[], &[0; 32]] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(
                load_or_create_key(directory.path()),
                Err(StateError::Key { .. })
            ));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn state_files_round_trip_and_malformed_ones_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(PEERS_FILE);
        assert_eq!(read_toml::<PeersFile>(&path).unwrap(), PeersFile::default());
        let peers = PeersFile {
            peers: vec!["udp://192.0.2.1:9670".parse().unwrap()],
        };
        write_toml(&path, &peers).unwrap();
        assert_eq!(read_toml::<PeersFile>(&path).unwrap(), peers);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(&path, "peers = 3").unwrap();
        assert!(matches!(
            read_toml::<PeersFile>(&path),
            Err(StateError::Malformed { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "peers = 3");
    }

    #[tokio::test]
    async fn what_a_killed_process_holds_is_waited_for_and_what_is_held_on_to_is_not() {
        let in_use = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = holder.local_addr().unwrap();
        let bind = || std::net::TcpListener::bind(place);
        assert!(in_use(&let_go(in_use, bind).await.unwrap_err()));
        let mut holder = Some(holder);
        let mut attempts = 0;
        let taken = let_go(in_use, || {
            attempts += 1;
            if attempts == 4 {
                holder = None;
            }
            bind()
        });
        assert_eq!(taken.await.unwrap().local_addr().unwrap(), place);
        assert_eq!(attempts, 4);
    }

    #[test]
    fn a_second_node_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(StateError::InUse(_))));
        drop(first);
        lock(directory.path()).unwrap();
    }

    /// Run in a process of its own by the next test; without the variable it has nothing to do.
    #[test]
    fn writes_on_and_on_in_a_process_of_its_own() {
        let Some(path) = std::env::var_os("HYPHAE_TEST_WRITE_ON") else {
            return;
        };
        for n in 0u64.. {
            let all: std::collections::BTreeMap<String, u64> =
                (0..200).map(|key| (format!("key{key}"), n)).collect();
            write_toml(Path::new(&path), &all).unwrap();
        }
    }

    #[test]
    fn item_17_a_kill_at_any_instant_leaves_the_old_file_or_the_new() {
        type Numbers = std::collections::BTreeMap<String, u64>;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("numbers.toml");
        let (mut last, mut round) = (0, 0);
        // How often it writes before it is killed is chance: until it was more than once.
        while round < 30 || last == 0 {
            assert!(round < 1000, "it wrote more than once");
            round += 1;
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "state::tests::writes_on_and_on_in_a_process_of_its_own",
                ])
                .env("HYPHAE_TEST_WRITE_ON", &path)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            // The instant is another one in every round; what matters is that it writes by then.
            let before = fs::metadata(&path).ok().map(|file| file.ino());
            while fs::metadata(&path).ok().map(|file| file.ino()) == before {
                assert_eq!(child.try_wait().unwrap(), None, "it writes on and on");
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros(round * 173));
            child.kill().unwrap();
            child.wait().unwrap();
            let numbers: Numbers = read_toml(&path).unwrap();
            let values: std::collections::BTreeSet<u64> = numbers.values().copied().collect();
            assert_eq!((numbers.len(), values.len()), (200, 1), "half a file");
            last = last.max(*values.first().unwrap());
        }
    }
}

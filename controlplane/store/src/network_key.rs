//! The key file of a private network: 32 secret bytes as hex or base64 text, for its owner only.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hyphae_wire::network::{InvalidNetworkKey, NetworkKey};
use zeroize::Zeroizing;

use crate::files::is_trusted;

/// Longest file that is read.
const FILE_MAX: u64 = 256;

/// The key file of a network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkKeyError {
    /// Not readable or writable.
    #[error("network key file {path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another user may replace its content.
    #[error(
        "network key file {path} belongs to user {owner}, who knows the key and may change it: it has to belong to \
         root or to the node's user"
    )]
    Owner {
        /// File.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others may read it.
    #[error(
        "network key file {path} may be read by others (mode {mode:04o}): `chmod 600 {path}`, and \
         make a new key if it was exposed"
    )]
    Exposed {
        /// File.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("network key file {path}: {source}; `hyphae key network` makes one")]
    Invalid {
        /// File.
        path: PathBuf,
        /// Cause.
        source: InvalidNetworkKey,
    },
    /// It exists.
    #[error("{0} exists; remove it first if every member of the network is to get a new key")]
    Exists(PathBuf),
    /// No randomness.
    #[error("cannot make a key: {0}")]
    Random(String),
}

/// Reads a key file.
///
/// # Errors
/// When it cannot be read, others may read it, or it holds no key.
pub fn read(path: &Path) -> Result<NetworkKey, NetworkKeyError> {
    let io = |source| NetworkKeyError::Io {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?;
    let owner = found.uid();
    if !is_trusted(owner) {
        let path = path.to_owned();
        return Err(NetworkKeyError::Owner { path, owner });
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(NetworkKeyError::Exposed { path, mode });
    }
    // Capacity for all of it: growing would leave a copy of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(512));
    file.take(FILE_MAX).read_to_string(&mut text).map_err(io)?;
    NetworkKey::parse(&text).map_err(|source| NetworkKeyError::Invalid {
        path: path.to_owned(),
        source,
    })
}

/// Generates a key and writes it to a new file, 0600.
///
/// # Errors
/// When the file exists or cannot be written.
pub fn generate(path: &Path) -> Result<(), NetworkKeyError> {
    let key = NetworkKey::generate().map_err(|e| NetworkKeyError::Random(e.to_string()))?;
    let io = |source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            NetworkKeyError::Exists(path)
        } else {
            NetworkKeyError::Io { path, source }
        }
    };
    let mut new = OpenOptions::new();
    let file = new.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(io)?;
    let text = Zeroizing::new(key.to_hex() + "\n");
    file.write_all(text.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_made_key_is_read_again_and_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("garden.key");
        generate(&path).unwrap();
        let first = read(&path).unwrap();
        assert!(matches!(generate(&path), Err(NetworkKeyError::Exists(_))));
        assert_eq!(read(&path).unwrap().to_hex(), first.to_hex());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("garden.key");
        generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("0640") && error.contains("chmod 600"),
            "{error}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "secret").unwrap();
        assert!(matches!(read(&path), Err(NetworkKeyError::Invalid { .. })));
        let missing = read(&directory.path().join("none"));
        assert!(matches!(missing, Err(NetworkKeyError::Io { .. })));
    }
    #[test]
    fn a_key_of_another_user_is_refused_and_a_link_to_one_of_ours_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("key"), directory.path().join("link"));
        generate(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        read(&link).unwrap();
        if !rustix::process::geteuid().is_root() {
            hyphae_test_skip::lacks("root, to give a file to another user");
            return;
        }
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        for path in [&path, &link] {
            let refused = read(path).unwrap_err();
            assert!(
                matches!(refused, NetworkKeyError::Owner { owner: 65_534, .. }),
                "{refused}"
            );
        }
    }
}

//! The bearer token of callers that have no user on this host.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::files::is_trusted;

/// Shortest and longest token, characters.
const LENGTH: std::ops::RangeInclusive<usize> = 32..=512;
/// Longest file that is read.
const FILE_MAX: u64 = 1024;

/// The token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not readable.
    #[error("token file {path} (rpc.token_file): {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another user may replace its content.
    #[error(
        "token file {path} (rpc.token_file) belongs to user {owner}, who knows it and may change it: it has to belong \
         to root or to the node's user"
    )]
    Owner {
        /// File.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others may read it.
    #[error(
        "token file {path} (rpc.token_file) may be read by others (mode {mode:04o}): `chmod 600 {path}`, and \
         make a new token if it was exposed"
    )]
    Exposed {
        /// File.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// Not a token.
    #[error(
        "token file {0} (rpc.token_file) holds no token: 32 to 512 visible ASCII characters, such as those of \
         `openssl rand -hex 32`"
    )]
    Invalid(PathBuf),
}

/// A token, stored as its digest.
#[derive(Clone, Debug)]
pub struct BearerToken(blake3::Hash);

impl BearerToken {
    /// Reads a token file.
    ///
    /// # Errors
    /// When it cannot be read, others may read it, or it holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let io = |source| TokenError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let found = file.metadata().map_err(io)?;
        let owner = found.uid();
        if !is_trusted(owner) {
            let path = path.to_owned();
            return Err(TokenError::Owner { path, owner });
        }
        let mode = found.mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(TokenError::Exposed { path, mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(2048));
        file.take(FILE_MAX).read_to_string(&mut text).map_err(io)?;
        Self::parse(&text).ok_or_else(|| TokenError::Invalid(path.to_owned()))
    }

    /// Parses the text of a token file: 32 to 512 visible ASCII characters, white space around them.
    pub fn parse(text: &str) -> Option<Self> {
        let token = text.trim();
        let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        (LENGTH.contains(&token.len()) && visible).then(|| Self(blake3::hash(token.as_bytes())))
    }

    /// Whether an `Authorization` header presents it. Digests are compared in constant time.
    pub fn is_presented_in(&self, authorization: &str) -> bool {
        let Some((scheme, given)) = authorization.split_once(' ') else {
            return false;
        };
        scheme.eq_ignore_ascii_case("bearer") && blake3::hash(given.trim().as_bytes()) == self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_private_and_long_enough_and_matched_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            BearerToken::read(&path)
        };
        assert!(matches!(
            BearerToken::read(&path),
            Err(TokenError::Io { .. })
        ));
        let text = "0123456789abcdef0123456789abcdef";
        assert!(matches!(
            write(text, 0o644),
            Err(TokenError::Exposed { .. })
        ));
        for bad in ["", "short", "0123456789abcdef 0123456789abcdef"] {
            assert!(
                matches!(write(bad, 0o600), Err(TokenError::Invalid(_))),
                "{bad}"
            );
        }
        let token = write(&format!("{text}\n"), 0o600).unwrap();
        // Directories of secrets have links.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        BearerToken::read(&link).unwrap();
        assert!(token.is_presented_in(&format!("Bearer {text}")));
        assert!(token.is_presented_in(&format!("bearer {text}")));
        for bad in [
            text.to_owned(),
            format!("Basic {text}"),
            format!("Bearer {text}0"),
            format!("Bearer {}", &text[1..]),
            "Bearer ".to_owned(),
        ] {
            assert!(!token.is_presented_in(&bad), "{bad}");
        }
    }
    #[test]
    fn a_token_of_another_user_is_refused_also_through_a_link() {
        if !rustix::process::geteuid().is_root() {
            hyphae_test_skip::lacks("root, to give a file to another user");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (
            directory.path().join("token"),
            directory.path().join("link"),
        );
        fs::write(&path, "0123456789abcdef0123456789abcdef").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        for path in [&path, &link] {
            let refused = BearerToken::read(path);
            assert!(
                matches!(refused, Err(TokenError::Owner { owner: 65_534, .. })),
                "{refused:?}"
            );
        }
    }
}

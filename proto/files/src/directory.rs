//! Directories and the files in them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Mode of state files.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Extended attribute with the POSIX access list of a file, acl(5).
const ACCESS_LIST: &str = "system.posix_acl_access";
/// Suffix of files that are being written.
const TEMPORARY: &str = ".tmp";

/// A directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// Directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Belongs to another user.
    #[error("{path} belongs to user {owner}, this process runs as user {us}")]
    Owner {
        /// The directory or an ancestor.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Effective user id of this process.
        us: u32,
    },
    /// Other users may replace entries.
    #[error(
        "{path} may be written by others (mode {mode:04o}, or its access list): `chmod go-w {path}`"
    )]
    Writable {
        /// The directory or an ancestor.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// A directory held by descriptor. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct Directory {
    descriptor: Arc<OwnedFd>,
    path: PathBuf,
    /// Owner and mode were not validated: other users may have created hard links in it.
    unchecked: bool,
}

impl Directory {
    /// Opens a directory of this user that no other user can write or replace. Links in the path are followed.
    ///
    /// # Errors
    /// When it is missing, belongs to another user, or another user may write to it or to an ancestor.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let mut directory = Self::walk(path)?;
        directory.check_own()?;
        directory.unchecked = false;
        Ok(directory)
    }

    /// As [`Directory::open`]; creates missing components, 0700.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn create(path: &Path) -> Result<Self, DirectoryError> {
        let fail = |source: io::Error| DirectoryError::Io {
            path: path.to_owned(),
            source,
        };
        let whole = std::path::absolute(path).map_err(fail)?;
        let there = whole.ancestors().find(|part| part.exists());
        let there = there.unwrap_or(Path::new("/"));
        if there == whole {
            return Self::open(path);
        }
        let mut directory = Self::walk(there)?;
        directory.check_ancestor()?;
        for part in whole.strip_prefix(there).unwrap_or(&whole).components() {
            let Component::Normal(name) = part else {
                return Err(fail(io::ErrorKind::InvalidInput.into()));
            };
            match rustix::fs::mkdirat(&*directory.descriptor, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(fail(error.into())),
            }
            directory = directory
                .open_child(name)
                .map_err(|error| fail(error.into()))?;
            directory.check_own()?;
        }
        path.clone_into(&mut directory.path);
        directory.unchecked = false;
        Ok(directory)
    }

    /// Opens a directory without validating owner and mode. Operations on it must be safe in a directory that other
    /// users write to.
    ///
    /// # Errors
    /// When it is missing.
    pub fn open_unchecked(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Self::of(opened, path)?)
    }

    /// Wraps an open descriptor without validation; `path` is for messages.
    pub fn from_descriptor(descriptor: OwnedFd, path: &Path) -> Self {
        Self {
            descriptor: Arc::new(descriptor),
            path: path.to_owned(),
            unchecked: true,
        }
    }

    /// The path as given, for messages and for clients that connect to a socket in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Owner.
    ///
    /// # Errors
    /// When fstat(2) fails.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&*self.descriptor)?.st_uid)
    }

    /// Permissions.
    ///
    /// # Errors
    /// When fstat(2) fails.
    pub fn mode(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&*self.descriptor)?.st_mode & 0o7777)
    }

    /// Sets permissions.
    ///
    /// # Errors
    /// When fchmod(2) fails.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(
            &*self.descriptor,
            Mode::from_raw_mode(mode),
        )?)
    }

    /// Path of an entry through the descriptor, valid even when the directory was renamed.
    pub(crate) fn descriptor_path(&self, name: &str) -> PathBuf {
        let number = self.descriptor.as_raw_fd();
        PathBuf::from(format!("/proc/self/fd/{number}/{name}"))
    }

    /// Metadata of an entry; links are not followed.
    pub(crate) fn stat(&self, name: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(&*self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether an entry exists.
    pub fn contains(&self, name: &str) -> bool {
        self.stat(name).is_ok()
    }

    /// Opens a file for reading. In a validated directory, a file of this user that other users may access is set to
    /// 0600.
    ///
    /// # Errors
    /// `NotFound`, or when it is a link, not a regular file, another user's, or not readable; in an unvalidated
    /// directory also when it has several hard links.
    pub fn read(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// As [`Directory::read`], without changing the mode.
    ///
    /// # Errors
    /// As [`Directory::read`].
    pub fn read_keeping_mode(&self, name: &str) -> io::Result<File> {
        self.open_checked(name, OFlags::RDONLY)
            .map(|(file, _)| file)
    }

    /// Reads a text file.
    ///
    /// # Errors
    /// As [`Directory::read`].
    pub fn read_to_string(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.read(name)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Opens a file for reading and writing; creates it with mode 0600.
    ///
    /// # Errors
    /// As [`Directory::read`].
    pub fn open_or_create(&self, name: &str) -> io::Result<File> {
        loop {
            match self.open_file(name, OFlags::RDWR) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            match self.make(name) {
                Err(Errno::EXIST) => {}
                made => return Ok(made?),
            }
        }
    }

    fn open_file(&self, name: &str, access: OFlags) -> io::Result<File> {
        let (file, found) = self.open_checked(name, access)?;
        let us = rustix::process::geteuid().as_raw();
        if !self.unchecked && found.st_uid == us && found.st_mode & 0o177 != 0 {
            rustix::fs::fchmod(&file, PRIVATE)?;
        }
        Ok(file)
    }

    fn open_checked(&self, name: &str, access: OFlags) -> io::Result<(File, Stat)> {
        check_name(name)?;
        // NONBLOCK: opening a FIFO must not wait.
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&*self.descriptor, name, flags, Mode::empty()) {
            Err(Errno::LOOP) => return Err(unusable("is a symbolic link")),
            opened => opened?,
        };
        let found = rustix::fs::fstat(&file)?;
        let us = rustix::process::geteuid().as_raw();
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(unusable("is no file"));
        }
        if found.st_uid != us && found.st_uid != 0 {
            return Err(unusable("belongs to another user"));
        }
        // A count of 0 is a file that was removed after the open.
        if self.unchecked && found.st_nlink > 1 {
            return Err(unusable("has other names (hard links)"));
        }
        Ok((File::from(file), found))
    }

    fn make(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::openat(&*self.descriptor, name, flags, PRIVATE).map(File::from)
    }

    /// Replaces a file atomically: a kill at any instant leaves the old or the new content. On success the new file,
    /// 0600, is synced.
    ///
    /// # Errors
    /// When writing fails; the old file remains unless only the sync of the directory failed.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        check_name(name)?;
        let (temporary, mut file) = self.make_temporary(name)?;
        let mut write = || {
            file.write_all(bytes)?;
            file.sync_all()?;
            self.rename(&temporary, name)?;
            self.sync()
        };
        write().inspect_err(|_| {
            // Best effort: `remove_leftovers` deletes it at the next start.
            let _ = self.remove(&temporary);
        })
    }

    fn make_temporary(&self, name: &str) -> io::Result<(String, File)> {
        for number in 0..1000 {
            let temporary = format!(".{name}.{}-{number}{TEMPORARY}", std::process::id());
            match self.make(&temporary) {
                Err(Errno::EXIST) => {}
                made => return Ok((temporary, made?)),
            }
        }
        Err(Errno::EXIST.into())
    }

    /// Removes temporary files of a writer that was killed. Only for the sole writer of the directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn remove_leftovers(&self) -> io::Result<()> {
        for entry in Dir::read_from(&*self.descriptor)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Renames a file; replaces an existing target.
    ///
    /// # Errors
    /// When renameat(2) fails.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        let directory = &*self.descriptor;
        Ok(rustix::fs::renameat(directory, from, directory, to)?)
    }

    /// Removes a file or a link.
    ///
    /// # Errors
    /// When unlinkat(2) fails.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        Ok(rustix::fs::unlinkat(
            &*self.descriptor,
            name,
            AtFlags::empty(),
        )?)
    }

    /// Syncs entries of the directory.
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&*self.descriptor)?)
    }

    fn of(opened: Result<OwnedFd, Errno>, path: &Path) -> Result<Self, Errno> {
        opened.map(|descriptor| Self::from_descriptor(descriptor, path))
    }

    /// Opens a subdirectory; links are refused.
    fn open_child(&self, name: &OsStr) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = &*self.descriptor;
        let opened = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            // Traversal needs search permission only.
            Err(Errno::ACCESS) => {
                rustix::fs::openat(directory, name, flags | OFlags::PATH, Mode::empty())
            }
            opened => opened,
        };
        Self::of(opened, &self.path.join(name))
    }

    /// Canonicalises a path, then descends from the root by descriptor and validates every ancestor.
    fn walk(path: &Path) -> Result<Self, DirectoryError> {
        let fail = |source: io::Error| DirectoryError::Io {
            path: path.to_owned(),
            source,
        };
        let real = std::fs::canonicalize(path).map_err(fail)?;
        let mut directory = Self::open_unchecked(Path::new("/")).map_err(fail)?;
        for part in real.components() {
            if let Component::Normal(name) = part {
                directory.check_ancestor()?;
                directory = directory
                    .open_child(name)
                    .map_err(|error| fail(error.into()))?;
            }
        }
        path.clone_into(&mut directory.path);
        Ok(directory)
    }

    /// Fails when another user could rename or replace an entry of this user.
    fn check_ancestor(&self) -> Result<(), DirectoryError> {
        let (found, us) = self.metadata()?;
        let owner = found.st_uid;
        if owner != us && owner != 0 && !is_of_another_namespace(owner) {
            let path = self.path.clone();
            return Err(DirectoryError::Owner { path, owner, us });
        }
        if found.st_mode & 0o1000 == 0 {
            self.check_mode(&found)?;
        }
        Ok(())
    }

    fn check_own(&self) -> Result<(), DirectoryError> {
        let (found, us) = self.metadata()?;
        let owner = found.st_uid;
        if owner != us {
            let path = self.path.clone();
            return Err(DirectoryError::Owner { path, owner, us });
        }
        self.check_mode(&found)
    }

    /// Write permission of this process's group is accepted: it is often a per-user group.
    fn check_mode(&self, found: &Stat) -> Result<(), DirectoryError> {
        let ours = [0, rustix::process::getegid().as_raw()].contains(&found.st_gid);
        // With an access list, the group bits are the mask: the maximum that any entry grants.
        let ours = ours && (found.st_mode & 0o020 == 0 || !self.has_access_list());
        let others = if ours { 0o002 } else { 0o022 };
        if found.st_mode & others != 0 {
            return Err(DirectoryError::Writable {
                path: self.path.clone(),
                mode: found.st_mode & 0o7777,
            });
        }
        Ok(())
    }

    /// Whether it has a POSIX access list beyond its mode, acl(5). By path: fgetxattr(2) refuses `O_PATH` descriptors.
    fn has_access_list(&self) -> bool {
        let list = rustix::fs::getxattr(self.descriptor_path("."), ACCESS_LIST, &mut [0u8; 0]);
        !matches!(list, Err(Errno::NODATA | Errno::OPNOTSUPP))
    }

    fn metadata(&self) -> Result<(Stat, u32), DirectoryError> {
        let found = rustix::fs::fstat(&*self.descriptor).map_err(|error| DirectoryError::Io {
            path: self.path.clone(),
            source: error.into(),
        })?;
        Ok((found, rustix::process::geteuid().as_raw()))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Fails unless `name` is a single path component.
pub(crate) fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a single file name",
        ));
    }
    Ok(())
}

fn unusable(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

/// Whether `uid` stands for users that this user namespace does not map (the overflow uid, user_namespaces(7)). In a
/// namespace that maps every uid, the overflow uid is an ordinary user.
fn is_of_another_namespace(uid: u32) -> bool {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    if read("/proc/sys/kernel/overflowuid").trim().parse() != Ok(uid) {
        return false;
    }
    let mapped = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        let [first, _, count] = numbers[..] else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(uid))
    };
    !read("/proc/self/uid_map").lines().any(mapped)
}

#[cfg(test)]
pub(crate) mod tests;

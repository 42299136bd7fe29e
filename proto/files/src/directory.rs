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
/// Attribute of the kernel with the access list of a file.
const ACCESS_LIST: &str = "system.posix_acl_access";
/// End of the names of files that are being written.
const TEMPORARY: &str = ".tmp";

/// A directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Not found where it should be made, or not readable.
    #[error("{path}: {source}")]
    Io {
        /// Directory.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// Belongs to another user.
    #[error("{path} belongs to user {owner}, this process runs as user {us}")]
    Owner {
        /// Directory, or one above it.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Effective user.
        us: u32,
    },
    /// Others may put another file or directory in the place of ours.
    #[error(
        "{path} may be written by others (mode {mode:04o}, or its access list): `chmod go-w {path}`"
    )]
    Writable {
        /// Directory, or one above it.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// A directory, by its descriptor. Copies share it.
#[derive(Clone, Debug)]
pub struct Directory {
    descriptor: Arc<OwnedFd>,
    path: PathBuf,
    /// Whoever else may write in here may have put another name of some file of ours there.
    anybodys: bool,
}

impl Directory {
    /// Opens a directory of our own that nobody else can write or replace; links in its path are followed.
    ///
    /// # Errors
    /// When it is not there, not ours, or somebody else could write it or one above it.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let mut directory = Self::walk(path)?;
        directory.check_own()?;
        directory.anybodys = false;
        Ok(directory)
    }

    /// The same; makes it, 0700, with those above it where they are missing.
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
        directory.check_place()?;
        for part in whole.strip_prefix(there).unwrap_or(&whole).components() {
            let Component::Normal(name) = part else {
                return Err(fail(io::ErrorKind::InvalidInput.into()));
            };
            match rustix::fs::mkdirat(&*directory.descriptor, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(fail(error.into())),
            }
            directory = directory.step(name).map_err(|error| fail(error.into()))?;
            directory.check_own()?;
        }
        path.clone_into(&mut directory.path);
        directory.anybodys = false;
        Ok(directory)
    }

    /// Opens a directory without asking whose it is. What is done in it has to be right in a directory of anybody.
    ///
    /// # Errors
    /// When it is not there.
    pub fn anybodys(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        Ok(Self::of(opened, path)?)
    }

    /// One that was opened already; `path` is for messages.
    pub fn from_descriptor(descriptor: OwnedFd, path: &Path) -> Self {
        Self {
            descriptor: Arc::new(descriptor),
            path: path.to_owned(),
            anybodys: true,
        }
    }

    /// As it was named. For messages and for those who connect to a socket in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same path for a name in it.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Who owns it.
    ///
    /// # Errors
    /// When the system fails.
    pub fn owner(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&*self.descriptor)?.st_uid)
    }

    /// Permissions.
    ///
    /// # Errors
    /// When the system fails.
    pub fn mode(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&*self.descriptor)?.st_mode & 0o7777)
    }

    /// Sets permissions.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::fchmod(
            &*self.descriptor,
            Mode::from_raw_mode(mode),
        )?)
    }

    /// A path to a name in this very directory, whatever has become of its own path meanwhile.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        let number = self.descriptor.as_raw_fd();
        PathBuf::from(format!("/proc/self/fd/{number}/{name}"))
    }

    /// What has a name; a link is itself.
    pub(crate) fn stat(&self, name: &str) -> Result<Stat, Errno> {
        rustix::fs::statat(&*self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Whether a name is there.
    pub fn has(&self, name: &str) -> bool {
        self.stat(name).is_ok()
    }

    /// Opens a file for reading. One of ours that others may use is made 0600, in a directory of ours.
    ///
    /// # Errors
    /// `NotFound`, or when it is a link, no file, another user's, or not readable; in a directory of anybody also when
    /// it has another name elsewhere.
    pub fn read(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// The same, whatever its mode, which stays.
    ///
    /// # Errors
    /// As [`Directory::read`].
    pub fn read_as_it_is(&self, name: &str) -> io::Result<File> {
        self.open_checked(name, OFlags::RDONLY)
            .map(|(file, _)| file)
    }

    /// All of a file that is text.
    ///
    /// # Errors
    /// As [`Directory::read`].
    pub fn read_to_string(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.read(name)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Opens a file for reading and writing, or makes it, 0600.
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
        if !self.anybodys && found.st_uid == us && found.st_mode & 0o177 != 0 {
            rustix::fs::fchmod(&file, PRIVATE)?;
        }
        Ok(file)
    }

    fn open_checked(&self, name: &str, access: OFlags) -> io::Result<(File, Stat)> {
        single(name)?;
        // Without waiting, should it be a FIFO.
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
        // None is one that was removed just now.
        if self.anybodys && found.st_nlink > 1 {
            return Err(unusable("has other names (hard links)"));
        }
        Ok((File::from(file), found))
    }

    fn make(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::openat(&*self.descriptor, name, flags, PRIVATE).map(File::from)
    }

    /// Puts a file in the place of another, whole: a kill at any instant leaves the old one or the new one. It is
    /// on the disk when this returns, and 0600.
    ///
    /// # Errors
    /// When it cannot be written; then the old one is there, unless only the last sync failed.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        single(name)?;
        let (temporary, mut file) = self.make_temporary(name)?;
        let mut write = || {
            file.write_all(bytes)?;
            file.sync_all()?;
            self.rename(&temporary, name)?;
            self.sync()
        };
        write().inspect_err(|_| {
            // Best effort: a leftover is removed at the next start.
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

    /// Removes what a process left that was killed while it wrote. Only for the one process that writes here.
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

    /// Renames a file; replaces what has the new name.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        single(from)?;
        single(to)?;
        let directory = &*self.descriptor;
        Ok(rustix::fs::renameat(directory, from, directory, to)?)
    }

    /// Removes a file or a link.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        single(name)?;
        Ok(rustix::fs::unlinkat(
            &*self.descriptor,
            name,
            AtFlags::empty(),
        )?)
    }

    /// Puts renames and new names on the disk.
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&*self.descriptor)?)
    }

    fn of(opened: Result<OwnedFd, Errno>, path: &Path) -> Result<Self, Errno> {
        opened.map(|descriptor| Self::from_descriptor(descriptor, path))
    }

    /// A directory in this one; not through a link.
    fn step(&self, name: &OsStr) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = &*self.descriptor;
        let opened = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            // To pass through, the right to search is enough.
            Err(Errno::ACCESS) => {
                rustix::fs::openat(directory, name, flags | OFlags::PATH, Mode::empty())
            }
            opened => opened,
        };
        Self::of(opened, &self.path.join(name))
    }

    /// Follows the links of a path, then goes down what they lead to, step by step, and looks at every place that
    /// has the next step in it.
    fn walk(path: &Path) -> Result<Self, DirectoryError> {
        let fail = |source: io::Error| DirectoryError::Io {
            path: path.to_owned(),
            source,
        };
        let real = std::fs::canonicalize(path).map_err(fail)?;
        let mut directory = Self::anybodys(Path::new("/")).map_err(fail)?;
        for part in real.components() {
            if let Component::Normal(name) = part {
                directory.check_place()?;
                directory = directory.step(name).map_err(|error| fail(error.into()))?;
            }
        }
        path.clone_into(&mut directory.path);
        Ok(directory)
    }

    /// Nobody else can rename or replace what we have in here.
    fn check_place(&self) -> Result<(), DirectoryError> {
        let (found, us) = self.found()?;
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
        let (found, us) = self.found()?;
        let owner = found.st_uid;
        if owner != us {
            let path = self.path.clone();
            return Err(DirectoryError::Owner { path, owner, us });
        }
        self.check_mode(&found)
    }

    /// The group of this process may write, since that is often its user's own.
    fn check_mode(&self, found: &Stat) -> Result<(), DirectoryError> {
        let ours = [0, rustix::process::getegid().as_raw()].contains(&found.st_gid);
        // With an access list, the bits of the group are the most that any entry of it grants.
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

    /// Whether it has a POSIX access list beyond its mode, acl(5). By its place: a descriptor that only passes
    /// through cannot be asked.
    fn has_access_list(&self) -> bool {
        let list = rustix::fs::getxattr(self.place("."), ACCESS_LIST, &mut [0u8; 0]);
        !matches!(list, Err(Errno::NODATA | Errno::OPNOTSUPP))
    }

    fn found(&self) -> Result<(Stat, u32), DirectoryError> {
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

/// A name in a directory, not a way out of it.
pub(crate) fn single(name: &str) -> io::Result<()> {
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

/// In a user namespace whoever is not mapped, root of the host above all, is shown as the overflow user. Where
/// everybody is mapped, that is a user like others.
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

//! Settings in a state file: memory and disk change together or not at all.

use std::sync::{Arc, PoisonError, RwLock};

use hyphae_files::Directory;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, MutexGuard};

use crate::files::{self, StateError};

/// Type of the content of a state file.
pub trait Content:
    Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<T: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static> Content
    for T
{
}

/// A change that was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The file was not written.
    #[error("not stored, so not changed: {0}")]
    Write(#[from] StateError),
    /// The blocking task that writes it panicked or was cancelled.
    #[error(transparent)]
    Task(#[from] tokio::task::JoinError),
}

/// A state file and its content.
#[derive(Debug)]
pub struct Stored<T> {
    directory: Directory,
    name: &'static str,
    /// One change at a time, from reading to renaming.
    changing: Mutex<()>,
    current: RwLock<Arc<T>>,
}

impl<T: Content> Stored<T> {
    /// Reads the file; writes the defaults if it is missing.
    ///
    /// # Errors
    /// When it is malformed, empty or cannot be read; it is left as it is.
    pub fn open(directory: &Directory, name: &'static str) -> Result<Self, StateError> {
        let current = files::read_toml_or_create::<T>(directory, name)?;
        Ok(Self::new(directory, name, current))
    }

    /// As [`Self::open`]; a missing file stays missing until the first change.
    ///
    /// # Errors
    /// When it is malformed, empty or cannot be read; it is left as it is.
    pub fn open_or_default(directory: &Directory, name: &'static str) -> Result<Self, StateError> {
        let current = files::read_toml::<T>(directory, name)?;
        Ok(Self::new(directory, name, current))
    }

    fn new(directory: &Directory, name: &'static str, current: T) -> Self {
        Self {
            directory: directory.clone(),
            name,
            changing: Mutex::new(()),
            current: RwLock::new(Arc::new(current)),
        }
    }

    /// The content in force.
    pub fn read(&self) -> Arc<T> {
        // A poisoned lock is harmless: the Arc is replaced in one step.
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// Begins a change, which excludes others until it is committed or dropped.
    pub async fn change(&self) -> StoredChange<'_, T> {
        let guard = self.changing.lock().await;
        let old = self.read();
        StoredChange {
            stored: self,
            _guard: guard,
            new: T::clone(&old),
            old,
            is_stale: false,
        }
    }

    /// Begins a change of the file, which an operator may have edited. A missing file counts as unchanged.
    ///
    /// # Errors
    /// When it is malformed or cannot be read; then nothing changes.
    pub async fn reread(&self) -> Result<StoredChange<'_, T>, StateError> {
        let mut change = self.change().await;
        if self.directory.contains(self.name) {
            change.new = files::read_toml(&self.directory, self.name)?;
        }
        change.is_stale = *change.old != change.new || !self.directory.contains(self.name);
        Ok(change)
    }

    fn set(&self, value: Arc<T>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// A change that is not in force yet.
pub struct StoredChange<'a, T> {
    stored: &'a Stored<T>,
    _guard: MutexGuard<'a, ()>,
    old: Arc<T>,
    /// The new content.
    pub new: T,
    /// The file may be missing or differ from `old`, so that it is written even if `new` equals `old`.
    is_stale: bool,
}

impl<T: Content> StoredChange<'_, T> {
    /// The content in force.
    pub fn old(&self) -> &T {
        &self.old
    }

    /// Has the file written even if the content is unchanged: it may be missing or edited.
    pub fn overwrite(&mut self) {
        self.is_stale = true;
    }

    /// Puts the content in force without writing it: the disk has it.
    pub fn accept(self) {
        if *self.old != self.new {
            self.stored.set(Arc::new(self.new));
        }
    }

    /// Writes the change to disk, then puts it in force. Not cancel-safe: the future must run to completion.
    ///
    /// # Errors
    /// When the file cannot be written; memory and disk are then unchanged, also where an operator has edited the file.
    pub async fn commit(self) -> Result<Arc<T>, CommitError> {
        if *self.old == self.new && !self.is_stale {
            return Ok(self.old);
        }
        let (directory, name) = (self.stored.directory.clone(), self.stored.name);
        let (old, new) = (self.old, Arc::new(self.new));
        let writing = tokio::task::spawn_blocking(move || {
            write_or_restore(&directory, name, (old, new), files::write_toml)
        });
        let (now, failure) = writing.await?;
        self.stored.set(Arc::clone(&now));
        match failure {
            None => Ok(now),
            Some(error) => {
                tracing::error!(%error, "state file was not written; the change was not made");
                Err(error.into())
            }
        }
    }
}

/// Writes the new one of two values. Where only the last sync failed, the new file exists: then the file gets the
/// content that it had before, which an operator may have edited. Returns the value that holds, and the failure.
fn write_or_restore<T: Content>(
    directory: &Directory,
    name: &str,
    (old, new): (Arc<T>, Arc<T>),
    write: impl FnOnce(&Directory, &str, &T) -> Result<(), StateError>,
) -> (Arc<T>, Option<StateError>) {
    let before = directory.read_to_string(name);
    let Err(error) = write(directory, name, &new) else {
        return (new, None);
    };
    let on_disk = files::read_toml::<T>(directory, name).ok();
    if on_disk.as_ref() != Some(&*new) {
        return (old, Some(error));
    }
    let restored = match before {
        Ok(text) => files::replace(directory, name, text.as_bytes()),
        Err(_) => directory.remove(name),
    };
    (if restored.is_ok() { old } else { new }, Some(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "numbers.toml";

    #[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
    struct Numbers {
        all: std::collections::BTreeMap<String, u64>,
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_stored_is_not_made() {
        let kept = tempfile::tempdir().unwrap();
        let directory = Directory::open(kept.path()).unwrap();
        let file = kept.path().join(FILE);
        let stored = Stored::<Numbers>::open(&directory, FILE).unwrap();
        assert!(file.exists(), "defaults are written");
        let mut change = stored.change().await;
        change.new.all.insert("one".to_owned(), 1);
        change.commit().await.unwrap();
        let on_disk = || files::read_toml::<Numbers>(&directory, FILE).unwrap();
        assert_eq!(on_disk(), *stored.read());

        // A directory where the file would be: fails for root too.
        let aside = kept.path().join("aside");
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let mut change = stored.change().await;
        change.new.all.insert("two".to_owned(), 2);
        assert!(matches!(change.commit().await, Err(CommitError::Write(_))));
        assert_eq!(stored.read().all.len(), 1);
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&aside, &file).unwrap();
        assert_eq!(on_disk(), *stored.read());

        let mut change = stored.change().await;
        change.new.all.insert("two".to_owned(), 2);
        change.commit().await.unwrap();
        let again = Stored::<Numbers>::open(&directory, FILE).unwrap();
        assert_eq!((again.read().all.len(), stored.read().all.len()), (2, 2));
    }

    #[tokio::test]
    async fn an_edited_or_missing_file_is_written_although_memory_stays() {
        let kept = tempfile::tempdir().unwrap();
        let directory = Directory::open(kept.path()).unwrap();
        let file = kept.path().join(FILE);
        let stored = Stored::<Numbers>::open(&directory, FILE).unwrap();
        let mut change = stored.change().await;
        change.new.all.insert("one".to_owned(), 1);
        change.commit().await.unwrap();
        let on_disk = || files::read_toml::<Numbers>(&directory, FILE).unwrap();

        // An operator removed the entry from the file; adding it again restores it.
        files::write_toml(&directory, FILE, &Numbers::default()).unwrap();
        let mut change = stored.reread().await.unwrap();
        change.new.all.insert("one".to_owned(), 1);
        change.commit().await.unwrap();
        assert_eq!(on_disk(), *stored.read());

        std::fs::remove_file(&file).unwrap();
        stored.reread().await.unwrap().commit().await.unwrap();
        assert_eq!(on_disk(), *stored.read());

        std::fs::remove_file(&file).unwrap();
        let mut change = stored.change().await;
        change.overwrite();
        change.commit().await.unwrap();
        assert_eq!(on_disk(), *stored.read());
    }

    #[test]
    fn a_write_that_fails_restores_the_file_as_it_was_edited() {
        let kept = tempfile::tempdir().unwrap();
        let directory = Directory::open(kept.path()).unwrap();
        let file = kept.path().join(FILE);
        let numbers = |n| Numbers {
            all: [("one".to_owned(), n)].into(),
        };
        let (old, new) = (Arc::new(numbers(1)), Arc::new(numbers(2)));
        // The rename succeeds, the sync after it fails.
        let unsynced = |directory: &Directory, name: &str, value: &Numbers| {
            files::write_toml(directory, name, value)?;
            Err(StateError::NoHome)
        };
        let write = || {
            let values = (Arc::clone(&old), Arc::clone(&new));
            write_or_restore(&directory, FILE, values, unsynced)
        };
        let edited = "# edited\n[all]\none = 3\n";
        std::fs::write(&file, edited).unwrap();
        let (holds, failure) = write();
        assert!(holds == old && failure.is_some());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), edited);
        std::fs::remove_file(&file).unwrap();
        let (holds, failure) = write();
        assert!(holds == old && failure.is_some());
        assert!(!file.exists());
    }

    #[test]
    fn a_malformed_file_is_named_and_kept() {
        let kept = tempfile::tempdir().unwrap();
        let directory = Directory::open(kept.path()).unwrap();
        let file = kept.path().join(FILE);
        let text = "[all]\ntwo = \"2\"\n";
        std::fs::write(&file, text).unwrap();
        let error = Stored::<Numbers>::open(&directory, FILE)
            .unwrap_err()
            .to_string();
        for part in ["numbers.toml", "line 2", "two"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}

use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Lab(tempfile::TempDir, Directory);

impl Lab {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path()).unwrap();
        Self(place, directory)
    }

    fn bind(&self) -> Result<(Socket, UnixListener), BindError> {
        Socket::bind(&self.1, "socket", 0o660, true)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("socket")
    }

    fn left(&self) -> usize {
        std::fs::read_dir(self.0.path()).unwrap().count()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o7777
}

#[test]
fn a_socket_has_its_mode_and_is_removed_on_drop() {
    let lab = Lab::new();
    let (socket, _listener) = lab.bind().unwrap();
    assert_eq!(socket.path(), lab.path());
    // The umask of this process is inherited: tests/modes.rs tests exact modes.
    assert_eq!(mode(&lab.path()) & !0o660, 0);
    UnixStream::connect(lab.path()).unwrap();
    assert!(socket.exists());
    assert!(matches!(lab.bind(), Err(BindError::Live(_))));
    drop(socket);
    assert_eq!(lab.left(), 0);
}

#[test]
fn only_a_stale_socket_of_the_same_user_is_replaced() {
    let lab = Lab::new();
    drop(UnixListener::bind(lab.path()).unwrap());
    let kept = Socket::bind(&lab.1, "socket", 0o660, false);
    assert!(matches!(kept, Err(BindError::NotOurs(_))));
    if crate::directory::tests::is_root() {
        lchown(lab.path(), Some(65534), None).unwrap();
        assert!(matches!(lab.bind(), Err(BindError::NotOurs(_))));
        lchown(lab.path(), Some(0), None).unwrap();
    }
    assert!(lab.path().exists());
    let (socket, _listener) = lab.bind().unwrap();
    // The name belongs to another socket now: drop does not remove it.
    std::fs::remove_file(lab.path()).unwrap();
    assert!(!socket.exists());
    let _successor = UnixListener::bind(lab.path()).unwrap();
    drop(socket);
    assert!(lab.path().exists());
}

#[test]
fn planted_files_and_links_are_not_touched() {
    let lab = Lab::new();
    let precious = lab.0.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    symlink(&precious, lab.path()).unwrap();
    assert!(matches!(lab.bind(), Err(BindError::NotASocket(_))));
    std::fs::remove_file(lab.path()).unwrap();
    symlink(&precious, lab.0.path().join(".socket.lock")).unwrap();
    assert!(matches!(lab.bind(), Err(BindError::System { .. })));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    let long = "x".repeat(108);
    let bound = Socket::bind(&lab.1, &long, 0o660, true);
    assert!(matches!(bound, Err(BindError::TooLong(_))));
    let out = Socket::bind(&lab.1, "../socket", 0o660, true);
    assert!(matches!(out, Err(BindError::System { .. })));
}

#[test]
fn a_hard_link_as_lock_file_is_refused_and_unchanged() {
    let lab = Lab::new();
    let precious = lab.0.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o644)).unwrap();
    let lock = lab.0.path().join(".socket.lock");
    std::fs::hard_link(&precious, &lock).unwrap();
    let theirs = Directory::open_unchecked(lab.0.path()).unwrap();
    let bound = Socket::bind(&theirs, "socket", 0o660, true);
    assert!(matches!(bound, Err(BindError::System { .. })), "{bound:?}");
    assert!(lock.exists() && !lab.path().exists());
    assert_eq!(mode(&precious), 0o644);
}

#[test]
fn replacing_the_name_during_bind_changes_no_mode_of_another_file() {
    let lab = Lab::new();
    let precious = lab.0.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o600)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let link = lab.0.path().join("link");
            while !done.load(Ordering::Relaxed) {
                // Removed again below, as the bound socket is.
                let _ = symlink(&precious, &link);
                let _ = std::fs::rename(&link, lab.path());
            }
        });
        for _ in 0..300 {
            drop(lab.bind());
            let _ = std::fs::remove_file(lab.path());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(mode(&precious), 0o600);
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
}

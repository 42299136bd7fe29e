//! Modes under the umask of a plane; in a separate process, because the umask is per process.

use std::os::unix::fs::PermissionsExt;

use hyphae_files::{Directory, Socket, clear_umask};

#[test]
fn modes_are_exact_under_any_inherited_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    clear_umask();
    let lab = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let directory = Directory::create(&lab.path().join("made")).unwrap();
    let mode = |name: &str| {
        let path = directory.path_of(name);
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode("."), 0o700);
    let (_socket, _listener) = Socket::bind(&directory, "group", 0o660, true).unwrap();
    let (_socket, _listener) = Socket::bind(&directory, "all", 0o666, true).unwrap();
    assert_eq!((mode("group"), mode("all")), (0o660, 0o666));
    directory.replace("file", b"1").unwrap();
    assert_eq!((mode("file"), mode(".group.lock")), (0o600, 0o600));
}

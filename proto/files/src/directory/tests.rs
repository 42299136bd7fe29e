use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::*;

/// A second user of the host.
const NOBODY: u32 = 65534;

/// Whether this process can change owners.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        hyphae_test_skip::lacks("root, to change the owner of a file");
    }
    root
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_directory_of_another_user_or_below_one_is_refused() {
    if !is_root() {
        return;
    }
    let lab = tempfile::tempdir().unwrap();
    let theirs = lab.path().join("theirs");
    let ours = theirs.join("ours");
    std::fs::create_dir_all(&ours).unwrap();
    assert!(Directory::open(&ours).is_ok());
    chown(&theirs, Some(NOBODY), None).unwrap();
    for path in [&theirs, &ours, &theirs.join("new")] {
        let error = Directory::create(path).unwrap_err();
        assert!(
            matches!(error, DirectoryError::Owner { owner: NOBODY, .. }),
            "{error}"
        );
    }
    assert!(!theirs.join("new").exists());
}

#[test]
fn a_directory_writable_by_others_is_refused_and_so_is_an_ancestor_unless_sticky() {
    let lab = tempfile::tempdir().unwrap();
    let above = lab.path().join("above");
    let ours = above.join("ours");
    std::fs::create_dir_all(&ours).unwrap();
    for (outer, inner, fits) in [
        (0o755, 0o755, true),
        (0o1777, 0o700, true),
        (0o777, 0o700, false),
        (0o755, 0o777, false),
        (0o755, 0o1777, false),
    ] {
        set_mode(&above, outer);
        set_mode(&ours, inner);
        let opened = Directory::create(&ours);
        assert_eq!(opened.is_ok(), fits, "{outer:o} {inner:o}");
        if let Err(error) = opened {
            assert!(error.to_string().contains("chmod go-w"), "{error}");
        }
    }
}

#[test]
fn missing_directories_are_created_with_mode_0700() {
    let lab = tempfile::tempdir().unwrap();
    let path = lab.path().join("a/b");
    let made = Directory::create(&path).unwrap();
    assert_eq!((made.path(), mode(&path)), (&*path, 0o700));
    assert_eq!(mode(&lab.path().join("a")), 0o700);
    made.replace("file", b"1").unwrap();
    assert_eq!(std::fs::read(path.join("file")).unwrap(), b"1");
    assert!(Directory::create(&lab.path().join("c/../../d")).is_err());
}

#[test]
fn a_link_in_the_path_is_resolved_once() {
    let lab = tempfile::tempdir().unwrap();
    let [first, second, link] = ["first", "second", "link"].map(|name| lab.path().join(name));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    symlink(&first, &link).unwrap();
    let directory = Directory::open(&link).unwrap();
    std::fs::remove_file(&link).unwrap();
    symlink(&second, &link).unwrap();
    directory.replace("file", b"1").unwrap();
    assert_eq!(directory.read_to_string("file").unwrap(), "1");
    assert!(first.join("file").exists() && !second.join("file").exists());
}

#[test]
fn planted_links_are_neither_read_nor_written_through() {
    let lab = tempfile::tempdir().unwrap();
    let ours = lab.path().join("ours");
    let directory = Directory::create(&ours).unwrap();
    let precious = lab.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    set_mode(&precious, 0o600);
    symlink(&precious, ours.join("file")).unwrap();
    symlink(
        &precious,
        ours.join(format!(".file.{}-0.tmp", std::process::id())),
    )
    .unwrap();
    symlink(lab.path().join("absent"), ours.join("lock")).unwrap();
    assert!(directory.read("file").is_err());
    assert!(directory.open_or_create("file").is_err());
    assert!(directory.open_or_create("lock").is_err());
    assert!(!lab.path().join("absent").exists());
    directory.replace("file", b"ours").unwrap();
    assert_eq!(directory.read_to_string("file").unwrap(), "ours");
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert_eq!(mode(&precious), 0o600);
    for name in ["", ".", "..", "../precious", "a/b"] {
        assert!(directory.read(name).is_err(), "{name}");
        assert!(directory.replace(name, b"").is_err(), "{name}");
    }
}

#[test]
fn new_and_existing_files_get_mode_0600() {
    let lab = tempfile::tempdir().unwrap();
    set_mode(lab.path(), 0o755);
    let directory = Directory::open(lab.path()).unwrap();
    directory.replace("new", b"1").unwrap();
    drop(directory.open_or_create("made").unwrap());
    std::fs::write(lab.path().join("found"), "1").unwrap();
    set_mode(&lab.path().join("found"), 0o664);
    assert_eq!(directory.read_to_string("found").unwrap(), "1");
    for name in ["new", "made", "found"] {
        assert_eq!(mode(&lab.path().join(name)), 0o600, "{name}");
    }
}

#[test]
fn an_unchecked_directory_changes_no_mode_and_refuses_hard_links() {
    let lab = tempfile::tempdir().unwrap();
    let precious = lab.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    set_mode(&precious, 0o644);
    std::fs::hard_link(&precious, lab.path().join("second")).unwrap();
    let directory = Directory::open_unchecked(lab.path()).unwrap();
    for name in ["second", "precious"] {
        let error = directory.open_or_create(name).unwrap_err();
        assert!(error.to_string().contains("hard links"), "{error}");
    }
    std::fs::remove_file(lab.path().join("second")).unwrap();
    drop(directory.open_or_create("precious").unwrap());
    assert_eq!(mode(&precious), 0o644);
}

#[test]
fn an_access_list_with_write_permission_is_not_accepted_as_group_permission() {
    let lab = tempfile::tempdir().unwrap();
    set_mode(lab.path(), 0o770);
    Directory::open(lab.path()).unwrap();
    let lets = |bits: u16| {
        // acl(5): of the owner, NOBODY, the group, the mask, others.
        let entries = [
            (0x01, 7, u32::MAX),
            (0x02, bits, NOBODY),
            (0x04, 5, u32::MAX),
            (0x10, bits, u32::MAX),
            (0x20, 0, u32::MAX),
        ];
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            list.extend_from_slice(&u16::to_le_bytes(tag));
            list.extend_from_slice(&u16::to_le_bytes(bits));
            list.extend_from_slice(&u32::to_le_bytes(id));
        }
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(lab.path(), ACCESS_LIST, &list, flags)
    };
    match lets(7) {
        Err(Errno::OPNOTSUPP) => {
            return hyphae_test_skip::skip(&format!("no access lists in {lab:?}"));
        }
        set => set.unwrap(),
    }
    let error = Directory::open(lab.path()).unwrap_err();
    assert!(matches!(error, DirectoryError::Writable { .. }), "{error}");
    let below = Directory::create(&lab.path().join("below")).unwrap_err();
    assert!(matches!(below, DirectoryError::Writable { .. }), "{below}");
    // Read permission only.
    lets(5).unwrap();
    Directory::open(lab.path()).unwrap();
}

#[test]
fn other_file_types_and_files_of_other_users_are_refused_without_blocking() {
    let lab = tempfile::tempdir().unwrap();
    let directory = Directory::open(lab.path()).unwrap();
    let fifo = FileType::Fifo;
    rustix::fs::mknodat(&directory, "fifo", fifo, Mode::RWXU, 0).unwrap();
    std::fs::create_dir(lab.path().join("folder")).unwrap();
    for name in ["fifo", "folder"] {
        assert!(directory.read(name).is_err(), "{name}");
        assert!(directory.open_or_create(name).is_err(), "{name}");
    }
    if is_root() {
        std::fs::write(lab.path().join("theirs"), "1").unwrap();
        chown(lab.path().join("theirs"), Some(NOBODY), None).unwrap();
        let error = directory.read("theirs").unwrap_err();
        assert!(error.to_string().contains("another user"), "{error}");
    }
}

#[test]
fn only_leftovers_of_a_killed_writer_are_removed() {
    let lab = tempfile::tempdir().unwrap();
    let directory = Directory::open(lab.path()).unwrap();
    for name in [".topics.toml.7-0.tmp", "topics.toml", ".hidden", "own.tmp"] {
        std::fs::write(lab.path().join(name), "").unwrap();
    }
    directory.remove_leftovers().unwrap();
    assert!(!directory.contains(".topics.toml.7-0.tmp"));
    assert_eq!(std::fs::read_dir(lab.path()).unwrap().count(), 3);
}

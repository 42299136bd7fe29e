use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;

use super::*;

/// A user other than that of the test.
fn other_user() -> u32 {
    rustix::process::geteuid().as_raw() + 1
}

#[tokio::test]
async fn no_path_leads_to_a_node() {
    let lab = tempfile::tempdir().unwrap();
    let path = lab.path().join("rpc.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let gate = Gate::new(&[lab.path().to_owned()], &[]);
    for set_by in [Authority::Node, Authority::User(0), Authority::Remote] {
        let error = gate.connect(&path, set_by).await.unwrap_err();
        assert!(matches!(error, GateError::Node(_)), "{error}");
    }
}

#[tokio::test]
async fn a_path_of_the_nodes_own_authority_is_checked_without_a_connection() {
    let lab = tempfile::tempdir().unwrap();
    let [own, server] = ["rpc.sock", "server"].map(|name| lab.path().join(name));
    let _own = UnixListener::bind(&own).unwrap();
    let listener = UnixListener::bind(&server).unwrap();
    listener.set_nonblocking(true).unwrap();
    let gate = Gate::new(&[], std::slice::from_ref(&own));
    gate.check(&server, Authority::Node).await.unwrap();
    gate.check(&lab.path().join("none"), Authority::Node)
        .await
        .unwrap();
    let seen = listener.accept().unwrap_err();
    assert_eq!(seen.kind(), io::ErrorKind::WouldBlock);
    let linked = lab.path().join("linked");
    symlink(&own, &linked).unwrap();
    for path in [&own, &linked] {
        let error = gate.check(path, Authority::Node).await.unwrap_err();
        assert!(matches!(error, GateError::Node(_)), "{error}");
    }
}

/// A directory with search permission for all users.
fn open_lab() -> tempfile::TempDir {
    let lab = tempfile::tempdir().unwrap();
    set_mode(lab.path(), 0o755);
    lab
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn another_user_reaches_servers_of_that_user_only_and_no_other_gets_a_connection() {
    let lab = open_lab();
    let path = lab.path().join("server");
    let listener = UnixListener::bind(&path).unwrap();
    let gate = Gate::of_test(&[]);
    gate.connect(&path, Authority::Node).await.unwrap();
    let own = Authority::User(rustix::process::geteuid().as_raw());
    gate.connect(&path, own).await.unwrap();
    listener.accept().unwrap();
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    let error = gate.connect(&path, Authority::User(other_user())).await;
    assert!(matches!(error, Err(GateError::Server { .. })), "{error:?}");
    assert!(
        listener.accept().is_err(),
        "connected before it was checked"
    );
    // The owner of the file does not suffice: the listener has to be that user as well.
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(other_user()), None).unwrap();
        let error = gate.connect(&path, Authority::User(other_user())).await;
        assert!(matches!(error, Err(GateError::Server { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn errors_do_not_reveal_the_content_of_closed_directories() {
    let lab = open_lab();
    let (closed, open) = (lab.path().join("closed"), lab.path().join("open"));
    std::fs::create_dir(&closed).unwrap();
    std::fs::create_dir(&open).unwrap();
    set_mode(&closed, 0o750);
    set_mode(&open, 0o755);
    let _listener = UnixListener::bind(closed.join("server")).unwrap();
    symlink(closed.join("server"), open.join("there")).unwrap();
    symlink("../closed/absent", open.join("not")).unwrap();
    symlink(&closed, open.join("directory")).unwrap();
    symlink("round", open.join("round")).unwrap();
    let gate = Gate::of_test(&[]);
    let theirs = Authority::User(other_user());
    for name in [
        "closed/server",
        "closed/absent",
        "closed/absent/deeper",
        "open/../closed/server",
        "open/there",
        "open/not",
        "open/directory/server",
        "open/directory/absent",
    ] {
        let error = gate.connect(&lab.path().join(name), theirs).await;
        assert!(
            matches!(error, Err(GateError::Unseen { .. })),
            "{name}: {error:?}"
        );
    }
    for name in ["open/absent", "open/absent/deeper", "open/round", "open"] {
        let error = gate.connect(&lab.path().join(name), theirs).await;
        assert!(
            matches!(error, Err(GateError::System { .. })),
            "{name}: {error:?}"
        );
    }
    // Its owner reaches it through the same links.
    let own = Authority::User(rustix::process::geteuid().as_raw());
    for name in ["open/there", "open/directory/server"] {
        gate.connect(&lab.path().join(name), own).await.unwrap();
    }
}

#[tokio::test]
async fn a_remote_setter_reaches_below_the_configured_directories_and_not_through_links() {
    let lab = tempfile::tempdir().unwrap();
    let (base, other) = (lab.path().join("base"), lab.path().join("other"));
    std::fs::create_dir_all(base.join("deep")).unwrap();
    std::fs::create_dir(&other).unwrap();
    let inside = base.join("deep/server");
    let _inside = UnixListener::bind(&inside).unwrap();
    let _outside = UnixListener::bind(other.join("server")).unwrap();
    symlink(&other, base.join("link")).unwrap();
    symlink(other.join("server"), base.join("server")).unwrap();
    let gate = Gate::of_test(std::slice::from_ref(&base));
    gate.connect(&inside, Authority::Remote).await.unwrap();
    let none = Gate::of_test(&[]);
    for (gate, path) in [
        (&none, &inside),
        (&gate, &other.join("server")),
        (&gate, &base.join("link/server")),
        (&gate, &base.join("server")),
        (&gate, &base.join("../other/server")),
        (&gate, &lab.path().join("based/server")),
    ] {
        let error = gate.connect(path, Authority::Remote).await.unwrap_err();
        assert!(matches!(error, GateError::Outside(_)), "{error}");
        let bound = gate.bind(&path.with_file_name("new"), Authority::Remote);
        if path != &base.join("server") {
            assert!(matches!(bound, Err(GateError::Outside(_))), "{bound:?}");
        }
    }
    drop(gate.bind(&base.join("new"), Authority::Remote).unwrap());
    let absent = gate.connect(&base.join("absent"), Authority::Remote).await;
    assert!(
        matches!(absent, Err(GateError::System { .. })),
        "{absent:?}"
    );
}

#[test]
fn another_user_gets_sockets_in_directories_of_that_user_only() {
    let lab = tempfile::tempdir().unwrap();
    let gate = Gate::of_test(&[]);
    let path = lab.path().join("socket");
    let theirs = Authority::User(other_user());
    let error = gate.bind(&path, theirs).unwrap_err();
    assert!(matches!(error, GateError::Directory { .. }), "{error}");
    assert!(!path.exists());
    if !rustix::process::geteuid().is_root() {
        hyphae_test_skip::lacks("root, to give a directory to another user");
        return;
    }
    chown(lab.path(), Some(other_user()), None).unwrap();
    drop(gate.bind(&path, theirs).unwrap());
    // A stale socket in there is replaced for that user only.
    drop(UnixListener::bind(&path).unwrap());
    let bound = gate.bind(&path, Authority::Node);
    let not_ours = |error: &GateError| matches!(error, GateError::Bind(BindError::NotOurs(_)));
    assert!(not_ours(&bound.unwrap_err()));
    drop(gate.bind(&path, theirs).unwrap());
}

#[test]
fn a_plane_is_identified_by_its_name_where_its_program_is_not_readable() {
    for (plane, name) in [
        (Plane::Data, "hyphae-data"),
        (Plane::Control, "hyphae-control"),
    ] {
        let seen = std::thread::spawn(move || {
            plane.set_name().unwrap();
            std::fs::read_to_string("/proc/thread-self/comm").unwrap()
        });
        let seen = seen.join().unwrap();
        assert_eq!(seen.trim_end(), name);
        assert!(PROGRAMS.contains(&name));
    }
}

#[test]
fn processes_of_nodes_are_identified() {
    assert!(is_node(i32::try_from(std::process::id()).unwrap()));
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    assert!(!is_node(i32::try_from(child.id()).unwrap()));
    child.kill().unwrap();
    child.wait().unwrap();
}

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory of the test's user, and its guard.
fn place() -> (tempfile::TempDir, Directory) {
    let kept = tempfile::tempdir().unwrap();
    let directory = Directory::open(kept.path()).unwrap();
    (kept, directory)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_key_stays_and_is_not_for_everybody() {
    let (_kept, directory) = place();
    let path = directory.path_of(KEY_FILE);
    let first = load_or_create_key(&directory).unwrap();
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let second = load_or_create_key(&directory).unwrap();
    assert_eq!(first.public_key(), second.public_key());
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = load_or_create_key(&directory);
    assert!(matches!(
        exposed,
        Err(StateError::KeyExposed { mode: 0o644, .. })
    ));
    assert!(matches!(
        generate_key(&directory, false),
        Err(StateError::KeyExists(_))
    ));
    let third = generate_key(&directory, true).unwrap();
    assert_ne!(first.public_key(), third.public_key());
}

#[test]
fn a_key_of_the_wrong_length_is_refused_and_kept() {
    let (_kept, directory) = place();
    let path = directory.path_of(KEY_FILE);
    for bytes in [&[1u8; 31][..], &[1; 33], &[], &[0; 32]] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(
            load_or_create_key(&directory),
            Err(StateError::Key { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn state_files_round_trip_and_malformed_ones_are_kept() {
    let (_kept, directory) = place();
    let path = directory.path_of(PEERS_FILE);
    let read = || read_toml::<PeersFile>(&directory, PEERS_FILE);
    assert_eq!(read().unwrap(), PeersFile::default());
    let peers = PeersFile {
        peers: vec!["udp://192.0.2.1:9670".parse().unwrap()],
    };
    write_toml(&directory, PEERS_FILE, &peers).unwrap();
    assert_eq!(read().unwrap(), peers);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    fs::write(&path, "peers = 3").unwrap();
    let error = read().unwrap_err();
    let StateError::Malformed { message, .. } = error else {
        panic!("{error}");
    };
    let start = "line 1, column 9 (`peers = 3`): invalid type";
    assert!(message.starts_with(start), "{message}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "peers = 3");
}

#[test]
fn an_empty_state_file_is_refused_and_kept() {
    fn refused<T: DeserializeOwned + Serialize + Default + std::fmt::Debug>(name: &str) {
        let (_kept, directory) = place();
        for text in ["", "\n", "# nothing\n"] {
            fs::write(directory.path_of(name), text).unwrap();
            for read in [read_toml::<T>, read_toml_or_create::<T>] {
                let error = read(&directory, name).unwrap_err();
                assert!(error.to_string().contains(name), "{error}");
            }
            assert_eq!(fs::read_to_string(directory.path_of(name)).unwrap(), text);
        }
        // The node's own defaults are no such file.
        fs::remove_file(directory.path_of(name)).unwrap();
        read_toml_or_create::<T>(&directory, name).unwrap();
        read_toml::<T>(&directory, name).unwrap();
    }
    refused::<hyphae_bus::topics::Topics>(TOPICS_FILE);
    refused::<PeersFile>(PEERS_FILE);
    refused::<RoutesFile>(ROUTES_FILE);
    refused::<DrainFile>(DRAIN_FILE);
}

#[test]
fn state_files_are_for_their_owner_only_whatever_the_directory_says() {
    let (kept, directory) = place();
    fs::set_permissions(kept.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.path_of(DRAIN_FILE);
    write_toml(&directory, DRAIN_FILE, &DrainFile::default()).unwrap();
    assert_eq!(mode(&path), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    read_toml::<DrainFile>(&directory, DRAIN_FILE).unwrap();
    assert_eq!(mode(&path), 0o600);
    drop(lock(&directory).unwrap());
    assert_eq!(mode(&directory.path_of(LOCK_FILE)), 0o600);
}

#[test]
fn retries_while_a_killed_process_holds_a_port_and_fails_when_a_live_one_does() {
    let in_use = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = holder.local_addr().unwrap();
    let bind = || std::net::TcpListener::bind(place);
    assert!(in_use(&retry_while_busy(in_use, bind).unwrap_err()));
    let mut holder = Some(holder);
    let mut attempts = 0;
    let taken = retry_while_busy(in_use, || {
        attempts += 1;
        if attempts == 4 {
            holder = None;
        }
        bind()
    });
    assert_eq!(taken.unwrap().local_addr().unwrap(), place);
    assert_eq!(attempts, 4);
}

#[test]
fn a_second_node_is_refused() {
    let (_kept, directory) = place();
    let first = lock(&directory).unwrap();
    assert!(matches!(lock(&directory), Err(StateError::InUse(_))));
    drop(first);
    lock(&directory).unwrap();
}

const NUMBERS: &str = "numbers.toml";

/// Writes until it is killed.
fn write_until_killed(directory: &Path) {
    let directory = Directory::open(directory).unwrap();
    for n in 0u64.. {
        let all: std::collections::BTreeMap<String, u64> =
            (0..200).map(|key| (format!("key{key}"), n)).collect();
        write_toml(&directory, NUMBERS, &all).unwrap();
    }
}

#[test]
fn a_kill_at_any_instant_leaves_the_old_file_or_the_new() {
    // This test again, in a process of its own.
    if let Some(directory) = std::env::var_os("HYPHAE_TEST_WRITE_ON") {
        return write_until_killed(Path::new(&directory));
    }
    type Numbers = std::collections::BTreeMap<String, u64>;
    let (_kept, directory) = place();
    let path = directory.path_of(NUMBERS);
    let (mut last, mut round) = (0, 0);
    // The number of writes before the kill is random: until it is more than one.
    while round < 30 || last == 0 {
        assert!(round < 1000, "it wrote more than once");
        round += 1;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "files::tests::a_kill_at_any_instant_leaves_the_old_file_or_the_new",
            ])
            .env("HYPHAE_TEST_WRITE_ON", directory.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The instant differs by round; the process writes by then.
        let before = fs::metadata(&path).ok().map(|file| file.ino());
        while fs::metadata(&path).ok().map(|file| file.ino()) == before {
            assert_eq!(child.try_wait().unwrap(), None, "it keeps writing");
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_micros(round * 173));
        child.kill().unwrap();
        child.wait().unwrap();
        let numbers: Numbers = read_toml(&directory, NUMBERS).unwrap();
        let values: std::collections::BTreeSet<u64> = numbers.values().copied().collect();
        assert_eq!((numbers.len(), values.len()), (200, 1), "half a file");
        last = last.max(*values.first().unwrap());
    }
}

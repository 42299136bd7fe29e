//! Covers: what a service manager hears of the real planes: READY when they work, STATUS, WATCHDOG as long
//! as every thread that serves packets makes progress, STOPPING; what the parts of `hyphae up` inherit; and a plane
//! that crashes again and again under `hyphae up`, which the other plane and the node outlive.
//! No namespaces, no TUN device. The units themselves are in `units.rs`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::cell::RefCell;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{TIMEOUT, binary, eventually};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

/// What the service manager allows between two pings; a plane sends four in this time.
const WATCHDOG: Duration = Duration::from_secs(2);

/// A service manager with the directories of one node.
struct Manager {
    directory: TempDir,
    /// What comes to its socket. A thread takes it from there: a full socket would swallow last words.
    messages: mpsc::Receiver<String>,
    /// Heard and not asked for yet: two planes speak, in any order.
    kept: RefCell<Vec<String>>,
}

/// A process that it started; killed when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Service {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    fn stop(&mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        let (heard, messages) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(len) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                if heard.send(text).is_err() {
                    break;
                }
            }
        });
        let kept = RefCell::default();
        Self {
            directory,
            messages,
            kept,
        }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, command: &str) -> Service {
        let log = std::fs::File::create(self.at(&format!("{command}.log"))).unwrap();
        let micros = WATCHDOG.as_micros().to_string();
        let child = Command::new(binary())
            .args([
                command,
                "--no-tun",
                "--cores",
                "any:2",
                "--listen",
                "127.0.0.1:0",
            ])
            .args([
                "--metrics",
                "off",
                "--rpc",
                "off",
                "--discovery",
                "none",
                "--state-dir",
            ])
            .arg(self.at("state"))
            .arg("--socket-dir")
            .arg(self.at("run"))
            .env("NOTIFY_SOCKET", self.at("notify"))
            .env("WATCHDOG_USEC", micros)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Service(child.unwrap())
    }

    /// The lines of the next message; none when there is none within the time.
    fn heard(&self, within: Duration) -> Vec<String> {
        let text = self.messages.recv_timeout(within).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a line with this text is heard, and gives it.
    fn hears(&self, what: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            let mut kept = self.kept.borrow_mut();
            if let Some(at) = kept.iter().position(|line| line.contains(what)) {
                return kept.remove(at);
            }
            kept.extend(self.heard(Duration::from_secs(1)));
        }
        let log = |name: &str| std::fs::read_to_string(self.at(name)).unwrap_or_default();
        panic!(
            "{what} is not heard: {}{}{}",
            log("dataplane.log"),
            log("controlplane.log"),
            log("up.log")
        );
    }

    /// Waits until the watchdog has not been fed for a while, twice as long as allowed. What was on its way, or
    /// earned just before, may still come first.
    fn starves(&self, who: &str) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let lines = self.listen(2 * WATCHDOG);
            if !lines.iter().any(|line| line == "WATCHDOG=1") {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{who} hung, and the watchdog was fed: {lines:?}"
            );
        }
    }

    /// What is heard from now on for so long.
    fn listen(&self, time: Duration) -> Vec<String> {
        self.kept.borrow_mut().clear();
        let (mut lines, end) = (Vec::new(), Instant::now() + time);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            lines.extend(self.heard(left));
        }
        lines
    }
}

/// The thread of a process with this name.
fn thread(process: Pid, name: &str) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let named = |task: &Path| {
        let found = std::fs::read_to_string(task.join("comm"));
        found.is_ok_and(|found| found.trim() == name)
    };
    let task = tasks.find(|task| named(task)).unwrap();
    let number = task.file_name().unwrap().to_str().unwrap();
    Pid::from_raw(number.parse().unwrap())
}

/// Stops one thread of a process and no other, as a debugger does.
fn freeze(thread: Pid) {
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
}

#[test]
fn the_planes_tell_when_they_work_and_when_they_stop() {
    let manager = Manager::new();
    let mut dataplane = manager.start("dataplane");
    manager.hears("READY=1");
    let status = manager.hears("STATUS=");
    assert!(
        status.contains("2 workers") && status.contains("no control plane"),
        "{status}"
    );
    manager.hears("WATCHDOG=1");

    let mut controlplane = manager.start("controlplane");
    // Of one or the other: the control plane is there when both have said so.
    manager.hears("control plane attached");
    manager.hears("READY=1");
    manager.hears("0 of 0 peers alive");
    controlplane.stop();
    manager.hears("STOPPING=1");
    // The dataplane goes on, and the next control plane is ready as soon as it has taken over.
    manager.hears("no control plane");
    let mut controlplane = manager.start("controlplane");
    manager.hears("READY=1");
    controlplane.stop();
    manager.hears("STOPPING=1");
    dataplane.stop();
    manager.hears("STOPPING=1");
}

#[test]
fn a_control_plane_without_a_dataplane_is_not_ready() {
    let manager = Manager::new();
    let mut controlplane = manager.start("controlplane");
    manager.hears("STATUS=waits for a dataplane");
    let lines = manager.listen(WATCHDOG);
    assert!(!lines.iter().any(|line| line == "READY=1"), "{lines:?}");
    let _dataplane = manager.start("dataplane");
    manager.hears("peers alive");
    controlplane.stop();
}

#[test]
fn the_watchdog_starves_when_one_worker_hangs_and_no_other_thread_does() {
    let manager = Manager::new();
    let dataplane = manager.start("dataplane");
    manager.hears("READY=1");
    for name in ["worker-1", "worker-0", "stream"] {
        manager.hears("WATCHDOG=1");
        let stuck = thread(dataplane.pid(), name);
        freeze(stuck);
        manager.starves(name);
        // The others are not stopped: the main thread still takes control planes in, and says who it is.
        let probe = std::os::unix::net::UnixStream::connect(manager.at("run/dataplane.sock"));
        assert!(probe.is_ok());
        eventually("the log names it", TIMEOUT, || {
            let log = std::fs::read_to_string(manager.at("dataplane.log")).unwrap();
            let mut lines = log.lines();
            lines.any(|line| line.contains(name) && line.contains("no progress"))
        });
        ptrace::detach(stuck, None).unwrap();
    }
    manager.hears("WATCHDOG=1");
}

#[test]
fn the_watchdog_starves_when_the_engine_loop_hangs() {
    let manager = Manager::new();
    let mut dataplane = manager.start("dataplane");
    manager.hears("READY=1");
    dataplane.stop();
    manager.hears("STOPPING=1");
    // A dataplane that speaks to nobody, so that all that is heard is the control plane.
    let mut quiet = Command::new(binary());
    quiet
        .args([
            "dataplane",
            "--no-tun",
            "--cores",
            "any:1",
            "--listen",
            "127.0.0.1:0",
        ])
        .arg("--state-dir")
        .arg(manager.at("state"))
        .arg("--socket-dir")
        .arg(manager.at("run"));
    quiet.stderr(Stdio::null()).env_remove("NOTIFY_SOCKET");
    let _dataplane = Service(quiet.spawn().unwrap());
    let controlplane = manager.start("controlplane");
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    // Its main thread runs the engines.
    freeze(controlplane.pid());
    manager.starves("the control plane");
    assert_eq!(manager.listen(WATCHDOG), Vec::<String>::new());
    ptrace::detach(controlplane.pid(), None).unwrap();
    manager.hears("WATCHDOG=1");
}

/// What a process has in its environment.
fn variable(process: Pid, name: &str) -> String {
    let all = std::fs::read(format!("/proc/{process}/environ")).unwrap();
    let all = String::from_utf8(all).unwrap();
    let mut values = all
        .split('\0')
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.next().unwrap().to_owned()
}

/// The child of a process that runs this command.
fn plane(up: Pid, command: &str) -> Pid {
    child(up, command).unwrap()
}

fn child(up: Pid, command: &str) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{up}/task/{up}/children")).unwrap();
    let runs = |pid: &str| {
        // It may have ended meanwhile.
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|word| word == command)
    };
    let mut children = children.split_whitespace();
    let pid = children.find(|pid| runs(pid))?;
    Some(Pid::from_raw(pid.parse().unwrap()))
}

#[test]
fn a_node_started_as_one_service_tells_once_and_feeds_the_watchdog_for_both_planes() {
    let manager = Manager::new();
    let mut up = manager.start("up");
    manager.hears("READY=1");
    let status = manager.hears("peers alive");
    assert!(
        status.starts_with("STATUS=") && status.contains("2 workers"),
        "{status}"
    );
    manager.hears("WATCHDOG=1");
    // Its planes speak to it alone.
    assert!(!manager.kept.borrow().iter().any(|line| line == "READY=1"));
    let (dataplane, controlplane) = (
        plane(up.pid(), "dataplane"),
        plane(up.pid(), "controlplane"),
    );
    let ear = variable(dataplane, "NOTIFY_SOCKET");
    let ear = SocketAddr::from_abstract_name(ear.strip_prefix('@').unwrap()).unwrap();
    let other = UnixDatagram::unbound().unwrap();
    for stuck in [thread(dataplane, "worker-1"), controlplane] {
        freeze(stuck);
        manager.starves(&stuck.to_string());
        // What others say for a plane counts for nothing.
        other.send_to_addr(b"WATCHDOG=1\nREADY=1", &ear).unwrap();
        let lines = manager.listen(2 * WATCHDOG);
        assert!(!lines.iter().any(|line| line == "WATCHDOG=1"), "{lines:?}");
        ptrace::detach(stuck, None).unwrap();
        manager.hears("WATCHDOG=1");
    }
    // A plane that is started again is heard like its predecessor.
    kill(dataplane, Signal::SIGKILL).unwrap();
    let _ = manager.listen(WATCHDOG);
    manager.hears("WATCHDOG=1");
    up.stop();
    manager.hears("STOPPING=1");
}

/// `hyphae` with these words, asking the node of this manager.
fn ask(manager: &Manager, line: &[&str]) -> std::process::Output {
    let mut command = Command::new(binary());
    command
        .args(line)
        .arg("--socket-dir")
        .arg(manager.at("run"));
    command.output().unwrap()
}

fn is_running(process: Pid) -> bool {
    kill(process, None).is_ok()
}

#[test]
fn a_control_plane_that_cannot_start_again_costs_neither_the_dataplane_nor_the_node() {
    let manager = Manager::new();
    let mut up = manager.start("up");
    manager.hears("READY=1");
    manager.hears("peers alive");
    let dataplane = plane(up.pid(), "dataplane");
    let peers = manager.at("state/peers.toml");
    let good = std::fs::read(&peers).unwrap();
    std::fs::write(&peers, "this is no TOML").unwrap();
    kill(plane(up.pid(), "controlplane"), Signal::SIGKILL).unwrap();
    // More often than any limit on restarts in a window would let it.
    let status = manager.hears("restart 8 after");
    assert!(
        status.contains("controlplane is down (exit status: 1)"),
        "{status}"
    );
    assert!(
        status.contains("2 workers"),
        "the dataplane is well: {status}"
    );
    // While none runs, the watchdog is fed for it.
    let lines = manager.listen(2 * WATCHDOG);
    assert!(lines.iter().any(|line| line == "WATCHDOG=1"), "{lines:?}");
    let output = ask(&manager, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("control plane does not answer") && said.contains("dataplane runs"),
        "{said}"
    );
    let output = ask(&manager, &["down"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("stop the process `hyphae up`"), "{said}");
    let log = std::fs::read_to_string(manager.at("up.log")).unwrap();
    assert!(
        log.contains("plane ended; restarting it plane=\"controlplane\""),
        "{log}"
    );
    assert!(log.contains("peers.toml: line 1"), "the cause: {log}");
    assert!(is_running(dataplane) && is_running(up.pid()));

    std::fs::write(&peers, good).unwrap();
    manager.hears("peers alive");
    let output = ask(&manager, &["status", "--json"]);
    assert!(output.status.success());
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        status["controlplaneRestarts"].as_u64().unwrap() >= 8,
        "{status}"
    );
    assert_eq!(status["dataplane"]["pid"], dataplane.as_raw());
    up.stop();
    manager.hears("STOPPING=1");
}

#[test]
fn a_dataplane_that_dies_again_and_again_does_not_end_the_node() {
    let manager = Manager::new();
    let mut up = manager.start("up");
    manager.hears("READY=1");
    for killed in 1..=7 {
        let mut victim = None;
        eventually("it runs", TIMEOUT, || {
            victim = child(up.pid(), "dataplane");
            victim.is_some()
        });
        kill(victim.unwrap(), Signal::SIGKILL).unwrap();
        eventually("its end is noticed", TIMEOUT, || {
            let log = std::fs::read_to_string(manager.at("up.log")).unwrap();
            log.matches("plane ended; restarting it").count() >= killed
        });
    }
    let status = || ask(&manager, &["status", "--json"]);
    eventually("it works again", TIMEOUT, || status().status.success());
    assert!(is_running(up.pid()));
    let document: serde_json::Value = serde_json::from_slice(&status().stdout).unwrap();
    assert!(
        document["dataplane"]["pid"].as_u64().is_some(),
        "{document}"
    );
    up.stop();
}

//! Covers: the watchdog of the service manager during crash loops, in virtual time. Processes and delays of restarts
//! are those of the supervisor; what the planes send is simulated. Real planes are in tests/netns/tests/notify.rs.

use std::cell::Cell;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use hyphae_notify::Notifier;

use super::*;

/// `WatchdogSec=20`.
const WATCHDOG: Duration = Duration::from_secs(20);
/// Interval of the keep-alives of a plane.
const INTERVAL: Duration = Duration::from_secs(5);
const DATAPLANE: usize = 0;
const CONTROL: usize = 1;

/// How the control plane behaves each time it is started.
#[derive(Clone, Copy)]
struct Crash {
    /// Program that its process executes.
    program: &'static str,
    /// Time until it is ready; `None` if it never is.
    ready: Option<Duration>,
    /// Time until it ends.
    end: Duration,
}

/// A node under a service manager.
struct Simulation {
    node: Supervisor,
    crash: Crash,
    manager: UnixDatagram,
    /// What the planes send through.
    planes: (UnixDatagram, SocketAddr),
    now: Instant,
    /// Time of the last keep-alive, and the longest time between two.
    fed: (Instant, Duration),
    status: String,
    /// Next keep-alives of the planes.
    next: [Option<Instant>; watchdog::PLANES],
}

impl Simulation {
    fn new(crash: Crash) -> Self {
        let (now, name) = (Instant::now(), format!("hyphae-test-{}", crash.program));
        let name = format!(
            "{name}-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::new(format!("@{name}").as_bytes(), Some(WATCHDOG)).unwrap();
        let watchdog = Watchdog::new(notifier, now).unwrap();
        let [(_, socket), (_, micros)] = &watchdog.environment()[..] else {
            panic!("two variables");
        };
        assert_eq!(micros, "20000000");
        let socket = SocketAddr::from_abstract_name(socket.trim_start_matches('@')).unwrap();
        let plane = |name, program| Plane::new(name, program, Vec::new(), now);
        let mut node = Supervisor {
            planes: [
                plane("dataplane", "true"),
                plane(CONTROLPLANE, crash.program),
            ],
            signals: SignalFd::new(&SigSet::empty()).unwrap(),
            terminal: Terminal::of_this_process(),
            watchdog,
        };
        node.planes[CONTROL].schedule(now, "exit status: 1".to_owned());
        let mut simulation = Self {
            node,
            crash,
            manager,
            planes: (UnixDatagram::unbound().unwrap(), socket),
            now,
            fed: (now, Duration::ZERO),
            status: String::new(),
            next: [Some(now), None],
        };
        simulation.send(DATAPLANE, "READY=1\nSTATUS=2 workers");
        simulation
    }

    /// A plane sends a notification.
    fn send(&mut self, plane: usize, text: &str) {
        let (socket, to) = &self.planes;
        socket.send_to_addr(text.as_bytes(), to).unwrap();
        let received = Cell::new(0);
        let own = i32::try_from(std::process::id()).unwrap();
        self.node.watchdog.receive(self.now, |pid| {
            received.set(received.get() + 1);
            (pid == own).then_some(plane)
        });
        assert_eq!(received.get(), 1);
        self.read();
    }

    /// Reads what the service manager receives.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(len) = self.manager.recv(&mut buffer) {
            for line in String::from_utf8_lossy(&buffer[..len]).lines() {
                if line == "WATCHDOG=1" {
                    let since = self.now - self.fed.0;
                    self.fed = (self.now, self.fed.1.max(since));
                } else if let Some(status) = line.strip_prefix("STATUS=") {
                    status.clone_into(&mut self.status);
                }
            }
        }
    }

    /// Simulates up to a time: the supervisor runs when it asked to, when a plane sends, and when one ends.
    fn run_until(&mut self, end: Instant) {
        loop {
            let control = &self.node.planes[CONTROL];
            let runs = control.pid().is_some();
            let started = self.now - control.age(self.now);
            let ends = runs.then_some(started + self.crash.end);
            let wake = self
                .node
                .timeout(self.now)
                .map(|timeout| self.now + timeout);
            let times = [wake, ends, self.next[DATAPLANE], self.next[CONTROL]];
            let next = times.into_iter().flatten().min().unwrap();
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            for plane in [DATAPLANE, CONTROL] {
                if self.next[plane].is_some_and(|at| at <= next) {
                    self.next[plane] = Some(next + INTERVAL);
                    self.send(plane, "READY=1\nWATCHDOG=1");
                }
            }
            if ends.is_some_and(|at| at <= next) {
                self.next[CONTROL] = None;
                let status = self.exit();
                self.node.planes[CONTROL].schedule(next, status);
            }
            self.node.start_due(next);
            if (!runs || ends.is_some_and(|at| at <= next))
                && self.node.planes[CONTROL].pid().is_some()
            {
                self.next[CONTROL] = self.crash.ready.map(|ready| next + ready);
            }
            self.read();
        }
    }

    /// Waits for the process of the control plane, which ends at once.
    fn exit(&mut self) -> String {
        loop {
            if let Some(status) = self.node.planes[CONTROL].take_exit().unwrap() {
                return status.to_string();
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_watchdog_is_fed_through_five_minutes_of_a_crash_loop_of_the_control_plane() {
    let second = Duration::from_secs(1);
    for crash in [
        // Its process cannot be created.
        Crash {
            program: "/nonexistent/hyphae",
            ready: None,
            end: Duration::ZERO,
        },
        // It ends at once, after 10 s, never ready; and ready first.
        Crash {
            program: "false",
            ready: None,
            end: second / 100,
        },
        Crash {
            program: "false",
            ready: None,
            end: 10 * second,
        },
        Crash {
            program: "false",
            ready: Some(second),
            end: 12 * second,
        },
    ] {
        let mut node = Simulation::new(crash);
        let began = node.now;
        node.run_until(began + Duration::from_secs(300));
        let longest = node.fed.1.max(node.now - node.fed.0);
        assert!(longest <= WATCHDOG / 2, "{longest:?}");
        assert!(node.status.starts_with("2 workers; "), "{}", node.status);
        assert!(node.node.planes[CONTROL].down_reason().is_some() || node.crash.end >= 10 * second);
        // A dataplane that hangs meanwhile is not excused.
        node.next[DATAPLANE] = None;
        let hung = node.now;
        node.run_until(hung + Duration::from_secs(120));
        assert!(node.fed.0 - hung <= 2 * INTERVAL, "{:?}", node.fed.0 - hung);
    }
}

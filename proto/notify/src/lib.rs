//! Tells the service manager how a process is doing: sd_notify(3) over the datagram socket that it names
//! in `NOTIFY_SOCKET`. Without that variable nothing is sent and nothing costs anything.
//!
//! Sending never blocks: a manager that hangs must not take a plane down with it. What it has no room for is
//! sent along with the next message.

#![forbid(unsafe_code)]

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Variables that the manager sets for its service, and which no child of that service is to see.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Bytes that wait for a manager that has no room. What it takes that long to read is of no use to it.
const QUEUED_MAX: usize = 4096;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    queued: String,
    status: String,
}

impl Notifier {
    /// What the environment of this process says.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(path) = variable("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        // Set for one process; a child of it has not to answer.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        match open(path.as_bytes()) {
            Ok(to) => Self {
                to: Some(to),
                watchdog: watchdog.map(Duration::from_micros),
                ..Self::default()
            },
            Err(error) => {
                tracing::warn!(
                    ?path,
                    %error,
                    "NOTIFY_SOCKET cannot be used; a unit of Type=notify will not see this start"
                );
                Self::default()
            }
        }
    }

    /// The time that the manager allows between two calls of [`Notifier::watchdog`]. `None` when it does not
    /// ask for any.
    pub fn watchdog_within(&self) -> Option<Duration> {
        self.watchdog
    }

    /// How often [`Notifier::watchdog`] should be called: four times in the time that the manager
    /// allows. `None` when it does not ask for it.
    pub fn watchdog_every(&self) -> Option<Duration> {
        self.watchdog.map(|within| within / 4)
    }

    /// Whether there is a manager to tell.
    pub fn is_heard(&self) -> bool {
        self.to.is_some()
    }

    /// The service does what it is for.
    pub fn ready(&mut self) {
        self.send("READY=1");
    }

    /// One line for whoever asks for the state of the service; sent only when it is news.
    pub fn status(&mut self, text: &str) {
        if self.to.is_none() || self.status == text {
            return;
        }
        text.clone_into(&mut self.status);
        let line: String = text.lines().collect::<Vec<_>>().join(" ");
        self.send(&format!("STATUS={line}"));
    }

    /// The service has made progress since the last time.
    pub fn watchdog(&mut self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// The service begins to stop.
    pub fn stopping(&mut self) {
        self.send("STOPPING=1");
    }

    fn send(&mut self, line: &str) {
        let Some((socket, address)) = &self.to else {
            return;
        };
        if self.queued.len() + line.len() > QUEUED_MAX {
            self.queued.clear();
        }
        self.queued.push_str(line);
        self.queued.push('\n');
        match socket.send_to_addr(self.queued.as_bytes(), address) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Of a manager that is gone there is nothing to expect; one that comes back is told more later.
            Ok(_) | Err(_) => self.queued.clear(),
        }
    }
}

/// A path, or after `@` a name in the abstract namespace.
fn open(path: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifier(path: &[u8], watchdog: Option<Duration>) -> Notifier {
        Notifier {
            to: Some(open(path).unwrap()),
            watchdog,
            ..Notifier::default()
        }
    }

    fn next(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn a_manager_at_a_path_hears_what_is_news() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let within = Duration::from_secs(8);
        let mut notifier = notifier(path.as_os_str().as_bytes(), Some(within));
        assert_eq!(notifier.watchdog_every(), Some(Duration::from_secs(2)));
        notifier.status("one\ntwo");
        notifier.status("one\ntwo");
        notifier.ready();
        notifier.watchdog();
        notifier.stopping();
        for expected in [
            "STATUS=one two\n",
            "READY=1\n",
            "WATCHDOG=1\n",
            "STOPPING=1\n",
        ] {
            assert_eq!(next(&manager), expected);
        }
    }

    #[test]
    fn a_manager_in_the_abstract_namespace_hears_too() {
        let name = format!("hyphae-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let mut notifier = notifier(format!("@{name}").as_bytes(), None);
        notifier.watchdog();
        notifier.ready();
        assert_eq!(next(&manager), "READY=1\n", "nobody asked for a watchdog");
    }

    #[test]
    fn a_manager_that_hangs_blocks_nobody_and_hears_the_last_words_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notifier = notifier(path.as_os_str().as_bytes(), Some(Duration::from_secs(1)));
        // More than any queue of datagrams holds.
        for _ in 0..100_000 {
            notifier.watchdog();
        }
        assert!(!notifier.queued.is_empty() && notifier.queued.len() <= QUEUED_MAX);
        notifier.ready();
        manager.set_nonblocking(true).unwrap();
        while manager.recv(&mut [0; 8192]).is_ok() {}
        manager.set_nonblocking(false).unwrap();
        notifier.stopping();
        let heard = next(&manager);
        assert!(heard.contains("READY=1\n"), "{heard}");
        assert!(heard.ends_with("STOPPING=1\n"), "{heard}");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let mut notifier = Notifier::default();
        notifier.ready();
        notifier.status("fine");
        notifier.watchdog();
        assert_eq!(notifier.watchdog_every(), None);
        // One that is gone is no reason to fail either.
        let mut notifier = self::notifier(b"/nonexistent/notify", None);
        notifier.ready();
        assert!(notifier.queued.is_empty());
    }
}

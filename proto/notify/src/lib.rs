//! Notifications for a service manager, sd_notify(3), over the datagram socket in `NOTIFY_SOCKET`. Without that
//! variable nothing is sent.
//!
//! Sending never blocks: a manager that hangs must not stop a plane. Lines that do not fit into the socket are sent
//! with the next notification.

#![forbid(unsafe_code)]

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Variables that the manager sets for its service. Children of the service must not inherit them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Bytes queued while the socket is full. Beyond that the queue is dropped.
const QUEUED_MAX: usize = 4096;

/// Sender of notifications; inactive without a service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    queued: String,
    status: String,
}

impl Notifier {
    /// A notifier for the service manager that the environment names.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(path) = variable("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        // Names the process that the watchdog applies to.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0);
        Self::new(path.as_bytes(), watchdog.map(Duration::from_micros)).unwrap_or_else(|error| {
            tracing::warn!(
                ?path,
                %error,
                "NOTIFY_SOCKET cannot be used; a unit of Type=notify will not see this start"
            );
            Self::default()
        })
    }

    /// A notifier for the socket at a path, or after `@` at a name in the abstract namespace.
    ///
    /// # Errors
    /// When the address is invalid, or no socket can be created.
    pub fn new(path: &[u8], watchdog: Option<Duration>) -> io::Result<Self> {
        Ok(Self {
            to: Some(open(path)?),
            watchdog,
            ..Self::default()
        })
    }

    /// Watchdog timeout of the manager: the longest time between two calls of [`Notifier::watchdog`]. `None` without a
    /// watchdog.
    pub fn watchdog_timeout(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Interval for calls of [`Notifier::watchdog`]: a quarter of the timeout. `None` without a watchdog.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|within| within / 4)
    }

    /// Whether a service manager is configured.
    pub fn is_enabled(&self) -> bool {
        self.to.is_some()
    }

    /// Reports that the service is ready.
    pub fn ready(&mut self) {
        self.send("READY=1");
    }

    /// Reports a status line; sent only when it changes.
    pub fn status(&mut self, text: &str) {
        if self.to.is_none() || self.status == text {
            return;
        }
        text.clone_into(&mut self.status);
        let line: String = text.lines().collect::<Vec<_>>().join(" ");
        self.send(&format!("STATUS={line}"));
    }

    /// Sends a watchdog keep-alive.
    pub fn watchdog(&mut self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// Reports that the service is stopping.
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
            // A manager that does not receive now is sent the next notification.
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
        Notifier::new(path, watchdog).unwrap()
    }

    fn next(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn a_manager_at_a_path_receives_changes_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let within = Duration::from_secs(8);
        let mut notifier = notifier(path.as_os_str().as_bytes(), Some(within));
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(2)));
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
    fn a_manager_in_the_abstract_namespace_receives_notifications() {
        let name = format!("hyphae-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let mut notifier = notifier(format!("@{name}").as_bytes(), None);
        notifier.watchdog();
        notifier.ready();
        assert_eq!(next(&manager), "READY=1\n", "no watchdog is configured");
    }

    #[test]
    fn a_full_socket_does_not_block_and_the_queue_is_sent_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notifier = notifier(path.as_os_str().as_bytes(), Some(Duration::from_secs(1)));
        // More than any datagram queue holds.
        for _ in 0..100_000 {
            notifier.watchdog();
        }
        assert!(!notifier.queued.is_empty() && notifier.queued.len() <= QUEUED_MAX);
        notifier.ready();
        manager.set_nonblocking(true).unwrap();
        while manager.recv(&mut [0; 8192]).is_ok() {}
        manager.set_nonblocking(false).unwrap();
        notifier.stopping();
        let received = next(&manager);
        assert!(received.contains("READY=1\n"), "{received}");
        assert!(received.ends_with("STOPPING=1\n"), "{received}");
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        let mut notifier = Notifier::default();
        notifier.ready();
        notifier.status("fine");
        notifier.watchdog();
        assert_eq!(notifier.watchdog_interval(), None);
        // A socket that does not exist is not an error either.
        let mut notifier = self::notifier(b"/nonexistent/notify", None);
        notifier.ready();
        assert!(notifier.queued.is_empty());
    }
}

//! A node that runs as an ordinary process and is driven by its command line.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{TIMEOUT, binary, eventually};

/// A node's directories, and the node while it runs.
pub(crate) struct LocalNode {
    pub(crate) directory: TempDir,
    /// Address of the metrics listener, or "off".
    pub(crate) metrics: String,
    pub(crate) child: Option<Child>,
}

impl LocalNode {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            metrics: "off".to_owned(),
            child: None,
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn sockets(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub(crate) fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(line).arg("--socket-dir").arg(self.sockets());
        command.arg("--state-dir").arg(self.state());
        command
    }

    /// The same, for commands that do not take the flags too.
    pub(crate) fn by_environment(&self, line: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(line).env("HYPHAE_STATE_DIR", self.state());
        command.env("HYPHAE_SOCKET_DIR", self.sockets());
        command
    }

    /// The command that starts it.
    pub(crate) fn up(&self) -> Command {
        let mut command = self.command(&["up", "--no-tun", "--rpc", "off", "--cores", "any:1"]);
        command.args(["--listen", "127.0.0.1:0", "--metrics", &self.metrics]);
        command
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = self.up();
        command.stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        self.answers();
    }

    pub(crate) fn answers(&self) {
        eventually("the node answers", TIMEOUT, || {
            self.run(&["status"]).status.success()
        });
    }

    pub(crate) fn run(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    /// The error of a command that has to fail.
    pub(crate) fn refused(&self, mut command: Command) -> String {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    pub(crate) fn peers(&self) -> String {
        let output = self.run(&["peer", "list"]);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for LocalNode {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The planes end with it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

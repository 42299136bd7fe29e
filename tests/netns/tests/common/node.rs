//! A node that runs alone as an ordinary process, with all its listeners for RPC.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hyphae_rpc::Client;
use serde_json::Value;
use tempfile::TempDir;

use super::{TIMEOUT, binary, eventually, own_place};

pub(crate) struct Node {
    pub(crate) directory: TempDir,
    /// JSON-RPC, REST, metrics.
    pub(crate) listeners: [SocketAddr; 3],
    child: Option<Child>,
    /// Text of its configuration.
    config: String,
    /// Descriptors that its processes may have.
    descriptors: Option<u64>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::with(None, "")
    }

    /// One with a limit of descriptors, soft and hard, and a configuration.
    pub(crate) fn with(descriptors: Option<u64>, config: &str) -> Self {
        let mut node = Self {
            directory: tempfile::tempdir().unwrap(),
            listeners: [own_place(), own_place(), own_place()],
            child: None,
            config: config.to_owned(),
            descriptors,
        };
        node.run();
        node
    }

    pub(crate) fn run(&mut self) {
        let mut command = match self.descriptors {
            None => Command::new(binary()),
            Some(most) => {
                let mut shell = Command::new("sh");
                let line = format!("ulimit -n {most} && exec \"$@\"");
                shell.args(["-c", &line, "sh"]).arg(binary());
                shell
            }
        };
        let config = self.directory.path().join("config.toml");
        std::fs::write(&config, &self.config).unwrap();
        command.args(["up", "--no-tun", "--listen", "127.0.0.1:0"]);
        for (flag, listener) in ["--rpc", "--rest", "--metrics"].iter().zip(self.listeners) {
            command.args([*flag, &listener.to_string()]);
        }
        command.arg("--config").arg(config);
        command.arg("--state-dir").arg(self.state());
        command
            .arg("--socket-dir")
            .arg(self.directory.path().join("run"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let client = self.client();
        eventually("the node answers", TIMEOUT, || {
            let open = self
                .listeners
                .iter()
                .all(|at| TcpStream::connect(at).is_ok());
            client.get_info().is_ok() && open
        });
    }

    pub(crate) fn kill(&mut self) {
        // The planes are tied to the supervisor by the kernel.
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/rpc.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket())
    }

    pub(crate) fn http(&self, listener: usize, request: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.listeners[listener]).unwrap();
        exchange(stream, request)
    }

    pub(crate) fn rest(&self, verb: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let (status, answer) = self.http(1, &request(verb, &format!("/api/v1{path}"), &body));
        (status, serde_json::from_str(&answer).unwrap_or(Value::Null))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

pub(crate) fn request(verb: &str, path: &str, body: &str) -> String {
    format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn exchange(mut stream: impl Read + Write, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Newline-delimited JSON on the Unix socket.
pub(crate) struct Lines {
    reader: BufReader<UnixStream>,
}

impl Lines {
    pub(crate) fn connect(node: &Node) -> Self {
        let stream = UnixStream::connect(node.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub(crate) fn send(&mut self, line: &str) {
        let stream = self.reader.get_mut();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn ask(&mut self, line: &str) -> Value {
        self.send(line);
        self.receive()
    }
}

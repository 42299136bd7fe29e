//! A real Prometheus in a namespace of the test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hyphae::lab::Namespace;
use serde_json::Value;

use super::deploy;

/// Where it listens.
const PROMETHEUS: &str = "127.0.0.1:9090";

/// Prometheus in a namespace; killed when dropped.
pub(crate) struct Prometheus<'a> {
    child: Child,
    inside: &'a Namespace,
    log: PathBuf,
}

impl<'a> Prometheus<'a> {
    pub(crate) fn start(inside: &'a Namespace, directory: &Path, targets: &[&str]) -> Self {
        let targets = targets.join("\", \"");
        let rules = deploy("prometheus/hyphae.rules.yml");
        let config = format!(
            "global: {{ scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n  - job_name: hyphae\n    static_configs: [{{ targets: [\"{targets}\"] }}]\n",
            rules.display()
        );
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let log = directory.join("prometheus.log");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.join("data").display()
            ))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        let child = inside.run(move || command.spawn()).unwrap().unwrap();
        Self { child, inside, log }
    }

    /// What its interface answers; null while it does not.
    pub(crate) fn ask(&self, path: String) -> Value {
        let get = move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(PROMETHEUS)?;
            // HTTP/1.0: the answer ends with the connection, and comes in one piece.
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {PROMETHEUS}\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let answer = self.inside.run(get).unwrap().unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    /// The values that a query has now; `None` while there is no answer.
    pub(crate) fn values(&self, query: &str) -> Option<Vec<f64>> {
        let answer = self.ask(format!("/api/v1/query?query={}", escaped(query)));
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        let result = answer["data"]["result"].as_array()?;
        let value = |sample: &Value| sample["value"][1].as_str()?.parse().ok();
        Some(result.iter().filter_map(value).collect())
    }

    /// Every series of a query in the last minutes, second by second.
    pub(crate) fn history(&self, query: &str, from: u64, to: u64) -> Value {
        let query = escaped(query);
        let range = format!("query={query}&start={from}&end={to}&step=1");
        let mut answer = self.ask(format!("/api/v1/query_range?{range}"));
        answer["data"]["result"].take()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A query as a part of an address.
fn escaped(query: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    query.bytes().map(byte).collect()
}

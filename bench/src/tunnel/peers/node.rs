//! Networks of other programs: one process in each namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyphae::lab::Namespace;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::super::underlay::{self, Place};
use super::{Absent, Network};
use crate::process::cpu;

/// The first program of this name in `PATH`.
pub(super) fn find(program: &'static str, hint: &'static str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(program));
    Ok(places
        .find(|place| place.is_file())
        .ok_or(Absent { program, hint })?)
}

/// Starts a node, initially and after a kill; its files exist.
type Begin = Rc<dyn Fn(&mut Nodes, Place) -> anyhow::Result<()>>;

/// Three processes with their files and namespaces. Drop order: processes first.
pub(super) struct Nodes {
    name: String,
    version: Option<String>,
    /// By [`Place::number`].
    processes: BTreeMap<usize, Child>,
    begin: Option<Begin>,
    addresses: [IpAddr; 3],
    namespaces: [Namespace; 3],
    directory: TempDir,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // SIGTERM first, because some leave a socket behind after SIGKILL. ESRCH if a process has ended.
        for process in self.processes.values() {
            let _ = kill_process(Pid::from_child(process), Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        for process in self.processes.values_mut() {
            while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Nodes {
    /// Namespaces without processes; `addresses` are those of the future nodes.
    pub(super) fn new(name: impl Into<String>, addresses: [IpAddr; 3]) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.into(),
            version: None,
            processes: BTreeMap::new(),
            begin: None,
            addresses,
            namespaces: underlay::row()?,
            directory: tempfile::Builder::new()
                .prefix("hyphae-versus-")
                .tempdir()?,
        })
    }

    /// Reads the version from the program.
    pub(super) fn ask_version(&mut self, binary: &Path, flag: &str) {
        // A program without the flag has no version.
        let text = output_of(Command::new(binary).arg(flag)).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()));
        self.version = line.map(str::to_owned);
    }

    /// The directory of a node.
    pub(super) fn home(&self, place: Place) -> anyhow::Result<PathBuf> {
        let home = self.directory.path().join(place.name());
        std::fs::create_dir_all(&home)?;
        Ok(home)
    }

    pub(super) fn at(&self, place: Place) -> &Namespace {
        &self.namespaces[place.number()]
    }

    pub(super) fn set_address(&mut self, place: Place, address: IpAddr) {
        self.addresses[place.number()] = address;
    }

    /// Starts nodes one after the other.
    pub(super) fn start(
        &mut self,
        order: [Place; 3],
        begin: impl Fn(&mut Self, Place) -> anyhow::Result<()> + 'static,
    ) -> anyhow::Result<()> {
        for place in order {
            begin(self, place)?;
        }
        self.begin = Some(Rc::new(begin));
        Ok(())
    }

    /// Starts the process of a node.
    pub(super) fn spawn(&mut self, place: Place, mut command: Command) -> anyhow::Result<()> {
        let log = File::create(self.log(place))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = self.at(place).run(move || command.spawn())??;
        self.processes.insert(place.number(), child);
        Ok(())
    }

    fn log(&self, place: Place) -> PathBuf {
        self.directory.path().join(format!("{}.log", place.name()))
    }

    /// Polls until `poll` returns a value; a timeout includes the log of the node.
    pub(super) fn wait<T>(
        &mut self,
        place: Place,
        what: &str,
        mut poll: impl FnMut(&Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = poll(self)? {
                return Ok(found);
            }
            let ended = match self.processes.get_mut(&place.number()) {
                Some(process) => process.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log(place)).unwrap_or_default();
                let name = &self.name;
                bail!(
                    "{name}: no {what} at the {}, {ended:?}: {log}",
                    place.name()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a device of this name.
    pub(super) fn wait_for_device(&mut self, place: Place, device: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/net/ipv6/conf/{device}");
        self.wait(place, "device", |nodes| {
            let path = path.clone();
            let exists = nodes.at(place).run(move || Path::new(&path).exists())?;
            Ok(exists.then_some(()))
        })
    }
}

impl Network for Nodes {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> Option<String> {
        self.version.clone()
    }

    fn namespaces(&self) -> &[Namespace; 3] {
        &self.namespaces
    }

    fn address(&self, of: Place, _from: Place) -> IpAddr {
        self.addresses[of.number()]
    }

    fn restart_relay(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.processes.remove(&Place::Relay.number()) {
            process.kill()?;
            process.wait()?;
        }
        let begin = self.begin.clone().context("nodes that were started")?;
        begin(self, Place::Relay)
    }

    fn cpu(&self) -> anyhow::Result<Vec<(String, Duration)>> {
        ensure!(self.processes.len() == 3, "three nodes");
        let each = Place::ALL.iter().zip(self.processes.values());
        each.map(|(place, process)| Ok((place.name().to_owned(), cpu(process.id())?)))
            .collect()
    }
}

/// Standard output of a program, trimmed.
pub(super) fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", error.trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

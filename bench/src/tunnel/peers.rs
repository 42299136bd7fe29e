//! The measured networks: Hyphae, other overlays if installed, and plain veths.

mod mycelium;
mod nebula;
mod node;
mod tinc;
mod wireguard;
mod yggdrasil;

use std::fmt;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use hyphae::lab::{Lab, Namespace, Spec};
use tempfile::NamedTempFile;

use super::underlay::{self, Place};
use crate::process::{cpu, hyphae};

/// Busy-poll time of a worker, microseconds.
const POLL_MICROS: u32 = 200;

/// A program is not installed.
#[derive(Debug, thiserror::Error)]
#[error("`{program}` is not installed: {hint}")]
pub(super) struct Absent {
    program: &'static str,
    hint: &'static str,
}

/// A network to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Named {
    Hyphae,
    /// With busy-polling workers.
    HyphaePolling,
    WireguardGo,
    Boringtun,
    Nebula,
    Yggdrasil,
    Tinc,
    Mycelium,
}

impl Named {
    pub(super) const ALL: [Self; 8] = [
        Self::Hyphae,
        Self::HyphaePolling,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Nebula,
        Self::Yggdrasil,
        Self::Tinc,
        Self::Mycelium,
    ];
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hyphae => "hyphae",
            Self::HyphaePolling => "hyphae-polling",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
            Self::Nebula => "nebula",
            Self::Yggdrasil => "yggdrasil",
            Self::Tinc => "tinc",
            Self::Mycelium => "mycelium",
        })
    }
}

/// A running network in three namespaces; stopped when dropped.
pub(super) trait Network {
    /// Its name.
    fn name(&self) -> String;

    /// Version, as printed by its program.
    fn version(&self) -> Option<String> {
        None
    }

    fn namespaces(&self) -> &[Namespace; 3];

    /// The address of one node as seen from another.
    fn address(&self, of: Place, from: Place) -> IpAddr;

    /// Kills the relay's processes with SIGKILL and restarts them.
    fn restart_relay(&mut self) -> anyhow::Result<()>;

    /// CPU time of each of its processes.
    fn cpu(&self) -> anyhow::Result<Vec<(String, Duration)>>;
}

/// Starts a network.
///
/// # Errors
/// [`Absent`] when it is not installed.
pub(super) fn start(named: Named, mycelium: Option<&Path>) -> anyhow::Result<Box<dyn Network>> {
    Ok(match named {
        Named::Hyphae | Named::HyphaePolling => Box::new(Hyphae::start(named)?),
        Named::WireguardGo => Box::new(wireguard::start("wireguard-go")?),
        Named::Boringtun => Box::new(wireguard::start("boringtun-cli")?),
        Named::Nebula => Box::new(nebula::start()?),
        Named::Yggdrasil => Box::new(yggdrasil::start()?),
        Named::Tinc => Box::new(tinc::start()?),
        Named::Mycelium => Box::new(mycelium::start(mycelium)?),
    })
}

/// Plain veths.
pub(super) fn plain() -> anyhow::Result<Box<dyn Network>> {
    let namespaces = underlay::row()?;
    underlay::route(&namespaces)?;
    Ok(Box::new(Plain(namespaces)))
}

struct Plain([Namespace; 3]);

impl Network for Plain {
    fn name(&self) -> String {
        "plain".to_owned()
    }

    fn namespaces(&self) -> &[Namespace; 3] {
        &self.0
    }

    fn address(&self, of: Place, from: Place) -> IpAddr {
        let text = match (of, from) {
            (Place::Client, _) => underlay::CLIENT,
            (Place::Server, _) => underlay::SERVER,
            (Place::Relay, Place::Server) => underlay::RELAY_TO_SERVER,
            (Place::Relay, Place::Client | Place::Relay) => underlay::RELAY_TO_CLIENT,
        };
        // Valid constants.
        text.parse().unwrap_or(IpAddr::from([0; 4]))
    }

    fn restart_relay(&mut self) -> anyhow::Result<()> {
        bail!("the kernel is not restarted")
    }

    fn cpu(&self) -> anyhow::Result<Vec<(String, Duration)>> {
        Ok(Vec::new())
    }
}

struct Hyphae {
    lab: Lab,
    named: Named,
    _config: Option<NamedTempFile>,
}

impl Hyphae {
    fn start(named: Named) -> anyhow::Result<Self> {
        let config = (named == Named::HyphaePolling)
            .then(|| {
                let mut file = NamedTempFile::with_suffix(".toml")?;
                writeln!(file, "poll_max_microseconds = {POLL_MICROS}")?;
                anyhow::Ok(file)
            })
            .transpose()?;
        let spec = Spec {
            program: Some(hyphae(None)?),
            config: config.as_ref().map(|file| file.path().to_owned()),
            ..Spec::default()
        };
        let lab = Lab::namespaces(&spec)?;
        lab.wait_until_connected(Duration::from_secs(30))?;
        Ok(Self {
            lab,
            named,
            _config: config,
        })
    }
}

impl Network for Hyphae {
    fn name(&self) -> String {
        self.named.to_string()
    }

    fn namespaces(&self) -> &[Namespace; 3] {
        let Some(namespaces) = &self.lab.namespaces else {
            unreachable!("a lab of namespaces has some");
        };
        namespaces
    }

    fn address(&self, of: Place, _from: Place) -> IpAddr {
        let nodes = [&self.lab.client, &self.lab.relay, &self.lab.server];
        nodes[of.number()].address().into()
    }

    fn restart_relay(&mut self) -> anyhow::Result<()> {
        self.lab.relay.crash()?;
        self.lab.restart_relay()
    }

    fn cpu(&self) -> anyhow::Result<Vec<(String, Duration)>> {
        let mut times = Vec::new();
        for node in [&self.lab.client, &self.lab.relay, &self.lab.server] {
            let status = node.status()?;
            let planes = status.dataplane.map(|plane| ("dataplane", plane.pid));
            for (plane, pid) in planes.into_iter().chain([("control", status.pid)]) {
                times.push((format!("{} {plane}", node.name), cpu(pid)?));
            }
        }
        Ok(times)
    }
}

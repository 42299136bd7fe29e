//! `hyphae status`.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use anyhow::bail;
use hyphae_rpc::ClientError;
use hyphae_rpc::method::{Dataplane, Status};
use hyphae_shm::stats::DropReason;
use rustix::io::Errno;

use super::{NodeRef, output};

pub(crate) fn run(node: &NodeRef, json: bool) -> anyhow::Result<()> {
    let status = match node.client().node_status() {
        Err(ClientError::Absent { place, source }) if is_listening(&node.socket_directory()) => {
            bail!(
                "the control plane does not answer at {place} ({source}); the dataplane runs and forwards without it for \
                 up to three minutes; the control plane is restarted, and the log has the cause"
            )
        }
        status => status?,
    };
    if json {
        return output::outcome(serde_json::to_value(&status)?, incomplete(&status), true);
    }
    show(&status)?;
    incomplete(&status).map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
}

fn show(status: &Status) -> std::io::Result<()> {
    let info = &status.info;
    output::line(format_args!(
        "hyphae {}  up {}",
        status.version,
        age(status.uptime)
    ))?;
    output::line(format_args!("key      {}", info.node_pubkey))?;
    output::line(format_args!("address  {}", info.node_ip))?;
    output::line(format_args!("subnet   {}", info.node_subnet))?;
    match &status.dataplane {
        None => output::line("dataplane  not attached")?,
        Some(plane) => show_dataplane(status, plane)?,
    }
    let restarts = (status.controlplane_restarts, status.dataplane_restarts);
    if restarts != (0, 0) {
        output::line(format_args!(
            "restarts  control plane {}, dataplane {}: the log has the causes",
            restarts.0, restarts.1
        ))?;
    }
    output::line(format_args!("suites   {}", status.suites.join(", ")))?;
    output::line(format_args!(
        "peers    {} up of {}; {} sessions; {} routes",
        status.peers_up, status.peers, status.sessions, status.routes
    ))?;
    if status.drained {
        output::line("drained  neighbours use other paths; `hyphae drain --off` ends it")?;
    }
    output::line("counters")?;
    for (name, n) in &status.counters {
        output::line(format_args!("  {name:<28} {n}"))?;
    }
    output::line("drops")?;
    for (name, n) in &status.drops {
        output::line(drop_line(name, *n))?;
    }
    Ok(())
}

/// Count of a drop reason with its gloss; without one where a node of another version has more reasons.
fn drop_line(name: &str, count: u64) -> String {
    let mut reasons = DropReason::ALL.iter();
    let reason = reasons.find(|reason| reason.name() == name);
    let gloss = reason.map_or("", |reason| reason.gloss());
    let line = format!("  {name:<28} {count:<10} {gloss}");
    line.trim_end().to_owned()
}

fn show_dataplane(status: &Status, plane: &Dataplane) -> std::io::Result<()> {
    output::line(format_args!(
        "dataplane  pid {}, up {}, {} ({})",
        plane.pid,
        age(plane.uptime),
        plane.driver,
        plane.driver_reason
    ))?;
    let workers = plane.workers.iter().map(|worker| match worker.core {
        Some(core) => format!("port {} on core {core}", worker.port),
        None => format!("port {}, not pinned", worker.port),
    });
    let workers: Vec<_> = workers.collect();
    output::line(format_args!("workers  {}", workers.join("; ")))?;
    output::line(format_args!(
        "tun      {}, MTU {}",
        plane.tun.as_deref().unwrap_or("none"),
        status.mtu
    ))?;
    if let Some(problem) = &status.host_problem {
        output::line(format_args!("PROBLEM  {problem}"))?;
    }
    output::line(format_args!(
        "attach   generation {}, control plane pid {}",
        plane.generation, status.pid
    ))
}

/// Whether a dataplane listens in a directory. A stream connection would count as an attach, so the probe is a datagram
/// socket: unix(7), EPROTOTYPE where a stream socket is bound, ECONNREFUSED where none is.
pub(super) fn is_listening(directory: &Path) -> bool {
    let socket = directory.join("dataplane.sock");
    let refused = UnixDatagram::unbound().and_then(|probe| probe.connect(socket));
    refused.is_err_and(|error| error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()))
}

/// Why a node that answers does not forward.
fn incomplete(status: &Status) -> Option<String> {
    let failure = "no dataplane is attached, so nothing is forwarded; the log has the cause";
    status.dataplane.is_none().then(|| failure.to_owned())
}

pub(super) fn age(seconds: u64) -> String {
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{s:02}s"),
        (0, ..) => format!("{h}h{m:02}m"),
        _ => format!("{d}d{h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_reason_is_printed_with_a_gloss() {
        for reason in DropReason::ALL {
            let line = drop_line(reason.name(), 7);
            let (counted, gloss) = line.split_at(41);
            let words: Vec<_> = counted.split_whitespace().collect();
            assert_eq!(words, [reason.name(), "7"], "{line}");
            assert!(gloss.split_whitespace().count() >= 3, "{line}");
        }
        assert_eq!(drop_line("of_the_future", 7).split_whitespace().count(), 2);
    }
}

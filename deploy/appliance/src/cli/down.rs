//! `hyphae down`: stops a node that `hyphae up` runs.
//!
//! The control plane authorises the call as any other and exits with a code that the supervisor recognises. This
//! command signals no process; it uses the supervisor's process number only to wait for its end.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use hyphae_rpc::ClientError;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

use super::status::is_listening;
use super::{NodeRef, output};

/// Interval of checks where the supervisor's process is not visible.
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Args)]
pub(crate) struct DownArgs {
    /// Seconds to wait until the node has stopped; the command fails when it still runs then.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    #[command(flatten)]
    node: NodeRef,
}

pub(crate) fn run(args: &DownArgs, json: bool) -> anyhow::Result<()> {
    let socket = args.node.socket_directory().join("rpc.sock");
    // Before the call, while the process exists.
    let supervisor = supervisor(&socket);
    match args.node.client().node_shutdown() {
        Err(ClientError::Absent { .. }) if is_listening(&args.node.socket_directory()) => bail!(
            "the control plane does not answer, so it cannot stop the node: stop the process `hyphae up`, or the \
             unit that runs the node"
        ),
        result => result?,
    };
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let ended = match supervisor {
        Some(supervisor) => has_ended(&supervisor, deadline)?,
        // In another PID namespace, or hidden (`hidepid=`).
        None => listener_closed(&socket, deadline),
    };
    if !ended {
        bail!("the node still runs after {} s; see its log", args.timeout);
    }
    if json {
        return output::document(&json!({ "stopped": true }));
    }
    Ok(output::line("stopped")?)
}

/// A descriptor of the parent of the process that listens on a socket.
fn supervisor(socket: &Path) -> Option<OwnedFd> {
    let connection = UnixStream::connect(socket).ok()?;
    let listener = getsockopt(&connection, sockopt::PeerCredentials)
        .ok()?
        .pid();
    let status = std::fs::read_to_string(format!("/proc/{listener}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    let parent = Pid::from_raw(parent.trim().parse().ok()?)?;
    pidfd_open(parent, PidfdFlags::empty()).ok()
}

fn has_ended(process: &OwnedFd, deadline: Instant) -> anyhow::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut sources = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut sources, Some(&Timespec::try_from(left)?)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn listener_closed(socket: &Path, deadline: Instant) -> bool {
    while UnixStream::connect(socket).is_ok() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

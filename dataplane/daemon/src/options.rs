//! What a dataplane is started with.

use std::net::SocketAddr;
use std::time::Duration;

use hyphae_driver::DriverKind;
use hyphae_files::Directory;

use crate::cores::Cores;

/// Settings of a dataplane, final: flags and file are merged before.
#[derive(Clone, Debug)]
pub struct Options {
    /// Underlay address of worker 0; worker `k` takes the port `k` above.
    pub listen: SocketAddr,
    /// Whether stream links are accepted too, on worker 0's port number.
    pub stream_listen: bool,
    /// Which cores the workers get.
    pub cores: Cores,
    /// Mark of all underlay packets; 0 for none.
    pub mark: u32,
    /// Name of the TUN device, if there is to be one.
    pub tun: Option<String>,
    /// Which driver.
    pub driver: DriverKind,
    /// How long a worker may look for work before it sleeps; zero for not at all.
    pub poll_max: Duration,
    /// Directory of `dataplane.sock`.
    pub socket_dir: Directory,
    /// Timeout for a port or device that this process's predecessor still holds.
    pub busy_timeout: Duration,
}

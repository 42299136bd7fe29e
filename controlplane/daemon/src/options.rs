//! Options of a control plane, and how it ends.

use hyphae_config::Settings;
use hyphae_files::Directory;

use hyphae_api::Reloader;

/// Options of a control plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Settings, checked.
    pub settings: Settings,
    /// Reads them again.
    pub reloader: Reloader,
    /// State directory.
    pub state_directory: Directory,
    /// Socket directory.
    pub socket_directory: Directory,
    /// Whether [`Exit::ShutDown`] ends the whole node, or else how it is stopped.
    pub shutdown: Result<(), String>,
    /// Restarts of this control plane by its supervisor.
    pub restarts: u64,
}

/// Why a running control plane has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal, or a dataplane that needs other engines.
    Stopped,
    /// `node.shutdown`: the whole node is to end.
    ShutDown,
}

//! Why a control plane ends.

use hyphae_config::ConfigError;
use hyphae_store::files::StateError;
use hyphae_store::inbox::InboxError;

/// Why a control plane could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// State directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The inbox.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// Settings that contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Key of the private network.
    #[error(transparent)]
    NetworkKey(#[from] hyphae_store::network_key::NetworkKeyError),
    /// Listening sockets.
    #[error(transparent)]
    Listen(#[from] hyphae_api::ListenError),
    /// Bearer token.
    #[error(transparent)]
    Token(#[from] hyphae_store::token::TokenError),
    /// A configured route.
    #[error(transparent)]
    Route(#[from] hyphae_node::UnusableRoute),
    /// The system failed.
    #[error("{what}: {source}")]
    System {
        /// What for.
        what: &'static str,
        /// How.
        source: std::io::Error,
    },
    /// Metrics of RPC.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// No randomness.
    #[error("cannot seed: {0}")]
    Random(getrandom::Error),
}

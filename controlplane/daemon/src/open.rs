//! Opens what a control plane needs before a dataplane: state files, secrets, the inbox, `rpc.sock`.

use hyphae_config::Config;
use hyphae_store::files::{
    self, ADMIN_FILE, DRAIN_FILE, Lock, PEERS_FILE, ROUTES_FILE, TOPICS_FILE, retry_while_busy,
};
use hyphae_store::inbox::{Found, Inbox, InboxError};
use hyphae_store::stored::Stored;
use hyphae_store::token::BearerToken;
use hyphae_wire::{Network, SecretKey};
use tokio::net::UnixListener;

use crate::error::RunError;
use crate::options::Options;
use hyphae_api::{Files, ListenError, SocketFile};

/// State and sockets of a node.
pub(crate) struct Opened {
    /// Held until the end.
    pub(crate) lock: Lock,
    pub(crate) identity: SecretKey,
    pub(crate) files: Files,
    pub(crate) config: Config,
    pub(crate) inbox: Inbox,
    /// What the inbox held.
    pub(crate) found: Found,
    pub(crate) unix: (SocketFile, UnixListener),
    pub(crate) token: Option<BearerToken>,
    /// The private network.
    pub(crate) network: Option<Network>,
}

/// The private network of a configuration.
fn network(config: &Config) -> Result<Option<Network>, RunError> {
    let Some(network) = &config.peering.network else {
        return Ok(None);
    };
    let key = hyphae_store::network_key::read(&network.key_file)?;
    Ok(Some(Network::new(&network.name, &key)))
}

pub(crate) fn open(options: &Options) -> Result<Opened, RunError> {
    let directory = &options.state_directory;
    let lock = files::lock(directory)?;
    let identity = files::load_or_create_key(directory)?;
    let files = Files {
        peers: Stored::open(directory, PEERS_FILE)?,
        routes: Stored::open(directory, ROUTES_FILE)?,
        drain: Stored::open_or_default(directory, DRAIN_FILE)?,
        topics: Stored::open(directory, TOPICS_FILE)?,
        admins: Stored::open(directory, ADMIN_FILE)?,
    };
    let config = options.settings.config()?;
    let limits = config.inbox.into();
    let (inbox, found) = if config.inbox.durable {
        let in_use = |error: &InboxError| matches!(error, InboxError::InUse(_));
        retry_while_busy(in_use, || Inbox::open(directory, limits))?
    } else {
        (Inbox::in_memory(limits)?, Found::default())
    };
    let unix = retry_while_busy(
        |error| matches!(error, ListenError::InUse(_)),
        || SocketFile::listen(&options.socket_directory, &config.rpc_allowed),
    )?;
    let token = config
        .rpc_token
        .as_deref()
        .map(BearerToken::read)
        .transpose()?;
    Ok(Opened {
        network: network(&config)?,
        lock,
        identity,
        files,
        config,
        inbox,
        found,
        unix,
        token,
    })
}

//! Schedule of name lookups of configured peers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hyphae_overlay::PeerState;
use hyphae_time::Nanos;

use hyphae_config::endpoint::PeerUrl;
use hyphae_host::{APART, LookupSchedule, Name, Resolver};

use super::Node;

/// Interval of lookups of all names.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(60);

/// The name of a peer.
pub(super) fn name(url: &PeerUrl) -> Name {
    (url.host.clone(), url.port)
}

/// Lookups of names.
pub(crate) struct Lookups {
    pub(crate) resolver: Resolver,
    pub(crate) names: LookupSchedule,
    /// Next lookup of all names.
    all_at: Nanos,
    /// Next lookup of the names of peers that are down.
    pub(crate) retry_at: Nanos,
}

impl Lookups {
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            resolver: Resolver::default(),
            names: LookupSchedule::default(),
            all_at: now,
            retry_at: Nanos::NEVER,
        }
    }

    /// When the next lookup may be due.
    pub(crate) fn due(&self) -> Nanos {
        self.all_at.min(self.retry_at)
    }
}

impl Node {
    /// Starts lookups that are due.
    pub(super) fn look_names_up(&mut self, now: Nanos) {
        if now >= self.lookups.all_at {
            self.lookups.all_at = now + LOOKUP_INTERVAL;
            let configured: BTreeSet<_> = self
                .peers
                .configured
                .values()
                .map(|it| name(&it.url))
                .collect();
            self.lookups.names.keep(|name| configured.contains(name));
            let all = self.names_of(|_| true);
            all.into_iter()
                .for_each(|name| self.lookups.names.want(now, name));
            self.lookups.retry_at = self.lookups.retry_at.min(now + APART);
        }
        if now >= self.lookups.retry_at {
            let dead = self.dead_names();
            self.lookups.retry_at = match dead.is_empty() {
                true => Nanos::NEVER,
                false => now + APART,
            };
            dead.into_iter()
                .for_each(|name| self.lookups.names.retry(now, name));
        }
        while let Some(name) = self.lookups.names.poll(now) {
            self.lookups.resolver.start(name);
        }
    }

    /// Links or addresses of this host have changed: retries paths and lookups, and resolves the scopes of link-local
    /// addresses again.
    pub(crate) fn underlay_changed(&mut self, now: Nanos) {
        self.overlay.retry_now(now);
        let mut changed = self.dead_names();
        changed.extend(self.names_of(|url| url.host.contains('%')));
        changed
            .into_iter()
            .for_each(|name| self.lookups.names.want(now, name));
    }

    /// Names of configured peers, including addresses with a scope.
    fn names_of(&self, wanted: impl Fn(&PeerUrl) -> bool) -> BTreeSet<Name> {
        let urls = self.peers.configured.values().filter(|it| !it.lan);
        urls.map(|configured| &configured.url)
            .filter(|url| url.host.parse::<IpAddr>().is_err() && wanted(url))
            .map(name)
            .collect()
    }

    /// Names of configured peers that are not up.
    fn dead_names(&self) -> BTreeSet<Name> {
        if self.names_of(|_| true).is_empty() {
            return BTreeSet::new();
        }
        let up = self
            .overlay
            .peers()
            .filter(|peer| peer.state == PeerState::Up);
        let up: BTreeSet<u32> = up.flat_map(|peer| peer.configured).map(|id| id.0).collect();
        let dead = self
            .peers
            .configured
            .iter()
            .filter(|(id, _)| !up.contains(id));
        let dead: BTreeSet<_> = dead.map(|(_, configured)| name(&configured.url)).collect();
        let mut names = self.names_of(|_| true);
        names.retain(|name| dead.contains(name));
        names
    }
}

//! Peers: lists, changes, counters.

use hyphae_config::endpoint::{InvalidPeer, PeerUrl, shown};
use hyphae_rpc::message::{Error, code};
use hyphae_rpc::method::{
    DuplicateKey, EndpointParams, IpParams, PacketStat, PacketStatistics, Peer, PeerEndpoint,
};

use crate::context::Dispatcher;
use crate::error::{self, not_committed};
use crate::params::overlay_address;
use crate::reply::{Outcome, ok_true, rows, value};
use hyphae_node::request::Request;
use hyphae_node::snapshot::state_name;
use hyphae_node::views::PeerView;

impl Dispatcher {
    pub(crate) async fn public_key_of(&self, params: IpParams) -> Outcome {
        let address = overlay_address(&params.ip)?;
        let key = self.ask(|reply| Request::KeyOf(address, reply)).await?;
        let unknown = || Error::new(code::NO_KEY, "the key of that address is not known");
        value(key.ok_or_else(unknown)?)
    }

    pub(crate) async fn peers(&self) -> Outcome {
        rows(self.ask(Request::Peers).await?, rendered).await
    }

    pub(crate) async fn add_peer(&self, params: EndpointParams) -> Outcome {
        let url = peer_url(&params.endpoint, code::BAD_ENDPOINT)?;
        url.check_scope()
            .map_err(|error| Error::new(code::BAD_ENDPOINT, error.to_string()))?;
        let mut change = self.files.peers.change().await;
        let checked = self.ask(|reply| Request::CheckPeer(url.clone(), reply));
        checked.await?.map_err(error::peer)?;
        change.new.peers.push(url.clone());
        change.commit().await.map_err(not_committed)?;
        self.ask(|reply| Request::AddPeer(url, reply)).await?;
        ok_true()
    }

    pub(crate) async fn delete_peer(&self, params: EndpointParams) -> Outcome {
        let url = peer_url(&params.endpoint, code::BAD_ENDPOINT_DELETE)?;
        let mut change = self.files.peers.change().await;
        let found = self.ask(|reply| Request::FindPeer(url, reply)).await?;
        let found = found.map_err(error::peer)?;
        let removed = |url: &PeerUrl| found.iter().any(|(_, found)| found.is_at(url));
        change.new.peers.retain(|url| !removed(url));
        change.commit().await.map_err(not_committed)?;
        let ids = found.iter().map(|(id, _)| *id).collect();
        self.ask(|reply| Request::RemovePeers(ids, reply)).await?;
        ok_true()
    }

    pub(crate) async fn packet_statistics(&self) -> Outcome {
        let mut statistics = PacketStatistics::default();
        for counts in self.ask(Request::PacketCounts).await? {
            let entry = |[packet_count, byte_count]: [u64; 2]| PacketStat {
                ip: counts.address.to_string(),
                packet_count,
                byte_count,
            };
            statistics.by_source.push(entry(counts.received));
            statistics.by_destination.push(entry(counts.sent));
        }
        value(statistics)
    }
}

fn peer_url(text: &str, code: i64) -> Result<PeerUrl, Error> {
    text.parse()
        .map_err(|error: InvalidPeer| Error::new(code, error.to_string()))
}

fn rendered(view: PeerView) -> Peer {
    let peer = view.status;
    let (proto, socket_addr) = match &view.unresolved {
        Some(url) => (url.transport.scheme(), url.place()),
        None => (peer.endpoint.scheme(), shown(peer.endpoint)),
    };
    let discovered = view.discovered.map_or(0, |time| time.as_secs());
    let last_connected = view.last_connected.map(|time| time.as_secs());
    Peer {
        endpoint: PeerEndpoint {
            proto: proto.to_owned(),
            socket_addr,
        },
        kind: view.kind.to_owned(),
        connection_state: state_name(peer.state).to_owned(),
        tx_bytes: view.tx_bytes,
        rx_bytes: view.rx_bytes,
        discovered,
        discovered_seconds: discovered,
        last_connected,
        last_connected_seconds: last_connected,
        pubkey: peer.key.map(|key| key.to_string()),
        address: peer.address.map(|address| address.to_string()),
        suite: peer.suite.map(|suite| suite.to_string()),
        lanes: peer.lanes,
        lanes_active: peer.lanes_active,
        rtt_micros: peer
            .rtt
            .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        loss_permille: peer.loss_permille,
        name: view.name,
        handshakes: peer.handshakes,
        refusal: peer.refusal.map(|refusal| refusal.to_string()),
        error: view.error,
        duplicate: peer.duplicate.map(|duplicate| DuplicateKey {
            own: duplicate.own,
            places: duplicate
                .endpoints
                .map(|endpoint| endpoint.to_string())
                .to_vec(),
        }),
    }
}

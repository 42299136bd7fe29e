//! Executes what the MTU searches of links and paths ask for: probes, limits in the workers, events.

use hyphae_shm::record::{InjectMtuProbe, InjectPathProbe, LinkMtu, MTU_UNKNOWN, PathMtu, Program};
use hyphae_time::Nanos;
use hyphae_wire::OverlayAddress;
use hyphae_wire::frame::OVERHEAD;
use hyphae_wire::report::INNER_MTU_MIN;
use zerocopy::little_endian::{U16, U32, U64};

use crate::ids::Owner;
use crate::link_mtu::{LinkMtuSearch, RESOLUTION, SearchAction, probe_timeout};
use crate::{Event, Overlay};

impl Overlay {
    /// Starts the search on a link that came up.
    pub(crate) fn begin_search(&mut self, now: Nanos, owner: Owner) {
        let own = self.config.mtu;
        if let (Owner::Peer(_), Some(association)) = (owner, self.associations.get_mut(&owner)) {
            // The largest packet that either end, and so any sender beyond it, is configured for.
            let max = usize::from(own.max(association.mtu)) + OVERHEAD;
            let max = u16::try_from(max).unwrap_or(u16::MAX - RESOLUTION);
            association.search = LinkMtuSearch::begin(now, max);
        }
    }

    /// Executes what the search on a link asks for.
    pub(crate) fn search_due(&mut self, now: Nanos, owner: Owner) {
        let Owner::Peer(peer) = owner else { return };
        while let Some(association) = self.associations.get_mut(&owner).filter(|a| a.up)
            && let Some(receive) = association.first_lane()
        {
            let timeout = probe_timeout(association.liveness.rtt.smoothed());
            let before = association.search.reported();
            let heard = association.liveness.heard;
            match association.search.poll(now, timeout, heard) {
                None => return,
                Some(SearchAction::ProbeSmall) => {
                    self.send_probe(now, owner, receive);
                }
                Some(SearchAction::Probe(size)) => {
                    self.probe_last = self.probe_last.wrapping_add(1);
                    association.search.sent(self.probe_last);
                    let inject = InjectMtuProbe {
                        peer: U32::new(peer),
                        receive_index: U32::new(receive.0),
                        id: U64::new(self.probe_last),
                        sent: U64::new(now.0),
                        len: U16::new(size),
                        reserved: [0; 6],
                    };
                    self.output
                        .program(receive.worker(), &Program::InjectMtuProbe(&inject));
                }
                Some(SearchAction::Limit(mtu)) => {
                    let limit = LinkMtu {
                        peer: U32::new(peer),
                        mtu: U16::new(mtu),
                        reserved: U16::ZERO,
                    };
                    self.output
                        .program_all(self.workers, &Program::LinkMtu(&limit));
                    if before.is_some_and(|before| mtu > before) {
                        self.retest_limits(now);
                    }
                }
            }
        }
    }

    /// A worker sends large frames to a peer, or the kernel refuses them.
    pub(crate) fn large_frames(&mut self, now: Nanos, peer: u32, refused: bool) {
        let owner = Owner::Peer(peer);
        if let Some(association) = self.associations.get_mut(&owner) {
            if refused {
                association.search.refused(now);
            } else {
                association.search.confirm(now);
            }
            self.search_due(now, owner);
            self.schedule(owner);
        }
    }

    /// A worker limits packets to a node.
    pub(crate) fn path_too_big(&mut self, now: Nanos, address: OverlayAddress, mtu: u16) {
        let owner = Owner::Remote(address.subnet_id());
        let mtu = mtu.max(INNER_MTU_MIN);
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        if mtu < self.config.mtu && association.limit.lower(now, mtu) {
            self.report_limit(address, Some(mtu));
            self.limit_due(now, owner);
            self.schedule(owner);
        }
    }

    /// Sends the probe that tests a limit when it is due.
    pub(crate) fn limit_due(&mut self, now: Nanos, owner: Owner) {
        let Some(association) = self.associations.get_mut(&owner) else {
            return;
        };
        let timeout = probe_timeout(association.liveness.rtt.smoothed());
        let lane = association.first_lane();
        let size = lane.map_or(0, |_| self.config.mtu.min(association.mtu));
        if let (true, Some(receive)) = (association.limit.poll(now, timeout, size), lane) {
            self.probe_last = self.probe_last.wrapping_add(1);
            association.limit.sent(self.probe_last);
            let probe = InjectPathProbe {
                destination: association.address,
                id: U64::new(self.probe_last),
                sent: U64::new(now.0),
                receive_index: U32::new(receive.0),
                len: U16::new(size),
                reserved: [0; 10],
            };
            self.output
                .program(receive.worker(), &Program::InjectPathProbe(&probe));
        }
    }

    /// Tests all limits again: a link of this node carries more than before and may have caused them.
    fn retest_limits(&mut self, now: Nanos) {
        let associations = self.associations.iter_mut();
        let limited = associations.filter_map(|(owner, a)| a.limit.retest(now).then_some(*owner));
        for owner in limited.collect::<Vec<_>>() {
            self.schedule(owner);
        }
    }

    /// The answer to probe `id` came; false when it does not refute a limit.
    pub(crate) fn limit_refuted(&mut self, now: Nanos, owner: Owner, id: u64) -> bool {
        let association = self.associations.get_mut(&owner);
        let refuted = association.is_some_and(|a| a.limit.refuted(now, id));
        if refuted {
            self.clear_limit(owner);
        }
        refuted
    }

    /// Ends a limit.
    pub(crate) fn clear_limit(&mut self, owner: Owner) {
        if let Some(association) = self.associations.get_mut(&owner)
            && association.limit.clear()
        {
            let address = association.address;
            self.report_limit(address, None);
        }
    }

    /// Sets the limit of a path in the workers and notifies the caller.
    fn report_limit(&mut self, address: OverlayAddress, mtu: Option<u16>) {
        let limit = PathMtu {
            address,
            mtu: U16::new(mtu.unwrap_or(MTU_UNKNOWN)),
            reserved: [0; 6],
        };
        self.output
            .program_all(self.workers, &Program::PathMtu(&limit));
        self.output.event(Event::PathMtu { address, mtu });
    }
}

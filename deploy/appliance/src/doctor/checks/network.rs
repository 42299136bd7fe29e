//! Sockets, ports, links and peers.

use hyphae_wire::frame::OVERHEAD;
use rustix::thread::CapabilitySet;

use super::{bytes, check, ok, unknown};
use crate::doctor::facts::{Availability, Facts};
use crate::doctor::{Check, Level};

/// Bytes of the UDP and IPv6 headers.
const UNDERLAY_HEADERS: u32 = 48;

pub(super) fn buffers(host: &Facts) -> Check {
    const NAME: &str = "socket buffers";
    if host.may(CapabilitySet::NET_ADMIN) {
        return ok(
            NAME,
            "not limited: CAP_NET_ADMIN overrides net.core.rmem_max",
        );
    }
    let (Some(receive), Some(transmit)) = (host.receive_bytes_max, host.transmit_bytes_max) else {
        return unknown(NAME, "net.core.rmem_max");
    };
    let mut low = Vec::new();
    for (name, limit, needed) in [
        ("net.core.rmem_max", receive, host.receive_bytes_needed),
        ("net.core.wmem_max", transmit, host.transmit_bytes_needed),
    ] {
        if limit < needed {
            low.push((name, limit, needed));
        }
    }
    if low.is_empty() {
        return ok(
            NAME,
            format!("receive {}, send {}", bytes(receive), bytes(transmit)),
        );
    }
    let found: Vec<_> = low
        .iter()
        .map(|(name, limit, needed)| {
            format!("{name} is {}, {} needed", bytes(*limit), bytes(*needed))
        })
        .collect();
    let fix: Vec<_> = low
        .iter()
        .map(|(name, _, needed)| format!("sysctl -w {name}={needed}"))
        .collect();
    check(NAME, Level::Warn, found.join(", "))
        .why("the kernel drops bursts that exceed the buffer (counted as socket_overruns)")
        .fix(format!("{} (and in /etc/sysctl.d)", fix.join("; ")))
}

pub(super) fn ports(host: &Facts) -> Check {
    const NAME: &str = "ports";
    let refused = |(name, place): &(String, Availability)| match place {
        Availability::Refused(why) => Some(format!("{name}: {why}")),
        Availability::Free | Availability::Ours | Availability::Broken(_) => None,
    };
    let refused: Vec<_> = host.ports.iter().filter_map(refused).collect();
    if !refused.is_empty() {
        return check(NAME, Level::Fail, refused.join(", "))
            .why("each worker needs its UDP port, and TCP links need the first port number")
            .fix(
                "stop the process that uses them (`ss -lntup` lists it), or set another `listen`",
            );
    }
    let names: Vec<_> = host.ports.iter().map(|(name, _)| name.as_str()).collect();
    match host
        .ports
        .iter()
        .any(|(_, place)| *place == Availability::Ours)
    {
        true => ok(
            NAME,
            format!("{}: in use by the running node", names.join(", ")),
        ),
        false if names.is_empty() => ok(NAME, "any"),
        false => ok(NAME, format!("{}: free", names.join(", "))),
    }
}

pub(super) fn ipv6(host: &Facts) -> Check {
    const NAME: &str = "IPv6";
    match host.ipv6_disabled {
        None => unknown(NAME, "net.ipv6.conf.default.disable_ipv6"),
        Some(false) => ok(NAME, "enabled"),
        Some(true) => {
            let level = if host.tun.is_some() {
                Level::Fail
            } else {
                Level::Warn
            };
            check(NAME, level, "disabled on this host")
                .why("the overlay is IPv6: the TUN device gets no address, and discovery does not work")
                .fix("sysctl -w net.ipv6.conf.all.disable_ipv6=0, without ipv6.disable=1 on the kernel command line; a node \
                      that may write sysctls (no ProtectKernelTunables=) enables it for its own device")
        }
    }
}

/// The kernel has no reverse-path filter for IPv6; firewalld adds one.
pub(super) fn reverse_path(host: &Facts) -> Check {
    const NAME: &str = "reverse path";
    match host.ipv6_rpfilter.as_deref() {
        Some(value @ ("yes" | "true" | "strict")) if host.reaches => {
            check(NAME, Level::Warn, format!("firewalld has IPv6_rpfilter={value}"))
                .why(
                    "the filter looks up sources in the routes of routing.reach, so it drops packets of peers whose \
                     addresses are within those prefixes",
                )
                .fix("IPv6_rpfilter=loose in /etc/firewalld/firewalld.conf, then `firewall-cmd --complete-reload`")
        }
        Some(value) => ok(NAME, format!("firewalld has IPv6_rpfilter={value}")),
        None => ok(NAME, "no filter for IPv6 (firewalld does not run)"),
    }
}

/// Largest packet of the underlay, bytes.
fn mtu_needed(mtu: u16) -> u32 {
    let overhead = u32::try_from(OVERHEAD).unwrap_or(u32::MAX);
    u32::from(mtu) + overhead + UNDERLAY_HEADERS
}

pub(super) fn mtu(host: &Facts) -> Check {
    const NAME: &str = "link MTU";
    let needed = mtu_needed(host.mtu);
    let names = |small: bool| -> Vec<String> {
        let links = host
            .links
            .iter()
            .filter(|link| (link.mtu < needed) == small);
        links
            .map(|link| format!("{} {}", link.name, link.mtu))
            .collect()
    };
    let small = names(true);
    if host.links.is_empty() {
        return check(NAME, Level::Unknown, "no link of the underlay is up");
    }
    if small.is_empty() {
        return ok(
            NAME,
            format!("{} (at least {needed} needed)", names(false).join(", ")),
        );
    }
    check(NAME, Level::Warn, format!("{}, at least {needed} needed", small.join(", ")))
        .why("full packets of the overlay are sent in two parts over such a link, at twice the cost")
        .fix("raise the MTU if the link supports it; tunnels and PPPoE often do not, and everything works without")
}

pub(super) fn peers(host: &Facts) -> Check {
    const NAME: &str = "peers";
    let bad = |(peer, found): &(String, Result<usize, String>)| match found {
        Ok(0) => Some(format!("{peer}: no address")),
        Ok(_) => None,
        Err(why) => Some(format!("{peer}: {why}")),
    };
    let bad: Vec<_> = host.peers.iter().filter_map(bad).collect();
    match (bad.len(), host.peers.len()) {
        (_, 0) => ok(NAME, "none in the configuration"),
        (0, all) => ok(NAME, format!("{all}, all names resolve")),
        (some, all) => {
            let level = if some == all {
                Level::Fail
            } else {
                Level::Warn
            };
            check(NAME, level, bad.join(", "))
                .why("a peer without an address is not dialled; its name is resolved again within 30 s")
                .fix("correct the name in `peers`, or the resolver (/etc/resolv.conf)")
        }
    }
}

//! The kernel's IPv6 forwarding between the same namespaces. It runs in softirqs of the sender, so it has no CPU time
//! of its own.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hyphae::lab::Namespace;

use super::load::{Plain, address};
use super::{Net, PORT, Sample};
use crate::command::ip;

pub(super) fn measure(
    net: &Net,
    frame: usize,
    train: usize,
    time: Duration,
) -> anyhow::Result<Sample> {
    // Without duplicate address detection: the addresses are unique.
    ip(&net.source, "-6 addr add fd00:1::2/64 dev to-relay nodad")?;
    ip(&net.relay, "-6 addr add fd00:1::1/64 dev to-source nodad")?;
    ip(&net.relay, "-6 addr add fd00:2::1/64 dev to-sink nodad")?;
    ip(&net.sink, "-6 addr add fd00:2::2/64 dev to-relay nodad")?;
    ip(&net.source, "-6 route add fd00:2::/64 via fd00:1::1")?;
    ip(&net.sink, "-6 route add fd00:1::/64 via fd00:2::1")?;
    net.relay
        .run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))??;
    wait_until_forwarded(net)?;
    let ends = (address("fd00:1::2", 0)?, address("fd00:2::2", PORT)?);
    Plain::between(net, ends, ends.1, frame, train)?.watch(time, || Ok(None))
}

/// Waits for the link-local address that a router uses for neighbour solicitations.
fn wait_until_forwarded(net: &Net) -> anyhow::Result<()> {
    let bind = |namespace: &Namespace, ip| -> anyhow::Result<UdpSocket> {
        let at = address(ip, PORT)?;
        Ok(namespace.run(move || UdpSocket::bind(at))??)
    };
    let (from, to) = (
        bind(&net.source, "fd00:1::2")?,
        bind(&net.sink, "fd00:2::2")?,
    );
    to.set_read_timeout(Some(Duration::from_millis(50)))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while to.recv(&mut [0]).is_err() {
        ensure!(
            Instant::now() < deadline,
            "the kernel does not forward IPv6"
        );
        from.send_to(&[0], to.local_addr()?)?;
    }
    Ok(())
}

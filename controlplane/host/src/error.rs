//! Errors of requests to the kernel.

/// The device could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// No netlink.
    #[error("netlink: {0}")]
    Netlink(#[from] std::io::Error),
    /// A request was refused.
    #[error(
        "setting up TUN device '{device}' ({what}): {source}; the control plane needs CAP_NET_ADMIN"
    )]
    Refused {
        /// Device.
        device: String,
        /// Request.
        what: &'static str,
        /// How.
        source: rtnetlink::Error,
    },
    /// A rule was added and does not exist: another rule with its selectors is in the way.
    #[error(
        "rule {0} of policy routing cannot be set: a rule with the same priority and selectors exists, or something \
         deletes it (`ip -6 rule show`)"
    )]
    RuleConflict(u32),
    /// IPv6 is off, and this process may not switch it on.
    #[error(
        "IPv6 is switched off on the TUN device and could not be switched on: {1}; run `sysctl -w \
         net.ipv6.conf.{0}.disable_ipv6=0` (a unit with ProtectKernelTunables= may not do it itself)"
    )]
    Ipv6Off(String, std::io::Error),
    /// IPv6 is off.
    #[error("this kernel has no IPv6, or it was started with ipv6.disable=1; the overlay needs it")]
    NoIpv6,
}

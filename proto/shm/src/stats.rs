//! What a worker counts: one declaration for the worker that writes, the scrape that reads, and the
//! names that Prometheus and `hyphae status` show.
//!
//! Every counter is a `u64` that only grows and has a single writer, its worker. Readers see each
//! value whole, but not all values of one instant.

/// Declares a fieldless enum of counters together with their names and one-line glosses.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $label:literal, $gloss:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $gloss] $variant,)* }

        impl $name {
            /// Every variant, in order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Name in metrics and status, snake case.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// What it counts, in one line.
            pub const fn gloss(self) -> &'static str {
                match self { $(Self::$variant => $gloss,)* }
            }
        }
    };
}

counters! {
    /// Counters of a worker.
    Counter {
        UnderlayRxPackets = "underlay_rx_packets", "frames received from the underlay";
        UnderlayRxBytes = "underlay_rx_bytes", "bytes of frames received from the underlay";
        UnderlayRxTrains = "underlay_rx_trains", "receives from the underlay, each one train";
        UnderlayTxPackets = "underlay_tx_packets", "frames sent to the underlay";
        UnderlayTxBytes = "underlay_tx_bytes", "bytes of frames sent to the underlay";
        UnderlayTxTrains = "underlay_tx_trains", "sends to the underlay, each one train";
        TransitPackets = "transit_packets", "frames forwarded for other nodes";
        TransitBytes = "transit_bytes", "bytes of frames forwarded for other nodes";
        TunRxPackets = "tun_rx_packets", "packets of the host sealed for the overlay, after splitting";
        TunRxBytes = "tun_rx_bytes", "bytes of packets of the host, before splitting";
        TunRxReads = "tun_rx_reads", "reads from the TUN device, each one packet or super-packet";
        TunTxPackets = "tun_tx_packets", "packets opened for the host, before coalescing";
        TunTxBytes = "tun_tx_bytes", "bytes written to the TUN device";
        TunTxWrites = "tun_tx_writes", "writes to the TUN device, each one packet or super-packet";
        LinkLocalRx = "link_local_rx", "frames between neighbours received";
        LinkLocalTx = "link_local_tx", "frames between neighbours sent";
        ProbesAnswered = "probes_answered", "liveness probes of neighbours and session ends answered";
        Punts = "punts", "packets and events handed to the control plane";
        PuntOverruns = "punt_overruns", "packets and events not handed over: the punt ring was full or no control plane was attached";
        ProgramRecords = "program_records", "records taken from the control plane";
        ProgramRefused = "program_refused", "records from the control plane that were malformed or could not be applied";
        RingDetached = "ring_detached", "times a corrupt ring made the worker let go of the control plane";
        Handoffs = "handovers", "records handed off to the worker that owns their session or has a lane";
        HandoffOverruns = "handover_overruns", "records lost because the other worker's handoff ring was full (drops: handoff_full)";
        Wakeups = "wakeups", "times the worker went to sleep and woke";
        Polls = "polls", "times the worker looked for work before going to sleep";
        PollsFound = "polls_found", "times that it found some, and did not sleep";
        Turns = "turns", "turns of the worker loop that found work";
        BufferExhausted = "buffer_exhausted", "receives that found no free buffer and were armed again";
        SocketOverruns = "socket_overruns", "datagrams that the kernel dropped because the socket buffer was full";
        RxTruncated = "rx_truncated", "receives that the kernel had to cut short";
        RxErrors = "rx_errors", "receives that failed for another reason";
        TxErrors = "tx_errors", "trains that the kernel refused";
        TxBackpressure = "tx_backpressure", "trains dropped because the socket buffer was full";
        TunErrors = "tun_errors", "reads and writes of the TUN device that failed";
        SealedAes = "sealed_aes_256_gcm", "AEAD seal operations";
        SealedChaCha = "sealed_chacha20_poly1305", "AEAD seal operations";
        OpenedAes = "opened_aes_256_gcm", "AEAD open operations";
        OpenedChaCha = "opened_chacha20_poly1305", "AEAD open operations";
        StreamAccepted = "stream_accepted", "stream connections accepted";
        StreamConnected = "stream_connected", "stream connections opened to others";
        StreamConnectFailed = "stream_connect_failed", "stream connections that could not be opened";
        StreamEnded = "stream_ended", "stream connections that ended, for whatever reason";
        StreamRefusedFull = "stream_refused_full", "stream connections refused because there were too many";
        StreamRefusedSource = "stream_refused_source", "stream connections refused because their source had too many";
        StreamEndedSilent = "stream_ended_silent", "stream connections ended because a frame did not come, or not whole, in time";
        StreamEndedMalformed = "stream_ended_malformed", "stream connections ended because what came was no frame";
        StreamEndedIdle = "stream_ended_idle", "stream connections ended because no session used them";
        StreamRxFrames = "stream_rx_frames", "frames received from streams";
        StreamTxFrames = "stream_tx_frames", "frames handed to streams";
        FramesSplit = "frames_split", "frames sent in two parts because the link does not carry them whole";
        FramesJoined = "frames_joined", "frames put together from two parts";
        ReportsSent = "reports_sent", "reports to senders of frames that could not be passed on, and answers to traces";
        ReportsTaken = "reports_taken", "reports about this node's own frames that were believed";
        ReportsIgnored = "reports_ignored", "reports about frames that this node has not sent lately, or too many";
        HostErrors = "host_errors", "ICMPv6 errors given to the host";
        ErrorsSuppressed = "errors_suppressed", "reports and ICMPv6 errors not sent: beyond the rate limit";
        TxTooBig = "tx_too_big", "sends that the kernel refused because the interface does not carry the size";
        TxSourceRefused = "tx_source_refused", "trains sent from another address than the one their peer uses";
        EndpointMoves = "endpoint_moves", "times a peer's frames came from a new underlay address";
        CookiesSent = "cookies_sent", "handshakes answered with a cookie because of load";
        CookiesRefused = "cookies_refused", "cookies in handshakes that were forged, too old or of another address";
        ResetsSent = "resets_sent", "frames of unknown sessions answered with a stateless reset";
        BusyNanoseconds = "busy_nanoseconds", "time in which the worker did not sleep";
        Buffers = "buffers", "packet buffers of the worker";
        BuffersUsed = "buffers_used", "packet buffers in use";
        RxTrains1 = "rx_trains_1", "trains received, of 1 frame";
        RxTrains4 = "rx_trains_4", "of 2 to 4";
        RxTrains16 = "rx_trains_16", "of 5 to 16";
        RxTrains64 = "rx_trains_64", "of 17 to 64";
        TxTrains1 = "tx_trains_1", "trains sent, of 1 frame";
        TxTrains4 = "tx_trains_4", "of 2 to 4";
        TxTrains16 = "tx_trains_16", "of 5 to 16";
        TxTrains64 = "tx_trains_64", "of 17 to 64";
        Turns1 = "turns_1", "turns that received 1 frame or none";
        Turns4 = "turns_4", "2 to 4";
        Turns16 = "turns_16", "5 to 16";
        Turns64 = "turns_64", "17 to 64";
        ResetsAccepted = "resets_accepted", "stateless resets that proved that a neighbour lost its session";
    }
}

counters! {
    /// Why a packet was dropped. Exactly one reason, and one count, for every packet that ends here.
    DropReason {
        FrameTooShort = "frame_too_short", "shorter than the headers of its kind";
        FrameKindUnknown = "frame_kind_unknown", "of no kind that this version knows";
        FrameReservedBits = "frame_reserved_bits", "reserved header bits were set";
        LinkUnknown = "link_unknown", "for a link session that this worker does not have";
        LinkAuth = "link_auth", "link tag did not verify: corrupt, forged or under another key";
        LinkReplay = "link_replay", "link counter seen before or older than the window";
        LinkExpired = "link_expired", "link session is past its limits";
        LengthMismatch = "length_mismatch", "payload length in the routing header is not what the datagram holds";
        ServiceUnknown = "service_unknown", "service code that this version does not know";
        HopLimit = "hop_limit", "hop limit ran out";
        NoRoute = "no_route", "no route to the destination";
        RouteBlackhole = "route_blackhole", "route says to discard";
        AdjacencyDown = "adjacency_down", "next hop has no session to send on";
        SessionUnknown = "session_unknown", "for an end-to-end session that this worker does not have";
        SessionAuth = "session_auth", "end-to-end tag did not verify";
        SessionReplay = "session_replay", "end-to-end counter seen before or older than the window";
        SessionExpired = "session_expired", "end-to-end session is past its limits";
        SourceSpoofed = "source_spoofed", "source address does not belong to the key that sealed the packet";
        DestinationMismatch = "destination_mismatch", "inner destination is not the one the frame was routed by";
        InnerMalformed = "inner_malformed", "not a well-formed IPv6 packet inside";
        ControlMalformed = "control_malformed", "malformed control message in an authentic frame";
        HandshakeMalformed = "handshake_malformed", "malformed handshake frame";
        CookieWanted = "cookie_wanted", "first handshake message without a valid cookie under load; a cookie was sent instead";
        HandshakeLimited = "handshake_limited", "handshake over the limit of its source or of the worker";
        HandshakeStray = "handshake_stray", "answer to a handshake that this node did not begin";
        ResetRefused = "reset_refused", "stateless reset without the token of a session in use";
        TunNotIpv6 = "tun_not_ipv6", "packet of the host that is not IPv6";
        TunMalformed = "tun_malformed", "packet of the host with contradictory lengths or offload header";
        TunSourceForeign = "tun_source_foreign", "packet of the host whose source is not this node's";
        TunDestinationForeign = "tun_destination_foreign", "packet of the host to an address outside the overlay";
        TunTooBig = "tun_too_big", "packet of the host larger than the MTU of its path";
        NoTun = "no_tun", "packet for the host, which has no TUN device";
        SessionPending = "session_pending", "waited for an end-to-end session, and the queue was full or the wait too long";
        StreamQueue = "stream_queue", "the queue of a stream connection was full: its other end takes frames too slowly";
        StreamDown = "stream_down", "no stream connection to send on";
        LinkTooBig = "link_too_big", "larger than the next link carries";
        ReportMalformed = "report_malformed", "malformed report or trace";
        FragmentMalformed = "fragment_malformed", "part of a frame with contradictory lengths";
        FragmentLost = "fragment_lost", "part of a frame whose other part did not come in time";
        HandoffFull = "handoff_full", "for another worker, whose handoff ring was full";
        PuntFull = "punt_full", "for the control plane, whose ring was full or which was not attached";
        NoBuffer = "no_buffer", "no buffer was free to build the frame in";
    }
}

/// Upper bounds of the buckets of histograms of frames. Each histogram has a counter per bucket,
/// one after the other from `…1`; what is larger is not in any.
pub const FRAME_BUCKETS: [u64; 4] = [1, 4, 16, 64];

/// Counters of one worker in the order of the stats block: [`Counter::ALL`], then
/// [`DropReason::ALL`].
pub const COUNTERS: usize = Counter::ALL.len() + DropReason::ALL.len();

/// Position of a counter in the stats block.
pub const fn counter_at(counter: Counter) -> usize {
    counter as usize
}

/// Position of a drop reason's counter in the stats block.
pub const fn drop_at(reason: DropReason) -> usize {
    Counter::ALL.len() + reason as usize
}

/// What a worker keeps per peer, one cache line in the segment. Totals since the peer's number was
/// given out; single writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes of frames received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes of frames sent.
    pub tx_bytes: u64,
    /// When the last authentic frame came, nanoseconds of the monotonic clock; 0 for never.
    pub last_rx: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indices_dense() {
        let mut names: Vec<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        names.extend(DropReason::ALL.iter().map(|r| r.name()));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COUNTERS);
        assert!(
            Counter::ALL
                .iter()
                .enumerate()
                .all(|(i, c)| counter_at(*c) == i)
        );
        assert_eq!(drop_at(DropReason::NoBuffer), COUNTERS - 1);
    }
}

//! What the udp backend counts.

/// Declares [`UdpOutcome`] with the name of each.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What became of packets that the udp backend's proxy did not simply hand on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum UdpOutcome {
            $($(#[$doc])* $variant,)*
        }

        impl UdpOutcome {
            /// All of them, in the order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Name in `status`, in metrics and in the documentation.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

outcomes! {
    /// Sent to a peer.
    Encapsulated = "udp_encap",
    /// Received from a peer and handed to the kernel.
    Decapsulated = "udp_decap",
    /// Dropped: no peer has the destination's subnet.
    NoPeer = "drop_no_peer",
    /// Dropped: its last hop was here.
    TtlExpired = "drop_ttl_expired",
    /// Dropped: no whole IPv4 packet.
    Malformed = "drop_malformed",
    /// Received from an address that is no peer's.
    ForeignSender = "forged_outer_source",
    /// Its overlay source is not in the sender's subnet.
    ForgedSource = "forged_inner_source",
    /// Dropped: the kernel did not take the datagram.
    SendFailed = "drop_send_failed",
    /// Dropped: the TUN device did not take the packet.
    DeliveryFailed = "drop_delivery_failed",
    /// ICMP errors sent.
    IcmpSent = "icmp_sent",
}

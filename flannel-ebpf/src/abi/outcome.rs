//! What may become of a packet: the counters.

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What became of a packet; index into [`map::STATS`](super::map::STATS).
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Outcome {
            /// All outcomes, in the order of their index.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$variant,)+];

            /// Name in `status`, in metrics and in the documentation.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$variant => $name,)+ }
            }
        }
    };
}

outcomes! {
    /// Came from a pod, not for a pod of its node. With `SeenFromUnderlay` and
    /// `SeenLate` this is the sum of the outcomes that end an entry hook ([`Outcome::ends_entry`]).
    SeenFromPod = "seen_from_pod",
    /// Came from a peer: a packet of our tunnel port, or of a direct peer.
    SeenFromUnderlay = "seen_from_underlay",
    /// Came through the tunnel without having met `from_underlay`, or in a frame
    /// that it does not look into.
    SeenLate = "seen_late",
    /// Encapsulated by `from_pod`.
    FastEncap = "fast_encap",
    /// Decapsulated by `from_underlay`.
    FastDecap = "fast_decap",
    /// Stripped by `from_wire`, handed to the pod by `from_underlay`: once for
    /// each aggregate that GRO made of what was stripped.
    FastXdp = "fast_xdp",
    /// GSO aggregate (or its flow's packets), stripped by the kernel device
    /// and handed to the pod by `from_overlay`.
    FastAggregate = "fast_aggregate",
    /// Sent to a direct peer by `from_pod`, without a tunnel.
    FastRoutedOut = "fast_routed_out",
    /// Came from a direct peer, handed to the pod by `from_underlay`.
    FastRoutedIn = "fast_routed_in",
    /// Routed by the kernel, encapsulated by `to_overlay`.
    ShortcutEncap = "shortcut_encap",
    /// Decapsulated by `from_underlay`, routed by the kernel.
    ShortcutDecap = "shortcut_decap",
    /// A flow, pair or tunnel was entered into the table.
    FlowNew = "flow_new",
    /// A flow was confirmed that the kernel translates (services, masquerade).
    ConfirmedTranslated = "confirmed_translated",
    /// Not confirmed: the kernel changed more than a treatment can repeat.
    RefusedChanged = "refused_changed",
    /// Not confirmed: a later packet of the flow is still under way.
    RefusedOrder = "refused_order",
    /// Not confirmed: something on the way acts on packets (`status` names it).
    RefusedKept = "refused_kept",
    /// Not confirmed: a rule judges the flow's packets one by one.
    RefusedRule = "refused_rule",
    /// Not confirmed: a fresh confirmation belongs to another sender.
    RefusedSender = "refused_sender",
    /// A flow was confirmed, outwards.
    ConfirmedOut = "confirmed_out",
    /// A flow was confirmed, inwards.
    ConfirmedIn = "confirmed_in",
    /// One direction of a pair was confirmed (`--fast-path=eager`).
    ConfirmedPair = "confirmed_pair",
    /// A TCP connection was opened on the word of its pair.
    OpenedEager = "opened_eager",
    /// A peer's tunnel was confirmed: the kernel takes what comes through it.
    ConfirmedTunnel = "confirmed_tunnel",
    /// To the kernel: not confirmed (first packet, or changed on its way).
    KernelUnconfirmed = "kernel_unconfirmed",
    /// To the kernel: sent by a pod to an address outside the overlay network (a
    /// service, the Internet), and not confirmed.
    KernelBeyond = "kernel_beyond",
    /// To the kernel: a rule judges the flow's packets one by one.
    KernelRule = "kernel_rule",
    /// To the kernel: its DSCP is not the confirmed packet's, so that rules and
    /// routing may treat it differently.
    KernelDiffers = "kernel_differs",
    /// To the kernel: the confirmation's time was over.
    KernelExpired = "kernel_expired",
    /// To the kernel: the generation had changed.
    KernelGeneration = "kernel_generation",
    /// To the kernel: came from another veth or to another MAC than confirmed.
    KernelMoved = "kernel_moved",
    /// To the kernel: TCP SYN, FIN or RST.
    KernelTcpState = "kernel_tcp_state",
    /// To the kernel: neither TCP nor UDP, or TCP while conntrack is strict.
    KernelProtocol = "kernel_protocol",
    /// To the kernel: a fragment.
    KernelFragment = "kernel_fragment",
    /// To the kernel: IP options.
    KernelOptions = "kernel_options",
    /// To the kernel: TTL 0 or 1.
    KernelTtl = "kernel_ttl",
    /// To the kernel: larger than the MTU (it answers with fragmentation-needed).
    KernelTooBig = "kernel_too_big",
    /// To the kernel: outer ECN says congestion experienced (RFC 6040).
    KernelEcn = "kernel_ecn",
    /// To the kernel: not IPv4.
    KernelNotIpv4 = "kernel_not_ipv4",
    /// To the kernel: truncated, or lengths that contradict each other.
    KernelMalformed = "kernel_malformed",
    /// To the kernel: VXLAN of our port with another VNI, or without the I flag.
    KernelForeignVni = "kernel_foreign_vni",
    /// To the kernel: the inner destination MAC is not our VTEP's, a pod's frame is for
    /// a group, or a source MAC is none that a station can have.
    KernelForeignMac = "kernel_foreign_mac",
    /// To the kernel device: a GSO aggregate, or a packet of its flow.
    KernelAggregate = "kernel_aggregate",
    /// To the kernel: `bpf_skb_adjust_room` refused.
    KernelNoRoom = "kernel_no_room",
    /// To the kernel device, and not confirmed: no route, or no resolved
    /// neighbour on the underlay.
    UnresolvedNextHop = "unresolved_next_hop",
    /// Failed the source check: the outer source is no peer.
    ForgedOuterSource = "forged_outer_source",
    /// Failed the source check: the inner source is another peer's, or ours.
    ForgedInnerSource = "forged_inner_source",
    /// To the kernel: seen late, and passed the source check.
    CheckedLate = "checked_late",
    /// Failed the source check: VXLAN sent by a pod to a tunnel end.
    ForgedByPod = "forged_by_pod",
    /// Failed the source check: a first fragment too short to hold the inner
    /// source, which nobody but an evader sends (compare RFC 1858).
    ForgedFragment = "forged_fragment",
    /// Failed the source check, and passes: the agent has stopped or is silent, so
    /// that the sender may be newer than the tables.
    Unattended = "unattended",
    /// Dropped: the packet could not be rebuilt after it was resized.
    DropBroken = "drop_broken",
    /// Dropped: stripped by `from_wire`, and came with a VLAN tag, which that
    /// cannot see.
    DropTagged = "drop_tagged",
}

impl Outcome {
    /// Whether this says what an entry hook did with a packet it has seen: each
    /// has one such outcome, if packets that fail the source check are dropped.
    /// The others tell what else became of it.
    pub fn ends_entry(self) -> bool {
        let name = self.name();
        let fast = matches!(
            self,
            Self::FastEncap
                | Self::FastDecap
                | Self::FastXdp
                | Self::FastRoutedOut
                | Self::FastRoutedIn
        );
        let forged = matches!(
            self,
            Self::ForgedOuterSource | Self::ForgedInnerSource | Self::ForgedFragment
        );
        fast || forged || self == Self::CheckedLate || name.starts_with("kernel_")
    }
}

/// Number of counters in [`map::STATS`](super::map::STATS).
pub const OUTCOMES: u32 = Outcome::ALL.len() as u32;

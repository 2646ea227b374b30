//! What is combined, and which combinations are run (pure).

use std::collections::HashSet;
use std::fmt;

/// Every value of an axis, in order.
macro_rules! axis {
    ($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$note])* $value,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$value),+];

            /// What reports call it.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }
    };
}

axis! {
    /// What the pods say to each other.
    Load {
        /// A stream both ways, and messages.
        Tcp = "tcp",
        /// Datagrams that fit in one packet.
        Udp = "udp",
        /// Datagrams that the kernel cuts (UDP_SEGMENT).
        UdpGso = "udp-gso",
        /// Datagrams about as large as the overlay's MTU, and fragments.
        NearMtu = "near-mtu",
        /// A stream in aggregates of more than 64 KiB.
        BigTcp = "big-tcp",
    }
}

axis! {
    /// Whose tunnel ends are made by the programs.
    Path {
        /// Both nodes'.
        Both = "eBPF",
        /// The left node's: it sends to a kernel that decapsulates, and takes
        /// what that kernel has encapsulated.
        Left = "eBPF to kernel",
        /// The right node's, whose pod is the one that the axis of receivers
        /// speaks of.
        Right = "kernel to eBPF",
    }
}

axis! {
    /// Offloads of a pod's veth, on the pod's or on the node's side.
    Veth {
        /// Segmentation (TCP and UDP), merging and checksums.
        On = "on",
        /// None of them.
        Off = "off",
    }
}

axis! {
    /// Offloads of the underlay devices.
    Underlay {
        /// All: aggregates stay whole between the nodes.
        On = "on",
        /// As a network card: cut on the way out, merged on the way in.
        Card = "card",
        /// None: cut and with checksums on the way out, not merged.
        Off = "off",
    }
}

axis! {
    /// What the receiving pod does with what it gets.
    Receiver {
        /// A program in it reads it.
        Consumes = "consumes",
        /// It routes it to a namespace behind it, by a device without
        /// segmentation: what is an aggregate is cut in the pod.
        Forwards = "forwards",
        /// It routes it to a TUN device with offloads, as to a virtual machine.
        Machine = "machine",
        /// An AF_PACKET socket reads along.
        Capture = "capture",
        /// An XDP program on its device passes everything.
        Xdp = "xdp",
    }
}

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// What is sent.
    pub load: Load,
    /// By which path.
    pub path: Path,
    /// Offloads of the pods' own devices.
    pub pod: Veth,
    /// Offloads of the host sides of their veths.
    pub host: Veth,
    /// Offloads of the underlay.
    pub underlay: Underlay,
    /// Who gets it.
    pub receiver: Receiver,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}, pod {}, veth {}, underlay {}, {}",
            self.load.text(),
            self.path.text(),
            self.pod.text(),
            self.host.text(),
            self.underlay.text(),
            self.receiver.text()
        )
    }
}

/// Every combination.
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    // What takes longest to change varies slowest.
    for &underlay in Underlay::ALL {
        for &host in Veth::ALL {
            for &pod in Veth::ALL {
                for &receiver in Receiver::ALL {
                    for &load in Load::ALL {
                        cells.extend(Path::ALL.iter().map(|&path| Cell {
                            load,
                            path,
                            pod,
                            host,
                            underlay,
                            receiver,
                        }));
                    }
                }
            }
        }
    }
    cells
}

/// One value of one axis.
type Choice = (usize, usize);
/// Values of two axes that meet in a cell.
type Meeting = (Choice, Choice);

/// Fewer combinations, in which still every value of each axis meets every
/// value of each other one: what goes wrong when two things come together is
/// found.
pub fn pairwise() -> Vec<Cell> {
    let mut left: HashSet<Meeting> = all().iter().flat_map(meetings).collect();
    let (cells, mut chosen) = (all(), Vec::new());
    while !left.is_empty() {
        let gain = |cell: &Cell| meetings(cell).filter(|pair| left.contains(pair)).count();
        // The first of the best, so that the choice is always the same.
        let Some(best) = cells.iter().rev().max_by_key(|cell| gain(cell)) else { break };
        left.retain(|pair| !meetings(best).any(|found| found == *pair));
        chosen.push(*best);
    }
    let order = |cell: &Cell| cells.iter().position(|other| other == cell);
    chosen.sort_by_key(order);
    chosen
}

fn meetings(cell: &Cell) -> impl Iterator<Item = Meeting> + use<> {
    let values = [
        cell.load as usize,
        cell.path as usize,
        cell.pod as usize,
        cell.host as usize,
        cell.underlay as usize,
        cell.receiver as usize,
    ];
    (0..values.len()).flat_map(move |one| {
        (one + 1..values.len()).map(move |other| ((one, values[one]), (other, values[other])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_once() {
        let cells = all();
        assert_eq!(cells.len(), 5 * 3 * 2 * 2 * 3 * 5);
        assert_eq!(cells.iter().collect::<HashSet<_>>().len(), cells.len());
    }

    #[test]
    fn the_smaller_list_has_every_pair_of_values() {
        let few = pairwise();
        let found: HashSet<_> = few.iter().flat_map(meetings).collect();
        let wanted: HashSet<_> = all().iter().flat_map(meetings).collect();
        assert_eq!(found, wanted);
        // 25 are needed: every load meets every receiver.
        assert!(few.len() <= 30, "{} cells", few.len());
    }
}

//! Links, as `ip` shows them.

use serde::Deserialize;

use crate::netns::Netns;

/// A network device.
#[derive(Debug, Deserialize)]
pub struct Link {
    /// Its name.
    #[serde(rename = "ifname")]
    pub name: String,
    /// Its number in this namespace.
    pub ifindex: u32,
    /// Its MAC, or whatever its kind has for an address.
    pub address: Option<String>,
    /// What went through it.
    #[serde(rename = "stats64")]
    pub traffic: Traffic,
    /// The XDP program on it.
    pub xdp: Option<Xdp>,
}

/// What went through a link.
#[derive(Debug, Deserialize)]
pub struct Traffic {
    /// What it received.
    pub rx: Counts,
    /// What it sent.
    pub tx: Counts,
}

/// One direction of a link.
#[derive(Debug, Deserialize)]
pub struct Counts {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Packets that it could not take or send.
    pub dropped: u64,
}

/// An XDP program on a link.
#[derive(Debug, Deserialize)]
pub struct Xdp {
    /// `XDP_ATTACHED_...` of `linux/if_link.h`: 1 in the driver, 2 generic.
    pub mode: u32,
    /// The program; `None` where there are several.
    pub prog: Option<Program>,
}

/// A loaded program.
#[derive(Debug, Deserialize)]
pub struct Program {
    /// Its id, as bpftool shows it.
    pub id: u32,
}

impl Netns {
    /// All links.
    ///
    /// # Panics
    /// ip fails.
    #[track_caller]
    pub fn links(&self) -> Vec<Link> {
        self.shown("")
    }

    /// The link of this name.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn link(&self, name: &str) -> Link {
        self.shown(name).pop().unwrap_or_else(|| panic!("ip says nothing of {name}"))
    }

    #[track_caller]
    fn shown(&self, which: &str) -> Vec<Link> {
        let text = self.ip(&format!("-json -details -stats link show {which}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

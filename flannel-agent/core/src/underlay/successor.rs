//! The address that takes the place of the one in use, on the same card.
//!
//! An address that goes may come back: links flap, DHCP renews, a network daemon starts
//! anew. Nothing may move then, least of all to an address that was there for another
//! reason (a virtual address of keepalived, a second network). So an address that goes is
//! waited for. But an address that is replaced does not come back, and peers go on
//! sending to it until the lease says otherwise.
//!
//! What tells the two apart is what else the card has. While an address is away for a
//! moment, the card has none, or those that stood beside it before. A card that was given
//! another address has one that is new. That one is taken after [`SETTLES`]: tools write
//! several addresses one after the other, in any order. If the old address comes back
//! within [`PATIENCE`], it was no replacement after all, and the node returns to it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::{Underlay, Wish, kept, ranked};
use crate::link::{Link, LinkAddress};

/// An underlay that is down or has lost its address is waited for. Longer than a
/// flap, a driver's reset or a renewal by DHCP takes.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// A new address has to stand alone for this long.
pub const SETTLES: Duration = Duration::from_millis(300);

/// What a look at the card said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heir {
    /// The address in use is there, or nothing takes its place.
    None,
    /// Something may: look again then.
    At(Instant),
    /// This address does.
    Is(Ipv4Addr),
}

/// What is known of the card's addresses.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    /// Since when the card has an address; `None`: since before the first look.
    since: BTreeMap<Ipv4Addr, Option<Instant>>,
    looked: bool,
    /// Whether the address in use has a prefix length of 32.
    host: bool,
    /// Since when the address in use is away.
    away: Option<Instant>,
    /// The address before, and until when it may come back.
    before: Option<(Ipv4Addr, Instant)>,
}

impl Succession {
    /// Looks at the card of the underlay in use.
    pub fn look(&mut self, current: &Underlay, links: &[Link], wish: &Wish, now: Instant) -> Heir {
        let card = links.iter().find(|link| is_card(current, link));
        if let Some(card) = card {
            self.note(current, card, now);
        }
        self.before = self.before.filter(|(_, until)| now < *until);
        if let (Some((before, _)), Some(card)) = (self.before, card)
            && card.up
            && card.has(before)
        {
            return Heir::Is(before);
        }
        if kept(current, links).is_some() {
            self.away = None;
            return Heir::None;
        }
        let away = *self.away.get_or_insert(now);
        let fits = |address: &&LinkAddress| self.may_follow(address, wish, away);
        let new: Vec<LinkAddress> = match card.filter(|card| card.up) {
            Some(card) => card.addresses.iter().filter(fits).copied().collect(),
            None => Vec::new(),
        };
        let Some(heir) = ranked(&new).first().copied() else { return Heir::None };
        let since = self.since.get(&heir).copied().flatten().unwrap_or(now);
        let due = since.max(away) + SETTLES;
        if now < due { Heir::At(due) } else { Heir::Is(heir) }
    }

    /// The node has moved from `before` to an heir.
    pub fn moved(&mut self, before: Ipv4Addr) {
        let returned = self.before.take().is_some();
        let away = self.away.take();
        self.before = away.filter(|_| !returned).map(|away| (before, away + PATIENCE));
    }

    fn note(&mut self, current: &Underlay, card: &Link, now: Instant) {
        let since = self.looked.then_some(now);
        for address in &card.addresses {
            let ip = address.network.ip();
            self.since.entry(ip).or_insert(since);
            if ip == current.address {
                self.host = address.network.prefix() == 32;
            }
        }
        self.looked = true;
        // One that stood there for long, such as a virtual address, may come again. The
        // node's own is none of these.
        let is_virtual = |ip, since| ip != current.address && is_old(since, now);
        self.since.retain(|ip, since| card.has(*ip) || is_virtual(*ip, *since));
    }

    /// Whether an address can be a node's own, and came when the other one went.
    fn may_follow(&self, address: &LinkAddress, wish: &Wish, away: Instant) -> bool {
        let ip = address.network.ip();
        let since = self.since.get(&ip).copied().flatten();
        address.global
            && !ip.is_link_local()
            && !wish.is_pods(ip)
            // Virtual addresses are like that.
            && (self.host || address.network.prefix() != 32)
            && since.is_some()
            && !is_old(since, away)
    }
}

fn is_old(since: Option<Instant>, now: Instant) -> bool {
    since.is_none_or(|since| now.saturating_duration_since(since) >= PATIENCE)
}

/// Whether a link is the card that is in use.
pub(super) fn is_card(current: &Underlay, link: &Link) -> bool {
    link.ifindex == current.ifindex && link.mac == current.mac
}

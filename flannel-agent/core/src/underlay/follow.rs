//! The underlay while the agent runs: what was chosen stays as long as it can.

use std::net::Ipv4Addr;

use super::successor::is_card;
use super::{Underlay, UnderlayError, UnderlayRoutes, Wish, choose, holder, kept, usable};
use crate::link::Link;

/// What becomes of an underlay whose interface or address is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// It is waited for.
    Wait,
    /// Another address has taken its place ([`super::successor`]).
    Replaced(Ipv4Addr),
    /// It was waited for long enough.
    Choose,
}

/// Chooses again while running, from `current`.
///
/// What was chosen stays as long as an interface has its address, whatever it is
/// called, whatever other addresses come and go, and whatever routes get better: a
/// virtual address or a VPN must not take the lease away. Interfaces go down, and
/// lose addresses, for a moment; so nothing moves while [`Away::Wait`] is said.
///
/// What `--iface-regex` or `--iface-can-reach` has chosen stays even while it is
/// down for longer.
///
/// # Errors
/// As [`choose`], and when what stays cannot be used at the moment.
pub fn follow(
    current: &Underlay,
    links: &[Link],
    wish: &Wish,
    routes: UnderlayRoutes,
    away: Away,
) -> Result<Underlay, UnderlayError> {
    if let Away::Replaced(heir) = away {
        return replaced(current, links, wish, routes, heir)
            .ok_or_else(|| UnderlayError::Present { reason: lost(current, links) });
    }
    let patient = away == Away::Wait;
    let sought = !wish.iface_regex.is_empty() || wish.can_reach.is_some();
    let waits = match kept(current, links) {
        Some(link) => match usable(links, link, Some(current.address), wish) {
            Ok(underlay) => return Ok(underlay),
            Err(reason) if patient || sought => Some(reason),
            Err(_) => None,
        },
        None if patient => Some(lost(current, links)),
        None => None,
    };
    if let Some(reason) = waits {
        return Err(UnderlayError::Present { reason });
    }
    // The same card with another address goes before another card. What a flag
    // names is found as at the start.
    let same = links.iter().find(|link| is_card(current, link));
    let named = names_one(links, wish);
    match same.filter(|_| !named).and_then(|link| usable(links, link, None, wish).ok()) {
        Some(underlay) => Ok(underlay),
        None => choose(links, wish, routes),
    }
}

fn lost(current: &Underlay, links: &[Link]) -> String {
    let address = current.address;
    match links.iter().find(|link| link.ifindex == current.ifindex) {
        Some(link) => format!("{} has no address {address} any more", link.name),
        None => format!("{} has gone, and {address} with it", current.name),
    }
}

/// Whether a flag names an interface that is there.
fn names_one(links: &[Link], wish: &Wish) -> bool {
    wish.names_an_interface() || wish.public_ip.is_some_and(|ip| holder(links, ip).is_some())
}

/// The same card with another address, if the flags allow that.
fn replaced(
    current: &Underlay,
    links: &[Link],
    wish: &Wish,
    routes: UnderlayRoutes,
    heir: Ipv4Addr,
) -> Option<Underlay> {
    if !names_one(links, wish) {
        let card = links.iter().find(|link| is_card(current, link))?;
        return usable(links, card, Some(heir), wish).ok();
    }
    let wish = Wish { familiar: Some(heir), ..wish.clone() };
    let chosen = choose(links, &wish, routes).ok()?;
    (chosen.ifindex == current.ifindex && chosen.address == heir).then_some(chosen)
}

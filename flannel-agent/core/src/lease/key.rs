//! The last part of a lease's key: its subnet, as flannel writes it. Pure.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::Ipv4Network;

/// A lease's IPv4 subnet in the form of keys, `10.5.1.0-24`.
///
/// The dual-stack form `10.5.1.0-24&fd00:5:0:1::-64` is read too; only its
/// IPv4 part is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubnetKey(Ipv4Network);

/// The text is not a subnet in the form of keys.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{key}` is no subnet key: {cause}; expected the form 10.5.1.0-24")]
pub struct SubnetKeyError {
    /// The text as read.
    pub key: String,
    /// What is wrong with it.
    pub cause: String,
}

impl SubnetKey {
    /// The key of `subnet`, whose host bits are masked off.
    pub fn new(subnet: Ipv4Network) -> Self {
        Self(masked(subnet))
    }

    /// The subnet, host bits zero.
    pub fn subnet(self) -> Ipv4Network {
        self.0
    }
}

/// `subnet` with its host bits zero.
fn masked(subnet: Ipv4Network) -> Ipv4Network {
    // The prefix comes from a network, so it is within bounds.
    Ipv4Network::new(subnet.network(), subnet.prefix()).unwrap_or(subnet)
}

impl From<Ipv4Network> for SubnetKey {
    fn from(subnet: Ipv4Network) -> Self {
        Self::new(subnet)
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.network(), self.0.prefix())
    }
}

impl FromStr for SubnetKey {
    type Err = SubnetKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self).map_err(|cause| SubnetKeyError { key: text.to_owned(), cause })
    }
}

fn parse(text: &str) -> Result<Ipv4Network, String> {
    let v4 = match text.split_once('&') {
        Some((v4, v6)) => {
            let (address, prefix) = halves(v6)?;
            address.parse::<Ipv6Addr>().map_err(|_| format!("`{address}` is no IPv6 address"))?;
            self::prefix(prefix, 128)?;
            v4
        }
        None => text,
    };
    let (address, prefix) = halves(v4)?;
    let address: Ipv4Addr =
        address.parse().map_err(|_| format!("`{address}` is no IPv4 address"))?;
    let prefix = self::prefix(prefix, 32)?;
    if prefix == 0 {
        // flannel writes it for a node without IPv4. Every other subnet would be taken.
        return Err("it has every address: its node has IPv6 alone".to_owned());
    }
    let subnet = Ipv4Network::new(address, prefix).map_err(|error| error.to_string())?;
    if subnet.network() != address {
        return Err(format!("host bits of {address} are set for the prefix length {prefix}"));
    }
    Ok(subnet)
}

fn halves(text: &str) -> Result<(&str, &str), String> {
    text.rsplit_once('-').ok_or_else(|| format!("`{text}` has no `-` before a prefix length"))
}

fn prefix(text: &str, most: u8) -> Result<u8, String> {
    // `u8::from_str` would take a plus sign too.
    Some(text)
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|prefix| *prefix <= most)
        .ok_or_else(|| format!("`{text}` is no prefix length up to {most}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn text_is_as_flannel_writes_it() {
        assert_eq!(SubnetKey::new(net("10.5.1.0/24")).to_string(), "10.5.1.0-24");
        assert_eq!(SubnetKey::new(net("10.5.1.77/24")).to_string(), "10.5.1.0-24");
        assert_eq!("10.5.1.0-24".parse::<SubnetKey>().unwrap().subnet(), net("10.5.1.0/24"));
    }

    #[test]
    fn of_the_dual_form_the_ipv4_part_is_kept() {
        for text in ["10.5.1.0-24&fd00::-64", "10.5.1.0-24&fd00:5:0:4e::-64"] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().subnet(), net("10.5.1.0/24"), "{text}");
        }
    }

    #[test]
    fn a_bad_key_is_named_with_its_cause() {
        let cases = [
            ("", "has no `-`"),
            ("garbage", "has no `-`"),
            ("10.5.1.0", "has no `-`"),
            ("10.5.1.0/24", "has no `-`"),
            ("10.5.1.0-33", "`33` is no prefix length up to 32"),
            ("10.5.1.0-+24", "`+24` is no prefix length"),
            ("10.5.1.0-", "`` is no prefix length"),
            ("10.5.1.0-999", "`999` is no prefix length"),
            ("10.5.1.7-24", "host bits of 10.5.1.7 are set"),
            ("10.5.1-24", "`10.5.1` is no IPv4 address"),
            ("x10.5.1.0-24", "is no IPv4 address"),
            ("10.5.1.0-24&", "has no `-`"),
            ("10.5.1.0-24&fd00::-129", "`129` is no prefix length up to 128"),
            ("10.5.1.0-24&zz::-64", "`zz::` is no IPv6 address"),
            ("0.0.0.0-0&fd00:5:0:43::-64", "its node has IPv6 alone"),
            ("0.0.0.0-0", "it has every address"),
        ];
        for (text, cause) in cases {
            let error = text.parse::<SubnetKey>().unwrap_err();
            assert_eq!(error.key, text);
            assert!(error.to_string().contains(cause), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn every_subnet_round_trips(address: u32, prefix in 1u8..=32) {
            let subnet = Ipv4Network::new(address.into(), prefix).unwrap();
            let key = SubnetKey::new(subnet);
            prop_assert_eq!(key.to_string().parse::<SubnetKey>().unwrap(), key);
            prop_assert_eq!(key.subnet().ip(), subnet.network());
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<SubnetKey>();
        }
    }
}

//! [`MacAddr`], a 48-bit Ethernet address.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address, in the order of the wire.
///
/// Its text is six lower-case hexadecimal pairs, as Go's
/// `net.HardwareAddr.String` writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

/// The text is no MAC address in one of Go's three forms.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a MAC address; expected the form 72:35:2e:f2:e7:c9")]
pub struct MacParseError(String);

impl MacAddr {
    /// A locally administered unicast address of these bytes, which are random
    /// where flannel makes one.
    pub fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & !0x01) | 0x02;
        Self(bytes)
    }

    /// Whether a VTEP may have it: unicast and not all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || MacParseError(text.to_owned());
        // As switches print it: 7235.2ef2.e7c9.
        let (between, digits) = match text.as_bytes().get(4) {
            Some(b'.') => ('.', 4),
            _ if text.contains('-') => ('-', 2),
            _ => (':', 2),
        };
        let mut number: u64 = 0;
        let mut count = 0;
        for part in text.split(between) {
            if part.len() != digits || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            count += digits;
            number = number << (4 * digits) | u64::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let [_, _, bytes @ ..] = number.to_be_bytes();
        if count == 12 { Ok(Self(bytes)) } else { Err(bad()) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for MacAddr {
    fn schema_name() -> Cow<'static, str> {
        "MacAddr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let text = "72:35:2e:f2:e7:c9";
        assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), text);
    }

    #[test]
    fn all_forms_of_go_are_read() {
        for text in ["72-35-2e-F2-e7-C9", "72:35:2E:f2:e7:c9", "7235.2ef2.E7c9"] {
            assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), "72:35:2e:f2:e7:c9");
        }
        for text in [
            "7235.2ef2",
            "7235.2ef2.e7c9.0000",
            "7235:2ef2:e7c9",
            "72:35-2e:f2:e7:c9",
            "+235.2ef2.e7c9",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in
            ["", "72:35:2e:f2:e7", "72:35:2e:f2:e7:c9:00", "7:35:2e:f2:e7:c9", "+2:35:2e:f2:e7:cg"]
        {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_that_we_make_are_local_unicast() {
        for first in 0..=u8::MAX {
            let mac = MacAddr::local([first, 0, 0, 0, 0, 0]);
            assert!(mac.is_unicast());
            assert_eq!(mac.0[0] & 2, 2);
        }
    }
}

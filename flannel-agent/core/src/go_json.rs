//! JSON read the way Go's `encoding/json` reads it into a struct.
//!
//! A config or a lease that flannel accepts has to be accepted here with the same
//! meaning: keys match whatever their case, unknown keys are ignored, of
//! duplicates the last one wins, `null` leaves a field as it was. Serde's
//! derive does none of that.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use strum::Display;

/// Longest piece of foreign text that a message quotes, in characters.
const EXCERPT: usize = 64;

/// One JSON value, checked for syntax and not yet interpreted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a>(&'a RawValue);

/// The members of an object in the order of the text, duplicates included.
struct Members<'a>(Vec<(String, Value<'a>)>);

impl<'a> Value<'a> {
    /// Checks the syntax of `text`; the error is worded as Go words it where
    /// the two parsers agree on what is wrong.
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        serde_json::from_str(text).map(Value).map_err(|error| syntax_message(text, &error))
    }

    /// Go's name for the kind of this value in its messages.
    pub(crate) fn kind(self) -> Kind {
        match self.text().as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') => Kind::Null,
            _ => Kind::Number,
        }
    }

    /// The text of the value as it stands in the document.
    pub(crate) fn text(self) -> &'a str {
        self.0.get().trim()
    }

    /// The members of an object; `None` if this is something else.
    pub(crate) fn members(self) -> Option<Vec<(String, Value<'a>)>> {
        serde_json::from_str::<Members<'a>>(self.0.get()).ok().map(|members| members.0)
    }

    /// The string, with its escapes resolved.
    pub(crate) fn string(self) -> Option<String> {
        serde_json::from_str::<Text>(self.0.get()).ok().map(|text| text.0)
    }

    /// The boolean.
    pub(crate) fn boolean(self) -> Option<bool> {
        serde_json::from_str(self.0.get()).ok()
    }

    /// The integer. Fractions and exponents are none, as in Go, even if they
    /// amount to a whole number.
    pub(crate) fn integer(self) -> Option<i64> {
        (self.kind() == Kind::Number).then(|| self.text().parse().ok()).flatten()
    }
}

/// The kinds of JSON values under the names that Go's messages use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Bool,
    Null,
    Number,
}

/// The types that Go's messages name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub enum GoType {
    /// A truth value.
    Bool,
    /// A number.
    Int,
    /// Text.
    String,
    /// A number that is not negative.
    Uint,
}

/// Sets a field from a value; `null` leaves it alone. The error is the value
/// as Go's messages name it.
pub(crate) fn set<'a, T>(
    target: &mut T,
    value: Value<'a>,
    expected: GoType,
    read: impl Fn(Value<'a>) -> Option<T>,
) -> Result<(), String> {
    // Go names the number only if its type could have held another one.
    let numeric = matches!(expected, GoType::Int | GoType::Uint);
    if value.kind() != Kind::Null {
        *target = read(value).ok_or_else(|| match value.kind() {
            Kind::Number if numeric => format!("number {}", excerpt(value.text())),
            kind => kind.to_string(),
        })?;
    }
    Ok(())
}

/// A string. Half a surrogate pair becomes U+FFFD, as in Go; serde refuses it.
pub(crate) struct Text(pub(crate) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lossy;

        impl Visitor<'_> for Lossy {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(String::from_utf8_lossy(bytes).into_owned()))
            }
        }

        // Only asked for bytes does serde_json keep what is no Unicode.
        deserializer.deserialize_bytes(Lossy)
    }
}

/// The members of an object, for types that have to be read whole.
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some((Text(key), value)) = map.next_entry()? {
                    fields.push((key, value));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl Fields {
    /// The text of the last member that `field` names and that is not `null`.
    pub(crate) fn raw(&self, field: &str) -> Option<&RawValue> {
        let named = self.0.iter().rev().filter(|(key, _)| names(key, field));
        named.map(|(_, value)| &**value).find(|value| value.get().trim() != "null")
    }

    /// The same, read.
    pub(crate) fn read<T: DeserializeOwned, E: serde::de::Error>(
        &self,
        field: &str,
    ) -> Result<Option<T>, E> {
        let read = |raw: &RawValue| serde_json::from_str(raw.get());
        self.raw(field)
            .map(read)
            .transpose()
            .map_err(|error| E::custom(format_args!("{field}: {error}")))
    }
}

/// Whether a key of the document names `field`.
pub(crate) fn names(key: &str, field: &str) -> bool {
    // Go folds by Unicode's simple folding, which maps two letters outside
    // ASCII to letters inside.
    let fold = |letter: char| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(field.chars().map(fold))
}

/// Foreign text made fit for one line of a log.
pub(crate) fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")
}

fn syntax_message(text: &str, error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let place = format!("(line {}, column {})", error.line(), error.column());
    let message = error.to_string();
    let culprit = text
        .lines()
        .nth(error.line().saturating_sub(1))
        .and_then(|line| line.get(error.column().saturating_sub(1)..))
        .and_then(|rest| rest.chars().next());
    match culprit {
        Some(culprit) if message.starts_with("expected value") => {
            let culprit = excerpt(&culprit.to_string());
            format!("invalid character '{culprit}' looking for beginning of value {place}")
        }
        _ => format!("invalid JSON: {}", excerpt(&message)),
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(key), raw)) = map.next_entry::<_, &'de RawValue>()? {
                    members.push((key, Value(raw)));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

//! The settings of a backend as they stand in the network config, read as Go reads them.

use super::BackendKind;
use crate::go_json::{GoType, Value, names, set};

/// The members of `Backend` in the network config.
pub struct BackendSettings<'a>(Vec<(String, Value<'a>)>);

/// Where the value of a setting goes.
pub(super) enum Target<'t> {
    /// A number.
    Integer(&'t mut i64),
    /// A truth value.
    Boolean(&'t mut bool),
}

/// What flannel reads a backend's settings into.
#[derive(Clone, Copy)]
pub(super) struct GoStruct {
    /// Whose settings they are.
    pub(super) backend: BackendKind,
    /// The type's name in flannel's code; empty where it has none.
    pub(super) name: &'static str,
}

/// Why the settings of a backend cannot be used, in flannel's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A setting has a value of the wrong type.
    #[error(
        "error decoding {} backend config: json: cannot unmarshal {value} \
         into Go struct field {structure}.{key} of type {expected}",
        backend.name().to_uppercase()
    )]
    WrongType {
        /// Whose setting it is.
        backend: BackendKind,
        /// What flannel reads it into.
        structure: &'static str,
        /// The key within `Backend`.
        key: &'static str,
        /// Kind of the value found, for numbers with the number.
        value: String,
        /// The type that it should have.
        expected: GoType,
    },
    /// A setting is out of range.
    #[error("Backend.{key} {value} is out of range: {range}")]
    OutOfRange {
        /// The key within `Backend`.
        key: &'static str,
        /// Its value.
        value: i64,
        /// What is allowed.
        range: &'static str,
    },
}

impl SettingsError {
    /// The key that is at fault, within `Backend`.
    pub fn key(&self) -> &'static str {
        match self {
            Self::WrongType { key, .. } | Self::OutOfRange { key, .. } => key,
        }
    }
}

impl<'a> BackendSettings<'a> {
    pub(crate) fn new(members: Vec<(String, Value<'a>)>) -> Self {
        Self(members)
    }

    /// Reads those that are named here, in the order of the document.
    pub(super) fn read(
        &self,
        into: GoStruct,
        wanted: &mut [(&'static str, Target<'_>)],
    ) -> Result<(), SettingsError> {
        for (name, value) in &self.0 {
            for (key, target) in wanted.iter_mut().filter(|(key, _)| names(name, key)) {
                let (read, expected) = match target {
                    Target::Integer(into) => {
                        (set(*into, *value, GoType::Int, Value::integer), GoType::Int)
                    }
                    Target::Boolean(into) => {
                        (set(*into, *value, GoType::Bool, Value::boolean), GoType::Bool)
                    }
                };
                read.map_err(|value| SettingsError::WrongType {
                    backend: into.backend,
                    structure: into.name,
                    key,
                    value,
                    expected,
                })?;
            }
        }
        Ok(())
    }
}

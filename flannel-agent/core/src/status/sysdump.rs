//! What `sysdump` has collected.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An archive of a node's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SysdumpReport {
    /// Path of the archive.
    pub file: String,
    /// What is in it, and what could not be had.
    pub parts: Vec<SysdumpPart>,
}

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SysdumpPart {
    /// Its name.
    pub name: String,
    /// Its length in bytes; 0 if there is no such file.
    pub bytes: usize,
    /// Why it is missing, or may not be whole.
    pub error: Option<String>,
}

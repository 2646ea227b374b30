//! What a store holds below the prefix, key by key.

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Without the prefix: `config`, or `subnets/10.5.1.0-24`.
    pub key: String,
    /// Byte for byte.
    pub value: String,
    /// Seconds that are left; `None` for the config and for a reservation.
    pub seconds_left: Option<u64>,
}

/// What v2 holds.
#[derive(Debug, Default)]
pub struct Holdings {
    /// What can be copied.
    pub items: Vec<Item>,
    /// Keys that cannot be read as leases, and why.
    pub unreadable: Vec<(String, String)>,
}

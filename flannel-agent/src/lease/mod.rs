//! Leases: what a node publishes of itself, and what peers read of it. Pure.

pub mod attrs;
pub mod free;
pub mod key;
pub mod table;

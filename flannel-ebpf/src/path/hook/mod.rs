//! The hooks: one file for each program, named like it.

pub mod from_overlay;
pub mod from_pod;
pub mod from_underlay;
pub mod from_wire;
pub mod to_overlay;
pub mod to_pod;
pub mod to_underlay;

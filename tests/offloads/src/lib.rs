//! Loads over every combination of offloads, path and receiver: what arrives is
//! what was sent, what stands on the wire is right, and nothing is sent again
//! that the kernel path would not send again.

pub mod cells;
pub mod device;
pub mod receiver;
pub mod run;
pub mod wire;

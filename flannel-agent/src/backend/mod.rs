//! Backends that need more than routes in the kernel.

pub mod udp;

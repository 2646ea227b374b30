//! The TUN device: one queue for each worker, with the kernel's aggregates.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::segment::{VNET, Vnet};

/// One queue of the device.
pub(super) struct Queue(SyncDevice);

impl Queue {
    /// Opens `count` queues of the device `name`, which is made if it is not
    /// there, and outlives its queues: address and routes stay when the agent
    /// ends.
    ///
    /// # Errors
    /// The kernel's answer; `InvalidInput` if a device of that name is there
    /// that is no TUN device with several queues.
    pub(super) fn open(name: &str, count: usize) -> io::Result<Vec<Self>> {
        let first = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L3)
            .multi_queue(true)
            .offload(true)
            .inherit_enable_state()
            .build_sync()?;
        first.persist()?;
        let mut queues = Vec::with_capacity(count);
        for _ in 1..count {
            queues.push(first.try_clone()?);
        }
        queues.push(first);
        for queue in &queues {
            rustix::io::ioctl_fionbio(queue, true)?;
        }
        Ok(queues.into_iter().map(Self).collect())
    }

    /// The kernel takes aggregates of UDP datagrams (Linux 6.2).
    pub(super) fn takes_udp(&self) -> bool {
        self.0.udp_gso()
    }

    /// Reads one packet or aggregate; its length.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub(super) fn read(&self, packet: &mut [u8]) -> io::Result<(Vnet, usize)> {
        let mut vnet = [0; VNET];
        let read =
            rustix::io::readv(&self.0, &mut [IoSliceMut::new(&mut vnet), IoSliceMut::new(packet)])?;
        Ok((Vnet::read(&vnet), read.saturating_sub(VNET)))
    }

    /// Writes one packet or aggregate that begins with its [`Vnet`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.0, parts)?;
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

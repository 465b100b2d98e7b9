//! What leads from a lab's node to the others: a NIC, or one of the devices that machines make of NICs.

use clap::ValueEnum;

use crate::net::{NetError, Netlink};

/// Tag of the VLAN.
const TAG: u16 = 100;

/// What leads from a node to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UplinkKind {
    /// `eth0`.
    Nic,
    /// `bond0` of `eth0` and `eth1`, of which one is used and the other waits.
    Bond,
    /// `eth0.100` on `eth0`.
    Vlan,
    /// `br0` with the port `eth0`.
    Bridge,
}

impl UplinkKind {
    /// Returns the NICs that have to be there.
    pub fn nics(self) -> &'static [&'static str] {
        if self == Self::Bond { &["eth0", "eth1"] } else { &["eth0"] }
    }

    /// Returns the device that has the node's addresses.
    pub fn device(self) -> &'static str {
        match self {
            Self::Nic => "eth0",
            Self::Bond => "bond0",
            Self::Vlan => "eth0.100",
            Self::Bridge => "br0",
        }
    }

    /// Makes the device of NICs that are down, and brings them up; returns its interface index. The device itself is down still.
    pub fn make(self, netlink: &mut Netlink) -> Result<u32, NetError> {
        let mut nics = Vec::new();
        for nic in self.nics() {
            nics.push(netlink.existing(nic)?.index);
        }
        match self {
            Self::Nic => {}
            Self::Bond => netlink.add_bond(self.device())?,
            Self::Vlan => netlink.add_vlan(self.device(), nics[0], TAG)?,
            Self::Bridge => netlink.add_bridge(self.device())?,
        }
        let index = netlink.existing(self.device())?.index;
        for nic in nics.into_iter().filter(|nic| *nic != index) {
            if matches!(self, Self::Bond | Self::Bridge) {
                netlink.set_master(nic, index)?;
            }
            netlink.set_up(nic, true)?;
        }
        Ok(index)
    }
}

//! Drivers of NICs, and what is known of XDP in them.

/// Where XDP runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// In the driver.
    Driver,
    /// Above it only.
    Above,
}

/// A driver.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    /// Its name, or the kind of a virtual device.
    pub name: &'static str,
    /// Where XDP runs, in kernels from 6.1 on.
    pub xdp: Xdp,
    /// What was tested here; empty is nothing.
    pub tested: &'static str,
    /// What to know.
    pub remark: &'static str,
}

impl Driver {
    /// The remark, to stand behind a sentence.
    pub fn note(&self) -> String {
        if self.remark.is_empty() { String::new() } else { format!(" ({})", self.remark) }
    }
}

const fn native(name: &'static str, remark: &'static str) -> Driver {
    Driver { name, xdp: Xdp::Driver, tested: "", remark }
}

const fn above(name: &'static str, tested: &'static str, remark: &'static str) -> Driver {
    Driver { name, xdp: Xdp::Above, tested, remark }
}

/// Every driver that something is known of. The kernel's sources say what has XDP; only what is marked was tried here.
pub const DRIVERS: [Driver; 24] = [
    Driver {
        name: "veth",
        xdp: Xdp::Driver,
        tested: "every test of this project",
        remark: "pods, the host port, labs",
    },
    Driver {
        name: "virtio_net",
        xdp: Xdp::Driver,
        tested: "virtual machines with kernels 6.1 and 6.12",
        remark: "needs as many queue pairs to spare as processors; where there are fewer, XDP runs above the driver",
    },
    native("mlx5_core", ""),
    native("mlx4_en", ""),
    native("ixgbe", "at most 64 queues with XDP"),
    native("ixgbevf", ""),
    native("i40e", ""),
    native("ice", ""),
    native("igb", "from kernel 5.10"),
    native("igc", ""),
    native("ena", "MTU at most 3498; half of the queues at most"),
    native("gve", "from kernel 6.4"),
    native("bnxt_en", ""),
    native("nfp", ""),
    native("hv_netvsc", "what comes by the accelerated device beneath passes too"),
    native("mvneta", ""),
    native("stmmac", ""),
    native("tun", ""),
    above("bridge", "a lab with bridged uplinks, kernels 6.1 and 6.12", "the kernel has no XDP in it"),
    above("vlan", "a lab with tagged uplinks, kernels 6.1 and 6.12", "tags are taken off above the driver"),
    above(
        "bond",
        "a lab with bonded uplinks and one port lost, kernels 6.1 and 6.12",
        "the driver would hand the program to its NICs, whose frames no socket on the bond gets",
    ),
    above("e1000e", "", ""),
    above("tg3", "", ""),
    above("r8169", "", ""),
];

/// Returns what is known of `name`.
pub fn find(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}

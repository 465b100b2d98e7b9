//! Every kernel that margay is held to boots, has what margay stands on, and runs the binary.

mod common;

use common::{margay, on, passed};
use vm_tests::kernel::Series;
use vm_tests::{Error, Initramfs, Kernel, Machine};

#[test]
fn linux_6_1_has_veth_and_af_xdp() {
    on("linux_6_1_has_veth_and_af_xdp", Series::Linux6_1, has_veth_and_af_xdp);
}

#[test]
fn linux_6_12_has_veth_and_af_xdp() {
    on("linux_6_12_has_veth_and_af_xdp", Series::Linux6_12, has_veth_and_af_xdp);
}

#[test]
fn linux_6_1_runs_the_binary() {
    on("linux_6_1_runs_the_binary", Series::Linux6_1, runs_the_binary);
}

#[test]
fn linux_6_12_runs_the_binary() {
    on("linux_6_12_runs_the_binary", Series::Linux6_12, runs_the_binary);
}

#[test]
fn the_status_of_the_script_is_the_status_of_the_run() {
    on("the_status_of_the_script_is_the_status_of_the_run", Series::Linux6_12, |kernel| {
        let outcome = Machine::new(kernel).run(Initramfs::new()?, "exit 7")?;
        assert_eq!(outcome.status, 7, "{}", outcome.console);
        Ok(())
    });
}

fn has_veth_and_af_xdp(kernel: &Kernel) -> Result<(), Error> {
    let mut files = Initramfs::new()?;
    files.modules(kernel, &["veth"])?.tool("ip", "iproute2")?;
    let outcome = Machine::new(kernel).run(files, SCRIPT)?;
    passed(&outcome);
    assert!(outcome.console.contains(kernel.release()), "{}", outcome.console);
    Ok(())
}

/// Two namespaces joined by a veth; a ping crosses it; the kernel lists AF_XDP (`NETLINK`-free: the protocol table).
const SCRIPT: &str = "
uname -r
ip netns add a
ip netns add b
ip link add va netns a type veth peer name vb netns b
ip -n a addr add 10.9.0.1/24 dev va
ip -n b addr add 10.9.0.2/24 dev vb
ip -n a link set va up
ip -n b link set vb up
ip netns exec a ping -c 1 -W 5 10.9.0.2
grep -w XDP /proc/net/protocols
";

fn runs_the_binary(kernel: &Kernel) -> Result<(), Error> {
    let margay = margay();
    let mut files = Initramfs::new()?;
    files.program(&margay)?;
    let outcome = Machine::new(kernel).memory_mib(2048).run(files, "margay --version\n")?;
    passed(&outcome);
    assert!(outcome.console.contains("margay "), "{}", outcome.console);
    Ok(())
}

//! The egress program of a governed NIC on the kernels that margay is held to: a tc filter on 6.1, which has no tcx, and both on 6.12.

mod common;

use common::{on, passed, tests_of};
use std::path::PathBuf;
use std::time::Duration;
use vm_tests::kernel::Series;
use vm_tests::{Error, Initramfs, Kernel, Machine};

#[test]
fn on_linux_6_1_a_governed_nic_takes_the_detour_while_the_worker_lives() {
    on("on_linux_6_1_a_governed_nic_takes_the_detour_while_the_worker_lives", Series::Linux6_1, governs);
}

#[test]
fn on_linux_6_12_a_governed_nic_takes_the_detour_while_the_worker_lives() {
    on("on_linux_6_12_a_governed_nic_takes_the_detour_while_the_worker_lives", Series::Linux6_12, governs);
}

/// The tests of the packet path for this, as an executable: the one that `MARGAY_GOVERN` names, else built.
fn tests() -> PathBuf {
    if let Some(given) = std::env::var_os("MARGAY_GOVERN") {
        return PathBuf::from(given);
    }
    tests_of("margay-io", "govern")
}

fn governs(kernel: &Kernel) -> Result<(), Error> {
    let mut files = Initramfs::new()?;
    files
        .modules(kernel, &["veth", "sch_ingress", "cls_bpf"])?
        .tool("ip", "iproute2")?
        .program_as(&tests(), "/bin/govern")?;
    let machine = Machine::new(kernel).memory_mib(2560).limit(Duration::from_secs(200));
    let outcome =
        machine.run(files, "mkdir -p /tmp\nip link set lo up\ngovern --nocapture --test-threads=1\n")?;
    passed(&outcome);
    let skipped_tcx = outcome.console.contains("SKIPPED tcx");
    assert_eq!(skipped_tcx, kernel.release().starts_with("6.1."), "{}", outcome.console);
    Ok(())
}

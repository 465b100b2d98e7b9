//! What every scenario on a kernel needs.

#![allow(dead_code, reason = "each test file uses a part")]

use std::path::PathBuf;
use std::process::Command;
use vm_tests::kernel::Series;
use vm_tests::{Error, Kernel, Outcome};

/// Returns the binary that `MARGAY` names, else builds it with the profile of this test.
pub fn margay() -> PathBuf {
    if let Some(given) = std::env::var_os("MARGAY") {
        return PathBuf::from(given);
    }
    let built = Command::new(env!("CARGO")).args(["build", "-p", "margay"]).status().expect("cargo runs");
    assert!(built.success(), "margay does not build");
    let here = std::env::current_exe().expect("the test knows its own path");
    let profile = here.parent().and_then(|deps| deps.parent()).expect("tests live in PROFILE/deps");
    profile.join("margay")
}

/// Holds that the script inside ended well; shows the console if not.
pub fn passed(outcome: &Outcome) {
    assert_eq!(outcome.status, 0, "{:?} after {:?}:\n{}", outcome.accelerator, outcome.took, outcome.console);
    println!("{:?}, {:.1} s", outcome.accelerator, outcome.took.as_secs_f64());
}

/// Runs a scenario on a kernel, or says by name why it cannot run here.
pub fn on(name: &str, series: Series, scenario: impl Fn(&Kernel) -> Result<(), Error>) {
    match Kernel::obtain(series).and_then(|kernel| scenario(&kernel)) {
        Ok(()) => {}
        Err(Error::Unavailable(why)) => vm_tests::skip(name, &why),
        Err(e) => panic!("{e}"),
    }
}

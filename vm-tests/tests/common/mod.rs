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

/// Builds an integration test of a package, to run it elsewhere; returns its executable.
pub fn tests_of(package: &str, test: &str) -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["test", "-p", package, "--test", test, "--no-run", "--message-format=json"])
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let text = String::from_utf8_lossy(&built.stdout);
    let key = "\"executable\":\"";
    let mut paths =
        text.lines().filter_map(|line| line.split_once(key)?.1.split_once('"').map(|(path, _)| path));
    PathBuf::from(paths.next_back().expect("a test has an executable"))
}

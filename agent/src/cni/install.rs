//! `margay cni-install`: this binary, copied to where the container runtime looks for CNI programs, under the plug-in's name.
//!
//! An image without a shell has nobody else to copy a file. The new file takes the place of the old one in one step, so a plug-in that
//! runs meanwhile goes on with what it began.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::node::{PLUGIN, replace_file};

/// `margay cni-install`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  margay cni-install --to /opt/cni/bin")]
pub struct CniInstallArgs {
    /// Folder of CNI programs
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    to: PathBuf,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Written,
    WasThere,
}

/// Copies the binary.
pub fn run(args: &CniInstallArgs) -> ExitCode {
    let target = args.to.join(PLUGIN);
    match install(Path::new("/proc/self/exe"), &target) {
        Ok(Done::Written) => println!("{} written", target.display()),
        Ok(Done::WasThere) => println!("{} is this version already", target.display()),
        Err(error) => {
            eprintln!(
                "margay cni-install: cannot write {}: {error}; is the folder there and writable?",
                target.display()
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn install(source: &Path, target: &Path) -> io::Result<Done> {
    let program = std::fs::read(source)?;
    if std::fs::read(target).is_ok_and(|there| there == program) {
        return Ok(Done::WasThere);
    }
    replace_file(target, &program, 0o755)?;
    Ok(Done::Written)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_program_is_copied_once_and_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("new"), folder.path().join(PLUGIN));
        std::fs::write(&source, "program").unwrap();
        assert_eq!(install(&source, &target).unwrap(), Done::Written);
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(install(&source, &target).unwrap(), Done::WasThere);
        std::fs::write(&source, "newer").unwrap();
        assert_eq!(install(&source, &target).unwrap(), Done::Written);
        assert_eq!(std::fs::read(&target).unwrap(), b"newer");
        assert!(install(&source, &folder.path().join("no/such/folder")).is_err());
    }
}

//! `margay uninstall`: takes from a node what margay put there, and says what it did.
//!
//! ```text
//!  network configuration ─▶ pinned programs ─▶ routing rules ─▶ routes ─▶ the host port's pair ─▶ files
//!  (no new pods)            (NICs as before)   (of other sources) (to pods) (mgy0, mgy0x)
//! ```
//!
//! Every step may find its work done, so the command can be repeated; a step that fails does not keep the next from its work. Interfaces
//! of pods that still run are left: they are closed, and their pods end or are made anew under the next network. While there are any,
//! the plug-in's program stays too, because the container runtime calls it to take those pods down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use nix::mount::{MntFlags, umount2};

use crate::net::{NetError, Netlink};
use crate::node::{CONFLIST, KERNEL_END, PLUGIN};

/// `margay uninstall`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  margay uninstall\n  margay install --dry-run --only uninstall | kubectl apply -f -\n\nThe agent must be gone \
first. The command can be repeated. Exit code 1 when something is left that should not be."
)]
pub struct UninstallArgs {
    /// Where the network configuration is
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,
    /// Where the plug-in's program is
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    cni_bin_dir: PathBuf,
    /// The agent's folder of sockets and pinned programs
    #[arg(long, default_value = "/run/margay", value_name = "DIR")]
    run_dir: PathBuf,
    /// The agent's folder of what survives a restart
    #[arg(long, default_value = "/var/lib/margay", value_name = "DIR")]
    state_dir: PathBuf,
    /// Do nothing, and stay until ended: for a pod whose init container did the work
    #[arg(long, conflicts_with_all = ["cni_conf_dir", "cni_bin_dir", "run_dir", "state_dir"])]
    stay: bool,
}

/// What became of one step.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Removed,
    WasNotThere,
    /// Left on purpose, with the reason.
    Left(String),
    Failed(String),
}

/// Does it.
pub fn run(args: &UninstallArgs) -> ExitCode {
    if args.stay {
        println!("this node is done");
        loop {
            nix::unistd::pause();
        }
    }
    let socket = args.run_dir.join("admin.sock");
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        eprintln!(
            "margay uninstall: an agent answers at {}; delete the DaemonSet (or stop the service) first, it would put everything back",
            socket.display()
        );
        return ExitCode::from(1);
    }
    let mut failed = false;
    for (what, outcome) in steps(args) {
        match outcome {
            Outcome::Removed => println!("removed  {what}"),
            Outcome::WasNotThere => println!("absent   {what}"),
            Outcome::Left(why) => println!("left     {what}: {why}"),
            Outcome::Failed(why) => {
                failed = true;
                println!("FAILED   {what}: {why}");
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

fn steps(args: &UninstallArgs) -> Vec<(String, Outcome)> {
    let mut done = Vec::new();
    let conflist = args.cni_conf_dir.join(CONFLIST);
    done.push((format!("network configuration {}", conflist.display()), removed(fs::remove_file(&conflist))));
    let pins = args.run_dir.join("bpf");
    done.push((format!("pinned programs {}", pins.display()), unpin(&pins)));
    let pods = match Netlink::open() {
        Ok(mut netlink) => kernel(&mut netlink, &mut done),
        Err(error) => {
            done.push(("routes and devices".to_owned(), Outcome::Failed(error.to_string())));
            Vec::new()
        }
    };
    let program = args.cni_bin_dir.join(PLUGIN);
    let outcome = if pods.is_empty() {
        removed(fs::remove_file(&program))
    } else {
        Outcome::Left(
            "the container runtime needs it to take those pods down; repeat the command afterwards"
                .to_owned(),
        )
    };
    for name in pods {
        let why = "closed; its pod has to be made anew under the next network".to_owned();
        done.push((format!("pod interface {name}"), Outcome::Left(why)));
    }
    done.push((format!("plug-in {}", program.display()), outcome));
    for folder in [&args.state_dir, &args.run_dir] {
        done.push((format!("folder {}", folder.display()), empty(folder)));
    }
    done
}

fn removed(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Removed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::WasNotThere,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn asked(result: Result<bool, NetError>) -> Outcome {
    match result {
        Ok(true) => Outcome::Removed,
        Ok(false) => Outcome::WasNotThere,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Removes what is pinned below `folder`, and the file system that holds it. A link without a pin and without an owner ends, and with it
/// the program on its device.
fn unpin(folder: &Path) -> Outcome {
    // Pins are in folders; what lies beside them are views that the kernel puts into every such file system and keeps.
    let is_folder = |path: &PathBuf| path.is_dir();
    let entries =
        fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).filter(is_folder));
    let cleared = entries.and_then(|mut paths| paths.try_for_each(fs::remove_dir_all));
    match umount2(folder, MntFlags::MNT_DETACH) {
        // Not mounted, or no such folder.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => removed(cleared),
        Err(error) => Outcome::Failed(format!("cannot unmount it: {error}")),
    }
}

/// Removes everything inside `folder`, not the folder.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Empties a folder and removes it; where it is the mount of a container, it stays, empty.
fn empty(folder: &Path) -> Outcome {
    match clear(folder).and_then(|()| fs::remove_dir(folder)) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Outcome::Removed,
        other => removed(other),
    }
}

/// Takes rules, routes and the host port's pair away; returns the interfaces of pods that are still there.
fn kernel(netlink: &mut Netlink, done: &mut Vec<(String, Outcome)>) -> Vec<String> {
    done.push(("IPv6 rules against forged sources".to_owned(), asked(netlink.remove_own_rules())));
    let refusals = netlink.refusing_routes();
    match refusals {
        Ok(routes) if routes.is_empty() => {
            done.push(("unreachable routes to pods".to_owned(), Outcome::WasNotThere))
        }
        Ok(routes) => {
            for route in routes {
                let outcome = asked(netlink.delete_route(&route).map(|()| true));
                done.push((format!("unreachable route {}", route.destination), outcome));
            }
        }
        Err(error) => {
            done.push(("unreachable routes to pods".to_owned(), Outcome::Failed(error.to_string())))
        }
    }
    let pair = netlink.link(KERNEL_END).and_then(|link| match link {
        Some(link) => netlink.delete_link(link.index).map(|()| true),
        None => Ok(false),
    });
    done.push((format!("device {KERNEL_END} with its routes"), asked(pair)));
    match netlink.links() {
        Ok(links) => links.into_iter().filter(crate::cni::is_ours).map(|link| link.name).collect(),
        Err(error) => {
            done.push(("list of pod interfaces".to_owned(), Outcome::Failed(error.to_string())));
            Vec::new()
        }
    }
}

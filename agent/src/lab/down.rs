//! Takes a lab away: the journal backwards, then its folder. Every step may find its work done already.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::LabError;
use super::journal::{self, Entry};
use super::process::{self, Process};
use super::state::Paths;
use crate::net::netns;

/// Ends the processes, unmounts, removes the namespaces and the folder.
pub fn down(paths: &Paths) -> Result<(), LabError> {
    let entries = journal::read(paths)?;
    let mut left = Vec::new();

    // Agents first, then whatever else lives in the lab's namespaces: servers started through `lab exec`, an agent that a crash kept out
    // of the journal.
    let agents: BTreeSet<Process> = entries
        .iter()
        .filter_map(|e| if let Entry::Process(process) = e { Some(*process) } else { None })
        .filter(|p| p.is_alive())
        .collect();
    let bound: Vec<PathBuf> = entries
        .iter()
        .filter_map(|e| {
            if let Entry::Netns { name } = e { Some(Path::new(netns::NAMED).join(name)) } else { None }
        })
        .collect();
    left.extend(process::end(&agents));
    left.extend(process::end(&process::inside(bound.iter().map(PathBuf::as_path))));
    let mut left: Vec<String> = left.iter().map(|p| format!("process {} does not end", p.pid)).collect();

    for entry in entries.iter().rev() {
        match entry {
            Entry::Netns { name } => {
                if let Err(error) = netns::remove(name) {
                    left.push(error.to_string());
                }
            }
            Entry::Mounts { below } => unmount_below(below, &mut left),
            Entry::Process(_) => {}
        }
    }
    unmount_below(&paths.directory, &mut left);
    if !left.is_empty() {
        return Err(LabError::Left(left));
    }
    fs::remove_dir_all(&paths.directory).map_err(|e| LabError::file("remove", &paths.directory, e))?;
    if let Some(labs) = paths.directory.parent() {
        // Only when this was the last lab.
        let _ = fs::remove_dir(labs);
    }
    Ok(())
}

/// Unmounts everything below `directory`, the latest mount first.
fn unmount_below(directory: &Path, left: &mut Vec<String>) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(directory))
        .collect();
    for point in points.iter().rev() {
        if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
            left.push(format!("mount {}: {error}", point.display()));
        }
    }
}

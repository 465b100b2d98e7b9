//! What the lab has made, noted and synced *before* it is made: after a crash at any point the list is complete, perhaps too long.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LabError;
use super::process::Process;
use super::state::Paths;

/// One thing that has to be taken away again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "snake_case")]
pub enum Entry {
    /// A named network namespace with everything inside.
    Netns {
        /// Its name.
        name: String,
    },
    /// An agent. Noted right after it was started; until then it is found by its namespace.
    Process(Process),
    /// A folder under which the agent mounts its own file systems.
    Mounts {
        /// The folder.
        below: PathBuf,
    },
}

/// The open list.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the list for more.
    pub fn open(paths: &Paths) -> Result<Self, LabError> {
        let path = paths.journal();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| LabError::file("open", &path, e))?;
        Ok(Self { path, file })
    }

    /// Notes `entry`, on disk when this returns.
    pub fn note(&mut self, entry: &Entry) -> Result<(), LabError> {
        let mut write = || -> io::Result<()> {
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            self.file.write_all(&line)?;
            self.file.sync_data()
        };
        write().map_err(|e| LabError::file("write", &self.path, e))
    }
}

/// Returns everything noted, oldest first. A last line cut off by a crash was never acted upon.
pub fn read(paths: &Paths) -> Result<Vec<Entry>, LabError> {
    let path = paths.journal();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(LabError::file("open", path, e)),
    };
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    Ok(lines.filter_map(|line| serde_json::from_slice(&line).ok()).collect())
}

//! Which files are manifests: every `.yaml`, `.yml` and `.json` under the given folders, hidden and editor's files aside.
//!
//! Folders are walked through symbolic links, so a mounted ConfigMap (`policy.yaml -> ..data/policy.yaml`) reads like any folder: its
//! `..data` is hidden, its files are not. A path that names a file is taken whatever its name is.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep folders may nest; symbolic links may form a circle.
const MAX_FOLDERS: usize = 16;

/// What tells that a file is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    pub bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(from: &Metadata) -> Self {
        Self {
            device: from.dev(),
            inode: from.ino(),
            bytes: from.size(),
            modified: (from.mtime(), from.mtime_nsec()),
            changed: (from.ctime(), from.ctime_nsec()),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Manifests in the order of their paths.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// Roots or folders that could not be looked into: what was known under them is neither confirmed nor gone.
    pub lost: Vec<(PathBuf, io::Error)>,
}

impl Listing {
    /// Lists what is under `roots`. `enter` is called with every folder before it is read.
    pub fn of(roots: &[PathBuf], enter: &mut dyn FnMut(&Path)) -> Self {
        let mut listing = Self::default();
        for root in roots {
            match fs::metadata(root) {
                Ok(metadata) if metadata.is_dir() => listing.walk(root, MAX_FOLDERS, enter),
                Ok(metadata) => drop(listing.files.insert(root.clone(), Stamp::from(&metadata))),
                Err(error) => listing.lost.push((root.clone(), error)),
            }
        }
        listing
    }

    fn walk(&mut self, folder: &Path, depth: usize, enter: &mut dyn FnMut(&Path)) {
        enter(folder);
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.lost.push((folder.to_owned(), error)),
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    self.lost.push((folder.to_owned(), error));
                    continue;
                }
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(['.', '#']) || name.ends_with(['~', '#']) {
                continue;
            }
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() && depth > 0 => self.walk(&path, depth - 1, enter),
                Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                    self.files.insert(path, Stamp::from(&metadata));
                }
                // Not for us, or gone again between the listing and now, or a link to nothing.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Returns whether nothing can be said about `path` at the moment.
    pub fn is_lost(&self, path: &Path) -> bool {
        self.lost.iter().any(|(lost, _)| path.starts_with(lost))
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

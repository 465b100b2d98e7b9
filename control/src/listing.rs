//! Which files are manifests: every `.yaml`, `.yml` and `.json` under the given folders, hidden and editor's files aside.
//!
//! Folders are walked through symbolic links, so a mounted ConfigMap (`policy.yaml -> ..data/policy.yaml`) reads like any folder: its
//! `..data` is hidden, its files are not. A path that names a file is taken whatever its name is.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind::NotADirectory, ErrorKind::NotFound};
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
    /// Roots, folders and files that could not be looked at: what was known of them is neither confirmed nor gone.
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
                // Not for us.
                Ok(_) => {}
                // Gone again between the listing and now, or a link to nothing.
                Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {}
                Err(error) => self.lost.push((path, error)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_is_lost_and_not_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = |name: &str, to: &str| {
            let path = folder.path().join(name);
            std::os::unix::fs::symlink(to, &path).expect("a link");
            path
        };
        link("nothing.yaml", "nowhere.yaml");
        let long = link("long.yaml", &"x".repeat(300));
        let listing = Listing::of(&[folder.path().to_owned()], &mut |_| {});
        assert!(listing.files.is_empty());
        let lost: Vec<&Path> = listing.lost.iter().map(|(path, _)| path.as_path()).collect();
        assert_eq!(lost, [long.as_path()]);
        assert!(listing.is_lost(&long));
    }
}

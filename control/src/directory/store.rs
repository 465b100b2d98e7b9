//! What survives a restart: per manifest, the text last read whole, and the last valid form of objects that it describes and that are
//! invalid in it (PM-D2).
//!
//! ```text
//!  store/<sha256 of path>.json   { path, text, valid: [ { object, version, document } ] }
//! ```
//!
//! A record is written beside its place and renamed over it, so it is whole or absent. Files have mode 0600: manifests may hold what is
//! not everybody's to read. Objects that are valid in `text` need no second copy.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The last valid form of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Form {
    /// `Kind/namespace/name`.
    pub object: String,
    /// `resourceVersion`, else a hash of the content.
    pub version: String,
    /// The document.
    pub document: Value,
}

impl Form {
    /// Returns what tells it from others: object and version.
    pub fn name(&self) -> (String, String) {
        (self.object.clone(), self.version.clone())
    }
}

/// What is kept about one manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub path: PathBuf,
    pub text: String,
    pub valid: Vec<Form>,
}

/// A file that is no record, and why.
pub(super) type Damage = (PathBuf, String);

/// A folder of records.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    /// Opens the folder, making it (mode 0700) where it is absent.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Returns every record, and a sentence for each file that is none.
    pub fn load(&self) -> io::Result<(Vec<Record>, Vec<Damage>)> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                // A write that a crash interrupted; the record itself is still the one before.
                fs::remove_file(&path)?;
            }
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let record = fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| {
                serde_json::from_slice::<Record>(&bytes).map_err(|error| error.to_string())
            });
            match record {
                Ok(record) if self.place_of(&record.path) == path => records.push(record),
                Ok(_) => damaged.push((path, "is filed under another name than its own".to_owned())),
                Err(reason) => damaged.push((path, reason)),
            }
        }
        records.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((records, damaged))
    }

    /// Replaces the record of `record.path`; after `Ok` it survives a loss of power.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        let place = self.place_of(&record.path);
        let fresh = place.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &place)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Forgets the record of `path`.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(self.place_of(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(super) fn place_of(&self, path: &Path) -> PathBuf {
        use std::fmt::Write as _;
        use std::os::unix::ffi::OsStrExt;
        let mut name = String::with_capacity(64);
        for byte in Sha256::digest(path.as_os_str().as_bytes()) {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        self.folder.join(name).with_extension("json")
    }
}

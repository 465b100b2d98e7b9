//! Files that nobody but this process's user may read: written whole or not at all, and refused when they could have been read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use zeroize::Zeroizing;

/// Longest file that is read.
const LONGEST: u64 = 64 << 10;

/// Why a private file is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The operating system refused.
    #[error("{path}: cannot be {what}: {source}; the agent needs to read and write its state folder")]
    Refused {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// Others may have read it.
    #[error(
        "{path}: has mode {mode:04o} and owner {owner}, so others could have read it; remove it for new keys to be made, or, where you \
         are sure that nobody did, chown it to {wanted} and chmod it to 0600"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// The owner that it should have.
        wanted: u32,
    },
    /// Something else has its name.
    #[error("{path}: is no file of ours (a folder, a link, not text, or longer than it may be); remove it")]
    Odd {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a file; `None` when there is none. Errors: [`PrivateFileError`].
pub fn read(path: &Path) -> Result<Option<Zeroizing<String>>, PrivateFileError> {
    let refused = |source| PrivateFileError::Refused { path: path.to_owned(), what: "read", source };
    let odd = || PrivateFileError::Odd { path: path.to_owned() };
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Err(odd()),
        Err(error) => return Err(refused(error)),
    };
    // Of the file that is open, not of whatever has its name by now.
    let facts = file.metadata().map_err(refused)?;
    if !facts.is_file() || facts.len() > LONGEST {
        return Err(odd());
    }
    let wanted = nix::unistd::geteuid().as_raw();
    let mode = facts.mode() & 0o7777;
    if mode & 0o077 != 0 || facts.uid() != wanted {
        return Err(PrivateFileError::Open { path: path.to_owned(), mode, owner: facts.uid(), wanted });
    }
    let mut text = Zeroizing::new(String::with_capacity(LONGEST as usize + 1));
    match file.take(LONGEST + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 <= LONGEST => Ok(Some(text)),
        Ok(_) => Err(odd()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(odd()),
        Err(error) => Err(refused(error)),
    }
}

/// Writes a file with mode 0600, durably: after `Ok` it survives a loss of power, before it the old one stands. Errors:
/// [`PrivateFileError::Refused`].
pub fn write(path: &Path, text: &str) -> Result<(), PrivateFileError> {
    let refused = |source| PrivateFileError::Refused { path: path.to_owned(), what: "written", source };
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    let write = || -> io::Result<()> {
        // Made here and by nobody else, so its mode holds from its first byte.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(refused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn pm_32_1_a_file_has_mode_0600_and_one_that_others_could_read_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        assert!(read(&path).unwrap().is_none());
        write(&path, "one\n").unwrap();
        write(&path, "two\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(read(&path).unwrap().unwrap().as_str(), "two\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        for mode in [0o640, 0o604, 0o666, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod it to 0600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path).is_ok());
    }

    #[test]
    fn links_folders_and_what_is_no_text_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        write(&target, "x").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(read(&link), Err(PrivateFileError::Odd { .. })));
        assert!(matches!(read(folder.path()), Err(PrivateFileError::Odd { .. })));
        write(&link, "y").unwrap();
        assert_eq!(read(&target).unwrap().unwrap().as_str(), "x", "a link is replaced, not followed");
        fs::write(&target, [0xff]).unwrap();
        assert!(matches!(read(&target), Err(PrivateFileError::Odd { .. })));
    }
}

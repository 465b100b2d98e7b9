//! Frames that a worker panicked over, on disk, for whoever mends it: one pcapng file a panic, readable in Wireshark.
//!
//! They are pod traffic, so the folder is private, like all of the state directory. The newest [`KEPT`] stay.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use margay_io::panics::WorkerPanic;

use crate::capture::FrameFile;

/// Files kept.
const KEPT: usize = 64;

/// Where such frames are written.
#[derive(Clone, Debug)]
pub struct PanicFolder {
    folder: PathBuf,
}

impl PanicFolder {
    /// Returns the folder below a state directory; it is made when there is something to write.
    pub fn below(state: &Path) -> Self {
        Self { folder: state.join("panics") }
    }

    /// Writes a panic down and returns the file. `port` is the device's name.
    ///
    /// Errors: what the file system answers.
    pub fn keep(&self, panic: &WorkerPanic, port: &str) -> io::Result<PathBuf> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let time = panic.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Names sort by time for as long as anybody will care.
        let name = format!("{:014}-worker{}-{}.pcapng", time.as_millis(), panic.worker.0, panic.number);
        let path = self.folder.join(name);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mut file = FrameFile::new(file)?;
        let at_hand = match panic.frames.len() {
            0 | 1 => "the frame at hand",
            _ => "one of the frames that were given together",
        };
        let comment = format!("worker {} panicked: {}; {at_hand}", panic.worker.0, panic.message);
        for frame in &panic.frames {
            file.frame(port, time, frame, &comment)?;
        }
        file.flush()?;
        self.forget_the_oldest()?;
        Ok(path)
    }

    fn forget_the_oldest(&self) -> io::Result<()> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        files.sort();
        for old in files.iter().take(files.len().saturating_sub(KEPT)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use margay_core::{Nanos, PortIndex, WorkerIndex};
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    fn panic(seconds: u64, frames: Vec<Vec<u8>>) -> WorkerPanic {
        WorkerPanic {
            worker: WorkerIndex(1),
            number: seconds,
            port: Some(PortIndex(64)),
            at: Nanos(0),
            time: UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds),
            message: "index out of bounds".to_owned(),
            frames,
        }
    }

    #[test]
    fn the_frame_and_the_panics_words_are_in_a_private_file() {
        let state = tempfile::tempdir().unwrap();
        let folder = PanicFolder::below(state.path());
        let path = folder.keep(&panic(1, vec![vec![7; 2048]]), "mgyabc").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let written = fs::read(&path).unwrap();
        let mut reader = PcapNgReader::new(&written[..]).unwrap();
        let (mut devices, mut packets) = (String::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap().into_owned() {
                Block::InterfaceDescription(block) => devices += &format!("{:?}", block.options),
                Block::EnhancedPacket(block) => packets.push(block),
                other => panic!("{other:?}"),
            }
        }
        assert!(devices.contains("mgyabc"));
        assert_eq!(packets.len(), 1);
        assert_eq!(&*packets[0].data, &[7; 2048]);
        assert_eq!(packets[0].timestamp, Duration::from_secs(1_700_000_001));
        let options = format!("{:?}", packets[0].options);
        assert!(options.contains("worker 1 panicked: index out of bounds; the frame at hand"), "{options}");
    }

    #[test]
    fn a_panic_without_a_frame_is_a_file_too_and_the_oldest_files_go() {
        let state = tempfile::tempdir().unwrap();
        let folder = PanicFolder::below(state.path());
        let paths: Vec<_> =
            (0..70).map(|at| folder.keep(&panic(at, Vec::new()), "nobody").unwrap()).collect();
        let mut left: Vec<_> =
            fs::read_dir(state.path().join("panics")).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, paths[6..]);
    }
}

//! The last complete picture of the cluster, on disk: what a node starts from that cannot reach the API server (PM-D27), and the last
//! valid form of every object (PM-D2).
//!
//! ```text
//!  picture.log   {"picture":1}
//!                {"put":{ document }}        the object as it is in force
//!                {"gone":{ identity }}       and its end
//! ```
//!
//! Every start writes a picture of its own beside the old one and puts it in its place once it is complete; from then on changes are
//! appended. So a picture is complete or is not there, and a torn last line (a loss of power) is the only damage that can be: it is
//! passed over, and the picture is one change older. When more than half is out of date, what counts is copied into a new file. Memory
//! holds the place of each document, not the document. Mode 0600: objects are not everybody's to read.
//!
//! Bytes that the disk does not take are held and written with the next ones; places are planned, so nothing moves.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::kinds::KindId;

const NAME: &str = "picture.log";
const HEADER: &[u8] = b"{\"picture\":1}\n";
/// Bytes that may wait for the end of a batch.
const BUFFER: usize = 1 << 20;
/// A file smaller than this is never worth copying.
const WORTH: u64 = 4 << 20;

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ident {
    /// Its kind.
    pub kind: KindId,
    /// Its namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Ident {
    /// Reads the identity of a kept document; `None` when it has no name.
    pub fn of(kind: KindId, document: &Value) -> Option<Self> {
        let text = |field: &str| document["metadata"].get(field).and_then(Value::as_str).unwrap_or_default();
        let name = text("name");
        (!name.is_empty()).then(|| Self {
            kind,
            namespace: text("namespace").to_owned(),
            name: name.to_owned(),
        })
    }

    /// Returns a document that has the identity and nothing else.
    pub fn document(&self) -> Value {
        let kind = self.kind.kind();
        let mut metadata = json!({ "name": self.name });
        if !self.namespace.is_empty() {
            metadata["namespace"] = self.namespace.clone().into();
        }
        json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata })
    }
}

/// Where a document is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    bytes: u32,
}

/// The documents of one picture.
#[derive(Debug)]
pub(super) struct Picture {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    /// Bytes in the file that count.
    length: u64,
    /// Bytes behind them that are not written yet.
    buffer: Vec<u8>,
    /// Bytes of records that are still in force.
    live: u64,
    is_synced: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Written<'a> {
    Put(&'a Value),
    Gone(Value),
}

/// Reads whose record it is, and nothing more.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Put(Identity),
    Gone(Identity),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    api_version: String,
    kind: String,
    metadata: Names,
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    namespace: String,
    name: String,
}

impl Identity {
    fn ident(self) -> Option<Ident> {
        let kind = KindId::all()
            .find(|id| id.kind().kind == self.kind && id.kind().api_version() == self.api_version)?;
        Some(Ident { kind, namespace: self.metadata.namespace, name: self.metadata.name })
    }
}

impl Picture {
    /// Opens the picture that an earlier run left in `folder`, with the place of each of its documents. `None` when there is none.
    ///
    /// Errors: it cannot be read, or it is no picture.
    pub fn open(folder: &Path) -> io::Result<Option<(Self, BTreeMap<Ident, Place>)>> {
        let path = folder.join(NAME);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::with_capacity(1 << 16, &file);
        let mut line = Vec::new();
        let mut length = reader.read_until(b'\n', &mut line)? as u64;
        if line != HEADER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "is not a picture of this version"));
        }
        let mut places = BTreeMap::new();
        loop {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line)?;
            if bytes == 0 || line.last() != Some(&b'\n') {
                break;
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(Line::Put(identity)) => {
                    if let Some(ident) = identity.ident() {
                        let bytes = u32::try_from(bytes).map_err(io::Error::other)?;
                        places.insert(ident, Place { offset: length, bytes });
                    }
                }
                Ok(Line::Gone(identity)) => drop(identity.ident().map(|ident| places.remove(&ident))),
                // A torn write; what follows it, if anything, belongs to no picture.
                Err(_) => break,
            }
            length += bytes as u64;
        }
        let live = places.values().map(|place| u64::from(place.bytes)).sum();
        let folder = folder.to_owned();
        let picture = Self { folder, path, file, length, buffer: Vec::new(), live, is_synced: true };
        Ok(Some((picture, places)))
    }

    /// Begins a new picture in `folder` (made with mode 0700 where it is absent), beside the old one until [`Picture::promote`].
    pub fn begin(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(NAME).with_extension("new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let folder = folder.to_owned();
        let buffer = HEADER.to_vec();
        Ok(Self { folder, path, file, length: 0, buffer, live: 0, is_synced: false })
    }

    /// Adds a document; it replaces `before`.
    pub fn put(&mut self, document: &Value, before: Option<Place>) -> Place {
        let place = self.write(&Written::Put(document));
        self.live = (self.live + u64::from(place.bytes)).saturating_sub(before.map_or(0, |b| b.bytes.into()));
        place
    }

    /// Notes the end of an object.
    pub fn remove(&mut self, ident: &Ident, before: Place) {
        self.write(&Written::Gone(ident.document()));
        self.live = self.live.saturating_sub(before.bytes.into());
    }

    fn write(&mut self, record: &Written<'_>) -> Place {
        let offset = self.length + self.buffer.len() as u64;
        let before = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, record).expect("a JSON value can be written as JSON");
        self.buffer.push(b'\n');
        self.is_synced = false;
        let bytes = u32::try_from(self.buffer.len() - before).expect("an object has less than 4 GiB");
        if self.buffer.len() >= BUFFER {
            // A failure is told at the end of the batch; the bytes are held until then.
            let _ = self.flush();
        }
        Place { offset, bytes }
    }

    /// Returns a document. Errors: the disk's, or it is not what was written.
    pub fn read(&self, place: Place) -> io::Result<Value> {
        #[derive(Deserialize)]
        struct Put {
            put: Value,
        }
        let mut line = vec![0; place.bytes as usize];
        match place.offset.checked_sub(self.length) {
            Some(ahead) => {
                let begin = usize::try_from(ahead).map_err(io::Error::other)?;
                let held = self.buffer.get(begin..begin + line.len());
                line.copy_from_slice(held.ok_or_else(|| io::Error::other("no such place"))?);
            }
            None => self.file.read_exact_at(&mut line, place.offset)?,
        }
        Ok(serde_json::from_slice::<Put>(&line)?.put)
    }

    /// Hands what was added to the system. Errors: it does not take it; the bytes are held and the next call tries again.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.length)?;
            self.length += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Makes what was added survive a loss of power.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        if !self.is_synced {
            self.file.sync_data()?;
            self.is_synced = true;
        }
        Ok(())
    }

    /// Puts this picture in the place of the old one.
    pub fn promote(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_all()?;
        let path = self.folder.join(NAME);
        fs::rename(&self.path, &path)?;
        self.path = path;
        self.is_synced = true;
        File::open(&self.folder)?.sync_all()
    }

    /// Returns whether a copy would be less than half of the file.
    pub fn is_worth_copying(&self) -> bool {
        let all = self.length + self.buffer.len() as u64;
        all > WORTH && self.live * 2 < all
    }

    /// Copies what counts into a new file and goes on with that; `places` are the documents in force, and follow.
    pub fn copy<'a>(&mut self, places: impl Iterator<Item = &'a mut Place>) -> io::Result<()> {
        self.flush()?;
        let mut fresh = Self::begin(&self.folder)?;
        let mut moved = Vec::new();
        let mut out = io::BufWriter::with_capacity(1 << 16, &fresh.file);
        out.write_all(HEADER)?;
        let mut offset = HEADER.len() as u64;
        for place in places {
            let mut line = vec![0; place.bytes as usize];
            self.file.read_exact_at(&mut line, place.offset)?;
            out.write_all(&line)?;
            let to = Place { offset, bytes: place.bytes };
            offset += u64::from(place.bytes);
            moved.push((place, to));
        }
        out.flush()?;
        drop(out);
        fresh.length = offset;
        fresh.live = offset - HEADER.len() as u64;
        fresh.buffer.clear();
        fresh.promote()?;
        // Only a copy that is in place moves anything.
        for (place, to) in moved {
            *place = to;
        }
        *self = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pod(name: &str, label: &str) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "a", "labels": { "l": label } } })
    }

    fn ident(name: &str) -> Ident {
        let document = pod(name, "");
        Ident::of(KindId::of_document(&document).unwrap(), &document).unwrap()
    }

    fn contents(folder: &Path) -> BTreeMap<String, Value> {
        let Some((picture, places)) = Picture::open(folder).unwrap() else { return BTreeMap::new() };
        places.into_iter().map(|(ident, place)| (ident.name, picture.read(place).unwrap())).collect()
    }

    #[test]
    fn a_picture_is_there_once_it_is_complete_and_follows_changes_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("store");
        let mut picture = Picture::begin(&folder).unwrap();
        let first = picture.put(&pod("a", "1"), None);
        let second = picture.put(&pod("b", "1"), None);
        assert_eq!(picture.read(first).unwrap(), pod("a", "1"), "before it is written");
        picture.flush().unwrap();
        assert_eq!(picture.read(second).unwrap(), pod("b", "1"));
        assert!(contents(&folder).is_empty(), "not complete yet");
        picture.promote().unwrap();
        assert_eq!(contents(&folder).len(), 2);
        picture.put(&pod("a", "2"), Some(first));
        picture.remove(&ident("b"), second);
        picture.sync().unwrap();
        assert_eq!(contents(&folder), BTreeMap::from([("a".to_owned(), pod("a", "2"))]));
        let mode = fs::metadata(folder.join(NAME)).unwrap().permissions().mode();
        assert_eq!(
            (mode & 0o777, fs::metadata(&folder).unwrap().permissions().mode() & 0o777),
            (0o600, 0o700)
        );
    }

    #[test]
    fn a_torn_end_costs_the_last_change_and_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut picture = Picture::begin(folder.path()).unwrap();
        picture.put(&pod("a", "1"), None);
        picture.put(&pod("b", "1"), None);
        picture.promote().unwrap();
        let path = folder.path().join(NAME);
        let whole = fs::read_to_string(&path).unwrap();
        for cut in 1..whole.lines().last().unwrap().len() {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(contents(folder.path()).keys().collect::<Vec<_>>(), ["a"]);
        }
        fs::write(&path, "{\"picture\":2}\n").unwrap();
        assert!(Picture::open(folder.path()).is_err());
    }

    #[test]
    fn a_copy_has_what_counts_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut picture = Picture::begin(folder.path()).unwrap();
        let label = "x".repeat(1_000);
        let mut places = BTreeMap::new();
        for round in 0..6_000 {
            let name = format!("p{}", round % 10);
            let place = picture.put(&pod(&name, &format!("{round}{label}")), places.get(&name).copied());
            places.insert(name, place);
        }
        picture.promote().unwrap();
        assert!(picture.is_worth_copying());
        let before = contents(folder.path());
        picture.copy(places.values_mut()).unwrap();
        assert!(!picture.is_worth_copying());
        assert_eq!(contents(folder.path()), before);
        for (name, place) in &places {
            assert_eq!(picture.read(*place).unwrap(), before[name]);
        }
        picture.put(&pod("new", "1"), None);
        picture.sync().unwrap();
        assert_eq!(contents(folder.path()).len(), 11);
        assert!(fs::metadata(folder.path().join(NAME)).unwrap().len() < 20_000);
    }
}

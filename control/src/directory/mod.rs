//! A folder of manifests as a source of truth, watched with inotify.
//!
//! ```text
//!  inotify ─▶ something happened ─▶ wait until it is quiet ─▶ list everything ─▶ read what differs ─▶ state ─▶ Batch
//! ```
//!
//! Events only say *when* to look; what is true is read from the files each time (levels, not edges), so a lost or misleading event
//! costs time, never truth. Every few seconds the folder is looked at without an event too. See `state` for what an invalid object
//! or a broken file means, and `store` for what survives a restart.
//!
//! Deliberately absent: a thread. [`Source::next`] does everything on the caller's.

mod forms;
mod overlay;
mod state;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Event, INotifyWatcher, RecursiveMode, Watcher};

use crate::listing::{Listing, Stamp};
use crate::problem::Problem;
use crate::source::{Batch, Source, SourceError};
use state::State;
use store::Store;

/// How long it must be quiet before the folder is looked at.
const QUIET: Duration = Duration::from_millis(50);
/// How long a writer may keep a file open before it is looked at half written.
const WRITER: Duration = Duration::from_millis(500);
/// How often the folder is looked at without an event.
const PERIOD: Duration = Duration::from_secs(5);

/// What to follow.
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// Files and folders with manifests. Folders are searched at every depth for `.yaml`, `.yml` and `.json`.
    pub manifests: Vec<PathBuf>,
    /// A file or folder with partial Pods and Nodes that are merged over those of the manifests (RFC 7386).
    pub overlay: Option<PathBuf>,
    /// Folder for what must survive a restart (PM-D2); made with mode 0700 where it is absent.
    pub store: PathBuf,
}

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The store is not usable.
    #[error(
        "store {path}: cannot be opened; last valid forms must survive a restart, so make it a writable folder"
    )]
    Store {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No inotify.
    #[error("inotify is not available; raise fs.inotify.max_user_instances")]
    Watch(#[from] notify::Error),
}

/// A followed directory.
#[derive(Debug)]
pub struct Directory {
    config: DirectoryConfig,
    state: State,
    watcher: INotifyWatcher,
    events: Receiver<notify::Result<Event>>,
    problems: Arc<[Problem]>,
    /// `None` before the first look.
    looked: Option<Instant>,
    /// The files of manifests and overlay at the last look, if everything could be read and stored.
    seen: Option<[BTreeMap<PathBuf, Stamp>; 2]>,
}

impl Directory {
    /// Begins to follow. Nothing is read before the first [`Source::next`].
    ///
    /// Errors: [`DirectoryError`]. Absent manifest folders are no error: they are a problem, and are followed when they appear.
    pub fn open(config: DirectoryConfig) -> Result<Self, DirectoryError> {
        // Events name absolute paths, so roots have to be absolute too; symbolic links in them stay as they are.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let config = DirectoryConfig {
            manifests: config.manifests.iter().map(absolute).collect(),
            overlay: config.overlay.as_ref().map(absolute),
            store: config.store,
        };
        let unusable = |source| DirectoryError::Store { path: config.store.clone(), source };
        let store = Store::open(&config.store).map_err(unusable)?;
        let state = State::open(store).map_err(unusable)?;
        let (sender, events) = channel();
        let watcher = INotifyWatcher::new(sender, notify::Config::default())?;
        Ok(Self { config, state, watcher, events, problems: Arc::from([]), looked: None, seen: None })
    }

    /// Looks at everything once. Returns `None` when nothing differs from what was told.
    fn look(&mut self, suspects: &BTreeSet<PathBuf>, all: bool) -> Option<Batch> {
        let first = self.looked.is_none();
        self.looked = Some(Instant::now());
        // A folder is watched before it is read, so nothing that appears in between is missed. Watching again is harmless, and needed
        // where a folder was removed and made anew.
        let roots = self.config.manifests.iter().chain(&self.config.overlay);
        for parent in roots.filter_map(|root| nearest_folder(root)) {
            watch(&mut self.watcher, &parent);
        }
        let watcher = &mut self.watcher;
        let mut enter = |folder: &Path| watch(watcher, folder);
        let manifests = Listing::of(&self.config.manifests, &mut enter);
        let overlay = Listing::of(self.config.overlay.as_slice(), &mut enter);
        // Thousands of objects take a while to be evaluated, which nobody should pay for every few seconds.
        let whole = manifests.lost.is_empty() && overlay.lost.is_empty() && self.state.is_settled();
        if whole && suspects.is_empty() && !all && self.has_seen(&manifests, &overlay) {
            return None;
        }
        let (changes, problems) = self.state.look(&manifests, &overlay, suspects, all);
        let stale = !manifests.lost.is_empty();
        self.seen = (whole && self.state.is_settled()).then_some([manifests.files, overlay.files]);
        if !first && changes.is_empty() && *problems == *self.problems {
            return None;
        }
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!("{problem}");
        }
        self.problems = Arc::from(problems);
        Some(Batch { changes, problems: self.problems(), complete: true, stale })
    }

    /// Returns whether the last look was at these very files.
    fn has_seen(&self, manifests: &Listing, overlay: &Listing) -> bool {
        self.seen.as_ref().is_some_and(|seen| [&seen[0], &seen[1]] == [&manifests.files, &overlay.files])
    }

    /// Collects events after `first` until nothing happens to a manifest for [`QUIET`], and no file is being written, within [`WRITER`].
    fn settle(&self, first: notify::Result<Event>) -> Result<Happened, SourceError> {
        let mut happened = Happened::default();
        happened.note(first);
        let latest = Instant::now() + WRITER;
        let mut quiet = Instant::now() + QUIET;
        loop {
            match self.events.recv_timeout(quiet.saturating_duration_since(Instant::now())) {
                Ok(event) if self.concerns_us(&event) => {
                    happened.note(event);
                    quiet = Instant::now() + QUIET;
                }
                // Somebody is busy beside the manifests; that is no reason to wait.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if happened.writing.is_empty() => return Ok(happened),
                Err(RecvTimeoutError::Timeout) => quiet = Instant::now() + QUIET,
                Err(RecvTimeoutError::Disconnected) => return Err(closed()),
            }
            if Instant::now() >= latest {
                return Ok(happened);
            }
        }
    }

    /// Returns whether `event` may be about a manifest. The folder above a root is watched too, and is often a busy one.
    fn concerns_us(&self, event: &notify::Result<Event>) -> bool {
        let Ok(event) = event else { return true };
        if matches!(event.kind, EventKind::Access(AccessKind::Open(_))) {
            return false;
        }
        let mut roots = self.config.manifests.iter().chain(&self.config.overlay);
        event.need_rescan()
            || event.paths.is_empty()
            || roots.any(|root| {
                let beside = root.is_file().then(|| root.parent()).flatten();
                event.paths.iter().any(|path| {
                    path.starts_with(root)
                        || root.starts_with(path)
                        || (beside.is_some() && path.parent() == beside)
                })
            })
    }
}

impl Source for Directory {
    fn next(&mut self, timeout: Duration) -> Result<Option<Batch>, SourceError> {
        let deadline = Instant::now() + timeout;
        let Some(mut looked) = self.looked else {
            return Ok(self.look(&BTreeSet::new(), false));
        };
        loop {
            let now = Instant::now();
            if let Some(at) = self.looked {
                looked = at;
            }
            let until = deadline.min(looked + PERIOD).saturating_duration_since(now);
            match self.events.recv_timeout(until) {
                Ok(event) if self.concerns_us(&event) => {
                    let happened = self.settle(event)?;
                    if let Some(batch) = self.look(&happened.paths, happened.anything) {
                        return Ok(Some(batch));
                    }
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() >= looked + PERIOD => {
                    if let Some(batch) = self.look(&BTreeSet::new(), false) {
                        return Ok(Some(batch));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(closed()),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    fn problems(&self) -> Arc<[Problem]> {
        Arc::clone(&self.problems)
    }
}

/// What events said since the last look.
#[derive(Debug, Default)]
struct Happened {
    paths: BTreeSet<PathBuf>,
    /// Written to and not closed yet.
    writing: BTreeSet<PathBuf>,
    /// Events were lost: every file is suspect.
    anything: bool,
}

impl Happened {
    fn note(&mut self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "inotify reports an error; every file is read again");
                self.anything = true;
                return;
            }
        };
        self.anything |= event.need_rescan();
        for path in event.paths {
            match event.kind {
                EventKind::Modify(notify::event::ModifyKind::Data(_)) => {
                    self.writing.insert(path.clone());
                }

                EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Remove(_) => {
                    self.writing.remove(&path);
                }
                _ => {}
            }
            self.paths.insert(path);
        }
    }
}

fn closed() -> SourceError {
    SourceError::Closed { source_name: "directory".to_owned(), reason: "the inotify thread ended".to_owned() }
}

/// Returns the nearest folder above `path` that exists: where its appearance will be seen.
fn nearest_folder(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|above| above.is_dir()).map(Path::to_owned)
}

fn watch(watcher: &mut INotifyWatcher, folder: &Path) {
    if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
        // The periodic look still finds changes, only later.
        tracing::debug!(folder = %folder.display(), %error, "folder cannot be watched");
    }
}

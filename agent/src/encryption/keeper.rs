//! Where our keys are kept and where their public halves are published, in either datastore.
//!
//! ```text
//!                directory                                   Kubernetes
//!  keys          file of mode 0600 in the state folder        Secret, sealed to the machine key
//!  annotations   partial Node in the overlay folder           server-side apply to our Node
//!  Events        a line in the log                            an Event at the Node
//! ```
//!
//! Everything here is asked again and again and says how it stands; nothing waits.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use margay_control::kubernetes::{NodeEvent, NodeEvents, NodeSecret, SecretState};
use serde_json::json;

use super::keys::Ring;
use super::private;
use super::seal::MachineKey;

/// What is kept.
#[derive(Debug)]
pub enum Kept {
    /// It is not known yet.
    Pending,
    /// Nothing.
    Nothing,
    /// Our keys.
    Keys(Box<Ring>),
    /// Keys that are of no use here, and why; new ones take their place.
    Useless(String),
    /// It cannot be used before somebody does what the sentence says.
    Refused(String),
}

/// Annotations of our Node by their names.
pub type Annotations = BTreeMap<String, String>;

/// Keeps our keys and publishes their public halves.
pub trait Keeper: Send {
    /// Returns what is kept.
    fn load(&mut self) -> Kept;
    /// Has `ring` kept from now on. Errors: a sentence.
    fn store(&mut self, ring: &Ring) -> Result<(), String>;
    /// Returns whether what was stored last would be found after a restart.
    fn is_stored(&mut self) -> bool;
    /// Says which annotations our Node should have; `there` are those of ours that it has.
    fn publish(&mut self, wanted: &Annotations, there: &Annotations);
    /// Says something about a node.
    fn tell(&mut self, event: NodeEvent);
    /// Returns what is in the way, in sentences.
    fn troubles(&self) -> Vec<String>;
}

/// Keys in a file of this node.
pub struct FileKeeper {
    keys: PathBuf,
    /// The folder of partial documents that all nodes read, and the file in it that is ours.
    overlay: Option<(PathBuf, PathBuf)>,
    node: String,
    trouble: Option<String>,
}

impl FileKeeper {
    /// Keeps keys below `state`, and publishes below `overlay`.
    pub fn new(state: &Path, overlay: Option<&Path>, node: &str) -> Self {
        let overlay =
            overlay.map(|folder| (folder.to_owned(), folder.join(format!("wireguard-{node}.json"))));
        Self { keys: state.join("wireguard.keys"), overlay, node: node.to_owned(), trouble: None }
    }

    fn write(&self, folder: &Path, file: &Path, wanted: &BTreeMap<String, Option<String>>) -> io::Result<()> {
        let document = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": self.node, "annotations": wanted },
        });
        let text = format!("{document:#}\n");
        if fs::read_to_string(file).is_ok_and(|there| there == text) {
            return Ok(());
        }
        // A hidden name: whoever reads the folder meanwhile does not see it.
        let fresh = folder.join(format!(".wireguard-{}.new", self.node));
        fs::write(&fresh, text)?;
        fs::rename(fresh, file)
    }
}

impl Keeper for FileKeeper {
    fn load(&mut self) -> Kept {
        match private::read(&self.keys) {
            Ok(None) => Kept::Nothing,
            Ok(Some(text)) => match Ring::read(&text) {
                Ok(ring) => Kept::Keys(Box::new(ring)),
                Err(error) => Kept::Refused(format!("{}: {error}", self.keys.display())),
            },
            Err(error) => Kept::Refused(error.to_string()),
        }
    }

    fn store(&mut self, ring: &Ring) -> Result<(), String> {
        private::write(&self.keys, &ring.write()).map_err(|error| error.to_string())
    }

    fn is_stored(&mut self) -> bool {
        true
    }

    fn publish(&mut self, wanted: &Annotations, there: &Annotations) {
        let Some((folder, file)) = &self.overlay else {
            self.trouble = (!wanted.is_empty()).then(|| {
                "the public key is not published: name a folder that the agents of all nodes share with --overlay".to_owned()
            });
            return;
        };
        if wanted == there {
            self.trouble = None;
            return;
        }
        // Null takes away what a manifest has (RFC 7386).
        let gone = there.keys().filter(|name| !wanted.contains_key(*name)).map(|name| (name.clone(), None));
        let annotations =
            wanted.iter().map(|(name, text)| (name.clone(), Some(text.clone()))).chain(gone).collect();
        let written = self.write(folder, file, &annotations);
        self.trouble = written.err().map(|error| {
            format!("the public key is not published: {} cannot be written: {error}; make --overlay a folder of ours", file.display())
        });
    }

    fn tell(&mut self, event: NodeEvent) {
        let NodeEvent { node, reason, message, is_warning } = event;
        if is_warning {
            tracing::warn!(node, reason, "{message}");
        } else {
            tracing::info!(node, reason, "{message}");
        }
    }

    fn troubles(&self) -> Vec<String> {
        self.trouble.iter().cloned().collect()
    }
}

/// Keys in a Secret, sealed to this machine (policy model 32.1).
pub struct SecretKeeper {
    machine: PathBuf,
    node: String,
    secret: NodeSecret,
    events: NodeEvents,
    say: Say,
    sealed: Option<Vec<u8>>,
}

/// Takes what should stand in the annotations of our Node.
pub type Say = Box<dyn Fn(&Annotations) + Send>;

impl SecretKeeper {
    /// Keeps keys in `secret`, sealed to a key below `state`, and publishes by `say`.
    pub fn new(state: &Path, node: &str, secret: NodeSecret, events: NodeEvents, say: Say) -> Self {
        let machine = state.join("machine.key");
        Self { machine, node: node.to_owned(), secret, events, say, sealed: None }
    }
}

impl Keeper for SecretKeeper {
    fn load(&mut self) -> Kept {
        let sealed = match self.secret.state() {
            SecretState::Unknown => return Kept::Pending,
            SecretState::Absent => return Kept::Nothing,
            SecretState::There(sealed) => sealed,
        };
        let key = match MachineKey::open(&self.machine) {
            Ok(key) => key,
            Err(error) => return Kept::Refused(error.to_string()),
        };
        match key.open_sealed(&self.node, &sealed) {
            Err(error) => Kept::Useless(format!("the Secret wireguard-{}: {error}", self.node)),
            Ok(text) => match Ring::read(&text) {
                Err(error) => Kept::Useless(format!("the Secret wireguard-{}: {error}", self.node)),
                Ok(ring) => {
                    self.sealed = Some(sealed);
                    Kept::Keys(Box::new(ring))
                }
            },
        }
    }

    fn store(&mut self, ring: &Ring) -> Result<(), String> {
        let key = MachineKey::open(&self.machine).map_err(|error| error.to_string())?;
        let sealed = key.seal(&self.node, &ring.write()).map_err(|error| error.to_string())?;
        self.secret.keep(sealed.clone());
        self.sealed = Some(sealed);
        Ok(())
    }

    fn is_stored(&mut self) -> bool {
        matches!((self.secret.state(), &self.sealed), (SecretState::There(there), Some(sealed)) if there == *sealed)
    }

    fn publish(&mut self, wanted: &Annotations, _: &Annotations) {
        (self.say)(wanted);
    }

    fn tell(&mut self, event: NodeEvent) {
        tracing::info!(node = event.node, reason = event.reason, "{}", event.message);
        self.events.tell(event);
    }

    fn troubles(&self) -> Vec<String> {
        self.secret.trouble().into_iter().collect()
    }
}

//! One Secret of this node: read when it is asked for, written when it should be otherwise. What is in it is sealed before it comes here.
//!
//! ```text
//!  owner ─ keep ─▶ NodeSecret ─▶ wanted ─┐
//!                                        ├─ differ? ─▶ one apply
//!  GET, now and then ─────────▶ there ───┘
//! ```
//!
//! It is not watched: that would need the right to list Secrets, and with it that to read those of everybody. Somebody who changes or
//! deletes it finds it put right within [`LOOK_AGAIN`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::backoff::Chance;
use super::super::trouble::Trouble;
use super::{Api, LATER, LOOK};

/// Field manager, and what people find beside it.
const MANAGER: &str = "margay-wireguard";
/// The one entry of the Secret.
const ENTRY: &str = "sealed";
/// How often it is looked at though nothing was asked.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// After a request that may go better by itself.
const SOON: Duration = Duration::from_secs(5);

/// What is known about the Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretState {
    /// The server did not say yet.
    #[default]
    Unknown,
    /// There is none, or one without our entry.
    Absent,
    /// Its content.
    There(Vec<u8>),
}

#[derive(Debug, Default)]
struct Inner {
    is_asked: bool,
    there: SecretState,
    wanted: Option<Vec<u8>>,
    trouble: Option<String>,
}

/// The Secret `wireguard-<node>` (policy model 32.1). Clones are the same Secret. Nothing is asked before the first call.
#[derive(Clone, Debug, Default)]
pub struct NodeSecret(Arc<Mutex<Inner>>);

impl NodeSecret {
    fn open(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known, and has it found out.
    pub fn state(&self) -> SecretState {
        let mut inner = self.open();
        inner.is_asked = true;
        inner.there.clone()
    }

    /// Sets what it should hold. Returns at once; [`NodeSecret::state`] says when it does.
    pub fn keep(&self, content: Vec<u8>) {
        let mut inner = self.open();
        inner.is_asked = true;
        inner.wanted = Some(content);
    }

    /// Returns what keeps it from being read or written, in words.
    pub fn trouble(&self) -> Option<String> {
        self.open().trouble.clone()
    }
}

/// Reads and keeps the Secret for as long as the agent runs.
pub(in super::super) async fn keep_secret(
    api: Api,
    secret: NodeSecret,
    namespace: String,
    node: String,
    mut chance: Chance,
) {
    let name = format!("wireguard-{node}");
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    let mut next_look = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let (is_asked, there, wanted) = {
            let inner = secret.open();
            (inner.is_asked, inner.there.clone(), inner.wanted.clone())
        };
        let differs = wanted.as_ref().is_some_and(|wanted| there != SecretState::There(wanted.clone()));
        let outcome = match wanted {
            _ if !is_asked => continue,
            // What is there decides what is wanted, so it is read first.
            Some(wanted) if differs && there != SecretState::Unknown => {
                let object = json!({
                    "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                    "metadata": {
                        "name": name, "namespace": namespace,
                        "labels": { "app.kubernetes.io/name": "margay", "app.kubernetes.io/component": "wireguard" },
                    },
                    "data": { ENTRY: STANDARD.encode(wanted) },
                });
                api.apply(&path, MANAGER, &object).await.map(|answer| content(&answer))
            }
            _ if there == SecretState::Unknown || Instant::now() >= next_look => match api.get(&path).await {
                Ok(answer) => Ok(content(&answer)),
                Err(Trouble::Missing(_)) => Ok(SecretState::Absent),
                Err(trouble) => Err(trouble),
            },
            _ => continue,
        };
        let wait = match &outcome {
            Ok(_) => Duration::ZERO,
            Err(Trouble::Unreachable(_) | Trouble::Conflict(_)) => chance.around(SOON),
            Err(Trouble::Busy { patience, .. }) => chance.around(SOON.max(*patience)),
            Err(_) => chance.around(LATER.min(4 * SOON)),
        };
        match outcome {
            Ok(state) => {
                next_look = Instant::now() + chance.around(LOOK_AGAIN);
                let mut inner = secret.open();
                (inner.there, inner.trouble) = (state, None);
            }
            Err(trouble) => {
                let words = in_words(&trouble, &namespace, &name);
                let before = secret.open().trouble.replace(words.clone());
                if before.as_ref() != Some(&words) {
                    tracing::warn!("{words}");
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

fn content(secret: &Value) -> SecretState {
    let text = secret["data"][ENTRY].as_str();
    match text.and_then(|text| STANDARD.decode(text).ok()) {
        Some(content) => SecretState::There(content),
        None => SecretState::Absent,
    }
}

fn in_words(trouble: &Trouble, namespace: &str, name: &str) -> String {
    let reason = trouble.reason();
    let what = format!("the Secret {name} in namespace {namespace} cannot be read or written");
    match trouble {
        Trouble::Forbidden(_) => {
            format!(
                "{what}: a right is missing, grant it with `margay install --dry-run --only encryption | kubectl apply -f -`: {reason}"
            )
        }
        Trouble::Missing(_) => format!(
            "{what}: make the namespace (`kubectl create namespace {namespace}`) or name another with --key-namespace: {reason}"
        ),
        _ => format!("{what}: {reason}"),
    }
}

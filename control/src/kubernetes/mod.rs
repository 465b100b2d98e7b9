//! The Kubernetes API server as a source of truth.
//!
//! ```text
//!  discovery ─▶ one follower a kind ─┐   list, then watch, and again from where it ended
//!                                    ├─▶ State ─▶ Batch ─▶ policy_engine::Engine
//!  picture on disk ──────────────────┘     │
//!                                          └▶ desk ─▶ one writer in the cluster: conditions, Events, tiers
//! ```
//!
//! Followers only carry objects; one owner, the thread that calls [`Source::next`], judges them, in the same way as a directory's. What
//! is in force is a function of the server's objects and of the last picture on disk (see `state`), whatever cuts, relists and restarts
//! lay between.
//!
//! * `kinds` is the table of what is followed and what of an object is kept.
//! * `discovery` asks which of it the server offers, `follow` follows one kind, `backoff` and `trouble` say how long and why it waits.
//! * `state` judges, `picture` remembers.
//! * `ledger` counts what is asked, `audit` records what changes.
//! * `write` tells the API server what became of its objects, from what lies on the `desk`.

mod audit;
mod backoff;
mod desk;
mod discovery;
mod follow;
mod kinds;
mod ledger;
mod picture;
mod state;
mod supervise;
mod trouble;
mod write;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};

pub use write::{NodeEvent, NodeEvents, NodeNotes, NodeSecret, Note, SecretState};

use crate::problem::Problem;
use crate::source::{Batch, Source, SourceError};
use backoff::Chance;
use desk::SharedDesk;
use follow::{Shared, Told};
use state::State;

pub use ledger::{Asked, Requests, Traffic};
/// Events that may wait for the owner of the model; a page of a list is one.
const WAITING: usize = 8;
/// Events taken before what they mean is told.
const BATCH: usize = 2_000;
/// How long the last picture waits for the server when the agent starts.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often what was stored is made to survive a loss of power.
const SYNC: Duration = Duration::from_secs(5);

/// What to follow.
#[derive(Clone, Debug)]
pub struct KubernetesConfig {
    /// How to reach the API server; absent inside a pod, where the ServiceAccount says it.
    pub kubeconfig: Option<PathBuf>,
    /// Folder for what must survive a restart (PM-D2, PM-D27); made with mode 0700 where it is absent.
    pub store: PathBuf,
    /// Name of this node.
    pub node: String,
    /// Namespace of the Lease by which agents agree who writes status.
    pub namespace: String,
    /// Namespace of the Secret with this node's sealed keys.
    pub key_namespace: String,
    /// Begins the chance by which agents do not ask in step.
    pub seed: u64,
}

/// Why the API server cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The store is not usable.
    #[error(
        "store {path}: cannot be opened; the last picture must survive a restart, so make it a writable folder"
    )]
    Store {
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The kubeconfig is not usable.
    #[error("kubeconfig {path}: cannot be used; check that it names a cluster, a user and their files")]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// Not inside a pod.
    #[error("not inside a pod with a ServiceAccount; pass --kubeconfig")]
    NotInCluster(#[source] kube::config::InClusterError),
    /// TLS or credentials.
    #[error("the API server's client cannot be made; check the certificates and the token")]
    Client(#[source] Box<kube::Error>),
    /// No threads.
    #[error("cannot start the threads that talk to the API server")]
    Threads(#[source] io::Error),
}

/// A followed API server.
#[derive(Debug)]
pub struct Kubernetes {
    state: State,
    told: mpsc::Receiver<Told>,
    shared: Arc<Shared>,
    problems: Arc<[Problem]>,
    began: Instant,
    synced: Instant,
    was_stale: Option<bool>,
    notes: NodeNotes,
    runtime: Option<Runtime>,
    secret: NodeSecret,
    events: NodeEvents,
}

impl Kubernetes {
    /// Begins to follow; the server need not be there yet.
    ///
    /// Errors: [`KubernetesError`].
    pub fn open(config: KubernetesConfig) -> Result<Self, KubernetesError> {
        let desk = SharedDesk::of_node(&config.node);
        let notes = NodeNotes::default();
        let ledger = Arc::clone(&desk.open().ledger);
        let state = State::open(&config.store, desk.clone())
            .map_err(|source| KubernetesError::Store { path: config.store.clone(), source })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("margay-kube")
            .enable_all()
            .build()
            .map_err(KubernetesError::Threads)?;
        let client = runtime.block_on(connect(&config))?;
        let (ear, told) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared { ear, awake: Notify::new(), streams: false.into(), ledger });
        let mut chance = Chance::new(config.seed);
        let secret = NodeSecret::default();
        let events = NodeEvents(desk.clone());
        let node = config.node.clone();
        let identity = write::Identity { node: config.node, namespace: config.namespace };
        let api = write::Api::new(client.clone(), Arc::clone(&shared));
        runtime.spawn(write::keep(api.clone(), desk.clone(), notes.clone(), chance.fork()));
        let keeper = chance.fork();
        runtime.spawn(write::keep_secret(api.clone(), secret.clone(), config.key_namespace, node, keeper));
        runtime.spawn(write::write(api, desk.clone(), identity, chance.fork()));
        runtime.spawn(supervise::supervise(client, Arc::clone(&shared), desk, chance));
        let now = Instant::now();
        Ok(Self {
            state,
            told,
            shared,
            problems: Arc::from([]),
            began: now,
            synced: now,
            was_stale: None,
            notes,
            runtime: Some(runtime),
            secret,
            events,
        })
    }

    /// Returns where to say what should stand in the annotations of this agent's Node.
    pub fn node_notes(&self) -> NodeNotes {
        self.notes.clone()
    }

    /// Returns the Secret of this node.
    pub fn node_secret(&self) -> NodeSecret {
        self.secret.clone()
    }

    /// Returns where to say what was found out about nodes.
    pub fn node_events(&self) -> NodeEvents {
        self.events.clone()
    }

    /// Returns a handle that tells how many requests were made, also while the source is followed elsewhere.
    pub fn requests(&self) -> impl Fn() -> Requests + Send + Sync + 'static {
        let traffic = self.traffic();
        move || traffic().requests()
    }

    /// Returns a handle that tells what was asked of the server and what could not be read, also while the source is followed elsewhere.
    pub fn traffic(&self) -> impl Fn() -> Traffic + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.ledger.sums()
    }

    /// Waits for an event, until `deadline`.
    fn hear(&mut self, deadline: Instant) -> Result<Option<Told>, SourceError> {
        let Some(runtime) = &self.runtime else { return Ok(None) };
        let told = &mut self.told;
        let heard = runtime.block_on(async { tokio::time::timeout_at(deadline.into(), told.recv()).await });
        match heard {
            Ok(Some(event)) => Ok(Some(event)),
            Ok(None) => Err(SourceError::Closed {
                source_name: state::SOURCE.to_owned(),
                reason: "nothing follows the API server any more".to_owned(),
            }),
            Err(_) => Ok(None),
        }
    }

    /// Returns the batch of `changes`, or `None` when there is nothing to tell.
    fn batch(&mut self, changes: Vec<margay_policy_engine::engine::Change>, complete: bool) -> Option<Batch> {
        let stale = self.state.is_stale();
        let is_news = match self.state.problems() {
            Some(problems) => {
                let is_news = *problems != *self.problems;
                self.problems = problems.into();
                is_news
            }
            None => false,
        };
        let was_stale = self.was_stale.replace(stale);
        (is_news || !changes.is_empty() || was_stale != Some(stale)).then(|| Batch {
            changes,
            problems: Arc::clone(&self.problems),
            complete,
            stale,
        })
    }
}

impl Source for Kubernetes {
    fn next(&mut self, timeout: Duration) -> Result<Option<Batch>, SourceError> {
        let deadline = Instant::now() + timeout;
        let mut changes = Vec::new();
        let mut complete = self.state.is_complete();
        loop {
            let patient = self.began + PATIENCE;
            let waits_for_server = !complete && self.state.has_earlier();
            let until = if waits_for_server { deadline.min(patient) } else { deadline };
            let until = until.min(self.synced + SYNC);
            if let Some(event) = self.hear(until)? {
                self.state.take(event, &mut changes);
                for _ in 0..BATCH {
                    match self.told.try_recv() {
                        Ok(event) => self.state.take(event, &mut changes),
                        Err(_) => break,
                    }
                }
            }
            let now = Instant::now();
            complete = self.state.is_complete();
            if !complete
                && (now >= patient || self.state.is_alone())
                && let Some(earlier) = self.state.earlier()
            {
                tracing::warn!(
                    objects = earlier.len(),
                    "the API server is not heard: the last picture on disk is put in force, marked stale"
                );
                changes.extend(earlier);
            }
            let is_due = now >= self.synced + SYNC;
            if is_due {
                self.synced = now;
            }
            self.state.store(is_due);
            let in_force = complete || self.state.is_earlier_in_force();
            if let Some(batch) = self.batch(std::mem::take(&mut changes), in_force) {
                return Ok(Some(batch));
            }
            if now >= deadline {
                return Ok(None);
            }
        }
    }

    fn problems(&self) -> Arc<[Problem]> {
        Arc::clone(&self.problems)
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.state.store(true);
        if let Some(runtime) = self.runtime.take() {
            // Requests under way are let go of; nobody waits for their answers.
            runtime.shutdown_background();
        }
    }
}

/// Makes a client as `config` says.
async fn connect(config: &KubernetesConfig) -> Result<Client, KubernetesError> {
    let mut found = match &config.kubeconfig {
        Some(path) => {
            let unusable = |source| KubernetesError::Kubeconfig { path: path.clone(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(unusable)?
        }
        None => Config::incluster().map_err(KubernetesError::NotInCluster)?,
    };
    found.connect_timeout = Some(Duration::from_secs(10));
    found.read_timeout = Some(Duration::from_secs(200));
    // Every request is ours to repeat, and to count.
    found.default_retry = false;
    Client::try_from(found).map_err(|error| KubernetesError::Client(Box::new(error)))
}

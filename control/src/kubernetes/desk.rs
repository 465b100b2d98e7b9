//! What those who write status work from: every object that has conditions, or something wrong with it.
//!
//! The source notes what it sees; whoever writes takes what is new. Nothing waits here for anybody: an object noted twice is looked at
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::discovery::Served;
use super::kinds::{KindId, Meta};
use super::ledger::Ledger;
use super::picture::Ident;
use super::write::NodeFindings;
use crate::problem::Problem;

/// What is in force of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum InForce {
    /// What is written.
    #[default]
    AsWritten,
    /// An earlier form (PM-D2).
    LastValid,
    /// Its closed form (policy model 4.1).
    Closed,
    /// Nothing.
    Nothing,
}

/// How an object stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// What the server said beside the document.
    pub meta: Meta,
    /// `spec.tier` of a policy; empty stands for `default`.
    pub tier: String,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// What is in force of it.
    pub in_force: InForce,
}

/// This agent's own Node, as the server has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct OwnNode {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.annotations`, whoever wrote them.
    pub annotations: BTreeMap<String, String>,
}

/// The desk.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Objects with conditions or problems.
    pub objects: BTreeMap<Ident, Standing>,
    /// Those that changed since they were looked at.
    pub dirty: BTreeSet<Ident>,
    /// Where kinds are.
    pub served: BTreeMap<KindId, Served>,
    /// Names of nodes.
    pub nodes: BTreeSet<String>,
    /// What is asked of the server, and what could not be read.
    pub ledger: Arc<Ledger>,
    /// Name of this agent's node.
    pub node: String,
    /// Its Node, while there is one.
    pub own_node: Option<OwnNode>,
    /// What is wrong beside the objects, by what it is about: what keeps the writer from writing, APIs that are not read.
    pub complaints: BTreeMap<String, Problem>,
    /// They changed since they were collected.
    pub has_new_complaints: bool,
    /// What was found out about nodes.
    pub node_events: NodeFindings,
    /// The picture is complete: what is not here is not there.
    pub is_complete: bool,
}

/// The shared form of [`Desk`].
#[derive(Clone, Debug, Default)]
pub(super) struct SharedDesk(Arc<Mutex<Desk>>);

impl SharedDesk {
    /// Returns the empty desk of an agent on `node`.
    pub fn of_node(node: &str) -> Self {
        let desk = Desk { node: node.to_owned(), ..Desk::default() };
        Self(Arc::new(Mutex::new(desk)))
    }

    /// Opens it.
    pub fn open(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// Notes what is wrong about `what`, or that nothing is; returns whether that is news.
    pub fn complain(&mut self, what: &str, problem: Option<Problem>) -> bool {
        let is_news = self.complaints.get(what) != problem.as_ref();
        match problem {
            Some(problem) => drop(self.complaints.insert(what.to_owned(), problem)),
            None => drop(self.complaints.remove(what)),
        }
        self.has_new_complaints |= is_news;
        is_news
    }

    /// Notes how an object stands; `None` when there is nothing to say about it (any more).
    pub fn note(&mut self, ident: &Ident, standing: Option<Standing>) {
        let is_news = match standing {
            Some(standing) if self.objects.get(ident) == Some(&standing) => false,
            Some(standing) => {
                self.objects.insert(ident.clone(), standing);
                true
            }
            None => self.objects.remove(ident).is_some(),
        };
        if is_news {
            self.dirty.insert(ident.clone());
        }
    }
}

//! The label-expression language (policy model 5).
//!
//! ```text
//!  text ─▶ tokenizer ─▶ parser ─▶ Node ─▶ canonical text ─▶ identifier
//!                                  ├─▶ matches          (policy model 5.3)
//!                                  ├─▶ restrictions     (policy model 5.8, for indexes)
//!                                  └─▶ prefix, replace  (policy model 6.2, 6.3, 6.5)
//! ```
//!
//! A [`Selector`] is a parsed expression with its canonical text. Two selectors are equal when their canonical texts are, and the
//! canonical text parses to itself. Values are cheap to clone. Nesting is bounded by [`MAX_NESTING`], so no input can exhaust the
//! stack; everything that has no natural depth (`!!!…`, `a && b && …`) is handled by loops.

pub(crate) mod ast;
mod canonical;
mod eval;
mod parser;
mod tokenizer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha224};

use crate::model::Labels;
use ast::Node;

/// How deep parentheses may nest.
pub const MAX_NESTING: usize = 128;

/// How long a label name may be, in bytes (policy model 5.1).
pub const MAX_LABEL: usize = 512;

/// A parsed selector.
#[derive(Clone)]
pub struct Selector {
    node: Arc<Node>,
    canonical: Arc<str>,
}

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {position}")]
pub struct SelectorError {
    /// Byte offset in the input.
    pub position: usize,
    /// What was expected.
    pub reason: String,
}

/// What an object must look like, in one label, to match at all (policy model 5.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restriction {
    /// The label is present, whatever its value.
    Present,
    /// The label is present with one of these values. An empty set: nothing matches.
    OneOf(BTreeSet<String>),
    /// The label is not present.
    Absent,
}

impl Selector {
    /// Parses `text`; blank means `all()`.
    ///
    /// Errors: [`SelectorError`] with the byte where reading stopped making sense and what was expected there.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Ok(Self::from_node(parser::parse(text)?))
    }

    /// Returns `all()`.
    pub fn all() -> Self {
        Self::from_node(Node::All)
    }

    /// Returns `global()`.
    pub fn global() -> Self {
        Self::from_node(Node::Global)
    }

    /// Returns `has(key)`. Errors: `key` is not a label name of the language.
    pub fn has(key: &str) -> Result<Self, SelectorError> {
        Ok(Self::from_node(Node::Has(checked_key(key)?)))
    }

    /// Returns `key == "value"`. Errors: `key` is not a label name, or `value` holds both kinds of quote.
    pub fn equals(key: &str, value: &str) -> Result<Self, SelectorError> {
        Ok(Self::from_node(Node::Equal(checked_key(key)?, checked_value(value)?)))
    }

    /// Returns `key in {…}`. Errors: as [`Selector::equals`].
    pub fn one_of<'a>(key: &str, values: impl IntoIterator<Item = &'a str>) -> Result<Self, SelectorError> {
        let values = values.into_iter().map(checked_value).collect::<Result<_, _>>()?;
        Ok(Self::from_node(Node::In(checked_key(key)?, values)))
    }

    /// Returns `key not in {…}`. Errors: as [`Selector::equals`].
    pub fn none_of<'a>(key: &str, values: impl IntoIterator<Item = &'a str>) -> Result<Self, SelectorError> {
        let values = values.into_iter().map(checked_value).collect::<Result<_, _>>()?;
        Ok(Self::from_node(Node::NotIn(checked_key(key)?, values)))
    }

    /// Returns the conjunction of `parts`: `all()` of none, the part itself of one.
    pub fn and(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::joined(parts, Node::All, Node::And)
    }

    /// Returns the disjunction of `parts`: `!all()`, which nothing matches, of none; the part itself of one.
    pub fn or(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::joined(parts, Node::Not(Box::new(Node::All)), Node::Or)
    }

    /// Returns the negation; a double negation falls away.
    pub fn negated(&self) -> Self {
        Self::from_node(Node::clone(&self.node).negated())
    }

    /// Returns the selector with `prefix` before every label name (policy model 6.5).
    pub fn prefix(&self, prefix: &str) -> Self {
        let mut node = Node::clone(&self.node);
        node.rewrite(&mut |leaf| {
            if let Some(key) = leaf.key_mut() {
                key.insert_str(0, prefix);
            }
        });
        Self::from_node(node)
    }

    /// Returns the selector with every `all()` replaced by `by` (policy model 6.2).
    pub fn replace_all(&self, by: &Self) -> Self {
        self.replace(&Node::All, by)
    }

    /// Returns the selector with every `global()` replaced by `by` (policy model 6.3).
    pub fn replace_global(&self, by: &Self) -> Self {
        self.replace(&Node::Global, by)
    }

    /// Returns whether `global()` occurs anywhere.
    pub fn mentions_global(&self) -> bool {
        let mut found = false;
        self.node.walk(&mut |leaf| found |= matches!(leaf, Node::Global));
        found
    }

    /// Returns whether the whole expression is `all()`.
    pub fn is_all(&self) -> bool {
        matches!(*self.node, Node::All)
    }

    /// Returns every label name that the expression mentions.
    pub fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        self.node.walk(&mut |leaf| keys.extend(leaf.key().map(str::to_owned)));
        keys
    }

    /// Returns whether `labels` satisfy the expression.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_with(&|key| labels.get(key).map(String::as_str))
    }

    /// Returns whether the labels that `lookup` answers for satisfy the expression; no map has to exist.
    pub fn matches_with<'a>(&self, lookup: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        eval::matches(&self.node, lookup)
    }

    /// Returns what every matching object satisfies, label by label (policy model 5.8).
    ///
    /// Shape: necessary, not sufficient: an object that breaks one never matches, one that meets all may or may not. No entry for a
    /// label means that nothing is known about it.
    pub fn restrictions(&self) -> BTreeMap<String, Restriction> {
        eval::restrictions(&self.node)
    }

    /// Returns the canonical text (policy model 5.4).
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Returns the stable identifier `s:…` (policy model 5.4).
    pub fn id(&self) -> String {
        let digest = Sha224::new().chain_update("s:").chain_update(self.canonical.as_bytes()).finalize();
        format!("s:{}", URL_SAFE_NO_PAD.encode(digest))
    }

    /// Returns the expression, for whoever evaluates it over many objects at once.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    fn from_node(node: Node) -> Self {
        let canonical = canonical::text(&node).into();
        Self { node: Arc::new(node), canonical }
    }

    fn joined(parts: impl IntoIterator<Item = Self>, none: Node, join: fn(Vec<Node>) -> Node) -> Self {
        let mut nodes: Vec<Node> = parts.into_iter().map(|part| Node::clone(&part.node)).collect();
        match nodes.len() {
            0 => Self::from_node(none),
            1 => Self::from_node(nodes.remove(0)),
            _ => Self::from_node(join(nodes)),
        }
    }

    fn replace(&self, what: &Node, by: &Self) -> Self {
        let mut node = Node::clone(&self.node);
        node.rewrite(&mut |leaf| {
            if leaf == what {
                *leaf = Node::clone(&by.node);
            }
        });
        Self::from_node(node)
    }
}

impl std::fmt::Debug for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Selector({})", self.canonical)
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.canonical)
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for Selector {}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.canonical.cmp(&other.canonical)
    }
}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical.hash(state);
    }
}

fn checked_key(key: &str) -> Result<String, SelectorError> {
    let good = !key.is_empty() && key.len() <= MAX_LABEL && key.bytes().all(tokenizer::is_label_byte);
    if good {
        return Ok(key.to_owned());
    }
    Err(SelectorError {
        position: 0,
        reason: format!("label name {key:?} is not 1 to {MAX_LABEL} of [A-Za-z0-9_./-]"),
    })
}

fn checked_value(value: &str) -> Result<String, SelectorError> {
    if value.contains('"') && value.contains('\'') {
        let reason = format!("value {value:?} holds both kinds of quote; no literal can spell it");
        return Err(SelectorError { position: 0, reason });
    }
    Ok(value.to_owned())
}

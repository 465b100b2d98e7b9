//! The shape of an expression.
//!
//! Invariants, kept by the parser and by the constructors of [`super::Selector`]: `And` and `Or` have at least two operands; the
//! operand of `Not` is not a `Not`; a literal never holds both kinds of quote.

use std::collections::BTreeSet;

/// One node of an expression. Leaves carry the label name first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    All,
    Global,
    Has(String),
    Equal(String, String),
    NotEqual(String, String),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
}

impl Node {
    /// Returns the negation; `!!x` is `x`.
    pub(crate) fn negated(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// Returns the label name of a leaf.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Has(key)
            | Self::Equal(key, _)
            | Self::NotEqual(key, _)
            | Self::Contains(key, _)
            | Self::StartsWith(key, _)
            | Self::EndsWith(key, _)
            | Self::In(key, _)
            | Self::NotIn(key, _) => Some(key),
            Self::All | Self::Global | Self::Not(_) | Self::And(_) | Self::Or(_) => None,
        }
    }

    /// Returns the label name of a leaf, to be changed.
    pub(crate) fn key_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Has(key)
            | Self::Equal(key, _)
            | Self::NotEqual(key, _)
            | Self::Contains(key, _)
            | Self::StartsWith(key, _)
            | Self::EndsWith(key, _)
            | Self::In(key, _)
            | Self::NotIn(key, _) => Some(key),
            Self::All | Self::Global | Self::Not(_) | Self::And(_) | Self::Or(_) => None,
        }
    }

    /// Shows every leaf to `visit`.
    pub(crate) fn walk(&self, visit: &mut dyn FnMut(&Self)) {
        match self {
            Self::Not(inner) => inner.walk(visit),
            Self::And(parts) | Self::Or(parts) => parts.iter().for_each(|part| part.walk(visit)),
            leaf => visit(leaf),
        }
    }

    /// Lets `change` replace every leaf; what it puts there is not visited again.
    pub(crate) fn rewrite(&mut self, change: &mut dyn FnMut(&mut Self)) {
        match self {
            Self::Not(inner) => {
                inner.rewrite(change);
                // A leaf may have become a negation; `!!x` is `x`.
                if let Self::Not(positive) = inner.as_mut() {
                    let positive = std::mem::replace(positive.as_mut(), Self::All);
                    *self = positive;
                }
            }
            Self::And(parts) | Self::Or(parts) => parts.iter_mut().for_each(|part| part.rewrite(change)),
            leaf => change(leaf),
        }
    }
}

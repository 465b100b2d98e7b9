//! The label-expression language (policy model 5).

use crate::model::Labels;

/// A parsed selector.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    canonical: String,
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

impl Selector {
    /// Parses `text`; blank means `all()`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Ok(Self { canonical: text.to_owned() })
    }
    /// Returns whether `labels` satisfy the expression.
    pub fn matches(&self, _labels: &Labels) -> bool {
        false
    }
    /// Returns the canonical text (policy model 5.4).
    pub fn canonical(&self) -> &str {
        &self.canonical
    }
    /// Returns the stable identifier `s:…` (policy model 5.4).
    pub fn id(&self) -> String {
        String::new()
    }
}

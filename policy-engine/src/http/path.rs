//! Paths of requests: brought to one form, then compared (policy model 18.5).
//!
//! Servers disagree about what `%2e%2e`, `//`, `\` or `;x=1` mean. A path is therefore compared in the one form that a server could reach
//! in the end, and a path that could still change after one decoding matches no item at all.

use crate::model::PathMatch;

/// Why a path has no normal form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not a path at all: the request is refused as malformed.
    #[error("path {path:?} does not begin with '/'; send the path alone, without scheme and host")]
    NotAPath {
        /// As it came.
        path: String,
    },
    /// No item of a rule matches such a path.
    #[error("path {path:?} has no normal form: {reason}")]
    NotNormalisable {
        /// As it came.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Returns the normal form of the path of a request: begins with `/`, no empty, `.` or `..` segment, no parameters, decoded once,
/// no trailing `/` except for the root.
///
/// Errors: [`PathError::NotAPath`] when it does not begin with `/` or `\`; [`PathError::NotNormalisable`] for a broken escape, for
/// what is still encoded after one decoding, for a NUL byte, and for bytes that are not UTF-8 (an overlong `.` is such a sequence).
pub fn normalise_path(path: &str) -> Result<String, PathError> {
    if !path.starts_with(['/', '\\']) {
        return Err(PathError::NotAPath { path: path.to_owned() });
    }
    let wrong = |reason| PathError::NotNormalisable { path: path.to_owned(), reason };
    let raw = path.split(['?', '#']).next().unwrap_or_default();
    let decoded = decode_once(raw).ok_or_else(|| wrong("'%' is not followed by two hexadecimal digits"))?;
    let decoded = String::from_utf8(decoded).map_err(|_| wrong("its bytes are not UTF-8"))?;
    let lower = decoded.to_ascii_lowercase();
    if ["%2e", "%2f", "%5c"].iter().any(|escape| lower.contains(escape)) {
        return Err(wrong("it is encoded more than once"));
    }
    if decoded.contains('\0') {
        return Err(wrong("it holds a NUL byte"));
    }
    let slashed = decoded.replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in slashed.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

/// Returns whether `item` matches `path`, which is in normal form. A trailing `/` of the item says nothing, as in the path.
pub fn path_matches(item: &PathMatch, path: &str) -> bool {
    let trimmed = |text: &str| text.trim_end_matches('/').len();
    match item {
        PathMatch::Exact(text) => text[..trimmed(text)] == path[..trimmed(path)],
        PathMatch::Prefix(text) => path
            .strip_prefix(&text[..trimmed(text)])
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
    }
}

fn decode_once(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            // Two hexadecimal digits fit a byte.
            decoded.push((high * 16 + low) as u8);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

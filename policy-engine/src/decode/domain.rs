//! Domain patterns (policy model 23.2): a name, or a name with one `*` in place of one or more whole labels.

use super::field::Problems;

/// Reads patterns: lower case, without trailing dot, in the order written and each once.
pub(super) fn patterns(texts: Vec<(String, &str)>, problems: &mut Problems) -> Vec<String> {
    let mut patterns = Vec::new();
    for (path, text) in texts {
        match pattern(text) {
            Ok(pattern) if patterns.contains(&pattern) => {}
            Ok(pattern) => patterns.push(pattern),
            Err(reason) => problems.refuse_text(path, text, reason),
        }
    }
    patterns
}

/// Reads one pattern.
fn pattern(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let labels: Vec<&str> = name.split('.').collect();
    if name.is_empty() || name.len() > 253 {
        return Err("not a domain name: 1 to 253 characters, such as www.example.com or *.example.com");
    }
    if labels.iter().filter(|label| **label == "*").count() > 1 {
        return Err(
            "one '*' at most; it stands for one or more labels, so *.example.com covers *.*.example.com",
        );
    }
    if labels.iter().any(|label| *label != "*" && label.contains('*')) {
        return Err("'*' stands for whole labels only, as in *.example.com or www.*.com");
    }
    if labels.last() == Some(&"*") {
        return Err("'*' cannot be the last label; name the domain it ends with, as in *.example.com");
    }
    if !labels.iter().all(|label| *label == "*" || is_host_label(label)) {
        return Err(
            "not a domain name: labels of 1 to 63 of [a-z0-9_-] between dots, not beginning or ending with '-'",
        );
    }
    Ok(name)
}

fn is_host_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

//! Values as YAML that people read: block style, keys in their order, quotes only where a reader could take a text for something else.

use serde_json::Value;

/// Writes `value` as a document, with a newline at its end.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text.trim_start_matches('\n').to_owned()
}

/// Writes several documents, each after its marker.
pub fn documents<'v>(values: impl IntoIterator<Item = &'v Value>) -> String {
    values.into_iter().map(|value| format!("---\n{}", document(value))).collect()
}

/// Writes `value` after `key:` or as a whole document; a scalar stays on the line, everything else begins a new one.
fn block(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            for (key, inner) in map {
                text.push_str(&"  ".repeat(depth));
                text.push_str(&scalar(key));
                text.push(':');
                entry(inner, depth + 1, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            for item in items {
                text.push_str(&"  ".repeat(depth));
                text.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        // The first field stands beside the dash.
                        let mut inner = String::new();
                        block(item, depth + 1, &mut inner);
                        text.push(' ');
                        text.push_str(inner.trim_start());
                    }
                    other => entry(other, depth + 1, text),
                }
            }
        }
        _ => {
            text.push_str(&flow(value));
            text.push('\n');
        }
    }
}

fn entry(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => block(value, depth, text),
        Value::Array(items) if !items.is_empty() => block(value, depth, text),
        Value::String(long) if is_literal(long) => literal(long, depth, text),
        _ => {
            text.push(' ');
            text.push_str(&flow(value));
            text.push('\n');
        }
    }
}

/// Whether a text of several lines can stand as it is: its first line tells how far all are indented, and its end is one newline or none.
fn is_literal(long: &str) -> bool {
    long.contains('\n')
        && !long.starts_with([' ', '\n'])
        && !long.ends_with("\n\n")
        && !long.contains(['\r', '\t'])
}

/// Writes a text of several lines as they are.
fn literal(long: &str, depth: usize, text: &mut String) {
    let keeps_end = if long.ends_with('\n') { "|" } else { "|-" };
    text.push_str(&format!(" {keeps_end}\n"));
    for line in long.trim_end_matches('\n').lines() {
        if !line.is_empty() {
            text.push_str(&"  ".repeat(depth));
            text.push_str(line);
        }
        text.push('\n');
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::String(text) => scalar(text),
        Value::Array(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_string(),
    }
}

/// Writes a text plain where every YAML reader takes it for that text, else in quotes (JSON's are YAML's).
fn scalar(text: &str) -> String {
    let mut characters = text.chars();
    let begins =
        characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '/' || c == '.' || c == '^')
            && !text.starts_with("...");
    let inner = text.chars().all(|c| c.is_ascii_alphanumeric() || " -_./^$*+=()|;,<>\u{2019}".contains(c));
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null" | ".inf" | ".nan"
    );
    let number = text.starts_with('.') && text[1..].starts_with(|c: char| c.is_ascii_digit());
    if begins && inner && !word && !number && !text.ends_with(' ') {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use margay_policy_engine::decode::split_documents;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let value = json!({
            "empty": {}, "none": [], "null": null, "flag": true, "number": 1.5, "-": ["- x", "a: b", "#c", " d", "e "],
            "words": ["yes", "No", "null", "true", "0x10", "010", "1e3", ".5", ".inf", "~", "", "*", "&a", "!b", "@", "%", "{", "[", "'", "\""],
            "nested": [[1, [2]], {"a": {"b": [{"c": 1, "d": [3]}, {}]}}, []],
            "long": "one\n  two\n\nthree\n", "cut": "one\ntwo", "inward": " one\ntwo", "end": "one\n\n", "tab": "a\n\tb", "unicode": "Größe → 3",
            "pattern": "^(?i)(Drop|Accept)?$", "{{ .Values.x }}": "{{ .Values.image }}",
        });
        let text = documents([&value, &value]);
        let read = split_documents(&text, "");
        assert_eq!(read.len(), 2, "{text}");
        for document in read {
            assert_eq!(document.expect(&text).0, value, "{text}");
        }
    }
}

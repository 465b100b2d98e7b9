//! The pieces that a description is made of: what a field may hold, in the words of an API server's structural schema.
//!
//! A piece never refuses what the decoder accepts: manifests that work in one cluster work in the other. What only the decoder can judge
//! (selectors, networks, what excludes what) is plain text here.

use serde_json::{Map, Value, json};

/// What a field may hold.
pub(super) type Shape = Value;

/// One field of a mapping: its name, a sentence for `kubectl explain`, its shape.
pub(super) type Field = (&'static str, &'static str, Shape);

/// Any text.
pub(super) fn text() -> Shape {
    json!({ "type": "string" })
}

/// A text of at most `most` characters.
pub(super) fn text_up_to(most: usize) -> Shape {
    json!({ "type": "string", "maxLength": most })
}

/// A selector of a manifest.
pub(super) fn selector() -> Shape {
    text_up_to(1024)
}

/// One of `words`, in this spelling.
pub(super) fn words(words: &[&str]) -> Shape {
    json!({ "type": "string", "enum": words })
}

/// Nothing, or one of `words` in any case.
pub(super) fn words_of_any_case(words: &[&str]) -> Shape {
    json!({ "type": "string", "pattern": format!("^(?i)({})?$", words.join("|")) })
}

/// True or false.
pub(super) fn boolean() -> Shape {
    json!({ "type": "boolean" })
}

/// Any number.
pub(super) fn number() -> Shape {
    json!({ "type": "number" })
}

/// A whole number, both ends inclusive.
pub(super) fn integer(low: i64, high: i64) -> Shape {
    let mut shape = json!({ "type": "integer", "format": "int64", "minimum": low });
    // API servers compare through floating point, in which the largest number is one too many: they would refuse every value.
    if high < i64::MAX {
        shape["maximum"] = high.into();
    }
    shape
}

/// A number, or a text that matches `pattern`.
pub(super) fn number_or_text(pattern: &str) -> Shape {
    json!({ "x-kubernetes-int-or-string": true, "pattern": pattern })
}

/// A list.
pub(super) fn list(item: Shape) -> Shape {
    json!({ "type": "array", "items": item })
}

/// A list of at most `most` items.
pub(super) fn list_up_to(most: usize, item: Shape) -> Shape {
    json!({ "type": "array", "maxItems": most, "items": item })
}

/// A mapping of texts to texts.
pub(super) fn text_map() -> Shape {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

/// Anything at all: a field that is another program's business, kept as written.
pub(super) fn anything() -> Shape {
    json!({ "x-kubernetes-preserve-unknown-fields": true })
}

/// A mapping with exactly these fields.
pub(super) fn mapping(fields: Vec<Field>) -> Shape {
    let mut properties = Map::new();
    for (name, description, mut shape) in fields {
        if !description.is_empty()
            && let Some(shape) = shape.as_object_mut()
        {
            shape.insert("description".to_owned(), json!(description));
        }
        let earlier = properties.insert(name.to_owned(), shape);
        assert!(earlier.is_none(), "field {name} is described twice");
    }
    json!({ "type": "object", "properties": properties })
}

/// `shape` with fields that must be written.
pub(super) fn required(mut shape: Shape, names: &[&str]) -> Shape {
    shape["required"] = json!(names);
    shape
}

/// `shape` with a rule for API servers that know CEL (`message` is what the user is told).
pub(super) fn ruled(mut shape: Shape, rule: &str, message: &str) -> Shape {
    let rule = json!({ "rule": rule, "message": message });
    match shape[CEL].as_array_mut() {
        Some(rules) => rules.push(rule),
        None => shape[CEL] = json!([rule]),
    }
    shape
}

/// Where rules stand in a schema.
pub(super) const CEL: &str = "x-kubernetes-validations";

/// Removes every rule from `schema`, at any depth.
pub(super) fn without_rules(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove(CEL);
            map.values_mut().for_each(without_rules);
        }
        Value::Array(items) => items.iter_mut().for_each(without_rules),
        _ => {}
    }
}

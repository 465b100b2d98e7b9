//! One text per meaning of the syntax (policy model 5.4): parsing it gives the same text again.

use std::collections::BTreeSet;

use super::ast::Node;

/// Returns the canonical text of `node`.
pub(super) fn text(node: &Node) -> String {
    let mut out = String::new();
    write(node, &mut out);
    out
}

fn write(node: &Node, out: &mut String) {
    match node {
        Node::All => out.push_str("all()"),
        Node::Global => out.push_str("global()"),
        Node::Has(key) => {
            out.push_str("has(");
            out.push_str(key);
            out.push(')');
        }
        Node::Equal(key, value) => binary(key, "==", value, out),
        Node::NotEqual(key, value) => binary(key, "!=", value, out),
        Node::Contains(key, value) => binary(key, "contains", value, out),
        Node::StartsWith(key, value) => binary(key, "starts with", value, out),
        Node::EndsWith(key, value) => binary(key, "ends with", value, out),
        Node::In(key, values) => set(key, "in", values, out),
        Node::NotIn(key, values) => set(key, "not in", values, out),
        Node::Not(inner) => {
            out.push('!');
            write(inner, out);
        }
        Node::And(parts) => join(parts, " && ", out),
        Node::Or(parts) => join(parts, " || ", out),
    }
}

fn join(parts: &[Node], between: &str, out: &mut String) {
    out.push('(');
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push_str(between);
        }
        write(part, out);
    }
    out.push(')');
}

fn binary(key: &str, operator: &str, value: &str, out: &mut String) {
    out.push_str(key);
    out.push(' ');
    out.push_str(operator);
    out.push(' ');
    literal(value, out);
}

fn set(key: &str, operator: &str, values: &BTreeSet<String>, out: &mut String) {
    out.push_str(key);
    out.push(' ');
    out.push_str(operator);
    out.push_str(" {");
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        literal(value, out);
    }
    out.push('}');
}

fn literal(value: &str, out: &mut String) {
    let quote = if value.contains('"') { '\'' } else { '"' };
    out.push(quote);
    out.push_str(value);
    out.push(quote);
}

//! `http` of a rule (policy model 2.12, 18.8): read whole, and not enforced on packets (PM-D15).

use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

use super::field::{Fields, Problems};
use super::rule::Place;
use super::scalar::TCP;
use crate::model::{Action, HeaderMatch, HeaderOperator, HttpMatch, PathMatch, Rule, Unenforced};
use crate::packet::Direction;

/// How many methods, paths, headers, or values of one header a rule may have.
const MOST: usize = 20;

/// Reads `http` into `rule`, whose action and protocol are known.
pub(super) fn read(fields: &mut Fields<'_>, rule: &mut Rule, place: Place<'_>, problems: &mut Problems) {
    let is_written = fields.raw("http").is_some();
    let mut http = fields.object("http", problems);
    if !is_written {
        return;
    }
    let path = fields.at("http");
    if rule.action != Action::Allow {
        problems.refuse_text(&path, "", "http is only for rules that Allow");
    }
    if !matches!(rule.protocol, None | Some(TCP)) {
        problems.refuse_text(&path, "", "http needs protocol TCP, or none");
    }
    if place.direction == Direction::Egress {
        problems.refuse_text(&path, "", "http is only for ingress rules");
    }
    let methods = methods(&mut http, problems);
    let listed = http.list_up_to("paths", MOST, problems);
    let paths = listed.into_iter().filter_map(|(path, item)| path_match(path, item, problems)).collect();
    let listed = http.list_up_to("headers", MOST, problems);
    let headers = listed.into_iter().filter_map(|(path, item)| header(path, item, problems)).collect();
    http.finish(problems);
    rule.http = Some(Arc::new(HttpMatch { methods, paths, headers }));
    rule.unenforced.push(Unenforced::Http);
    let reason = "http criteria are not enforced on packets; while no proxy enforces them, this Allow rule matches nothing";
    problems.warn(path, "", reason);
}

fn methods(http: &mut Fields<'_>, problems: &mut Problems) -> Vec<String> {
    http.list_up_to("methods", MOST, problems);
    let mut methods: Vec<String> = Vec::new();
    for (path, method) in http.texts("methods", problems) {
        if method != "*" && !is_token(method) {
            problems.refuse_text(&path, method, "not an HTTP method: a word such as GET, or \"*\" for any");
        }
        if methods.iter().any(|known| known == method) {
            problems.refuse_text(path, method, "written twice; remove one");
        }
        methods.push(method.to_owned());
    }
    methods
}

fn path_match(path: String, item: &Value, problems: &mut Problems) -> Option<PathMatch> {
    let mut fields = Fields::open(path.clone(), Some(item), problems);
    let (exact, prefix) = (fields.text("exact", problems), fields.text("prefix", problems));
    fields.finish(problems);
    let (text, found) = match (exact, prefix) {
        (Some(text), None) => (text, PathMatch::Exact(text.to_owned())),
        (None, Some(text)) => (text, PathMatch::Prefix(text.to_owned())),
        _ => {
            problems.refuse_text(path, "", "write exactly one of exact and prefix");
            return None;
        }
    };
    if !text.starts_with('/') || text.contains(['?', '#', ' ']) {
        problems.refuse_text(path, text, "a path begins with '/' and has no '?', '#' or blank");
    }
    Some(found)
}

fn header(path: String, item: &Value, problems: &mut Problems) -> Option<HeaderMatch> {
    let mut fields = Fields::open(path, Some(item), problems);
    let name = fields.text("header", problems).unwrap_or_default();
    if !is_token(name) {
        let reason = "required: the name of a header, such as x-tenant; letters, digits and -_.!#$%&'*+^`|~";
        problems.refuse_text(fields.at("header"), name, reason);
    }
    let operator = operator(&mut fields, problems);
    fields.list_up_to("values", MOST, problems);
    let listed = fields.texts("values", problems);
    let takes_none = matches!(operator, Some(HeaderOperator::Exists | HeaderOperator::DoesNotExist));
    if takes_none && !listed.is_empty() {
        problems.warn(fields.at("values"), "", "ignored; Exists and DoesNotExist ask for no value");
    }
    if operator.is_some() && !takes_none && listed.is_empty() {
        problems.refuse_text(fields.at("values"), "", "this operator needs at least one value");
    }
    let mut values = Vec::new();
    for (path, text) in listed.into_iter().filter(|_| !takes_none) {
        // Matched against the whole value, so the expression must compile alone and in its parentheses.
        if operator == Some(HeaderOperator::MatchesRegex)
            && let Err(error) = Regex::new(text).and_then(|_| Regex::new(&format!(r"\A(?:{text})\z")))
        {
            let told = error.to_string();
            let last = told.lines().last().unwrap_or_default().trim_start_matches("error: ");
            problems.refuse_text(path, text, format!("not a regular expression: {last}"));
        }
        values.push(text.to_owned());
    }
    fields.finish(problems);
    Some(HeaderMatch { name: name.to_ascii_lowercase(), operator: operator?, values })
}

fn operator(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<HeaderOperator> {
    let text = fields.text("operator", problems).unwrap_or_default();
    let found = match text {
        "Exists" => HeaderOperator::Exists,
        "DoesNotExist" => HeaderOperator::DoesNotExist,
        "HasPrefix" => HeaderOperator::HasPrefix,
        "HasSuffix" => HeaderOperator::HasSuffix,
        "In" => HeaderOperator::In,
        "NotIn" => HeaderOperator::NotIn,
        "MatchesRegex" => HeaderOperator::MatchesRegex,
        _ => {
            let reason = "required: Exists, DoesNotExist, HasPrefix, HasSuffix, In, NotIn or MatchesRegex, in this spelling";
            problems.refuse_text(fields.at("operator"), text, reason);
            return None;
        }
    };
    Some(found)
}

/// RFC 9110, 5.6.2: what methods and header names are made of.
fn is_token(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

//! Text to JSON values, one per document (YAML 1.2 core schema, JSON, Kubernetes lists).
//!
//! ```text
//!  file ─▶ pieces, cut at `---` ─▶ YAML events or JSON ─▶ value + origin ─▶ the items of a List, each on its own
//! ```
//!
//! A piece that cannot be read says so with its line and leaves the other pieces alone. Where YAML 1.1 and 1.2 read a plain scalar
//! differently (`yes`, `0100`, `1_000`) the value stays text, so a field that wants a boolean or a number refuses it; nothing is
//! guessed. A key that is written twice is an error of the object, not of the file: the identity is still known.
//!
//! Bounds: [`MAX_FILE_BYTES`] per file, [`MAX_DEPTH`] levels, [`MAX_ALIASED`] values copied for aliases per document.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

use super::json;
use super::{FieldError, Origin};

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 64 << 20;

/// How deep mappings and sequences may nest.
pub const MAX_DEPTH: usize = 100;

/// How many values may be copied because of anchors and aliases, per document.
pub const MAX_ALIASED: usize = 100_000;

/// A document that could not be read, or that contradicts itself.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokenDocument {
    /// Where it begins.
    pub origin: Origin,
    /// What is wrong with it.
    pub errors: Vec<FieldError>,
    /// What could be read nevertheless: enough to tell which object it is about, never to be put in force.
    pub partial: Option<Value>,
}

/// One document: its value, or what is wrong with it.
pub type Document = Result<(Value, Origin), BrokenDocument>;

/// Splits `text` into its documents; the items of a List are documents of their own. Empty documents are left out.
pub fn split_documents(text: &str, file: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    for_each_document(text, file, &mut |document| documents.push(document));
    documents
}

/// As [`split_documents`], but holds one piece of the file at a time.
pub fn for_each_document(text: &str, file: &str, take: &mut dyn FnMut(Document)) {
    if text.len() > MAX_FILE_BYTES {
        let reason = format!(
            "the file has {} bytes, more than the {MAX_FILE_BYTES} that are read; split it into several files",
            text.len()
        );
        let errors = vec![FieldError { field: String::new(), value: String::new(), reason }];
        let origin = Origin { file: file.to_owned(), line: 1 };
        take(Err(BrokenDocument { origin, errors, partial: None }));
        return;
    }
    for (line, piece) in pieces(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        for read in read_piece(piece, line) {
            expand(read, file, take);
        }
    }
}

/// Gives `value`, or each item of it when it is a List.
pub(super) fn open_list(value: Value, origin: Origin, take: &mut dyn FnMut(Document)) {
    expand(Read { value, line: origin.line, ..Read::default() }, &origin.file, take);
}

/// A value as it was read, before lists are opened.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub value: Value,
    /// 1-based line in the file.
    pub line: usize,
    /// First lines of `items[n]`, where known.
    pub item_lines: Vec<usize>,
    /// Contradictions inside; the value holds the first of two.
    pub errors: Vec<FieldError>,
    /// The value means nothing, only `errors` do.
    pub unreadable: bool,
}

impl Read {
    pub(super) fn failure(line: usize, reason: String) -> Self {
        let errors = vec![FieldError { field: String::new(), value: String::new(), reason }];
        Self { line, errors, unreadable: true, ..Self::default() }
    }
}

/// Cuts `text` at document markers; gives each piece with its 1-based first line.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    let mut has_content = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if let Some(rest) = marker {
            if has_content {
                pieces.push((start_line, &text[start..offset]));
            }
            (start, start_line) = (offset, index + 1);
            has_content = !is_idle(rest);
        } else {
            has_content |= !is_idle(line) && !line.starts_with(['%', '.']);
        }
        offset += line.len();
    }
    if has_content {
        pieces.push((start_line, &text[start..]));
    }
    pieces
}

fn is_idle(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn read_piece(piece: &str, line: usize) -> Vec<Read> {
    let body = piece.strip_prefix("---").unwrap_or(piece).trim_start();
    if body.starts_with('{') {
        let skipped = piece[..piece.len() - body.len()].matches('\n').count();
        if let Some(read) = json::read(body, line + skipped) {
            return read;
        }
    }
    read_yaml(piece, line)
}

fn expand(read: Read, file: &str, take: &mut dyn FnMut(Document)) {
    let origin = |line| Origin { file: file.to_owned(), line };
    let Read { value, line, item_lines, errors, unreadable } = read;
    if unreadable {
        take(Err(BrokenDocument { origin: origin(line), errors, partial: None }));
        return;
    }
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    let is_list = kind.ends_with("List") && value.get("items").is_some();
    if !is_list {
        take(if errors.is_empty() {
            Ok((value, origin(line)))
        } else {
            Err(BrokenDocument { origin: origin(line), errors, partial: Some(value) })
        });
        return;
    }
    let item_kind = kind.strip_suffix("List").unwrap_or_default().to_owned();
    let api_version = value.get("apiVersion").cloned();
    let mut value = value;
    let items = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        Some(Value::Null) | None => Vec::new(),
        Some(other) => {
            let error = FieldError::new("items", &other, "must be a list of objects");
            take(Err(BrokenDocument { origin: origin(line), errors: vec![error], partial: None }));
            return;
        }
    };
    let (of_items, of_list): (Vec<_>, Vec<_>) =
        errors.into_iter().partition(|error| error.field.starts_with("items["));
    let mut of_items = by_item(of_items);
    for (index, mut item) in items.into_iter().enumerate() {
        if let (Value::Object(map), false) = (&mut item, item_kind.is_empty()) {
            // Lists that the API server writes (PodList, …) leave these out of their items.
            map.entry("kind").or_insert_with(|| Value::String(item_kind.clone()));
            if let Some(version) = &api_version {
                map.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        let mut errors = of_items.remove(&index).unwrap_or_default();
        errors.extend(of_list.iter().cloned());
        let line = item_lines.get(index).copied().unwrap_or(line);
        // Depth is bounded by MAX_DEPTH, so lists within lists end too.
        expand(Read { value: item, line, item_lines: Vec::new(), errors, unreadable: false }, file, take);
    }
}

/// Sorts errors under `items[n].` to their item, with the path seen from there.
fn by_item(errors: Vec<FieldError>) -> BTreeMap<usize, Vec<FieldError>> {
    let mut sorted: BTreeMap<usize, Vec<FieldError>> = BTreeMap::new();
    for mut error in errors {
        let rest = error.field.trim_start_matches("items[");
        if let Some((index, path)) = rest.split_once(']') {
            let index = index.parse().unwrap_or_default();
            error.field = path.trim_start_matches('.').to_owned();
            sorted.entry(index).or_default().push(error);
        }
    }
    sorted
}

fn read_yaml(piece: &str, first_line: usize) -> Vec<Read> {
    let mut builder = Builder { first_line, ..Builder::default() };
    for event in Parser::new_from_str(piece) {
        let outcome = match event {
            Ok((event, span)) => builder.handle(event, span.start.line()),
            Err(error) => Err((
                error.marker().line(),
                format!("not YAML: {} (column {})", error.info(), error.marker().col() + 1),
            )),
        };
        if let Err((line, reason)) = outcome {
            builder.done.push(Read::failure(first_line + line.max(1) - 1, reason));
            break;
        }
    }
    builder.done
}

/// Builds values from events, with an explicit stack.
#[derive(Default)]
struct Builder {
    first_line: usize,
    done: Vec<Read>,
    current: Read,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Value>,
    copied: usize,
}

struct Frame {
    anchor: usize,
    shape: Shape,
}

enum Shape {
    Mapping { map: Map<String, Value>, key: Option<String>, merges: Vec<Value> },
    Sequence(Vec<Value>),
}

/// A line within the piece and what is wrong there.
type Trouble = (usize, String);

impl Builder {
    fn handle(&mut self, event: Event<'_>, line: usize) -> Result<(), Trouble> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.current = Read::default();
                self.anchors.clear();
                self.copied = 0;
                Ok(())
            }
            Event::DocumentEnd => {
                let read = std::mem::take(&mut self.current);
                if read.value != Value::Null {
                    self.done.push(read);
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value =
                    value.ok_or_else(|| (line, "alias to an anchor that is not complete".to_owned()))?;
                self.charge(&value, line)?;
                self.add(value, false, line)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref()).map_err(|reason| (line, reason))?;
                let is_key = self.wants_key();
                let value = if is_key { Value::String(text.into_owned()) } else { value };
                self.remember(anchor, &value, line)?;
                self.add(value, style == ScalarStyle::Plain, line)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(anchor, tag.as_deref(), Shape::Sequence(Vec::new()), line)
            }
            Event::MappingStart(anchor, tag) => {
                let shape = Shape::Mapping { map: Map::new(), key: None, merges: Vec::new() };
                self.open(anchor, tag.as_deref(), shape, line)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(line),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { shape: Shape::Mapping { key: None, .. }, .. }))
    }

    fn open(&mut self, anchor: usize, tag: Option<&Tag>, shape: Shape, line: usize) -> Result<(), Trouble> {
        if self.stack.len() == MAX_DEPTH {
            return Err((line, format!("values nest deeper than {MAX_DEPTH} levels")));
        }
        if self.wants_key() {
            return Err((line, "a mapping key must be a plain word, not a mapping or a list".to_owned()));
        }
        if let Some(tag) =
            tag.filter(|tag| !(tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "map" | "seq")))
        {
            return Err((line, format!("tag {}{} has no meaning here; remove it", tag.handle, tag.suffix)));
        }
        self.note_line(line);
        self.stack.push(Frame { anchor, shape });
        Ok(())
    }

    fn close(&mut self, line: usize) -> Result<(), Trouble> {
        let Some(Frame { anchor, shape }) = self.stack.pop() else {
            return Err((line, "a mapping or list ends that never began".to_owned()));
        };
        let value = match shape {
            Shape::Sequence(items) => Value::Array(items),
            Shape::Mapping { mut map, merges, .. } => {
                for merge in merges {
                    merge_into(&mut map, merge).map_err(|reason| (line, reason))?;
                }
                Value::Object(map)
            }
        };
        self.remember(anchor, &value, line)?;
        self.add(value, false, line)
    }

    /// Puts a finished value where it belongs; `plain` tells an unquoted scalar, the only spelling of the merge key.
    fn add(&mut self, value: Value, plain: bool, line: usize) -> Result<(), Trouble> {
        if !matches!(value, Value::Array(_) | Value::Object(_)) {
            self.note_line(line);
        }
        let path = self.path();
        let first_line = self.first_line;
        let Some(frame) = self.stack.last_mut() else {
            self.current.value = value;
            return Ok(());
        };
        match &mut frame.shape {
            Shape::Sequence(items) => items.push(value),
            Shape::Mapping { key: pending @ None, .. } => match value {
                Value::String(text) if text.contains('\0') => {
                    return Err((line, "a mapping key cannot hold the character NUL".to_owned()));
                }
                Value::String(text) => {
                    *pending = Some(if plain && text == "<<" { MERGE.to_owned() } else { text })
                }
                _ => {
                    return Err((
                        line,
                        "a mapping key must be a plain word, not a mapping or a list".to_owned(),
                    ));
                }
            },
            Shape::Mapping { map, key, merges } => {
                let key = key.take().unwrap_or_default();
                if key == MERGE {
                    merges.push(value);
                } else if map.contains_key(&key) {
                    let reason =
                        format!("the key is written twice (line {}); remove one", first_line + line - 1);
                    self.current.errors.push(FieldError::new(path, &value, reason));
                } else {
                    map.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// Records where a document and the items of a list begin.
    fn note_line(&mut self, line: usize) {
        let line = self.first_line + line - 1;
        match self.stack.as_slice() {
            [] if self.current.line == 0 => self.current.line = line,
            [
                Frame { shape: Shape::Mapping { key: Some(key), .. }, .. },
                Frame { shape: Shape::Sequence(_), .. },
            ] if key == "items" => {
                self.current.item_lines.push(line);
            }
            _ => {}
        }
    }

    fn remember(&mut self, anchor: usize, value: &Value, line: usize) -> Result<(), Trouble> {
        if anchor > 0 {
            self.charge(value, line)?;
            self.anchors.insert(anchor, value.clone());
        }
        Ok(())
    }

    fn charge(&mut self, value: &Value, line: usize) -> Result<(), Trouble> {
        self.copied += count(value);
        if self.copied > MAX_ALIASED {
            return Err((
                line,
                format!("anchors and aliases copy more than {MAX_ALIASED} values; write them out"),
            ));
        }
        Ok(())
    }

    fn path(&self) -> String {
        // Only a contradiction needs it, and only a mapping that already holds the key can have one.
        let twice = matches!(self.stack.last(), Some(Frame { shape: Shape::Mapping { map, key: Some(key), .. }, .. })
            if map.contains_key(key));
        if !twice {
            return String::new();
        }
        let mut path = String::new();
        for frame in &self.stack {
            match &frame.shape {
                Shape::Mapping { key, .. } => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key.as_deref().unwrap_or_default());
                }
                Shape::Sequence(items) => path.push_str(&format!("[{}]", items.len())),
            }
        }
        path
    }
}

/// Stands for the merge key; a key with this character in it is refused, so no document can spell it.
const MERGE: &str = "\u{0}<<";

fn merge_into(map: &mut Map<String, Value>, merge: Value) -> Result<(), String> {
    match merge {
        Value::Object(other) => {
            for (key, value) in other {
                map.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(several) => several.into_iter().try_for_each(|one| merge_into(map, one)),
        _ => Err("'<<' merges a mapping or a list of mappings".to_owned()),
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let resolved = || if style == ScalarStyle::Plain { plain(text) } else { Value::String(text.to_owned()) };
    let Some(tag) = tag else {
        return Ok(resolved());
    };
    let value = plain(text);
    let fits = match tag.suffix.as_str() {
        _ if !tag.is_yaml_core_schema() => false,
        "str" => return Ok(Value::String(text.to_owned())),
        "null" => value.is_null(),
        "bool" => value.is_boolean(),
        "int" => value.is_i64() || value.is_u64(),
        "float" => value.is_number(),
        _ => false,
    };
    if fits {
        Ok(value)
    } else {
        Err(format!("tag {}{} does not fit {text:?}; remove it", tag.handle, tag.suffix))
    }
}

/// Resolves an unquoted scalar by the YAML 1.2 core schema, but leaves what YAML 1.1 reads as another number as text.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    number(text).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn number(text: &str) -> Option<Value> {
    if !text.as_bytes()[0].is_ascii_digit() && !text.starts_with(['+', '-', '.']) {
        return None;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return u64::from_str_radix(digits, radix)
                .ok()
                .filter(|_| !digits.starts_with('+'))
                .map(Value::from);
        }
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let all_digits = !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits {
        if unsigned.len() > 1 && unsigned.starts_with('0') {
            return None;
        }
        let whole = text.strip_prefix('+').unwrap_or(text);
        if let Ok(whole) = whole.parse::<i64>() {
            return Some(Value::from(whole));
        }
        if let Ok(whole) = whole.parse::<u64>() {
            return Some(Value::from(whole));
        }
    }
    let is_float = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().any(|byte| byte.is_ascii_digit())
        && unsigned
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    if is_float {
        text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
    } else {
        None
    }
}

//! Follows one kind: list, then watch, and again from where the watch ended.
//!
//! ```text
//!             ┌────────── 410, or a line that is no JSON ──────────┐
//!             ▼                                                    │
//!  start ─▶ list (pages, or streamed) ─▶ watch from its version ───┤
//!             │ 404                        ▲        │ cut          │
//!             ▼                            └────────┘ from the last version seen
//!            end: discovery asks again
//! ```
//!
//! A watch that was cut is opened again from the last version seen, bookmarks included: nothing is listed anew. One that lived for
//! [`SETTLED`] is opened at once (spread over a moment); one that is cut sooner waits a little longer each time, two seconds at most, so
//! a server or a middlebox that cuts every connection costs a few requests a second and delays a change by seconds, not by minutes.
//! Failures wait longer, half a minute at most, and end when any other follower got through.
//!
//! Lists are read in pages of [`PAGE`] at the most recent version: what is known never goes back in time, whichever of several API
//! servers answers. Where the server streams lists, it serves them from memory and no page stands in ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::AsyncBufReadExt;
use http::Request;
use kube::Client;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::backoff::{Backoff, Chance};
use super::discovery::Served;
use super::kinds::{Kept, KindId};
use super::ledger::{Ledger, resource_of};
use super::trouble::Trouble;

/// Objects per page of a list.
const PAGE: usize = 250;
/// A watch without a word for so long is given up; servers send a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(180);
/// How long the server may keep a watch, in the middle.
const WATCH: Duration = Duration::from_secs(360);
/// A watch that lived so long was a good one.
const SETTLED: Duration = Duration::from_secs(10);
/// Objects of a streamed list that are handed on together.
const STREAMED: usize = 100;

/// What a follower says about its kind.
#[derive(Debug)]
pub(super) enum Event {
    /// A list begins: what it does not name when it ends is gone.
    Listing,
    /// A part of the list.
    Page(Vec<Kept>),
    /// The list is complete.
    Listed,
    /// An object appeared or changed.
    Applied(Box<Kept>),
    /// An object is gone; this was its last state.
    Deleted(Box<Kept>),
    /// The server does not have the kind.
    Unserved,
    /// The server answers.
    Connected,
    /// The server does not, or not as it should.
    Troubled(Trouble),
}

/// An event, and about which kind; `None` is the server as a whole.
pub(super) type Told = (Option<KindId>, Event);

/// What all followers share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Where events go.
    pub ear: mpsc::Sender<Told>,
    /// Told whenever somebody got through after a failure.
    pub awake: Notify,
    /// The server streams lists.
    pub streams: AtomicBool,
    /// Requests so far.
    pub ledger: Arc<Ledger>,
}

/// Follows one kind.
pub(super) struct Follower {
    pub client: Client,
    pub shared: Arc<Shared>,
    pub kind: KindId,
    pub served: Served,
    pub chance: Chance,
    /// It was listed before.
    pub was_listed: bool,
    /// It was watched before.
    pub was_watched: bool,
}

/// How a watch ended that had begun.
struct Cut {
    lived: Duration,
}

/// The receiver is gone: the source was dropped.
struct Deaf;

enum Ending {
    Cut(Cut),
    Trouble(Trouble),
    Deaf,
}

impl From<Deaf> for Ending {
    fn from(_: Deaf) -> Self {
        Self::Deaf
    }
}

impl From<Trouble> for Ending {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Follower {
    /// Follows until the server does not have the kind any more, or nobody listens.
    pub async fn run(mut self) {
        let mut failures =
            Backoff::new(Duration::from_millis(500), Duration::from_secs(30), self.chance.fork());
        let mut cuts = Backoff::new(Duration::from_millis(200), Duration::from_secs(2), self.chance.fork());
        let mut version = None;
        let mut was_troubled = false;
        loop {
            let ending = self.round(&mut version, &mut was_troubled, &mut failures).await;
            match ending {
                Ending::Deaf => return,
                Ending::Cut(Cut { lived }) => {
                    if lived >= SETTLED {
                        cuts.reset();
                    }
                    let wait = cuts.next();
                    tracing::debug!(
                        kind = self.kind.kind().title(),
                        ?lived,
                        ?wait,
                        "a watch ended; it goes on from where it was"
                    );
                    tokio::time::sleep(wait).await;
                }
                Ending::Trouble(Trouble::Expired) => {
                    tracing::info!(
                        kind = self.kind.kind().title(),
                        "the server cannot continue from what is known; everything is listed again"
                    );
                    version = None;
                    tokio::time::sleep(failures.next()).await;
                }
                Ending::Trouble(trouble) => {
                    let is_missing = matches!(trouble, Trouble::Missing(_));
                    if !was_troubled {
                        tracing::warn!(
                            kind = self.kind.kind().title(),
                            reason = trouble.reason(),
                            "following is interrupted; what was told stays in force"
                        );
                    }
                    was_troubled = true;
                    if is_missing || self.tell(Event::Troubled(trouble.clone())).await.is_err() {
                        return;
                    }
                    self.wait_after(&trouble, failures.next()).await;
                }
            }
        }
    }

    async fn wait_after(&mut self, trouble: &Trouble, wait: Duration) {
        match trouble {
            Trouble::Unreachable(_) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.shared.awake.notified() => {
                        tokio::time::sleep(self.chance.around(Duration::from_millis(50))).await;
                    }
                }
            }
            Trouble::Busy { patience, .. } => tokio::time::sleep(wait.max(*patience)).await,
            _ => tokio::time::sleep(wait).await,
        }
    }

    /// Lists where nothing is known, then watches; returns how the watch ended.
    async fn round(
        &mut self,
        version: &mut Option<String>,
        was_troubled: &mut bool,
        failures: &mut Backoff,
    ) -> Ending {
        let streams = version.is_none() && self.shared.streams.load(Ordering::Relaxed);
        if version.is_none() && !streams {
            match self.list().await {
                Ok(listed) => *version = Some(listed),
                Err(ending) => return ending,
            }
            self.got_through(was_troubled);
        }
        match self.watch(version, was_troubled, failures).await {
            Err(Ending::Trouble(Trouble::Refused(reason))) if streams => {
                tracing::info!(reason, "the server does not stream lists; they are read in pages");
                self.shared.streams.store(false, Ordering::Relaxed);
                Ending::Cut(Cut { lived: SETTLED })
            }
            Ok(cut) => Ending::Cut(cut),
            Err(ending) => ending,
        }
    }

    fn got_through(&self, was_troubled: &mut bool) {
        if std::mem::take(was_troubled) {
            tracing::info!(kind = self.kind.kind().title(), "following goes on");
            self.shared.awake.notify_waiters();
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Deaf> {
        self.shared.ear.send((Some(self.kind), event)).await.map_err(|_| Deaf)
    }

    fn request(&self, query: &str) -> Result<Request<Vec<u8>>, Trouble> {
        Request::get(format!("{}?{query}", self.served.path))
            .header(http::header::ACCEPT_ENCODING, "identity")
            .body(Vec::new())
            .map_err(|error| Trouble::Refused(error.to_string()))
    }

    fn trouble(&self, verb: &str, error: &kube::Error) -> Trouble {
        Trouble::of(&format!("{verb} of {}", self.kind.kind().title()), error)
    }

    /// Notes that a list begins.
    fn begin_list(&mut self) {
        if std::mem::replace(&mut self.was_listed, true) {
            self.shared.ledger.relisted(&resource_of(&self.served.path));
        }
    }

    /// Reads every page; returns the version to watch from.
    async fn list(&mut self) -> Result<String, Ending> {
        self.begin_list();
        let resource = resource_of(&self.served.path);
        let mut more = String::new();
        let mut has_begun = false;
        loop {
            let token: String = form_urlencoded(&more);
            let query = if more.is_empty() {
                format!("limit={PAGE}")
            } else {
                format!("limit={PAGE}&continue={token}")
            };
            let outcome = self.client.request_text(self.request(&query)?).await;
            self.shared.ledger.asked("list", &resource, &outcome);
            let text = outcome.map_err(|error| self.trouble("list", &error))?;
            let page = self.kind.kind().page(&text).map_err(|error| {
                self.shared.ledger.unreadable(&resource);
                Trouble::Unreachable(format!("list of {}: {error}", self.kind.kind().title()))
            })?;
            drop(text);
            if !std::mem::replace(&mut has_begun, true) {
                self.tell(Event::Listing).await?;
            }
            self.tell(Event::Page(page.items)).await?;
            if page.more.is_empty() {
                self.tell(Event::Listed).await?;
                return Ok(page.version);
            }
            more = page.more;
        }
    }

    /// Watches from `version`, which follows what is read; without one, the list is streamed first.
    async fn watch(
        &mut self,
        version: &mut Option<String>,
        was_troubled: &mut bool,
        failures: &mut Backoff,
    ) -> Result<Cut, Ending> {
        let start = Instant::now();
        let lasting = self.chance.around(WATCH).as_secs();
        let from = match version {
            Some(version) => format!("resourceVersion={version}"),
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={lasting}&{from}");
        let resource = resource_of(&self.served.path);
        let stream = self.client.request_stream(self.request(&query)?).await;
        self.shared.ledger.asked("watch", &resource, &stream);
        let mut stream = std::pin::pin!(stream.map_err(|error| self.trouble("watch", &error))?);
        self.got_through(was_troubled);
        failures.reset();
        if std::mem::replace(&mut self.was_watched, true) {
            self.shared.ledger.restarted(&resource);
        }
        self.tell(Event::Connected).await?;
        let mut streamed = version.is_none().then(Vec::new);
        if streamed.is_some() {
            self.begin_list();
            self.tell(Event::Listing).await?;
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = tokio::time::timeout(SILENCE, stream.read_until(b'\n', &mut line)).await;
            if !matches!(read, Ok(Ok(read)) if read > 0) || line.last() != Some(&b'\n') {
                return Ok(Cut { lived: start.elapsed() });
            }
            let (what, object) = match read_line(&line) {
                Some(parts) => parts,
                None => {
                    self.shared.ledger.unreadable(&resource);
                    *version = None;
                    let text: String = String::from_utf8_lossy(&line).chars().take(200).collect();
                    return Err(Trouble::Unreachable(format!(
                        "watch of {}: not an event: {text}",
                        self.kind.kind().title()
                    ))
                    .into());
                }
            };
            let at = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
            match (what.as_str(), &mut streamed) {
                ("ADDED" | "MODIFIED", Some(page)) => {
                    page.push(self.kind.kind().document(object));
                    if page.len() >= STREAMED {
                        let page = std::mem::take(page);
                        self.tell(Event::Page(page)).await?;
                    }
                    continue;
                }
                ("ADDED" | "MODIFIED", None) => {
                    self.tell(Event::Applied(self.kind.kind().document(object).into())).await?;
                }
                ("DELETED", _) => self.tell(Event::Deleted(self.kind.kind().document(object).into())).await?,
                ("BOOKMARK", Some(page)) => {
                    let end = "/metadata/annotations/k8s.io~1initial-events-end";
                    if object.pointer(end).is_none() {
                        continue;
                    }
                    let page = std::mem::take(page);
                    streamed = None;
                    self.tell(Event::Page(page)).await?;
                    self.tell(Event::Listed).await?;
                }
                ("BOOKMARK", None) => {}
                ("ERROR", _) => {
                    let code = object.get("code").and_then(Value::as_u64).unwrap_or_default();
                    let message = object.get("message").and_then(Value::as_str).unwrap_or_default();
                    let what = format!("watch of {}", self.kind.kind().title());
                    let code = u16::try_from(code).unwrap_or_default();
                    return Err(Trouble::of_status(&what, code, message, 0).into());
                }
                (other, _) => tracing::debug!(other, "an event of a type that is not known"),
            }
            if at.is_some() {
                *version = at;
            }
        }
    }
}

/// Returns type and object of an event.
fn read_line(line: &[u8]) -> Option<(String, Value)> {
    let mut event: Value = serde_json::from_slice(line).ok()?;
    let what = event.get("type")?.as_str()?.to_owned();
    Some((what, event.get_mut("object")?.take()))
}

/// Returns `text` as a value of a query.
fn form_urlencoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_type_and_its_object() {
        let (what, object) = read_line(br#"{"type":"ADDED","object":{"a":1}}"#).unwrap();
        assert_eq!((what.as_str(), object), ("ADDED", serde_json::json!({ "a": 1 })));
        for broken in [&b"{\"type\":\"ADDED\""[..], b"[]", b"{\"object\":{}}", b"\xff"] {
            assert!(read_line(broken).is_none());
        }
    }

    #[test]
    fn a_token_survives_a_query() {
        assert_eq!(form_urlencoded("aB3-._~"), "aB3-._~");
        assert_eq!(form_urlencoded("a=b+c/d%"), "a%3Db%2Bc%2Fd%25");
    }
}

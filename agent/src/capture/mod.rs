//! `margay capture` and `margay trace`: packets of the running node, each with its fate and with whoever decided it.
//!
//! ```text
//!  worker ─ tap ─▶ bounded channel ─▶ names put in ─▶ admin socket ─▶ pcapng file | one line a packet | stage by stage
//! ```
//!
//! Watching never holds a worker up: what finds no room is counted and told. A watcher that goes away takes its tap with it. Packets are
//! shown as they arrived; checksums that a pod leaves to its device are partial there, as they are for tcpdump.

mod names;
mod pcapng;
mod report;
mod watch;
mod words;

pub use names::{Names, filter, report};
pub use pcapng::FrameFile;
pub use report::{CaptureFilter, CaptureReport, EndFilter};
pub use watch::{Output, Watch, run};

//! The watcher's side: asks the agent, writes or prints what it tells.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::pcapng::CaptureFile;
use super::report::{CaptureFilter, CaptureReport};
use super::words;
use crate::admin::client::{ClientError, ask};
use crate::admin::protocol::{Reply, Request};

/// Where told packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Into a pcapng file; `-` is standard output.
    File(PathBuf),
    /// One line a packet.
    Lines,
    /// Stage by stage.
    Stages,
    /// One JSON value a packet.
    Json,
}

/// What is watched, and for how long.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Which packets.
    pub filter: CaptureFilter,
    /// End after so many.
    pub count: Option<u64>,
    /// End after so long.
    pub time: Option<Duration>,
    /// Where they go.
    pub output: Output,
}

enum Sink {
    File(CaptureFile<Box<dyn Write>>),
    Text(fn(&CaptureReport) -> String),
    Json,
}

/// Returns a flag that the first interrupt sets, so that a file ends with a whole packet. The second one ends the process.
fn interrupted() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut interrupts = {
        let _guard = runtime.enter();
        signal(SignalKind::interrupt())?
    };
    std::thread::Builder::new().name("margay-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            interrupts.recv().await;
            set.store(true, Ordering::Relaxed);
            interrupts.recv().await;
            std::process::exit(130);
        });
    })?;
    Ok(flag)
}

/// Watches until told to end, or until as much was seen as was asked for. Returns how many packets were told, and how many were missed.
///
/// Errors: [`ClientError`], with the agent's reason where it refused the filter, and with the file's name where it cannot be written.
pub fn run(socket: &Path, watch: &Watch) -> Result<(u64, u64), ClientError> {
    let mut sink = match &watch.output {
        Output::File(path) => {
            let named = |error: io::Error| {
                ClientError::Broken(io::Error::new(
                    error.kind(),
                    format!("{}: {error}; choose a place that can be written with --write", path.display()),
                ))
            };
            let file: Box<dyn Write> = if path == Path::new("-") {
                Box::new(BufWriter::new(io::stdout()))
            } else {
                Box::new(BufWriter::new(File::create(path).map_err(named)?))
            };
            Sink::File(CaptureFile::new(file).map_err(named)?)
        }
        Output::Lines => Sink::Text(|report| words::line(report) + "\n"),
        Output::Stages => Sink::Text(words::stages),
        Output::Json => Sink::Json,
    };
    let interrupted = interrupted()?;
    let begin = Instant::now();
    let (mut told, mut missed) = (0, 0);
    let request = Request::Capture { filter: watch.filter.clone() };
    let ended = ask(socket, &request, |reply| {
        match reply {
            Reply::Packet(report) => {
                match &mut sink {
                    Sink::File(file) => file.add(&report)?,
                    Sink::Text(render) => io::stdout().lock().write_all(render(&report).as_bytes())?,
                    Sink::Json => crate::admin::client::print_json(&report)?,
                }
                told += 1;
                missed += report.lost_before;
            }
            // Nothing more for the moment: what is written becomes visible.
            Reply::Watching { .. } => match &mut sink {
                Sink::File(file) => file.flush()?,
                Sink::Text(_) | Sink::Json => io::stdout().lock().flush()?,
            },
            _ => {}
        }
        let is_over = interrupted.load(Ordering::Relaxed)
            || watch.time.is_some_and(|time| begin.elapsed() >= time)
            || watch.count.is_some_and(|count| told >= count);
        if is_over { Err(ClientError::Enough) } else { Ok(()) }
    });
    if let Sink::File(file) = &mut sink {
        file.flush()?;
    }
    match ended {
        Ok(()) | Err(ClientError::Enough) => Ok((told, missed)),
        Err(error) => Err(error),
    }
}

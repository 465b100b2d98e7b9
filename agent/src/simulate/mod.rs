//! Verdicts without packets: a list of probes against manifests, for a user's own tests of policy.
//!
//! ```text
//!  manifests ─▶ Model ─▶ compiled tables ─┐
//!                 └────▶ oracle ──────────┼─▶ one line of JSON per probe, in order
//!  probes ────▶ question ─────────────────┘
//! ```
//!
//! Every pod and every interface of the cluster is judged here, so both legs of a packet are, and the host endpoints between them.
//! Nothing is asked of a running agent or of the kernel.

pub mod interfaces;
pub mod perspectives;
pub mod probe;
pub mod question;
pub mod world;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use margay_control::{Severity, manifests};
use margay_core::worker::EndpointToHost;
use margay_policy_engine::engine::Engine;
use margay_policy_engine::model::{Object, automatic_host_endpoints};
use margay_policy_engine::packet::{Direction, Verdict};
use margay_policy_engine::snapshot::Snapshot;
use serde::Serialize;

use perspectives::{Literally, Perspectives, Tables};
use probe::Probe;
use world::{Answer, Question, World};

/// Longest line of a probes file in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Who answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Judge {
    /// The tables that a node enforces.
    #[default]
    Compiled,
    /// The rules read literally.
    Oracle,
    /// Both, compared.
    Both,
}

/// What a pod may do to its own node, on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HostAction {
    /// Drop, as the agent does unless told otherwise.
    #[default]
    Drop,
    /// Accept, as the usual Kubernetes installations configure.
    Accept,
}

impl From<HostAction> for EndpointToHost {
    fn from(from: HostAction) -> Self {
        match from {
            HostAction::Drop => Self::Drop,
            HostAction::Accept => Self::Accept,
        }
    }
}

/// Why there are no answers at all.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The probes cannot be opened.
    #[error(
        "probes {path}: cannot be opened; name a file with one JSON object a line, or - for standard input"
    )]
    Probes {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Reading or writing failed on the way.
    #[error("probes cannot be read, or answers cannot be written")]
    Io(#[from] io::Error),
    /// An answer could not be put into JSON.
    #[error("answer cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// What to simulate.
#[derive(Debug)]
pub struct Simulation {
    /// Files and folders with manifests.
    pub manifests: Vec<PathBuf>,
    /// Probes, one JSON object a line; `-` is standard input.
    pub probes: PathBuf,
    /// Who answers.
    pub judge: Judge,
    /// Whether wrong manifests are only reported.
    pub lenient: bool,
    /// What a pod may do to its own node; else FelixConfiguration says, else it may do nothing.
    pub endpoint_to_host: Option<HostAction>,
}

/// A line of output.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    /// `Reject` where the sender of the denied packet is told; no part of a verdict, so the engines do not differ in it.
    #[serde(rename = "denyAction", skip_serializing_if = "Option::is_none")]
    deny_action: Option<&'static str>,
    /// The other opinion, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    oracle: Option<&'a Answer>,
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    error: &'a str,
    line: usize,
}

/// The world of some manifests, with both ways to ask about it.
#[derive(Debug)]
pub struct Simulator {
    perspectives: Perspectives,
    /// The names in it.
    pub world: World,
    /// Whether any manifest is wrong, warnings aside.
    pub has_errors: bool,
}

impl Simulator {
    /// Reads the manifests and compiles them. What is wrong with them goes to `complaints`, one line each.
    pub fn load(
        manifests: &[PathBuf],
        endpoint_to_host: Option<HostAction>,
        complaints: &mut impl Write,
    ) -> io::Result<Self> {
        let (mut model, problems) = manifests::load(manifests);
        for problem in &problems {
            writeln!(complaints, "{problem}")?;
        }
        let has_errors = problems.iter().any(|problem| problem.severity >= Severity::Error);
        for endpoint in automatic_host_endpoints(&model) {
            model.insert(Object::HostEndpoint(Arc::new(endpoint)));
        }
        let perspectives = Perspectives::of(model);
        let to_host = endpoint_to_host.map(EndpointToHost::from);
        let engine = &perspectives.common.engine;
        let world = World::new(engine.model(), engine.locals(), engine.interfaces(), to_host);
        Ok(Self { perspectives, world, has_errors })
    }

    /// Returns the answer of the compiled tables.
    pub fn compiled(&self, question: &Question<'_>) -> Answer {
        question.answer(&Tables(&self.perspectives))
    }

    /// Returns the answer of the rules read literally.
    pub fn oracle(&self, question: &Question<'_>) -> Answer {
        question.answer(&Literally(&self.perspectives))
    }

    /// Returns whether the sender is told that a pod's policy denied the packet (policy model 14.1, 32.9): by the first leg that did.
    pub fn rejects(&self, question: &Question<'_>) -> bool {
        let legs = [(&question.egress, Direction::Egress), (&question.ingress, Direction::Ingress)];
        let denial = legs.into_iter().find_map(|(leg, direction)| {
            let leg = leg.as_ref()?;
            let snapshot = self.perspectives.snapshot_of(&leg.pod);
            let judgement = snapshot.judge(leg.endpoint, direction, &question.packet)?;
            (judgement.verdict == Verdict::Deny).then(|| snapshot.rejects(judgement.rule))
        });
        denial.unwrap_or_default()
    }

    /// Returns the compiled tables, as nodes without settings of their own have them.
    pub fn snapshot(&self) -> &Snapshot {
        &self.perspectives.common.snapshot
    }

    /// Returns the engine behind them.
    pub fn engine(&self) -> &Engine {
        &self.perspectives.common.engine
    }
}

/// How often what happened.
#[derive(Debug, Default)]
struct Tally {
    bad_probes: usize,
    differences: usize,
}

/// Runs the simulation with answers on standard output and complaints on standard error.
///
/// Returns 3 when the engines differ, else 2 when a probe is wrong, else 1 when a manifest is wrong and `lenient` is off, else 0.
pub fn run(simulation: &Simulation) -> Result<ExitCode, SimulateError> {
    let simulator =
        Simulator::load(&simulation.manifests, simulation.endpoint_to_host, &mut io::stderr().lock())?;
    let probes: Box<dyn Read> = if simulation.probes == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(&simulation.probes);
        Box::new(opened.map_err(|source| SimulateError::Probes { path: simulation.probes.clone(), source })?)
    };
    let probes = BufReader::with_capacity(1 << 16, probes);
    let tally = answer_all(&simulator, simulation.judge, probes, io::stdout().lock())?;
    if tally.differences > 0 {
        eprintln!("{} probes on which the compiled tables and the oracle differ", tally.differences);
    }
    Ok(ExitCode::from(match tally {
        Tally { differences: 1.., .. } => 3,
        Tally { bad_probes: 1.., .. } => 2,
        _ if simulator.has_errors && !simulation.lenient => 1,
        _ => 0,
    }))
}

fn answer_all(
    simulator: &Simulator,
    judge: Judge,
    mut probes: BufReader<impl Read>,
    out: impl Write,
) -> Result<Tally, SimulateError> {
    let mut out = BufWriter::with_capacity(1 << 16, out);
    let mut tally = Tally::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if probes.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let parsed = serde_json::from_slice::<Probe>(text).map_err(|error| format!("not a probe: {error}"));
        match parsed.and_then(|probe| simulator.world.question(&probe)) {
            Ok(question) => {
                tally.differences += usize::from(write_answer(simulator, judge, &question, &mut out)?);
            }
            Err(error) => {
                tally.bad_probes += 1;
                serde_json::to_writer(&mut out, &ErrorLine { error: &error, line: number })?;
            }
        }
        out.write_all(b"\n")?;
        // A program that writes a probe and waits for its answer gets it; a long file is answered in large pieces.
        if probes.buffer().is_empty() {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(tally)
}

/// Writes the answer; returns whether the engines differ.
fn write_answer(
    simulator: &Simulator,
    judge: Judge,
    question: &Question<'_>,
    out: &mut impl Write,
) -> Result<bool, SimulateError> {
    let answer = match judge {
        Judge::Compiled | Judge::Both => simulator.compiled(question),
        Judge::Oracle => simulator.oracle(question),
    };
    let second = (judge == Judge::Both).then(|| simulator.oracle(question));
    let differing = second.as_ref().filter(|second| **second != answer);
    let deny_action = simulator.rejects(question).then_some("Reject");
    serde_json::to_writer(out, &Line { answer: &answer, deny_action, oracle: differing })?;
    Ok(differing.is_some())
}

//! `margay selector`: is it one, what does it mean, and does it match?
//!
//! One expression on the command line, or one question a line as JSON on standard input, each answered as soon as it is read.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::process::ExitCode;

use margay_policy_engine::model::Labels;
use margay_policy_engine::selector::Selector;
use serde::{Deserialize, Serialize};

/// Longest line of input in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A question on standard input.
#[derive(Deserialize)]
struct Question {
    selector: String,
    labels: Option<Labels>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Answer {
    Good {
        valid: bool,
        canonical: String,
        id: String,
        #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
        matches: Option<bool>,
    },
    Bad {
        valid: bool,
        /// Byte at which reading stopped, from 0.
        position: usize,
        reason: String,
    },
    NotAsked {
        error: String,
        line: usize,
    },
}

impl Answer {
    fn of(expression: &str, labels: Option<&Labels>) -> Self {
        match Selector::parse(expression) {
            Ok(selector) => Self::Good {
                valid: true,
                canonical: selector.canonical().to_owned(),
                id: selector.id(),
                matches: labels.map(|labels| selector.matches(labels)),
            },
            Err(error) => Self::Bad { valid: false, position: error.position, reason: error.reason },
        }
    }

    /// 0 for a selector, 1 for a text that is none, 2 for a line that is no question.
    fn code(&self) -> u8 {
        match self {
            Self::Good { .. } => 0,
            Self::Bad { .. } => 1,
            Self::NotAsked { .. } => 2,
        }
    }
}

/// Reads labels from the command line: a JSON object of texts.
pub fn parse_labels(text: &str) -> Result<Labels, String> {
    serde_json::from_str(text).map_err(|error| format!("not labels such as {{\"a\":\"b\"}}: {error}"))
}

/// Answers about `expression`, or else about every line of standard input. Returns the worst code of all answers.
pub fn run(expression: Option<&str>, labels: Option<&Labels>) -> io::Result<ExitCode> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let worst = match expression {
        Some(expression) => {
            let answer = Answer::of(expression, labels);
            write(&answer, &mut out)?;
            answer.code()
        }
        None => answer_lines(BufReader::with_capacity(1 << 16, io::stdin().lock()), &mut out)?,
    };
    out.flush()?;
    Ok(ExitCode::from(worst))
}

fn answer_lines(mut questions: BufReader<impl Read>, out: &mut impl Write) -> io::Result<u8> {
    let mut worst = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if questions.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let answer = match serde_json::from_slice::<Question>(text) {
            Ok(question) => Answer::of(&question.selector, question.labels.as_ref()),
            Err(error) => Answer::NotAsked {
                error: format!(
                    "not a question such as {{\"selector\":\"a == 'b'\",\"labels\":{{}}}}: {error}"
                ),
                line: number,
            },
        };
        worst = worst.max(answer.code());
        write(&answer, out)?;
        // A program that writes a line and waits for its answer gets it; a long file is answered in large pieces.
        if questions.buffer().is_empty() {
            out.flush()?;
        }
    }
    Ok(worst)
}

fn write(answer: &Answer, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, answer)?;
    out.write_all(b"\n")
}

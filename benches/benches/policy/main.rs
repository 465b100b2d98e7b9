//! Policy at scale: decisions, set membership, changes, cold starts and what they cost in memory, each beside the best peer of the same
//! run, against the numbers that this project wants to reach.
//!
//! ```text
//!   cargo bench -p benches --bench policy                 everything
//!   cargo bench -p benches --bench policy -- decision     the sections whose name contains a word
//! ```
//!
//! Every section runs in a process of its own, so that its peak memory is its own and one that does not end takes nothing with it:
//! `MARGAY_BENCH_LIMIT` (seconds, 600) ends it. `MARGAY_BENCH_SCALE` (1) multiplies the sizes; marks mean something at 1 only.
//! Peers are fetched as Debian packages and unpacked under the target directory; nothing is installed. Where one cannot be had its line
//! says so and the rest runs. This is a measurement: it ends with 0 whatever it finds.

mod decision;
mod growth;
mod membership;
mod peers;
mod report;
mod shapes;

use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use benches::{Result, machine};

type Section = fn() -> Result<()>;

const SECTIONS: [(&str, Section); 10] = [
    ("decision", decision::bench),
    ("flow-hit", decision::flow_hit),
    ("membership-100k", || membership::bench(100_000)),
    ("membership-1m", || membership::bench(1_000_000)),
    ("change", growth::change),
    ("cold-start", growth::cold_start),
    ("namespaces", growth::namespaces),
    ("members-10m", growth::members),
    ("wide-decision", decision::wide),
    ("nftables", decision::nftables),
];

/// Names the section that a child process is to run.
const CHILD: &str = "MARGAY_BENCH_SECTION";

fn main() -> Result<()> {
    if let Ok(name) = std::env::var(CHILD) {
        return match SECTIONS.iter().find(|(section, _)| *section == name) {
            Some((_, section)) => section(),
            None => Err(format!("no section {name}").into()),
        };
    }
    machine::describe("policy at scale");
    println!("   sizes x {}; a section ends after {:?} at the latest", shapes::scale(), limit());
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, _) in SECTIONS {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            println!();
            report::heading(name);
            let mut child = Command::new(std::env::current_exe()?).env(CHILD, name).spawn()?;
            match wait(&mut child, limit())? {
                Some(status) if status.success() => {}
                Some(status) => println!("SKIPPED {name}: {status}; its message is above"),
                None => println!("SKIPPED {name}: not done after {:?}", limit()),
            }
        }
    }
    Ok(())
}

fn limit() -> Duration {
    let seconds = std::env::var("MARGAY_BENCH_LIMIT").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(600))
}

/// Returns how the process ended, or `None` when it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

//! One line per number, beside what it must and should be.

/// What a number must be to pass.
#[derive(Clone, Copy)]
pub enum Want {
    /// At most the first, where that is finite; the goal is at most the second.
    AtMost(f64, f64),
    /// At least the first; the goal is at least the second.
    AtLeast(f64, f64),
    /// Shown for scale.
    Nothing,
}

/// Prints the heading of a section's lines.
pub fn heading(section: &str) {
    println!(
        "{:<62} {:>12} {:<6} {:>10} {:>10}  mark",
        format!("-- {section}"),
        "measured",
        "",
        "must",
        "goal"
    );
}

/// Prints one number with its mark: `goal`, `must`, or `missed`.
pub fn line(what: &str, value: f64, unit: &str, want: Want) {
    let (must, goal, mark) = match want {
        Want::AtMost(must, goal) if must.is_infinite() => {
            (String::new(), format!("<= {goal}"), if value <= goal { "goal" } else { "goal missed" })
        }
        Want::AtMost(must, goal) => {
            (format!("<= {must}"), format!("<= {goal}"), mark(value <= must, value <= goal))
        }
        Want::AtLeast(must, goal) => {
            (format!(">= {must}"), format!(">= {goal}"), mark(value >= must, value >= goal))
        }
        Want::Nothing => (String::new(), String::new(), ""),
    };
    println!("{what:<62} {value:>12.2} {unit:<6} {must:>10} {goal:>10}  {mark}");
}

fn mark(must: bool, goal: bool) -> &'static str {
    match (must, goal) {
        (_, true) => "goal",
        (true, false) => "must",
        (false, false) => "missed",
    }
}

/// Prints that a peer, or a part, could not be measured.
pub fn skipped(what: &str, why: impl std::fmt::Display) {
    println!("{what:<62} SKIPPED: {why}");
}

/// Returns the most memory that this process ever had resident, in MB.
pub fn peak_megabytes() -> f64 {
    status("VmHWM:")
}

/// Returns the memory that this process has resident now, in MB.
pub fn resident_megabytes() -> f64 {
    status("VmRSS:")
}

fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value =
        text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.map_or(f64::NAN, |kilobytes: f64| kilobytes / 1024.0)
}

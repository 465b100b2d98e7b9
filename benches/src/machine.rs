//! Where a bench ran: without that, a number says nothing.

use std::fs;

/// Prints kernel, processor and load, and the bench's own title.
pub fn describe(title: &str) {
    println!("\n== {title}");
    println!("   kernel {}; {} x {}; load average {}", kernel(), cpus(), processor(), load());
}

/// Returns the load averages of the last 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Returns the kernel's release.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Returns how many processors there are.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_owned()
    };
    format!("{} (family {} model {})", field("model name"), field("cpu family"), field("model\t"))
}

//! Where log lines go: standard error, one line each, as `MARGAY_LOG` says (such as `debug` or `margay_control=debug`); JSON with
//! `MARGAY_LOG_FORMAT=json`.

use tracing_subscriber::EnvFilter;

/// Begins to log. Call it once.
pub fn start() {
    let filter = EnvFilter::try_from_env("MARGAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if std::env::var("MARGAY_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}

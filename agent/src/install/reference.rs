//! The configuration page of the documentation: what can be said to the agent, from the parser of its command line and the decoder's table.

use clap::CommandFactory;
use margay_policy_engine::schema;

use crate::cli::Cli;

/// Returns docs/configuration.md.
pub fn page() -> String {
    let mut text = String::from(
        "# Configuration\n\nThree places: the command line of the agent (which the chart and `margay install` write), the values of the chart, and\n\
         FelixConfiguration objects in the cluster. This page is generated from the code\n\
         (`MARGAY_WRITE_DOCS=1 cargo test -p margay --bin margay install`).\n\n",
    );
    for (name, title) in [
        ("agent", "## The agent: `margay agent`"),
        ("install", "## The manifests: `margay install --dry-run`"),
        ("uninstall", "## Taking it off: `margay uninstall`"),
        ("doctor", "## Looking at a node: `margay doctor`"),
    ] {
        text.push_str(&format!("{title}\n\n{}\n", options(name)));
    }
    text.push_str("## The chart\n\n");
    text.push_str(&super::chart::documentation());
    text.push_str(
        "\n## FelixConfiguration\n\nObject `default` is for all nodes, `node.NAME` for one. Words may be written in any case. Every parameter is checked when it is\n\
         read; which of them have an effect is in [policy-model.md](policy-model.md).\n\n| parameter | may be |\n|---|---|\n",
    );
    for (name, what) in schema::felix_parameters() {
        text.push_str(&format!("| `{name}` | {what} |\n"));
    }
    text
}

fn options(name: &str) -> String {
    let mut root = Cli::command();
    root.build();
    let Some(command) = root.find_subcommand(name) else { return String::new() };
    let mut text = String::from("| option | default | |\n|---|---|---|\n");
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long().filter(|long| *long != "help") else { continue };
        let takes = argument.get_action().takes_values();
        let value = argument.get_value_names().filter(|_| takes);
        let value = value.map(|names| format!(" {}", names.join(" "))).unwrap_or_default();
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default =
            if takes && !defaults.is_empty() { format!("`{}`", defaults.join(",")) } else { String::new() };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let words: Vec<String> =
            argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let words =
            if takes && !words.is_empty() { format!(" One of {}.", words.join(", ")) } else { String::new() };
        let help = help.trim_end_matches('.').replace('|', "\\|");
        text.push_str(&format!("| `--{long}{value}` | {default} | {help}.{words} |\n"));
    }
    text
}

//! An explanation as text for a terminal.

use std::collections::BTreeMap;
use std::fmt;

use super::{By, End, Explanation, Leg, Outcome, PolicyStory, Says, TierStory};

impl Explanation {
    /// Returns the text. `all`: every policy that does not apply is listed with its reason, not only counted.
    pub fn text(&self, all: bool) -> String {
        let mut lines = Lines { text: String::new(), all };
        lines.add(0, &format!("{}: {}", self.packet, self.verdict));
        if let Some(reason) = &self.reason {
            lines.add(2, reason);
        }
        lines.add(0, "");
        lines.end("from", &self.source);
        lines.end("to", &self.destination);
        for leg in &self.legs {
            lines.add(0, "");
            lines.leg(leg);
        }
        lines.text
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(false))
    }
}

struct Lines {
    text: String,
    all: bool,
}

impl Lines {
    fn add(&mut self, indent: usize, line: &str) {
        if !line.is_empty() {
            self.text.extend(std::iter::repeat_n(' ', indent));
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn end(&mut self, word: &str, end: &End) {
        let belongs =
            if end.belongs_to.is_empty() { "nothing known".to_owned() } else { end.belongs_to.join(", ") };
        self.add(0, &format!("{word} {}: {belongs}", end.address));
        for (key, value) in &end.labels {
            self.add(4, &format!("{key}: {value}"));
        }
    }

    fn leg(&mut self, leg: &Leg) {
        let context = if leg.context == "normal" { String::new() } else { format!(", {}", leg.context) };
        let who = match &leg.by {
            Some(by) if leg.rejected => format!("{} by {by}, and the sender is told (Reject)", leg.verdict),
            Some(by) => format!("{} by {by}", leg.verdict),
            None if leg.verdict == Says::NoMatch => "nothing is decided here".to_owned(),
            None => format!("{}: policy does not know the endpoint (yet), so it is closed", leg.verdict),
        };
        self.add(0, &format!("{} of {}{context}: {who}", leg.direction, leg.subject));
        if let Some(other) = &leg.disagreement {
            self.add(2, &format!("!! read literally, the rules say otherwise: {other}; please report this"));
        }
        for tier in &leg.tiers {
            self.tier(tier);
        }
        if !leg.trace.is_empty() {
            self.add(2, &format!("recorded: {}", leg.trace.join("  ")));
        }
        if let Some(pending) = &leg.pending {
            let staged = "if the staged policies were enforced";
            if pending.differs {
                self.add(2, &format!("{staged}: {} by {}", pending.verdict, pending.by));
                self.add(2, &format!("pending: {}", pending.trace.join("  ")));
            } else {
                self.add(2, &format!("{staged}: the same"));
            }
        }
    }

    fn tier(&mut self, tier: &TierStory) {
        let title = match (tier.name.as_str(), tier.about.as_str()) {
            ("__PROFILE__", _) => "profiles".to_owned(),
            (name, about) => format!("tier {name} ({about})"),
        };
        match &tier.skipped {
            Some(why) => self.add(2, &format!("{title}: {why}")),
            None => self.add(2, &title),
        }
        let mut elsewhere: BTreeMap<&str, usize> = BTreeMap::new();
        for policy in &tier.policies {
            if policy.applies {
                self.policy(policy);
            } else if self.all {
                self.add(4, &format!("{} does not apply: {}", name(policy), policy.why));
            } else {
                *elsewhere.entry(policy.why.split(": ").next().unwrap_or_default()).or_default() += 1;
            }
        }
        for (why, count) in elsewhere {
            let (policies, do_not) = if count == 1 { ("policy", "does") } else { ("policies", "do") };
            self.add(4, &format!("{count} {policies} {do_not} not apply: {why}"));
        }
        if let Some(end) = &tier.end {
            self.add(4, &format!("at the end: {end}"));
        }
    }

    fn policy(&mut self, policy: &PolicyStory) {
        self.add(4, &format!("{}: {}", name(policy), policy.why));
        if policy.rules.is_empty() && policy.kind != "Profile" {
            self.add(6, "has no rules in this direction");
        }
        for rule in &policy.rules {
            let outcome = match rule.outcome {
                Outcome::NoMatch => format!("no match: {}", rule.why),
                Outcome::Log => "matches: log, and go on".to_owned(),
                Outcome::Allow => "matches: allow".to_owned(),
                Outcome::Deny => "matches: deny".to_owned(),
                Outcome::Pass => "matches: next tier".to_owned(),
            };
            self.add(6, &format!("rule {}: {outcome}", rule.index));
            self.add(8, &rule.rule);
        }
    }
}

fn name(policy: &PolicyStory) -> String {
    match policy.namespace.as_str() {
        "" => format!("{} {}", policy.kind, policy.name),
        namespace => format!("{} {namespace}/{}", policy.kind, policy.name),
    }
}

impl fmt::Display for Says {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::NoMatch => "no match",
        })
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tier = match self.tier.as_str() {
            "__PROFILE__" => "the profiles".to_owned(),
            "" => String::new(),
            tier => format!("tier {tier}"),
        };
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        let policy = format!("{} {}{slash}{}", self.kind, self.namespace, self.name);
        let place = if tier.is_empty() { String::new() } else { format!(" in {tier}") };
        match (self.name.is_empty(), self.rule) {
            (true, _) => write!(f, "the end of {tier}"),
            (false, 0..) => write!(f, "{policy} rule {}{place}", self.rule),
            (false, _) => write!(f, "{policy}{place}"),
        }
    }
}

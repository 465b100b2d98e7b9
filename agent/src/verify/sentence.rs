//! Statements as sentences, such as "only shop/web may reach port 5432 of shop/db".
//!
//! The grammar is strict and small ([`super::SENTENCES`]); a sentence outside of it is an error that shows it, never a guess.

use margay_policy_engine::selector::Selector;
use margay_policy_engine::verify::{Assertion, Claim, Peer, Pods, Service};

use super::language::{SENTENCES, net, service_text};

/// Reads a sentence.
///
/// Errors: where it leaves the grammar, and the grammar.
pub fn parse(text: &str) -> Result<Assertion, String> {
    let explain = |reason: String| format!("{reason}\nSentences:\n{SENTENCES}");
    let words = words(text).map_err(explain)?;
    Sentence { words: &words }.whole().map_err(explain)
}

/// A word; quoted ones are selectors and never keywords.
#[derive(Debug, PartialEq)]
enum Word {
    Plain(String),
    Quoted(String),
}

fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim().trim_end_matches('.');
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return Ok(words) };
        if first == '"' || first == '\'' {
            let Some((quoted, after)) = rest[1..].split_once(first) else {
                return Err(format!("a quote is not closed: {rest}"));
            };
            words.push(Word::Quoted(quoted.to_owned()));
            rest = after;
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(rest.len());
            if end == 0 {
                words.push(Word::Plain("and".to_owned()));
                rest = &rest[1..];
            } else {
                words.push(Word::Plain(rest[..end].to_owned()));
                rest = &rest[end..];
            }
        }
    }
}

/// What is left of a sentence.
struct Sentence<'a> {
    words: &'a [Word],
}

impl Sentence<'_> {
    fn whole(mut self) -> Result<Assertion, String> {
        let (claim, from) = if self.eats("no pod of") {
            let from = self.peers()?;
            self.expects("can reach")?;
            (Claim::Deny, from)
        } else if self.eats("nothing outside") {
            self.expects("can reach")?;
            (Claim::Deny, vec![Peer::Outside])
        } else if self.eats("nobody") {
            if !self.eats("may reach") {
                self.expects("can reach")?;
            }
            (Claim::Only, Vec::new())
        } else if self.eats("only") {
            let from = self.peers()?;
            if !self.eats("can reach") {
                self.expects("may reach")?;
            }
            (Claim::Only, from)
        } else if self.eats("every pod of") {
            let from = self.peers()?;
            self.expects("can reach")?;
            (Claim::Allow, from)
        } else {
            let from = self.peers()?;
            if self.eats("cannot reach") {
                (Claim::Deny, from)
            } else {
                self.expects("can reach")?;
                (Claim::Allow, from)
            }
        };
        let mut services = self.services()?;
        if !services.is_empty() {
            self.expects("of")?;
        }
        let to = self.peers()?;
        if services.is_empty() && self.eats("on") {
            services = self.services()?;
            if services.is_empty() {
                return Err(format!("ports are expected at {}", self.place()));
            }
        }
        if !self.words.is_empty() {
            return Err(format!("the sentence should end before {}", self.place()));
        }
        Ok(Assertion { claim, from, to, services, may_be_empty: false })
    }

    /// Takes words away if they come next; upper and lower case are alike.
    fn eats(&mut self, words: &str) -> bool {
        let wanted: Vec<&str> = words.split(' ').collect();
        let is_there = self.words.len() >= wanted.len()
            && wanted
                .iter()
                .zip(self.words)
                .all(|(wanted, word)| matches!(word, Word::Plain(word) if word.eq_ignore_ascii_case(wanted)));
        if is_there {
            self.words = &self.words[wanted.len()..];
        }
        is_there
    }

    fn expects(&mut self, words: &str) -> Result<(), String> {
        if self.eats(words) { Ok(()) } else { Err(format!("`{words}` is expected at {}", self.place())) }
    }

    fn place(&self) -> String {
        match self.words.first() {
            Some(Word::Plain(word) | Word::Quoted(word)) => format!("{word:?}"),
            None => "the end".to_owned(),
        }
    }

    /// Takes the next word, whatever it is; a keyword in its place would be a name.
    fn name(&mut self, what: &str) -> Result<String, String> {
        match self.words {
            [Word::Plain(word), rest @ ..] => {
                self.words = rest;
                Ok(word.clone())
            }
            _ => Err(format!("{what} is expected at {}", self.place())),
        }
    }

    /// Takes `NAMESPACE/NAME`.
    fn names(&mut self) -> Result<(Option<String>, Option<String>), String> {
        let name = self.name("NAMESPACE/NAME")?;
        let Some((namespace, name)) = name.split_once('/') else {
            return Err(format!("{name:?} should be NAMESPACE/NAME"));
        };
        Ok((Some(namespace.to_owned()), Some(name.to_owned())))
    }

    fn peers(&mut self) -> Result<Vec<Peer>, String> {
        let mut peers = vec![self.peer()?];
        while self.eats("or") {
            peers.push(self.peer()?);
        }
        Ok(peers)
    }

    fn peer(&mut self) -> Result<Peer, String> {
        let mut pods = Pods::default();
        if self.eats("namespace") {
            pods.namespace = Some(self.name("the name of a namespace")?);
        } else if self.eats("pods") {
            let [Word::Quoted(text), rest @ ..] = self.words else {
                return Err(format!("a selector in quotes is expected at {}", self.place()));
            };
            self.words = rest;
            pods.selector = Some(Selector::parse(text).map_err(|error| format!("{text:?}: {error}"))?);
            if self.eats("of namespace") {
                pods.namespace = Some(self.name("the name of a namespace")?);
            }
        } else if self.eats("pod") {
            (pods.namespace, pods.name) = self.names()?;
        } else if self.eats("service account") {
            (pods.namespace, pods.service_account) = self.names()?;
        } else if self.eats("outside") {
            return Ok(Peer::Outside);
        } else if self.eats("nodes") {
            return Ok(Peer::Nodes(None));
        } else if self.eats("node") {
            return Ok(Peer::Nodes(Some(self.name("the name of a node")?)));
        } else {
            let word = match self.words.first() {
                Some(Word::Plain(word)) => word,
                _ => return Err(format!("a peer is expected at {}", self.place())),
            };
            let may_be_net = word.contains(':') || word.starts_with(|first: char| first.is_ascii_digit());
            if may_be_net && let Ok(net) = net(word) {
                self.words = &self.words[1..];
                return Ok(Peer::Net(net));
            }
            if !word.contains('/') {
                return Err(format!("a peer is expected at {}", self.place()));
            }
            (pods.namespace, pods.called) = self.names()?;
        }
        Ok(Peer::Pods(pods))
    }

    /// Takes ports, if any come next.
    fn services(&mut self) -> Result<Vec<Service>, String> {
        let mut services = Vec::new();
        loop {
            if self.eats("port") || self.eats("ports") {
                services.push(service_text(&self.name("a port")?)?);
            } else {
                match self.words.first() {
                    Some(Word::Plain(word)) if !services.is_empty() || is_service(word) => {
                        services.push(service_text(word)?);
                        self.words = &self.words[1..];
                    }
                    _ => return Ok(services),
                }
            }
            if !self.eats("and") {
                return Ok(services);
            }
        }
    }
}

/// Whether a word names a protocol; a namespace of such a name is written with the word `namespace` before it, or as `pod`.
fn is_service(word: &str) -> bool {
    let name = word.split('/').next().unwrap_or_default();
    let is_upper = name.starts_with(|first: char| first.is_ascii_uppercase());
    is_upper && service_text(word).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Assertion {
        parse(text).unwrap_or_else(|reason| panic!("{text}: {reason}"))
    }

    #[test]
    fn the_sentences_of_the_grammar_are_understood() {
        let a = said("no pod of namespace a can reach namespace b");
        assert_eq!(
            (a.claim, a.from[0].to_string(), a.to[0].to_string()),
            (Claim::Deny, "namespace a".to_owned(), "namespace b".to_owned())
        );
        assert!(a.services.is_empty());
        let a = said("Only shop/web may reach port 5432 of shop/db.");
        assert_eq!(
            (a.claim, a.from[0].to_string()),
            (Claim::Only, "namespace shop, pod or app web".to_owned())
        );
        assert_eq!(a.services, [Service { protocol: None, ports: Some((5432, 5432)), icmp: None }]);
        let a = said("nothing outside can reach namespace shop on TCP/5432, UDP/53 and ICMP/8");
        assert_eq!((a.from[0].clone(), a.services.len()), (Peer::Outside, 3));
        assert_eq!(a.services[2], Service { protocol: Some(1), ports: None, icmp: Some(8) });
        let a =
            said("pods \"app == 'web'\" of namespace shop or 192.0.2.0/24 or fd00::1 cannot reach outside");
        assert_eq!((a.claim, a.from.len(), a.to[0].clone()), (Claim::Deny, 3, Peer::Outside));
        let a = said("service account shop/web can reach node n1 on ports 1-5");
        assert_eq!((a.claim, a.services[0].ports), (Claim::Allow, Some((1, 5))));
        let a = said("nobody can reach pod shop/db on UDP");
        assert_eq!((a.claim, a.from.len(), a.services[0].ports), (Claim::Only, 0, None));
        assert_eq!(said("every pod of namespace a can reach nodes").claim, Claim::Allow);
    }

    #[test]
    fn what_is_not_in_the_grammar_is_said_with_the_place_and_the_grammar() {
        for (text, reason) in [
            ("", "a peer is expected at the end"),
            ("namespace a can talk to namespace b", "`can reach` is expected at \"can\""),
            ("no pod of namespace a can reach namespace b on mondays", "ports are expected at \"mondays\""),
            ("no pod of namespace a can reach namespace b please", "should end before \"please\""),
            ("only web may reach shop/db", "a peer is expected at \"web\""),
            ("only shop/web may reach port x of shop/db", "\"x\" is no protocol"),
            ("pods 'app =' cannot reach outside", "single '='"),
            ("pods \"app", "a quote is not closed"),
        ] {
            let said = parse(text).expect_err(text);
            assert!(said.contains(reason) && said.contains("PEER:"), "{text}: {said}");
        }
    }
}

//! Arithmetic of prefixes: whose a network is, and what remains of one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// Returns the word of the longest prefix that has all of `net`.
pub fn longest<T: Copy>(rules: &[(IpNet, T)], net: IpNet) -> Option<T> {
    let above = rules.iter().filter(|(rule, _)| rule.contains(&net));
    above.max_by_key(|(rule, _)| rule.prefix_len()).map(|(_, word)| *word)
}

/// Returns the parts of `net` whose longest prefix in `rules` says `true`, or that are in none; as few prefixes as there can be.
pub fn selected(net: IpNet, rules: &[(IpNet, bool)]) -> Vec<IpNet> {
    let mut parts = Vec::new();
    select(net, rules, &mut parts);
    IpNet::aggregate(&parts)
}

fn select(net: IpNet, rules: &[(IpNet, bool)], parts: &mut Vec<IpNet>) {
    let word = longest(rules, net).unwrap_or(true);
    let differs = |(rule, other): &(IpNet, bool)| *rule != net && net.contains(rule) && *other != word;
    let below: Vec<(IpNet, bool)> =
        rules.iter().filter(|(rule, _)| net.contains(rule) || rule.contains(&net)).copied().collect();
    if !below.iter().any(differs) {
        if word {
            parts.push(net);
        }
        return;
    }
    // Something inside is otherwise, so the network has halves.
    if let Ok(halves) = net.subnets(net.prefix_len() + 1) {
        halves.for_each(|half| select(half, &below, parts));
    }
}

/// Returns the networks that overlap with one of another owner. An owner may name a network twice.
pub fn contested<'a>(claims: &[(IpNet, &'a str)]) -> BTreeSet<(IpNet, &'a str)> {
    let mut sorted: Vec<(IpNet, &str)> = claims.iter().map(|(net, owner)| (net.trunc(), *owner)).collect();
    sorted.sort_by_key(|(net, owner)| (net.network(), net.prefix_len(), *owner));
    let mut contested = BTreeSet::new();
    // Those that have the one at hand inside, the widest first.
    let mut around: Vec<(IpNet, &str)> = Vec::new();
    for claim in sorted {
        around.retain(|(net, _)| net.contains(&claim.0));
        for other in around.iter().filter(|(_, owner)| *owner != claim.1) {
            contested.extend([*other, claim]);
        }
        around.push(claim);
    }
    contested
}

/// Returns a network of one address.
pub fn of(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// Networks in 10.0.0.0/24, so that they meet.
    fn nets() -> impl Strategy<Value = IpNet> {
        (24u8..=32, any::<u8>())
            .prop_map(|(length, last)| IpNet::new(IpAddr::from([10, 0, 0, last]), length).unwrap().trunc())
    }

    #[test]
    fn what_is_cut_out_of_a_network_is_not_in_what_remains() {
        let rules = [(net("10.0.0.0/8"), true), (net("10.0.1.0/26"), false), (net("10.0.1.16/28"), true)];
        let parts: Vec<String> =
            selected(net("10.0.1.0/24"), &rules).iter().map(ToString::to_string).collect();
        assert_eq!(parts, ["10.0.1.16/28", "10.0.1.64/26", "10.0.1.128/25"]);
        assert_eq!(selected(net("10.0.1.0/30"), &rules), []);
        assert_eq!(selected(net("fd00::/64"), &rules), [net("fd00::/64")]);
        let deep = [(net("fd00::1/128"), false)];
        assert_eq!(selected(net("fd00::/64"), &deep).len(), 64);
    }

    proptest! {
        #[test]
        fn an_address_remains_exactly_where_its_longest_prefix_says_so(
            whole in nets(),
            rules in proptest::collection::btree_map(nets(), any::<bool>(), 0..8),
        ) {
            let rules: Vec<(IpNet, bool)> = rules.into_iter().collect();
            let parts = selected(whole, &rules);
            for address in whole.hosts().chain([whole.network(), whole.broadcast()]) {
                let wanted = longest(&rules, of(address)).unwrap_or(true);
                let found = parts.iter().filter(|part| part.contains(&address)).count();
                prop_assert_eq!(found, usize::from(wanted), "{}", address);
            }
        }

        #[test]
        fn contested_is_what_meets_a_network_of_somebody_else(
            claims in proptest::collection::vec((nets(), prop_oneof![Just("a"), Just("b"), Just("c")]), 0..12),
        ) {
            let found = contested(&claims);
            for claim in &claims {
                let meets = |other: &&(IpNet, &str)| {
                    other.1 != claim.1 && (other.0.contains(&claim.0) || claim.0.contains(&other.0))
                };
                prop_assert_eq!(found.contains(claim), claims.iter().any(|other| meets(&other)), "{:?}", claim);
            }
        }
    }
}

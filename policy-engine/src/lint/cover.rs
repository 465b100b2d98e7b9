//! Whether one rule matches everything that another one matches.
//!
//! Sound, not complete: `true` holds for every packet in every world; `false` may only mean that the proof is not found, as each criterion
//! is compared with its counterpart alone.

use ipnet::IpNet;

use crate::model::{Entity, IcmpMatch, PortMatch, Rule};
use crate::selector::Selector;

/// Returns whether `wide` matches every packet that `narrow` matches.
pub(super) fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let is_judged = wide.unenforced.is_empty() && wide.http.is_none();
    let version = family(wide).is_none_or(|version| restricted_to(narrow) == Some(version));
    let protocol = wide.protocol.is_none() || wide.protocol == narrow.protocol;
    let not_protocol = wide.not_protocol.is_none_or(|excluded| {
        narrow.not_protocol == Some(excluded) || narrow.protocol.is_some_and(|protocol| protocol != excluded)
    });
    let icmp = wide.icmp.is_none_or(|wide| narrow.icmp.is_some_and(|narrow| icmp_covers(wide, narrow)));
    let not_icmp = wide.not_icmp.is_none() || wide.not_icmp == narrow.not_icmp;
    is_judged
        && version
        && protocol
        && not_protocol
        && icmp
        && not_icmp
        && side_covers(&wide.source, narrow, &narrow.source)
        && side_covers(&wide.destination, narrow, &narrow.destination)
}

/// Returns whether everything that `narrow` selects is selected by `wide`: it is everything, or wants nothing that `narrow` does not want.
pub(super) fn selects_all_of(wide: &Selector, narrow: &Selector) -> bool {
    let wanted = conjuncts(narrow.canonical());
    wide.is_all() || conjuncts(wide.canonical()).iter().all(|part| wanted.contains(part))
}

/// Returns the parts that must all hold. Canonical text (policy model 5.4) has parentheses around every conjunction and disjunction, so
/// operators of one level never mix.
fn conjuncts(text: &str) -> Vec<&str> {
    let text = match text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        Some(inner) => inner,
        None => return vec![text],
    };
    let (mut depth, mut quote, mut start) = (0, None, 0);
    let mut parts = Vec::new();
    for (index, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(') => depth += 1,
            (None, b')') => depth -= 1,
            (None, b'|') if depth == 0 => return vec![text],
            (None, b'&') if depth == 0 && text[index..].starts_with("&& ") => {
                parts.extend(conjuncts(text[start..index].trim_end()));
                start = index + 3;
            }
            _ => {}
        }
    }
    parts.extend(conjuncts(&text[start..]));
    parts
}

/// Policy model 9.2: the family that a rule names or implies by its protocol.
fn family(rule: &Rule) -> Option<u8> {
    match (rule.ip_version, rule.protocol) {
        (Some(version), _) => Some(version),
        (None, Some(1)) => Some(4),
        (None, Some(58)) => Some(6),
        (None, _) => None,
    }
}

/// The only family in which a rule can match: as above, or that of its networks (4.3: a rule names those of one family).
fn restricted_to(rule: &Rule) -> Option<u8> {
    let sides = [&rule.source, &rule.destination];
    let nets = || sides.iter().flat_map(|side| side.nets.iter().chain(&side.not_nets));
    family(rule).or_else(|| {
        let first = nets().next()?.addr().is_ipv4();
        nets().all(|net| net.addr().is_ipv4() == first).then_some(if first { 4 } else { 6 })
    })
}

fn icmp_covers(wide: IcmpMatch, narrow: IcmpMatch) -> bool {
    let kind = wide.kind.is_none() || wide.kind == narrow.kind;
    let code = wide.code.is_none() || wide.code == narrow.code;
    kind && code
}

fn side_covers(wide: &Entity, rule: &Rule, narrow: &Entity) -> bool {
    let within = |net: &IpNet, nets: &[IpNet]| nets.iter().any(|outer| outer.contains(net));
    let nets = wide.nets.is_empty()
        || !narrow.nets.is_empty() && narrow.nets.iter().all(|net| within(net, &wide.nets));
    let disjoint =
        |net: &IpNet| wide.not_nets.iter().all(|excluded| !excluded.contains(net) && !net.contains(excluded));
    // PM-D7: exclusions limit a rule to their family, so the other rule has to be limited to it as well.
    let same_family = || {
        let families: Vec<bool> = wide.not_nets.iter().map(|net| net.addr().is_ipv4()).collect();
        restricted_to(rule).is_some_and(|version| families.iter().all(|is_v4| *is_v4 == (version == 4)))
    };
    let not_nets = wide.not_nets.is_empty()
        || same_family()
            && (!narrow.nets.is_empty() && narrow.nets.iter().all(disjoint)
                || wide.not_nets.iter().all(|excluded| within(excluded, &narrow.not_nets)));
    let selector = match (&wide.selector, &narrow.selector) {
        (None, _) => true,
        (Some(wide), Some(narrow)) => selects_all_of(wide, narrow),
        (Some(_), None) => false,
    };
    let not_selector = wide.not_selector.is_none() || wide.not_selector == narrow.not_selector;
    let service = wide.service.is_none() || wide.service == narrow.service;
    let nodes = wide.nodes.is_none() || wide.nodes == narrow.nodes;
    let domains = wide.domains.is_empty();
    nets && not_nets
        && selector
        && not_selector
        && service
        && nodes
        && domains
        && ports_cover(wide, narrow)
        && exclusions_cover(wide, rule, narrow)
}

fn ports_cover(wide: &Entity, narrow: &Entity) -> bool {
    let covered = |port: &PortMatch| match port {
        PortMatch::Range { first, last } => range_within(*first, *last, &wide.ports),
        // A name means the endpoints that the selector of its own side matches (policy model 9.4); the selectors were compared already.
        PortMatch::Named(_) => wide.ports.contains(port),
    };
    wide.ports.is_empty() || !narrow.ports.is_empty() && narrow.ports.iter().all(covered)
}

fn exclusions_cover(wide: &Entity, rule: &Rule, narrow: &Entity) -> bool {
    if wide.not_ports.is_empty() {
        return true;
    }
    if wide.not_ports.iter().any(|port| matches!(port, PortMatch::Named(_))) {
        return wide.not_ports == narrow.not_ports && wide.selector == narrow.selector;
    }
    let has_ports = matches!(rule.protocol, Some(6 | 17 | 132)) || !narrow.ports.is_empty();
    let excluded = |port: &PortMatch| match port {
        PortMatch::Range { first, last } => range_within(*first, *last, &narrow.not_ports),
        PortMatch::Named(_) => false,
    };
    let apart = |port: &PortMatch| {
        match port {
        PortMatch::Range { first, last } => !wide.not_ports.iter().any(
            |other| matches!(other, PortMatch::Range { first: low, last: high } if low <= last && first <= high),
        ),
        PortMatch::Named(_) => false,
    }
    };
    let all_excluded = wide.not_ports.iter().all(excluded);
    let all_apart = !narrow.ports.is_empty() && narrow.ports.iter().all(apart);
    has_ports && (all_excluded || all_apart)
}

/// Returns whether every port from `first` to `last` is in one of the ranges of `ports`.
fn range_within(first: u16, last: u16, ports: &[PortMatch]) -> bool {
    let mut ranges: Vec<(u16, u16)> = ports
        .iter()
        .filter_map(|port| match port {
            PortMatch::Range { first, last } => Some((*first, *last)),
            PortMatch::Named(_) => None,
        })
        .collect();
    ranges.sort_unstable();
    let mut next = u32::from(first);
    for (low, high) in ranges {
        if u32::from(low) <= next && next <= u32::from(high) {
            next = u32::from(high) + 1;
        }
    }
    next > u32::from(last)
}

//! Ports that policy of host endpoints never closes, as rules ahead of every tier (policy model 11.9).

use super::lists::{ListKey, ListOwner, ListSource, Lists};
use super::program::Part;
use super::sets::Sets;
use crate::model::{Action, Failsafe, HostEndpoint, Model, PortMatch, Rule, Settings};
use crate::packet::{Context, Direction};
use crate::snapshot::Attribution;

/// Returns the failsafe ports of a place, ahead of every tier (policy model 11.9).
pub(crate) fn part(
    model: &Model,
    endpoint: &HostEndpoint,
    (context, direction): (Context, Direction),
    known: &mut Lists,
    sets: &mut Sets,
    lists: &mut Vec<ListKey>,
) -> Part {
    let settings = Settings::of_node(model, &endpoint.node);
    let is_stateless = context == Context::Untracked;
    let (own, other) = match direction {
        Direction::Ingress => (&settings.failsafe_inbound, &settings.failsafe_outbound),
        Direction::Egress => (&settings.failsafe_outbound, &settings.failsafe_inbound),
    };
    let replies = if is_stateless { other.as_slice() } else { &[] };
    let rules: Vec<Rule> = own
        .iter()
        .map(|port| rule(port, direction, false))
        .chain(replies.iter().map(|port| rule(port, direction, true)))
        .collect();
    let names: Vec<String> = own.iter().chain(replies).map(name_of).collect();
    let name = |index: usize| Attribution {
        tier: String::new(),
        kind: "Failsafe".to_owned(),
        namespace: String::new(),
        name: names.get(index).cloned().unwrap_or_default(),
        rule: -1,
    };
    let key = (ListOwner::Failsafe(endpoint.node.clone(), is_stateless), direction);
    let list = known.get(&key, ListSource::Unknown, &rules, name, sets);
    lists.push(key);
    Part::Failsafe { list, leaves: is_stateless }
}

/// The peer of an inbound packet is its source, that of an outbound one its destination; a reply has the port on the other side.
fn rule(failsafe: &Failsafe, direction: Direction, is_reply: bool) -> Rule {
    let mut rule = Rule { protocol: Some(failsafe.protocol), ..Rule::everything(Action::Allow) };
    let port = vec![PortMatch::Range { first: failsafe.port, last: failsafe.port }];
    if is_reply {
        rule.source.ports = port;
    } else {
        rule.destination.ports = port;
    }
    let peer = match direction {
        Direction::Ingress => &mut rule.source,
        Direction::Egress => &mut rule.destination,
    };
    peer.nets.extend(failsafe.net.filter(|net| net.prefix_len() > 0 || net.addr().is_ipv6()));
    rule
}

fn name_of(failsafe: &Failsafe) -> String {
    let protocol = match failsafe.protocol {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    format!("{protocol}:{}", failsafe.port)
}

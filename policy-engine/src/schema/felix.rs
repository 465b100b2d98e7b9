//! FelixConfiguration (policy model 27), from the table that the decoder reads it by: a parameter is written down once.

use super::rules::elsewhere;
use super::shape::{
    Field, Shape, boolean, integer, list, mapping, required, text, text_up_to, words_of_any_case,
};
use crate::decode::felix::{
    ENDPOINT_TO_HOST, FAILSAFES, PARAMETERS, SWITCHES, Shape as Parameter, TIMEOUT_STATES, WITHOUT_EFFECT,
};

/// The `spec`.
pub(super) fn configuration() -> Shape {
    mapping(fields())
}

fn fields() -> Vec<Field> {
    let failsafe = || {
        let port = mapping(vec![
            ("protocol", "tcp, udp or sctp; tcp if absent.", text_up_to(8)),
            ("port", "The number.", integer(1, 65_535)),
            ("net", "Only from or to this network; any if absent.", text_up_to(64)),
        ]);
        list(required(port, &["port"]))
    };
    let mut fields: Vec<Field> = Vec::new();
    for name in FAILSAFES {
        fields.push((name, "Ports of a host that no policy closes.", failsafe()));
    }
    let (name, shape) = ENDPOINT_TO_HOST;
    fields.push((name, "What a pod's packets to its own node meet after its egress policy.", of(shape)));
    let switches = [
        "Whether addresses that a pod's annotations claim are believed.",
        "Whether namespace selectors are limited to objects that have a namespace.",
        "Whether an Allow rule matches as if a criterion that is not enforced were absent.",
    ];
    fields.extend(SWITCHES.into_iter().zip(switches).map(|(name, what)| (name, what, boolean())));
    fields.extend(PARAMETERS.into_iter().map(|(name, shape)| (name, describe(shape), of(shape))));
    fields.extend(elsewhere(WITHOUT_EFFECT));
    fields
}

fn of(parameter: Parameter) -> Shape {
    match parameter {
        Parameter::Boolean => boolean(),
        Parameter::Integer(low, high) => integer(low, high),
        Parameter::OneOf(words) => words_of_any_case(words),
        Parameter::Networks => list(text_up_to(64)),
        // A single port is a number there, a range a text.
        Parameter::PortRanges => list(super::shape::number_or_text("^[0-9:]{1,11}$")),
        Parameter::DnsServers => list(text()),
        Parameter::Timeouts => {
            mapping(TIMEOUT_STATES.into_iter().map(|state| (state, "A duration, or Auto.", text())).collect())
        }
        Parameter::Scalar => super::shape::anything(),
        Parameter::Duration
        | Parameter::Text
        | Parameter::Interface
        | Parameter::InterfacePrefixes
        | Parameter::InterfaceNames
        | Parameter::Rate
        | Parameter::Selector => text(),
    }
}

fn describe(parameter: Parameter) -> &'static str {
    match parameter {
        Parameter::Boolean => "A switch.",
        Parameter::Integer(..) => "A whole number.",
        Parameter::Duration => "A duration such as 90s, 5m or 1h30m.",
        Parameter::Text => "A text.",
        Parameter::OneOf(_) => "A word, in any case.",
        Parameter::Interface => "Name of an interface; empty turns the feature off.",
        Parameter::InterfacePrefixes => "Beginnings of interface names, several between commas.",
        Parameter::InterfaceNames => {
            "Interfaces, or regular expressions between slashes, several between commas."
        }
        Parameter::Networks => "Networks and addresses.",
        Parameter::PortRanges => "Ports and ranges of ports.",
        Parameter::Rate => "A rate such as 100/second.",
        Parameter::Selector => "A selector over labels.",
        Parameter::DnsServers => "Servers: address, address and port, or k8s-service:NAMESPACE/NAME.",
        Parameter::Timeouts => "Durations by state; Auto takes the kernel's.",
        Parameter::Scalar => "A single value.",
    }
}

/// A parameter for people: name, what may stand there, in the order of the table.
pub(super) fn documentation() -> Vec<(&'static str, String)> {
    let words = |words: &[&str]| words.join(", ");
    let mut rows: Vec<(&'static str, String)> = Vec::new();
    rows.extend(FAILSAFES.map(|name| (name, "ports of a host that no policy closes".to_owned())));
    let what = |shape| match shape {
        Parameter::OneOf(listed) => words(listed),
        Parameter::Integer(low, high) => format!("{low} to {high}"),
        Parameter::Boolean => "true, false".to_owned(),
        other => describe(other).trim_end_matches('.').to_ascii_lowercase(),
    };
    rows.push((ENDPOINT_TO_HOST.0, what(ENDPOINT_TO_HOST.1)));
    rows.extend(SWITCHES.map(|name| (name, what(Parameter::Boolean))));
    rows.extend(PARAMETERS.into_iter().map(|(name, shape)| (name, what(shape))));
    rows
}

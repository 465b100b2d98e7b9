//! Rules, their two sides, and what else several kinds share (policy model 2.8 to 2.12).

use super::shape::{
    Field, Shape, anything, integer, list, list_up_to, mapping, number, number_or_text, required, ruled,
    selector, text, text_map, text_up_to, words,
};

/// `TCP`, `6`, `"6"`.
pub(super) fn protocol() -> Shape {
    number_or_text("^(TCP|UDP|ICMP|ICMPv6|SCTP|UDPLite|[1-9][0-9]{0,2})$")
}

fn ports() -> Shape {
    list_up_to(50, number_or_text("^[A-Za-z0-9_.:-]{1,128}$"))
}

fn icmp() -> Shape {
    let type_ = ("type", "Type of the message.", integer(0, 254));
    mapping(vec![type_, ("code", "Code of the message; needs a type beside it.", integer(0, 255))])
}

fn side() -> Shape {
    let nets = || list_up_to(256, text_up_to(64));
    let accounts = mapping(vec![
        ("names", "The peer's service account is one of these.", list(text_up_to(253))),
        ("selector", "The labels of the peer's service account match.", selector()),
    ]);
    let service = mapping(vec![
        ("name", "Name of the Service.", text_up_to(253)),
        ("namespace", "Its namespace; in a namespaced policy the policy's own if absent.", text_up_to(63)),
    ]);
    mapping(vec![
        ("nets", "The address lies in one of these networks.", nets()),
        ("notNets", "The address lies in none of these networks.", nets()),
        ("selector", "The address belongs to an object with such labels.", selector()),
        ("notSelector", "The address belongs to no object with such labels.", selector()),
        (
            "namespaceSelector",
            "Where the other selectors look: namespaces with such labels, or global().",
            selector(),
        ),
        ("ports", "The port is one of these: a number, a range \"first:last\", a name.", ports()),
        ("notPorts", "The port is none of these.", ports()),
        ("serviceAccounts", "The peer runs as such a service account.", accounts),
        ("services", "The peer is an endpoint of this Service.", service),
        (
            "domains",
            "The address was given to a pod as the answer for one of these domains.",
            list(text_up_to(1024)),
        ),
    ])
}

fn http() -> Shape {
    let path =
        mapping(vec![("exact", "The path is this.", text()), ("prefix", "The path begins so.", text())]);
    let path = ruled(path, "has(self.exact) != has(self.prefix)", "write exactly one of exact and prefix");
    let operators = ["Exists", "DoesNotExist", "HasPrefix", "HasSuffix", "In", "NotIn", "MatchesRegex"];
    let header = mapping(vec![
        ("header", "Name of the header.", text_up_to(256)),
        ("operator", "How its value is compared.", words(&operators)),
        ("values", "What it is compared with.", list_up_to(20, text())),
    ]);
    mapping(vec![
        ("methods", "The method is one of these; \"*\" is any.", list_up_to(20, text_up_to(256))),
        ("paths", "The path is one of these.", list_up_to(20, path)),
        ("headers", "Every one of these holds.", list_up_to(20, required(header, &["header", "operator"]))),
    ])
}

/// Rules of one direction.
pub(super) fn rules() -> Shape {
    let annotations = ("annotations", "Remarks; they change no verdict.", text_map());
    let mut version = integer(4, 6);
    version["enum"] = serde_json::json!([4, 6]);
    let rule = mapping(vec![
        ("action", "What happens to a packet that matches.", words(&["Allow", "Deny", "Log", "Pass"])),
        ("ipVersion", "Only packets of this family.", version),
        ("protocol", "The protocol, by name or number.", protocol()),
        ("notProtocol", "Any protocol but this.", protocol()),
        ("icmp", "The type and code of an ICMP message; needs a protocol ICMP or ICMPv6.", icmp()),
        ("notICMP", "Any ICMP message but these.", icmp()),
        ("source", "Who sends.", side()),
        ("destination", "Who receives.", side()),
        ("http", "The request; only with Allow, in ingress rules.", http()),
        ("metadata", "Remarks.", mapping(vec![annotations])),
    ]);
    list_up_to(1024, required(rule, &["action"]))
}

/// The fields that every policy of `projectcalico.org/v3` has.
pub(super) fn policy_fields() -> Vec<Field> {
    let unique = "self.size() == 1 || self[0] != self[1]";
    let types = ruled(
        list_up_to(2, words(&["Ingress", "Egress"])),
        &format!("self.size() == 0 || {unique}"),
        "a direction is written twice; remove one",
    );
    vec![
        ("tier", "The tier it belongs to; default if absent.", text_up_to(253)),
        ("order", "Its place in the tier, lower first; last if absent.", number()),
        ("ingress", "Rules for what comes in, in order.", rules()),
        ("egress", "Rules for what goes out, in order.", rules()),
        ("selector", "The endpoints it governs, by their labels; all if absent.", selector()),
        ("serviceAccountSelector", "Only pods that run as a service account with such labels.", selector()),
        ("types", "The directions it governs; follows from the rules if absent.", types),
        ("performanceHints", "Never changes a verdict.", list_up_to(1, words(&["AssumeNeededOnEveryNode"]))),
    ]
}

/// What a global policy has beside them.
pub(super) fn global_fields() -> Vec<Field> {
    let boolean = super::shape::boolean;
    vec![
        ("namespaceSelector", "Only pods of namespaces with such labels.", selector()),
        (
            "doNotTrack",
            "Judged for every packet before connections are known; needs applyOnForward.",
            boolean(),
        ),
        ("preDNAT", "Judged before addresses of services are translated; needs applyOnForward.", boolean()),
        ("applyOnForward", "Judged for what a host forwards, too.", boolean()),
    ]
}

/// `stagedAction` of the staged kinds.
pub(super) fn staged_field() -> Field {
    (
        "stagedAction",
        "What enforcing it would do; Set if absent.",
        words(&["", "Set", "Delete", "Learn", "Ignore"]),
    )
}

fn label_selector() -> Shape {
    let expression = mapping(vec![
        ("key", "Key of a label.", text()),
        ("operator", "How its value is compared.", words(&["In", "NotIn", "Exists", "DoesNotExist"])),
        ("values", "What it is compared with.", list(text())),
    ]);
    mapping(vec![
        ("matchLabels", "These labels have these values.", text_map()),
        ("matchExpressions", "Every one of these holds.", list(required(expression, &["key", "operator"]))),
    ])
}

/// The fields of a Kubernetes NetworkPolicy, for its staged form.
pub(super) fn kubernetes_fields() -> Vec<Field> {
    let rule = |peers: &'static str| {
        let block = mapping(vec![
            ("cidr", "The network.", text()),
            ("except", "Networks within it that do not count.", list(text())),
        ]);
        let peer = mapping(vec![
            ("podSelector", "Pods with such labels.", label_selector()),
            ("namespaceSelector", "Pods of namespaces with such labels.", label_selector()),
            ("ipBlock", "Addresses of a network.", block),
        ]);
        let port = mapping(vec![
            ("protocol", "TCP, UDP or SCTP; TCP if absent.", text()),
            ("port", "A number, or the name of a port.", number_or_text("^.*$")),
            ("endPort", "The last port of a range.", integer(1, 65_535)),
        ]);
        list(mapping(vec![
            ("ports", "The port is one of these; any if absent.", list(port)),
            (peers, "The other end is one of these; anybody if absent.", list(peer)),
        ]))
    };
    vec![
        ("podSelector", "The pods it governs; all of the namespace if empty.", label_selector()),
        ("ingress", "What may come in.", rule("from")),
        ("egress", "What may go out.", rule("to")),
        ("policyTypes", "The directions it governs.", list_up_to(2, words(&["Ingress", "Egress"]))),
    ]
}

/// Fields that another program reads.
pub(super) fn elsewhere<const N: usize>(names: [&'static str; N]) -> impl Iterator<Item = Field> {
    names
        .into_iter()
        .map(|name| (name, "Kept for other programs; this dataplane does not read it.", anything()))
}

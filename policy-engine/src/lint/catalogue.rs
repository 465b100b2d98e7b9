//! Every lint: what it finds, why that matters, how to mend it.

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; often as intended.
    Info,
    /// Probably not what was meant.
    Warning,
    /// Does not do what it says.
    Error,
}

/// One kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Stable name.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is found.
    pub title: &'static str,
    /// What comes of it.
    pub why: &'static str,
    /// What to do.
    pub mend: &'static str,
    /// Where the policy model says so.
    pub section: &'static str,
}

/// Defines the lints and the list of all of them.
macro_rules! lints {
    ($($name:ident: $id:literal, $severity:ident, $section:literal, $title:literal, $why:literal, $mend:literal;)*) => {
        $(
            #[doc = $title]
            pub const $name: Lint = Lint {
                id: $id,
                severity: Severity::$severity,
                title: $title,
                why: $why,
                mend: $mend,
                section: $section,
            };
        )*
        /// Every lint, in the order of the documentation.
        pub const ALL: &[&Lint] = &[$(&$name),*];
    };
}

lints! {
    INVALID_OBJECT: "invalid-object", Error, "4",
        "The object is invalid.",
        "It is not taken over: the last valid form stays in force, and where there is none a policy is in force in its closed form.",
        "Mend the field that is named.";
    UNKNOWN_FIELD: "unknown-field", Warning, "4.1",
        "The object has a field that does not exist.",
        "What was meant by it has no effect.",
        "Use the name that is proposed, or remove the field.";
    SET_ASIDE: "set-aside", Warning, "4",
        "Something in the object has no effect.",
        "It was read and set aside.",
        "Remove it, or write what is meant.";
    SELECTS_NOTHING: "selects-nothing", Warning, "6.1",
        "The policy selects nothing in these manifests.",
        "It has no effect on any pod or host endpoint.",
        "Compare its selectors with the labels of the pods, and its namespace with theirs.";
    IMPOSSIBLE_SELECTOR: "impossible-selector", Error, "5.8",
        "A selector contradicts itself.",
        "It wants two values of one label, or a label that it also excludes: no object can ever match.",
        "Join the alternatives with || or `in`, or remove one of them.";
    PEER_SELECTS_NOTHING: "peer-selects-nothing", Info, "6.3",
        "The selector of a rule matches nothing in these manifests.",
        "The rule matches no packet, or excludes nobody.",
        "Compare the selector with the labels of pods, host endpoints and network sets.";
    SELECTOR_STAYS_IN_NAMESPACE: "selector-stays-in-namespace", Warning, "6.3",
        "A selector of a NetworkPolicy would match objects of other namespaces only.",
        "Without namespaceSelector the selectors of a NetworkPolicy see its own namespace, network sets included.",
        "Add namespaceSelector: all() or a narrower one; for global network sets, namespaceSelector: global().";
    SHADOWED_RULE: "shadowed-rule", Warning, "8.4",
        "A rule is never reached: an earlier one of the policy matches everything that it matches.",
        "The first rule that matches decides.",
        "Remove the rule, or move it before the one that is named.";
    ALLOW_COVERS_DENY: "allow-covers-deny", Error, "8.4",
        "A Deny is never reached: an Allow before it is wider.",
        "The first rule that matches decides, so what the Deny excludes is allowed.",
        "Move the Deny before the Allow.";
    UNREACHABLE_POLICY: "unreachable-policy", Warning, "8.4",
        "The rules of a policy are never reached: an earlier policy decides about every packet of the endpoints it selects.",
        "Allow and Deny are final; Pass skips the rest of the tier.",
        "Give it a smaller order or an earlier tier, or narrow the policy that is named.";
    LOG_ONLY: "log-only", Error, "8.4",
        "A policy only logs, and thereby denies.",
        "Log does not decide. The policy makes its tier apply, and at the end of the tier what matched nothing is denied.",
        "Add a rule that passes: `- action: Pass`, or put the policy into a tier whose defaultAction is Pass.";
    MISSING_TIER: "missing-tier", Error, "8.6",
        "A policy names a tier that does not exist.",
        "It is evaluated after all tiers that exist, and denies what its rules do not match.",
        "Create the Tier, or correct the name.";
    UNKNOWN_NAMED_PORT: "unknown-named-port", Warning, "9.4",
        "Nobody declares a port of that name.",
        "A named port matches the pods and host endpoints that declare it, with the protocol of the rule; here none does.",
        "Declare the port in the pods' containers, correct the name or the protocol, or write the number.";
    SERVICE_ADDRESS: "service-address", Error, "16.1",
        "An egress rule names the address of a Service.",
        "Egress policy sees the address of the backend: translation comes first. The rule never matches connections to the Service.",
        "Use `services: {name, namespace}` in the destination, or a selector of the backends.";
    CLIENT_ADDRESS_LOST: "client-address-lost", Warning, "16.3",
        "An ingress rule names addresses of clients that a Service hides.",
        "With externalTrafficPolicy Cluster, kube-proxy puts a node's address in place of the client's, so the rule does not match them.",
        "Set externalTrafficPolicy: Local on the Service, or judge the clients in a preDNAT policy of host endpoints.";
    SERVICE_WITHOUT_ENDPOINTS: "service-without-endpoints", Info, "10.6",
        "A rule names a Service that has no endpoints in these manifests.",
        "It matches nobody.",
        "Correct name and namespace; add the EndpointSlices if the manifests are meant to be complete.";
    NEGATIVE_SCOPE: "negative-scope", Warning, "6.2",
        "A negative selector of namespaces or service accounts also selects host endpoints and global network sets.",
        "They have no such labels, and what is not there differs from every value.",
        "Add `&& has(projectcalico.org/name)` to it, or set restrictNamespaceSelectors in FelixConfiguration.";
    NETWORK_SET_WIDENS: "network-set-widens", Warning, "6.3",
        "A rule that names a namespace also matches the addresses of its network sets.",
        "Who may create a NetworkSet there decides whom the rule lets in.",
        "Add a selector that network sets do not match, such as has(projectcalico.org/orchestrator).";
    INERT_RULE: "inert-rule", Warning, "18.2",
        "A rule has criteria that packets are not judged by (http, domains).",
        "While nothing enforces them, an Allow or Pass with them matches nothing.",
        "Write the rule without them where that is narrow enough, or set allowUnenforcedCriteria to behave as Calico.";
    HOST_NETWORK_POD: "host-network-pod", Warning, "7.5",
        "A selector matches pods that share the network of their node.",
        "Such pods have no endpoint and no address of their own: policy neither governs them nor knows them as peers.",
        "Govern them by host endpoints; name them as peers by nets, nodes or the labels of host endpoints.";
    MISSING_NAMESPACE: "missing-namespace", Warning, "8.6",
        "Pods are in a namespace whose Namespace is not in the manifests.",
        "The profile of the namespace is missing then, and what no policy decides is denied instead of allowed.",
        "Add the Namespace.";
    DENY_OWN_NODE: "deny-own-node", Info, "12.6",
        "An ingress rule denies the node of a pod that it selects.",
        "A node always reaches its own pods, whatever their policy says: probes of the kubelet depend on it.",
        "Nothing, if other nodes are meant; the node itself can be kept out by host endpoint policy at the source only.";
    NODE_LOCAL_DNS: "node-local-dns", Info, "7.5",
        "A rule lets pods ask DNS pods, and node-local-dns answers in their place.",
        "Pods ask an address of their node then, which no pod selector matches; what is tracked as a connection to the DNS pods is not theirs.",
        "Allow port 53 of the address that node-local-dns listens on as well, usually 169.254.20.10/32.";
    HOST_ENDPOINT_CLOSED: "host-endpoint-closed", Warning, "11.5",
        "A host endpoint has no policy and no profile in a direction.",
        "Everything to or from the host itself is denied there, failsafe ports apart; forwarded traffic is not.",
        "Add `profiles: [projectcalico-default-allow]`, or a policy that allows what is needed.";
    MISSING_PROFILE: "missing-profile", Error, "8.6",
        "A host endpoint lists a profile that does not exist.",
        "In its place everything that policies do not decide is denied.",
        "Create the Profile, or correct the name.";
    UNTRACKED_ON_STAR: "untracked-on-star", Error, "11.7",
        "A doNotTrack policy selects a host endpoint for all interfaces.",
        "doNotTrack is not supported on interfaceName \"*\": the policy is ignored there.",
        "Write host endpoints for the interfaces by name.";
    ORDER_ACROSS_CONTEXTS: "order-across-contexts", Info, "11.2",
        "An untracked or preDNAT policy comes first although another policy has a smaller order.",
        "`order` counts within a context only: untracked policy is asked first, then preDNAT, then the others.",
        "Nothing, if that is meant; else move the rules into policies of one context.";
    STAGED_LEFTOVER: "staged-leftover", Info, "19",
        "A staged policy is in the manifests.",
        "It has no effect on verdicts; `explain` shows what it would do.",
        "Enforce it under the kind without Staged, or delete it.";
    STAGED_WITHOUT_NAMESAKE: "staged-without-namesake", Warning, "19.1",
        "A staged policy with stagedAction Delete names no policy that is enforced.",
        "There is nothing that it would remove.",
        "Delete it, or correct kind, name, namespace and tier.";
    FLOWS_KEPT: "flows-kept", Info, "13.6",
        "Policy changes leave live connections alone.",
        "policyChangeFlowAction Keep lets a connection that a new policy denies go on until it ends.",
        "Remove policyChangeFlowAction: connections are judged again by default.";
}

/// Returns the page of the documentation about lints.
pub fn documentation() -> String {
    let mut page = String::from(
        "# What `margay lint` finds\n\n\
         `margay lint PATH…` reads manifests and tells what they probably do not mean. It asks no cluster: what is not in the files does not\n\
         exist, so give it pods, namespaces and Services beside the policies. Every finding names the object, the field, what is wrong and how\n\
         to mend it; the numbers are sections of the policy model. Exit code: 0 when there is nothing above info, 1 when there is, 2 when a\n\
         file cannot be read.\n\n\
         A finding about reachability (`shadowed-rule`, `allow-covers-deny`, `unreachable-policy`) is only made where it holds for every\n\
         packet: one earlier rule is compared with one later rule, criterion by criterion. Several earlier rules that together cover a later\n\
         one are not found.\n\n\
         This page is generated from the code (`MARGAY_WRITE_DOCS=1 cargo test -p margay-policy-engine --test lint`).\n",
    );
    for (severity, title) in
        [(Severity::Error, "Errors"), (Severity::Warning, "Warnings"), (Severity::Info, "Info")]
    {
        page.push_str(&format!("\n## {title}\n"));
        for lint in ALL.iter().filter(|lint| lint.severity == severity) {
            let Lint { id, title, why, mend, section, .. } = lint;
            page.push_str(&format!("\n### {id}\n\n{title} {why}\n\nMend: {mend} (policy model {section})\n"));
        }
    }
    page.push_str(
        "\n## Reality\n\nFindings that need the pods are left out when the manifests hold none. Named ports, selectors and addresses are\n\
         compared with the manifests as they are; pods that come later are not known.\n",
    );
    page
}

//! margay on a node whose kernel has the rules of kube-proxy (its nftables mode), and a forward chain that drops by default as container
//! engines leave it: who reaches whom is as before, and the node itself reaches Services.

mod common;

use std::fs;

use common::{Lab, THREE_PODS, skipped, within};

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: far, namespace: shop}
spec:
  podSelector: {matchLabels: {app: far}}
  ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: NODE1_V4/32}}, {ipBlock: {cidr: 'NODE1_V6/128'}}]}]
";

const EVERYBODY: [&str; 5] = ["shop/web", "shop/db", "shop/far", "node1", "node2"];
const PORT: u16 = 8000;

/// Names of chains, maps and marks are kube-proxy's; one Service for each of `backends`, the nth at port 8000 + n of `service`.
fn rules(family: &str, pods: &str, service: &str, backends: &[&str]) -> String {
    let v6 = family == "ip6";
    let (kind, wrap) = if v6 { ("ipv6_addr", "[") } else { ("ipv4_addr", "") };
    let close = if v6 { "]" } else { "" };
    let mut chains = String::new();
    let mut elements = Vec::new();
    for (nth, backend) in backends.iter().enumerate() {
        let port = usize::from(PORT) + nth;
        elements.push(format!("{service} . tcp . {port} : goto service-{nth}"));
        chains += &format!(
            "  chain service-{nth} {{\n    {family} daddr {service} tcp dport {port} {family} saddr != {pods} jump mark-for-masquerade\n    \
             numgen random mod 1 vmap {{ 0 : goto endpoint-{nth} }}\n  }}\n  chain endpoint-{nth} {{\n    {family} saddr {backend} jump mark-for-masquerade\n    \
             meta l4proto tcp dnat to {wrap}{backend}{close}:{PORT}\n  }}\n"
        );
    }
    format!(
        "table {family} kube-proxy {{
  counter forwarded_from_pods {{ }}
  map service-ips {{
    type {kind} . inet_proto . inet_service : verdict
    elements = {{ {} }}
  }}
  chain mark-for-masquerade {{
    meta mark set meta mark or 0x4000
  }}
{chains}  chain services {{
    {family} daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100
    jump services
  }}
  chain masquerading {{
    meta mark and 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat
    jump masquerading
  }}
  chain filter-forward {{
    type filter hook forward priority -110
    {family} saddr {pods} counter name forwarded_from_pods
    ct state invalid drop
  }}
  chain filter-input {{
    type filter hook input priority -110
    ct state invalid drop
  }}
}}
table {family} filter {{
  chain FORWARD {{
    type filter hook forward priority filter; policy drop
    meta mark and 0x4000 == 0x4000 accept
    ct state related,established accept
  }}
}}
",
        elements.join(", ")
    )
}

/// Who gets a page from whom, in both families.
fn matrix(lab: &Lab) -> Vec<(String, bool)> {
    let mut seen = Vec::new();
    for from in EVERYBODY {
        for to in EVERYBODY.iter().filter(|to| **to != from) {
            for address in lab.addresses(to) {
                seen.push((format!("{from} to {to} at {address}"), lab.fetches(from, &address, PORT)));
            }
        }
    }
    seen
}

#[test]
fn connections_and_policies_are_the_same_beside_kube_proxy() {
    let name = "connections_and_policies_are_the_same_beside_kube_proxy";
    if skipped(name, &["curl", "python3", "nft"]) {
        return;
    }
    let lab = Lab::up("k", THREE_PODS);
    let _servers = EVERYBODY.map(|place| lab.serve(place, PORT));
    let [node_v4, node_v6] = lab.addresses("node1");
    lab.apply("policy.yaml", &POLICY.replace("NODE1_V4", &node_v4).replace("NODE1_V6", &node_v6));
    let [far_v4, far_v6] = lab.addresses("shop/far");
    assert!(within(5, || !lab.fetches("shop/web", &far_v4, PORT)), "the policy is not in force");
    let before = matrix(&lab);
    let open = before.iter().filter(|(_, open)| *open).count();
    assert!(open > 8 && open < before.len() - 4, "some are open and some closed: {before:?}");

    let [db_v4, db_v6] = lab.addresses("shop/db");
    let text = rules("ip", "10.244.0.0/16", "10.96.0.10", &[&far_v4, &db_v4])
        + &rules("ip6", "fd44::/16", "fd96::10", &[&far_v6, &db_v6]);
    let file = lab.directory.join("kube-proxy.nft");
    fs::write(&file, text).expect("rules");
    for node in ["node1", "node2"] {
        lab.must(node, &["nft", "-f", &file.to_string_lossy()]);
        // Service addresses leave by the way out until the rules change them, as with a default route.
        let other = if node == "node1" { "node2" } else { "node1" };
        let [v4, v6] = lab.addresses(other);
        lab.ip(&lab.netns(node), &format!("route add 10.96.0.0/12 via {v4}"));
        lab.ip(&lab.netns(node), &format!("-6 route add fd96::/16 via {v6}"));
    }
    let after = matrix(&lab);
    let changed: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(changed.is_empty(), "before and after: {changed:?}{}", lab.diagnosis());

    // The kernel of the node translates what the node itself sends: to a pod of the other node, and to its own.
    for service in ["10.96.0.10", "fd96::10"] {
        for port in [PORT, PORT + 1] {
            assert!(
                within(3, || lab.fetches("node1", service, port)),
                "node1 to {service}:{port}{}",
                lab.diagnosis()
            );
        }
    }
    // node2 is a stranger to the other node's pod, behind a Service as without one: policy sees its own address.
    assert!(lab.fetches("node2", "10.96.0.10", PORT));
    assert!(!lab.fetches("node2", "10.96.0.10", PORT + 1), "policy of shop/db admits shop/web alone");

    // What pods say to each other never goes through the kernel, so its rules have no say in it.
    for node in ["node1", "node2"] {
        for family in ["ip", "ip6"] {
            let counted =
                lab.must(node, &["nft", "list", "counter", family, "kube-proxy", "forwarded_from_pods"]);
            assert!(counted.contains("packets 0 "), "{node}, {family}: {counted}");
        }
    }

    // Policy changes reach through as before.
    lab.withdraw("policy.yaml");
    assert!(
        within(5, || lab.fetches("shop/web", &far_v4, PORT) && lab.fetches("shop/web", &far_v6, PORT)),
        "{}",
        lab.diagnosis()
    );
    lab.books_balance();
}

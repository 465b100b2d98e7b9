//! What is said about encryption between nodes (policy model 25.1, 32.2 to 32.4), and what it comes to for one node and one address.
//!
//! ```text
//!  FelixConfiguration node.NAME ─▶ default ─▶ Installation default     switches, first that says anything
//!  IPPool: encryption WireGuard / None                                 by longest prefix, WireGuard where no pool says
//! ```

use std::time::Duration;

use ipnet::IpNet;

use super::{FelixConfiguration, Model};
use crate::selector::Selector;

/// An Installation object of Calico's operator, as far as encryption goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Installation {
    /// Name; `default` is the one that counts.
    pub name: String,
    /// `wireguard: Enabled` or `Disabled`: the switch for both families, where no FelixConfiguration says otherwise.
    pub wireguard: Option<bool>,
    /// Networks that its IP pools have: pods' addresses, whether or not a Node has handed them out yet.
    pub pools: Vec<IpNet>,
}

/// Encryption of one family on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionFamily {
    /// The switch; `None` where nobody says.
    pub enabled: Option<bool>,
    /// UDP port that is listened on; nodes assume the same of each other.
    pub port: u16,
    /// Largest packet inside; 0 is what fits the uplink.
    pub mtu: u16,
}

/// What the configuration says about encryption on one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Encryption {
    /// IPv4 over IPv4.
    pub v4: EncryptionFamily,
    /// IPv6 over IPv6.
    pub v6: EncryptionFamily,
    /// `wireguardKeepAlive`; `None` is never.
    pub keepalive: Option<Duration>,
    /// `wireguardHostEncryptionEnabled`.
    pub host: bool,
    /// `encryptionMode: Strict`.
    pub strict: bool,
    /// `wireguardKeyRotationInterval`; `None` is never.
    pub rotation: Option<Duration>,
    /// `prometheusWireGuardMetricsEnabled`.
    pub metrics: bool,
    /// `encryptionExemptNodes`: nodes whose pods may be spoken to in clear though the mode is Strict.
    pub exempt: Option<Selector>,
}

impl Default for Encryption {
    fn default() -> Self {
        let family = |port| EncryptionFamily { enabled: None, port, mtu: 0 };
        Self {
            v4: family(51_820),
            v6: family(51_821),
            keepalive: None,
            host: false,
            strict: false,
            rotation: None,
            metrics: true,
            exempt: None,
        }
    }
}

impl Encryption {
    /// Returns what holds on `node`, field by field: its own FelixConfiguration before `default`, and the Installation for the switches
    /// that neither has.
    pub fn of_node(model: &Model, node: &str) -> Self {
        let mut found = Self::default();
        let installed = model.installations.get("default").and_then(|found| found.wireguard);
        (found.v4.enabled, found.v6.enabled) = (installed, installed);
        for name in ["default".to_owned(), format!("node.{node}")] {
            if let Some(written) = model.felix_configurations.get(&name) {
                found.follow(written);
            }
        }
        found
    }

    fn follow(&mut self, written: &FelixConfiguration) {
        let text = |name: &str| written.others.get(name).map(String::as_str);
        let switch = |name: &str| text(name).map(|text| text == "true");
        let families = [(&mut self.v4, ""), (&mut self.v6, "V6")];
        for (family, suffix) in families {
            let of = |name: &str| text(&format!("{name}{suffix}"));
            family.enabled = switch(&format!("wireguardEnabled{suffix}")).or(family.enabled);
            // An empty interface name turns the feature off (policy model 25.1).
            if of("wireguardInterfaceName") == Some("") {
                family.enabled = Some(false);
            }
            let number = |name: &str| of(name).and_then(|text| text.parse().ok());
            family.port = number("wireguardListeningPort").unwrap_or(family.port);
            family.mtu = number("wireguardMTU").unwrap_or(family.mtu);
        }
        let duration = |name: &str, before: Option<Duration>| match text(name) {
            Some(text) => seconds(text).filter(|found| !found.is_zero()),
            None => before,
        };
        self.keepalive = duration("wireguardKeepAlive", self.keepalive);
        self.rotation = duration("wireguardKeyRotationInterval", self.rotation);
        self.host = switch("wireguardHostEncryptionEnabled").unwrap_or(self.host);
        self.metrics = switch("prometheusWireGuardMetricsEnabled").unwrap_or(self.metrics);
        self.strict = text("encryptionMode").map_or(self.strict, |mode| mode == "Strict");
        if let Some(text) = text("encryptionExemptNodes") {
            // It was parsed when it was decoded.
            self.exempt = Selector::parse(text).ok();
        }
    }
}

/// Reads a duration in its canonical form.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

impl Model {
    /// Returns the networks of pods that are known to exist, with whether their traffic is to be encrypted (policy model 32.2), ordered;
    /// the longest prefix counts. Disabled pools count too: pods may still have their addresses.
    pub fn encryption_of_pools(&self) -> Vec<(IpNet, bool)> {
        let mut pools = std::collections::BTreeMap::new();
        for pool in self.ip_pools.values() {
            // Two pools of one network cannot be told apart: what is to be encrypted wins.
            *pools.entry(pool.cidr).or_default() |=
                pool.others.get("encryption").is_none_or(|word| word != "None");
        }
        for net in self.installations.get("default").iter().flat_map(|found| &found.pools) {
            pools.entry(*net).or_insert(true);
        }
        pools.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::IpPool;

    fn felix(model: &mut Model, name: &str, fields: &[(&str, &str)]) {
        let others = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let written = FelixConfiguration { name: name.to_owned(), others, ..Default::default() };
        model.felix_configurations.insert(name.to_owned(), Arc::new(written));
    }

    #[test]
    fn pm_25_1_a_node_may_opt_out_and_every_field_has_its_default() {
        let mut model = Model::default();
        assert_eq!(Encryption::of_node(&model, "a"), Encryption::default());
        felix(
            &mut model,
            "default",
            &[("wireguardEnabled", "true"), ("wireguardKeepAlive", "25s"), ("wireguardListeningPortV6", "7")],
        );
        felix(
            &mut model,
            "node.b",
            &[("wireguardEnabled", "false"), ("wireguardMTU", "1380"), ("wireguardKeepAlive", "0s")],
        );
        let (a, b) = (Encryption::of_node(&model, "a"), Encryption::of_node(&model, "b"));
        assert_eq!((a.v4.enabled, a.v6.enabled, a.v6.port), (Some(true), None, 7));
        assert_eq!((a.keepalive, a.strict, a.host), (Some(Duration::from_secs(25)), false, false));
        assert_eq!((b.v4.enabled, b.v4.mtu, b.v4.port, b.keepalive), (Some(false), 1380, 51_820, None));
        felix(&mut model, "node.a", &[("wireguardInterfaceName", "")]);
        assert_eq!(Encryption::of_node(&model, "a").v4.enabled, Some(false), "no name, no device");
    }

    #[test]
    fn the_installation_is_a_switch_for_what_no_felix_configuration_says() {
        let mut model = Model::default();
        let installed = Installation { name: "default".into(), wireguard: Some(true), pools: vec![] };
        model.installations.insert("default".into(), Arc::new(installed));
        let found = Encryption::of_node(&model, "a");
        assert_eq!((found.v4.enabled, found.v6.enabled), (Some(true), Some(true)));
        felix(&mut model, "default", &[("wireguardEnabledV6", "false")]);
        let found = Encryption::of_node(&model, "a");
        assert_eq!((found.v4.enabled, found.v6.enabled), (Some(true), Some(false)));
    }

    #[test]
    fn pm_32_2_a_pool_says_for_its_network_whether_it_is_encrypted() {
        let mut model = Model::default();
        let mut pool = |name: &str, cidr: &str, word: Option<&str>| {
            let others = word.map(|word| ("encryption".to_owned(), word.to_owned())).into_iter().collect();
            let cidr = cidr.parse().unwrap();
            let pool = IpPool { name: name.into(), cidr, nat_outgoing: false, disabled: false, others };
            model.ip_pools.insert(name.into(), Arc::new(pool));
        };
        pool("a", "10.244.0.0/16", None);
        pool("b", "10.245.0.0/16", Some("None"));
        pool("c", "10.246.0.0/16", Some("WireGuard"));
        pool("d", "10.247.0.0/16", Some("WireGuard"));
        pool("e", "10.247.0.0/16", Some("None"));
        let found: Vec<bool> = model.encryption_of_pools().into_iter().map(|(_, word)| word).collect();
        assert_eq!(found, [true, false, true, true]);
    }
}

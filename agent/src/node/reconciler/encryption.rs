//! What the control thread does about encryption: asks the [`Conductor`], and puts what it says in force.
//!
//! ```text
//!  Conductor ─▶ plan ──────▶ workers
//!            ├▶ addresses ─▶ the kernel's end of the host port
//!            ├▶ hosts ─────▶ routes into the host port
//!            └▶ MTU, report ▶ board
//! ```
//!
//! An address is there before a route names it as a source, and gone after the last one did.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use margay_control::{Problem, Severity};
use margay_core::topology::PortKind;
use margay_core::tunnel::PublicKey;
use margay_policy_engine::engine::Change;
use margay_policy_engine::model::{Object, ObjectKey};

use margay_io::netlink::Address;

use super::super::host_port::lead_to_gateways;
use super::{Reconciler, chain};
use crate::encryption::conductor::{Conductor, Outcome};
use crate::net::routes::{NodeRoute, Way};

/// How often things are looked at that nobody tells us of, while something is under way, and when all is done.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(10);

/// Encryption of this node.
pub(super) struct Encryption {
    conductor: Conductor,
    /// What is in force.
    pub outcome: Outcome,
    changed: bool,
    due: Instant,
    /// Why sealed packets do not come to the workers.
    refusal: Option<String>,
}

impl Encryption {
    pub fn new(conductor: Conductor) -> Self {
        Self { conductor, outcome: Outcome::default(), changed: true, due: Instant::now(), refusal: None }
    }
}

/// That encryption is as it should be, as far as it is known. Only [`Reconciler::settle_encryption`] makes one.
pub(super) struct EncryptionSettled(());

/// Whether encryption may be another because of a change.
pub(super) fn concerns(change: &Change) -> bool {
    match change {
        Change::Upsert(object) => matches!(
            object,
            Object::Node(_) | Object::FelixConfiguration(_) | Object::IpPool(_) | Object::Installation(_)
        ),
        Change::Delete(key) => matches!(
            key,
            ObjectKey::Node(_)
                | ObjectKey::FelixConfiguration(_)
                | ObjectKey::IpPool(_)
                | ObjectKey::Installation(_)
        ),
        _ => false,
    }
}

impl Reconciler {
    /// Has `conductor` decide about encryption.
    pub fn encrypt_with(&mut self, conductor: Conductor) {
        self.encryption = Some(Encryption::new(conductor));
    }

    /// Notes that something changed that encryption follows from.
    pub(super) fn encryption_changed(&mut self) {
        if let Some(encryption) = &mut self.encryption {
            encryption.changed = true;
        }
    }

    /// Does what is due about encryption. Nothing before the first complete picture: what Nodes say is half of it.
    pub(super) fn settle_encryption(&mut self) -> EncryptionSettled {
        let Some(encryption) = self.encryption.as_mut().filter(|_| self.complete) else {
            return EncryptionSettled(());
        };
        if !encryption.changed && Instant::now() < encryption.due {
            return EncryptionSettled(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let dataplane = &self.dataplane;
        let speaks_under = |key: PublicKey| match dataplane.tunnel_report() {
            Ok(report) => report.own.iter().any(|own| own.key == key && own.users > 0),
            // Whoever cannot be asked may use it.
            Err(_) => true,
        };
        let uplinks = self.ports.values().filter(|(port, _)| matches!(port.kind, PortKind::Uplink));
        let mtu = uplinks.map(|(port, _)| port.mtu).min().unwrap_or(1_500);
        let outcome = encryption.conductor.settle(self.engine.model(), now, &speaks_under, mtu);
        encryption.changed = false;
        encryption.due = Instant::now() + if outcome.is_settled { LATER } else { SOON };
        let before = std::mem::replace(&mut encryption.outcome, outcome);
        let outcome = &encryption.outcome;
        if outcome.plan.generation != before.plan.generation || encryption.refusal.is_some() {
            tracing::info!(generation = outcome.plan.generation, "what is encrypted changes");
            let refusal = dataplane.set_encryption(&outcome.plan).err().map(|error| chain(&error));
            if let Some(error) = &refusal {
                tracing::warn!(error, "sealed packets to this node do not come to the workers");
                encryption.due = Instant::now() + SOON;
            }
            encryption.refusal = refusal;
        }
        self.topology_changed |= outcome.interface != before.interface || outcome.hosts != before.hosts;
        self.show_encryption();
        EncryptionSettled(())
    }

    /// Gives the kernel's end of the host port the addresses that our own packets for remote pods come from. Returns those that it has.
    pub(super) fn assign_interface_addresses(&mut self) -> BTreeSet<IpAddr> {
        let device = self.kernel_end.index;
        let outcome = self.encryption.as_ref().map(|encryption| &encryption.outcome);
        let wanted: BTreeSet<IpAddr> =
            outcome.into_iter().flat_map(|outcome| &outcome.interface).copied().collect();
        // A pod that has the address keeps it.
        let of_pods: BTreeSet<IpAddr> =
            self.endpoints.values().flat_map(|record| record.addresses.iter().copied()).collect();
        let view = self.follower.current();
        let mut there: BTreeSet<IpAddr> = view
            .addresses
            .iter()
            .filter(|at| at.ifindex == device && !is_link_local(&at.ip))
            .map(|at| at.ip)
            .collect();
        for address in wanted.iter().filter(|address| !there.contains(address)).copied().collect::<Vec<_>>() {
            if of_pods.contains(&address) {
                tracing::warn!(%address, "a pod has the address that this node's packets for remote pods would have");
                continue;
            }
            match self.netlink.add_address(device, IpNet::from(address)) {
                Ok(()) => drop(there.insert(address)),
                Err(error) => tracing::warn!(
                    error = chain(&error),
                    "packets of this node for remote pods are not encrypted"
                ),
            }
        }
        there.retain(|address| wanted.contains(address));
        there
    }

    /// Takes away addresses that an earlier state or run left, once no route names them. Returns whether any was, which takes routes along.
    pub(super) fn release_interface_addresses(&mut self, kept: &BTreeSet<IpAddr>) -> bool {
        let device = self.kernel_end.index;
        let view = self.follower.current();
        let is_gone =
            |at: &&Address| at.ifindex == device && !is_link_local(&at.ip) && !kept.contains(&at.ip);
        let gone: Vec<IpNet> = view
            .addresses
            .iter()
            .filter(is_gone)
            .filter_map(|at| IpNet::new(at.ip, at.prefix).ok())
            .collect();
        // What an earlier run left may be wanted still; nobody knows before the first complete picture.
        if !self.complete || gone.is_empty() {
            return false;
        }
        let mut done = gone.iter().try_for_each(|net| self.netlink.remove_address(device, *net));
        if done.is_ok() {
            let gateways = [self.config.gateway_v4, self.config.gateway_v6];
            done = lead_to_gateways(&mut self.netlink, device, gateways);
        }
        if let Err(error) = done {
            tracing::warn!(error = chain(&error), "an address of an earlier state is not taken away cleanly");
            self.topology_changed = true;
        }
        true
    }

    /// Returns the nodes whose packets go through the host port.
    pub(super) fn hosts(&self) -> BTreeSet<IpAddr> {
        self.encryption.as_ref().map(|encryption| encryption.outcome.hosts.clone()).unwrap_or_default()
    }

    /// Takes away routes to nodes that an earlier run left: without sessions, packets on them would wait or be lost.
    pub(super) fn forget_host_routes(&mut self, wanted: &BTreeSet<IpAddr>) {
        let device = self.kernel_end.index;
        let nodes: BTreeSet<IpAddr> =
            self.engine.model().nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
        let view = self.follower.current();
        let left = view.routes.iter().filter(|route| {
            route.rank == 1
                && route.prefix.prefix_len() == route.prefix.max_prefix_len()
                && route.hop.is_some_and(|hop| hop.ifindex == device)
                && nodes.contains(&route.prefix.addr())
                && !wanted.contains(&route.prefix.addr())
        });
        for route in left {
            let Some(gateway) = route.hop.and_then(|hop| hop.gateway) else { continue };
            let way = Way::Via { gateway, device, source: None };
            let route = NodeRoute { destination: route.prefix, way, metric: 0 };
            if let Err(error) = self.netlink.delete_route(&route) {
                tracing::warn!(error = chain(&error), "a route of an earlier state stays");
            }
        }
    }

    /// Lets the node's own packets go their usual way again: nobody will seal them.
    pub(super) fn end_encryption(&mut self) {
        if !self.hosts().is_empty() {
            self.forget_host_routes(&BTreeSet::new());
        }
    }

    fn show_encryption(&self) {
        let Some(Encryption { outcome, refusal, .. }) = &self.encryption else { return };
        let mut board = self.board.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        board.pod_mtu = outcome.pod_mtu;
        board.wireguard.clone_from(&outcome.report);
        board.encryption_problems.clone_from(&outcome.problems);
        board.encryption_problems.extend(refusal.as_ref().map(|error| {
            let text = format!("sealed packets to this node do not come to the workers: {error}");
            Problem::of_file("encryption", Severity::Error, text)
        }));
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

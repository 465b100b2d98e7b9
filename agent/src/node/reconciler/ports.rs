//! Ports come and go: pods as the CNI plug-in says, the host's and the uplinks once.

use margay_core::PortIndex;
use margay_core::topology::{Port, PortKind};
use margay_io::{PortSpec, Role as PortRole};
use margay_policy_engine::engine::{Change, LocalEndpoint};
use margay_policy_engine::model::NamespacedName;
use margay_wire::MacAddr;

use super::{FIRST_UPLINK, HOST, Reconciler, chain};
use crate::endpoints::EndpointRecord;
use crate::net::Link;

impl Reconciler {
    /// Takes over a pod's interface; its pod is closed until a snapshot knows it.
    pub(super) fn open_port(&mut self, record: &EndpointRecord) -> Result<(), String> {
        let spec = PortSpec {
            index: record.port,
            device: record.host_ifname.clone(),
            role: PortRole::Pod,
            pin: record.pin.clone(),
            queues: Some(1),
        };
        // The device of a new pod is down until its program stands on it.
        let report = self.dataplane.add_port_as(spec, self.manner.choice).map_err(|e| chain(&e))?;
        if let Err(error) = self.manner.prepare(record, report.mode) {
            let _ = self.dataplane.remove_port(record.port);
            return Err(chain(&error));
        }
        if let Err(error) = self.netlink.set_up(record.host_ifindex, true) {
            let _ = self.dataplane.remove_port(record.port);
            return Err(chain(&error));
        }
        self.manner.tell(record);
        let port = Port {
            index: record.port,
            name: record.host_ifname.clone(),
            kind: PortKind::Pod {
                endpoint: record.id,
                pod_mac: record.pod_mac,
                addresses: record.addresses.clone(),
            },
            mac: record.host_mac,
            mtu: record.mtu,
        };
        self.ports.insert(record.port, (port, report));
        self.devices.insert(record.port, record.host_ifindex);
        self.endpoints.insert(record.id, record.clone());
        self.engine.apply(Change::Endpoint(local_endpoint(record)));
        self.policy_changed = true;
        self.names_changed = true;
        self.topology_changed = true;
        Ok(())
    }

    /// Lets go of a pod's interface.
    pub(super) fn close_port(&mut self, record: &EndpointRecord) {
        self.pending.retain(|pending| pending.id != record.id);
        if self.endpoints.remove(&record.id).is_some() {
            self.engine.apply(Change::EndpointGone(record.id));
        }
        self.ports.remove(&record.port);
        self.devices.remove(&record.port);
        self.topology_changed = true;
        self.policy_changed = true;
        self.names_changed = true;
        self.publish_topology();
        if self.dataplane.ports().iter().any(|(spec, _)| spec.index == record.port)
            && let Err(error) = self.dataplane.remove_port(record.port)
        {
            tracing::warn!(
                interface = record.host_ifname,
                error = chain(&error),
                "the port could not be closed"
            );
        }
        if !record.device_exists() {
            self.dataplane.detach(&record.pin);
        }
    }
}

fn local_endpoint(record: &EndpointRecord) -> LocalEndpoint {
    LocalEndpoint {
        id: record.id,
        pod: NamespacedName { namespace: record.pod.namespace.clone(), name: record.pod.name.clone() },
        uid: record.pod.uid.clone().unwrap_or_default(),
        addresses: record.addresses.clone(),
    }
}

/// Returns the port of the host.
pub fn host_port(kernel: &Link, ours: &Link) -> Port {
    Port {
        index: HOST,
        name: ours.name.clone(),
        kind: PortKind::Host { kernel_mac: kernel.mac },
        mac: ours.mac,
        mtu: kernel.mtu,
    }
}

/// Returns the port of an uplink.
pub fn uplink_port(nth: usize, name: &str, mac: MacAddr, mtu: u32) -> Port {
    let index = PortIndex(FIRST_UPLINK + nth as u16);
    Port { index, name: name.to_owned(), kind: PortKind::Uplink, mac, mtu }
}

//! Which host endpoint governs an interface (policy model 11.1, 11.7), and which policies are asked there in which context (11.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::HostInterface;
use crate::model::{HostEndpoint, Policy};
use crate::packet::{Context, Direction};

/// Matches every interface that no other host endpoint matches.
pub(crate) const EVERY_INTERFACE: &str = "*";

/// Returns the host endpoint of `interface`. By name or by address before `*`; of several, the smallest name.
pub(crate) fn of_interface<'a>(
    endpoints: &'a BTreeMap<String, Arc<HostEndpoint>>,
    interface: &HostInterface,
) -> Option<&'a Arc<HostEndpoint>> {
    let here = || endpoints.values().filter(|endpoint| endpoint.node == interface.node);
    let is_specific = |endpoint: &&Arc<HostEndpoint>| match endpoint.interface_name.as_str() {
        "" => endpoint.expected_ips.iter().any(|address| interface.addresses.contains(address)),
        name => name == interface.name,
    };
    let specific = if interface.is_pod_side { None } else { here().find(is_specific) };
    specific.or_else(|| here().find(|endpoint| endpoint.interface_name == EVERY_INTERFACE))
}

/// Returns whether `policy` is asked in `context` of `endpoint`, its selector aside.
pub(crate) fn is_asked(
    policy: &Policy,
    endpoint: &HostEndpoint,
    context: Context,
    direction: Direction,
) -> bool {
    let flags = policy.flags;
    match context {
        Context::Untracked => flags.do_not_track && endpoint.interface_name != EVERY_INTERFACE,
        Context::PreDnat => flags.pre_dnat && direction == Direction::Ingress,
        Context::Normal => !flags.do_not_track && !flags.pre_dnat,
        Context::Forward => flags.apply_on_forward && !flags.do_not_track && !flags.pre_dnat,
    }
}

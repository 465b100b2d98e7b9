//! Nobody but this machine itself may send with one of its own IPv6 addresses.
//!
//! "From the host" is told by the source address of what the kernel routes to the host port (PM-D21). For IPv4 the kernel refuses to
//! forward a packet whose source is its own address; for IPv6 it does not, so a machine on any network that this node routes for could
//! pass for the node. Three kinds of routing rules close that:
//!
//! ```text
//!  1017  from all iif lo      goto 1019      what this machine sends itself passes by
//!  1018  from X               blackhole      one for each address X of this machine: whoever else sends as X gets nowhere
//!  1019  from all             nop            where the first one leads
//! ```
//!
//! The kernel asks its local table first, so nothing that is addressed to this machine is concerned, only what it would forward.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{NetError, Netlink};

const PASS: u32 = margay_io::netlink::OWN_RULES.start;
const REFUSE: u32 = PASS + 1;
const END: u32 = PASS + 2;

fn rule(priority: u32, action: RuleAction, more: impl IntoIterator<Item = RuleAttribute>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.action = action;
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.extend(more);
    message
}

fn refuse(address: Ipv6Addr) -> RuleMessage {
    let mut message = rule(REFUSE, RuleAction::Blackhole, [RuleAttribute::Source(IpAddr::V6(address))]);
    message.header.src_len = 128;
    message
}

impl Netlink {
    /// Makes the rules above refuse exactly `own`. A kernel without IPv6 policy routing (`CONFIG_IPV6_MULTIPLE_TABLES`) answers
    /// `EOPNOTSUPP` or `EAFNOSUPPORT`; see [`NetError::is`].
    pub fn refuse_forged_own_sources(&mut self, own: &BTreeSet<Ipv6Addr>) -> Result<(), NetError> {
        // The way past the refusals comes first, so that the machine never refuses itself.
        self.add_rule(rule(END, RuleAction::Nop, []))?;
        let around = [RuleAttribute::Iifname("lo".to_owned()), RuleAttribute::Goto(END)];
        self.add_rule(rule(PASS, RuleAction::Goto, around))?;
        let present = self.refused_sources()?;
        for address in own.difference(&present) {
            self.add_rule(refuse(*address))?;
        }
        for address in present.difference(own) {
            self.request(RouteNetlinkMessage::DelRule(refuse(*address)), NLM_F_ACK).map_err(|e| {
                NetError::new(format!("remove the rule that refuses {address} from outside"), e)
            })?;
        }
        Ok(())
    }

    /// Removes every rule above; tells whether there was one.
    pub fn remove_own_rules(&mut self) -> Result<bool, NetError> {
        let mut found = false;
        for address in self.refused_sources()? {
            found |= self.delete_rule(refuse(address))?;
        }
        let around = [RuleAttribute::Iifname("lo".to_owned()), RuleAttribute::Goto(END)];
        found |= self.delete_rule(rule(PASS, RuleAction::Goto, around))?;
        found |= self.delete_rule(rule(END, RuleAction::Nop, []))?;
        Ok(found)
    }

    fn delete_rule(&mut self, message: RuleMessage) -> Result<bool, NetError> {
        match self.request(RouteNetlinkMessage::DelRule(message), NLM_F_ACK) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => Ok(false),
            Err(e) => Err(NetError::new("remove an IPv6 routing rule", e)),
        }
    }

    fn add_rule(&mut self, message: RuleMessage) -> Result<(), NetError> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.request(RouteNetlinkMessage::NewRule(message), flags) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.map(drop).map_err(|e| NetError::new("add an IPv6 routing rule", e)),
        }
    }

    fn refused_sources(&mut self) -> Result<BTreeSet<Ipv6Addr>, NetError> {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet6;
        let answers = self
            .request(RouteNetlinkMessage::GetRule(message), NLM_F_DUMP)
            .map_err(|e| NetError::new("list IPv6 routing rules", e))?;
        let ours = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        });
        let refusals = ours.filter(|rule| {
            rule.header.action == RuleAction::Blackhole
                && rule.attributes.contains(&RuleAttribute::Priority(REFUSE))
        });
        Ok(refusals
            .flat_map(|rule| rule.attributes)
            .filter_map(|attribute| match attribute {
                RuleAttribute::Source(IpAddr::V6(address)) => Some(address),
                _ => None,
            })
            .collect())
    }
}

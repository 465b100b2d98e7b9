//! The published value: immutable, numbered, shared with its predecessor where nothing changed.
//!
//! A verdict costs one look-up of the endpoint's table, one of the far end's address ([`Snapshot::identity`]), and usually one cache line
//! with the few rules that are about this address. Where that is not enough it is the AND of at most six rows of bits, two of them chosen
//! by identity, the others by protocol, ports and ICMP type. Nothing allocates, nothing locks.
//!
//! What a flow may remember: the [`Epoch`] of the endpoint and direction and the [`IdentityId`] of both addresses. As long as those are
//! equal under a newer snapshot, so is the verdict, and so is the [`RuleRef`]. Hardly any change concerns a given flow, so a snapshot also
//! knows since when all of this has been so: who remembers under which snapshot it looked need not look again.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::Serialize;

use crate::compile::addresses::Addresses;
use crate::compile::endpoints::Endpoints;
use crate::compile::lookup::{Lookup, STAGE};
use crate::compile::paged::Paged;
use crate::compile::rejects::Rejects;
use crate::compile::sets::{Membership, SetId, SetKey, set_of};
use crate::compile::table::{Settled, Table};
use crate::model::HostEndpoint;
use crate::packet::{
    Context, Direction, EndpointId, Epoch, Generation, HostId, HostVerdict, IdentityId, PacketTuple, Verdict,
};

/// Names a decision point. Resolve it with [`Snapshot::attribution`] of the snapshot that gave it, or of a later one in which the epoch
/// of the endpoint and direction is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef(pub u32);

/// What decided a verdict, spelled out for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Attribution {
    /// Tier name, or `__PROFILE__`.
    pub tier: String,
    /// Policy kind text (`Profile` for a profile), or empty at an end of tier without a policy to name.
    pub kind: String,
    /// Namespace, empty for global.
    pub namespace: String,
    /// Policy or profile name.
    pub name: String,
    /// Index of the rule in its list; -1 for an end-of-tier or end-of-profiles decision.
    pub rule: i32,
}

/// The decision for one leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Who decided.
    pub rule: RuleRef,
}

/// What a host endpoint's policy says in one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostJudgement {
    /// Allow, deny, or neither.
    pub verdict: HostVerdict,
    /// Who decided.
    pub rule: RuleRef,
}

/// One question of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Whose policy is asked.
    pub endpoint: EndpointId,
    /// Which leg.
    pub direction: Direction,
    /// The packet.
    pub packet: PacketTuple,
}

/// Where the verdicts of one endpoint and direction can change: between neighbouring values every packet is judged alike, other fields
/// being equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boundaries {
    /// Protocols that some rule names.
    pub protocols: Vec<u8>,
    /// First port of every interval of source ports, zero included, ascending.
    pub source_ports: Vec<u16>,
    /// First port of every interval of destination ports, zero included, ascending.
    pub destination_ports: Vec<u16>,
    /// ICMP types that some rule names, with the code where it names one.
    pub icmp: Vec<(u8, Option<u8>)>,
}

/// The tables of one host endpoint on one interface, by context and direction.
#[derive(Clone, Debug)]
pub(crate) struct HostTables {
    pub(crate) endpoint: Arc<HostEndpoint>,
    pub(crate) tables: [[Option<Arc<Table>>; 2]; 4],
}

impl HostTables {
    fn of(&self, context: Context, direction: Direction) -> Option<&Table> {
        let context = match context {
            Context::Untracked => 0,
            Context::PreDnat => 1,
            Context::Normal => 2,
            Context::Forward => 3,
        };
        let direction = match direction {
            Direction::Ingress => 0,
            Direction::Egress => 1,
        };
        self.tables[context][direction].as_deref()
    }
}

/// All that a table can tell of the ports of a packet. See [`Snapshot::port_classes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortClasses([u32; 2]);

/// An immutable, numbered compilation of the Model for the endpoints of this node.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub(crate) generation: Generation,
    /// With which every address became what it is.
    pub(crate) identified: Generation,
    pub(crate) endpoints: Endpoints,
    pub(crate) hosts: HashMap<HostId, HostTables, foldhash::fast::FixedState>,
    /// Every table once, by ascending base.
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) memberships: Paged<Arc<Membership>>,
    pub(crate) has_logs: bool,
    /// Decision points that answer whom they deny.
    pub(crate) rejects: Rejects,
    /// What each set contains, for those who want to know what a table is about.
    pub(crate) sets: Paged<Arc<SetKey>>,
}

impl Snapshot {
    /// Returns the number of the snapshot.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns what the address is, for policy. Cost: for IPv4 one cache line, found by the first two bytes, and seldom
    /// two or three others; for IPv6 two binary searches.
    #[inline]
    pub fn identity(&self, address: IpAddr) -> IdentityId {
        self.addresses.identity(address)
    }

    /// Looks up many addresses. Faster than one after the other where the tables are larger than the cache.
    ///
    /// Shape: `out` has the length of `addresses`.
    pub fn identities(&self, addresses: &[IpAddr], out: &mut [IdentityId]) {
        for (addresses, out) in addresses.chunks(STAGE).zip(out.chunks_mut(STAGE)) {
            let mut lookup = Lookup::new(&self.addresses);
            addresses.iter().for_each(|address| self.addresses.prefetch_head(*address));
            addresses.iter().enumerate().for_each(|(place, address)| lookup.begin(place, *address));
            out.copy_from_slice(&lookup.finish(addresses.len())[..out.len()]);
        }
    }

    /// Returns the epoch of the endpoint's table in `direction`, or `None` when the endpoint is unknown (treat as closed).
    #[inline]
    pub fn epoch(&self, endpoint: EndpointId, direction: Direction) -> Option<Epoch> {
        self.endpoints.table(endpoint, direction).map(|table| table.epoch)
    }

    /// Returns the first of the unbroken row of snapshots, up to this one, in which the endpoint's tables of both directions have been what
    /// they are; `None` when the endpoint is unknown. What a flow remembers of a table under any of them is what it is now.
    #[inline]
    pub fn governed_since(&self, endpoint: EndpointId) -> Option<Generation> {
        self.endpoints.since(endpoint)
    }

    /// As [`Snapshot::governed_since`], of what every address is for policy.
    #[inline]
    pub fn identified_since(&self) -> Generation {
        self.identified
    }

    /// Judges one leg. An endpoint that the snapshot does not know gets `None`; the caller drops under a name of its own.
    pub fn judge(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<Judgement> {
        let table = self.endpoints.table(endpoint, direction)?;
        let far = table.far().map_or(IdentityId(0), |end| self.identity(end.address(packet)));
        let both = || [self.identity(packet.source), self.identity(packet.destination)];
        Some(judgement(table, self.judged(table, packet, far, both)))
    }

    /// Judges one leg for a caller that already knows both identities of this snapshot. An identity that this snapshot does not have
    /// (kept from an older one) is looked up again from the packet.
    #[inline]
    pub fn judge_with_identity(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        packet: &PacketTuple,
        source: IdentityId,
        destination: IdentityId,
    ) -> Option<Judgement> {
        let known = |identity: IdentityId, address: IpAddr| match self.memberships.get(identity.0) {
            Some(_) => identity,
            None => self.identity(address),
        };
        let identities = [known(source, packet.source), known(destination, packet.destination)];
        let table = self.endpoints.table(endpoint, direction)?;
        Some(judgement(table, self.judged(table, packet, table.far_of(identities), || identities)))
    }

    /// Returns what a leg's table can tell of a packet's ports: of packets between the same identities, of one family and with the same
    /// protocol, TCP or UDP, those for which this is equal get equal judgements. `None` where the table knows ports that mean something at
    /// some addresses only, and for an unknown endpoint. Classes of different tables have nothing to do with each other.
    #[inline]
    pub fn port_classes(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        source: u16,
        destination: u16,
    ) -> Option<PortClasses> {
        self.endpoints.table(endpoint, direction)?.program.port_classes(source, destination).map(PortClasses)
    }

    /// Returns the Log rules that the packet passes on its way to the verdict, in order (policy model 14.4).
    pub fn logs(&self, endpoint: EndpointId, direction: Direction, packet: &PacketTuple) -> Vec<RuleRef> {
        let mut logs = Vec::new();
        let identities = [self.identity(packet.source), self.identity(packet.destination)];
        if let Some(table) = self.endpoints.table(endpoint, direction) {
            self.ask(table, packet, identities, |bit| logs.push(RuleRef(table.base + bit as u32)));
        }
        logs
    }

    /// Returns whether any table of this node has a Log rule; without one [`Snapshot::logs`] is always empty.
    #[inline]
    pub fn has_log_rules(&self) -> bool {
        self.has_logs
    }

    /// Returns whether a packet that `rule` denied gets an answer: a TCP reset, or ICMP's "administratively prohibited" (policy model 14.1,
    /// 32.9). That is so where a rule of a policy that says so denied it, and at the end of a tier of which such a policy governs the
    /// endpoint; a policy that says nothing does as the configuration says, and so do profiles.
    pub fn rejects(&self, rule: RuleRef) -> bool {
        self.rejects.answers(rule.0)
    }

    /// Names the decision point. Panics never: an index of another snapshot gives `None`, or another point's name.
    pub fn attribution(&self, rule: RuleRef) -> Option<&Attribution> {
        let table = self.tables.partition_point(|table| table.base <= rule.0).checked_sub(1)?;
        let table = &self.tables[table];
        let point = table.program.points.get((rule.0 - table.base) as usize)?;
        Some(&point.attribution)
    }

    /// Returns the local endpoints that policy knows, in order.
    pub fn endpoints(&self) -> Vec<EndpointId> {
        let mut endpoints: Vec<_> = self.endpoints.ids().collect();
        endpoints.sort_unstable();
        endpoints
    }

    /// Returns the name of the host endpoint that governs an interface (policy model 11.1), if one does.
    pub fn host_endpoint(&self, host: HostId) -> Option<&str> {
        self.hosts.get(&host).map(|tables| tables.endpoint.name.as_str())
    }

    /// Returns the epoch of a context of the host endpoint of an interface; `None` where the context has no policy.
    pub fn host_epoch(&self, host: HostId, context: Context, direction: Direction) -> Option<Epoch> {
        self.hosts.get(&host)?.of(context, direction).map(|table| table.epoch)
    }

    /// Asks one context of the host endpoint that governs an interface; failsafe ports are part of the answer (policy model 11.9).
    ///
    /// `None`: no host endpoint governs the interface, or it has no policy in this context and direction. Either way the packet goes on.
    pub fn judge_host(
        &self,
        host: HostId,
        context: Context,
        direction: Direction,
        packet: &PacketTuple,
    ) -> Option<HostJudgement> {
        let table = self.hosts.get(&host)?.of(context, direction)?;
        let identities = [self.identity(packet.source), self.identity(packet.destination)];
        let (verdict, bit) = self.ask(table, packet, identities, |_| ());
        Some(HostJudgement { verdict, rule: RuleRef(table.base + bit as u32) })
    }

    /// Returns where verdicts of an endpoint and direction can change.
    pub fn boundaries(&self, endpoint: EndpointId, direction: Direction) -> Option<Boundaries> {
        Some(self.endpoints.table(endpoint, direction)?.program.boundaries())
    }

    /// Returns the first address of every interval of addresses, with the identity of its addresses: a partition of both families, in
    /// order. Neighbours differ.
    pub fn address_classes(&self) -> Vec<(IpAddr, IdentityId)> {
        let mut classes: Vec<(IpAddr, IdentityId)> = Vec::new();
        self.addresses.for_each_interval(|start, identity| {
            let is_same = classes
                .last()
                .is_some_and(|(last, known)| *known == identity && last.is_ipv4() == start.is_ipv4());
            if !is_same {
                classes.push((start, identity));
            }
        });
        classes
    }

    /// Returns the (protocol, port) pairs that mean something on the addresses of an identity alone: named ports and services.
    pub fn port_points(&self, identity: IdentityId) -> Vec<(u8, u16)> {
        let triples = self.memberships.get(identity.0).map_or(&[][..], |membership| &membership.triples);
        let mut points: Vec<(u8, u16)> =
            triples.iter().map(|triple| ((triple >> 16) as u8, *triple as u16)).collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// Describes the whole snapshot without any number that depends on how it came about: snapshots of equal state have equal texts.
    ///
    /// Shape: one line per decision point of every endpoint and interface, then one per interval of addresses.
    pub fn canonical(&self) -> String {
        let set = |set: SetId| self.sets.get(set.0).map_or_else(String::new, |key| format!("{key:?}"));
        let mut text = String::new();
        let mut add = |line: std::fmt::Arguments<'_>| {
            let _ = fmt::Write::write_fmt(&mut text, line);
        };
        for endpoint in self.endpoints() {
            for direction in [Direction::Ingress, Direction::Egress] {
                let table = self.endpoints.table(endpoint, direction);
                for line in table.iter().flat_map(|table| table.program.describe(&set)) {
                    add(format_args!("{endpoint:?} {direction:?} {line}\n"));
                }
            }
        }
        let hosts: std::collections::BTreeMap<_, _> = self.hosts.iter().collect();
        for (host, tables) in hosts {
            for context in Context::ALL {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let lines = tables.of(context, direction).map(|table| table.program.describe(&set));
                    for line in lines.into_iter().flatten() {
                        add(format_args!(
                            "{host:?} {} {context:?} {direction:?} {line}\n",
                            tables.endpoint.name
                        ));
                    }
                }
            }
        }
        for (start, identity) in self.address_classes() {
            let Some(membership) = self.memberships.get(identity.0) else { continue };
            let mut sets: Vec<String> = membership.sets.iter().map(|number| set(*number)).collect();
            sets.extend(membership.triples.iter().map(|triple| {
                format!("{} {}/{}", set(set_of(*triple)), (triple >> 16) as u8, *triple as u16)
            }));
            sets.sort_unstable();
            add(format_args!("{start} {sets:?}\n"));
        }
        text
    }

    /// Judges by the far end's identity alone where that is enough, and by all rows where it is not.
    #[inline]
    fn judged(
        &self,
        table: &Table,
        packet: &PacketTuple,
        far: IdentityId,
        both: impl Fn() -> [IdentityId; 2],
    ) -> (HostVerdict, usize) {
        match table.settle(packet, far) {
            Settled::By(verdict, point) => (verdict, point),
            Settled::From(point) => table.decide(packet, both, Some(point.into()), &self.memberships, |_| ()),
            Settled::Open => self.ask(table, packet, both(), |_| ()),
        }
    }

    #[inline]
    fn ask(
        &self,
        table: &Table,
        packet: &PacketTuple,
        identities: [IdentityId; 2],
        log: impl FnMut(usize),
    ) -> (HostVerdict, usize) {
        let first = table.first(&table.rows(packet, identities));
        table.decide(packet, || identities, first, &self.memberships, log)
    }
}

/// Puts a decision of a pod's table into words.
#[inline(always)]
pub(crate) fn judgement(table: &Table, (verdict, bit): (HostVerdict, usize)) -> Judgement {
    let verdict = if verdict == HostVerdict::Allow { Verdict::Allow } else { Verdict::Deny };
    Judgement { verdict, rule: RuleRef(table.base + bit as u32) }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("endpoints", &self.endpoints.len())
            .field("tables", &self.tables.len())
            .finish_non_exhaustive()
    }
}

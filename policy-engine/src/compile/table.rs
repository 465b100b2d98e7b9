//! A program with the rows of every identity that exists: all that a verdict needs.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashMap;

use super::paged::Paged;
use super::program::{Outcome, Program};
use super::rows::Rows;
use super::rules::{CompiledRule, Side, icmp_view, ports};
use super::sets::{Membership, SetId};
use crate::packet::{Epoch, IdentityId, PacketTuple, Verdict};

/// The rows of one side: what the identity of an address leaves standing.
///
/// Identities that differ only in sets that the program never mentions share a row.
#[derive(Clone, Debug)]
struct Identified {
    /// Sets that the side mentions, each with the bits that mention it. Empty: one row fits all.
    relevant: Arc<BTreeMap<SetId, Vec<u32>>>,
    rows: Arc<Rows>,
    /// By relevant sets.
    known: Arc<HashMap<Vec<SetId>, u32, foldhash::fast::FixedState>>,
    /// Row number plus one, by identity.
    by_identity: Paged<NonZeroU32>,
}

impl Identified {
    fn new(program: &Program, side: impl Fn(&CompiledRule) -> &Side) -> Self {
        let mut relevant: BTreeMap<SetId, Vec<u32>> = BTreeMap::new();
        for (bit, point) in (0..).zip(&program.points) {
            for set in point.rule.iter().flat_map(|rule| side(rule).sets()) {
                relevant.entry(set).or_default().push(bit);
            }
        }
        let mut identified = Self {
            relevant: Arc::new(relevant),
            rows: Arc::new(Rows::new(program.shape)),
            known: Arc::default(),
            by_identity: Paged::default(),
        };
        // Row zero: belongs to nothing. Every other row differs from it only in bits that mention a set of the identity.
        let nothing = Membership::default();
        Arc::make_mut(&mut identified.rows).add(|bit| may_match(program, &side, bit, &nothing));
        Arc::make_mut(&mut identified.known).insert(Vec::new(), 0);
        identified
    }

    /// Returns the number of the row for a membership, making it when it is the first of its kind.
    fn row_of(
        &mut self,
        program: &Program,
        side: &impl Fn(&CompiledRule) -> &Side,
        membership: &Membership,
    ) -> u32 {
        let relevant: Vec<SetId> =
            membership.sets.iter().copied().filter(|set| self.relevant.contains_key(set)).collect();
        if let Some(number) = self.known.get(&relevant) {
            return *number;
        }
        let mentioned =
            relevant.iter().filter_map(|set| self.relevant.get(set)).flatten().map(|bit| *bit as usize);
        let bits = mentioned.map(|bit| (bit, may_match(program, side, bit, membership)));
        let number = Arc::make_mut(&mut self.rows).add_like(0, bits);
        Arc::make_mut(&mut self.known).insert(relevant, number);
        number
    }

    fn learn(
        &mut self,
        program: &Program,
        side: impl Fn(&CompiledRule) -> &Side,
        identities: &BTreeMap<IdentityId, Arc<Membership>>,
    ) {
        if self.relevant.is_empty() {
            return;
        }
        for (identity, membership) in identities {
            let number = self.row_of(program, &side, membership);
            if let Some(number) = NonZeroU32::new(number + 1) {
                self.by_identity.insert(identity.0, number);
            }
        }
    }

    /// Returns the row, or `None` for an identity that the snapshot does not have.
    #[inline]
    fn row(&self, identity: IdentityId) -> Option<&[u64]> {
        if self.relevant.is_empty() || identity.0 == 0 {
            return Some(self.rows.row(0));
        }
        self.by_identity.get(identity.0).map(|number| self.rows.row(number.get() - 1))
    }
}

fn may_match(
    program: &Program,
    side: &impl Fn(&CompiledRule) -> &Side,
    bit: usize,
    membership: &Membership,
) -> bool {
    program.points[bit].rule.as_deref().is_none_or(|rule| side(rule).may_match_address(membership))
}

/// The compiled policy of one direction, shared by every endpoint that is governed alike.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) epoch: Epoch,
    /// Number of the first decision point among those of all live tables.
    pub(crate) base: u32,
    pub(crate) program: Arc<Program>,
    source: Identified,
    destination: Identified,
}

impl Table {
    pub(crate) fn new(epoch: Epoch, base: u32, program: Program) -> Self {
        let source = Identified::new(&program, |rule| &rule.source);
        let destination = Identified::new(&program, |rule| &rule.destination);
        Self { epoch, base, program: Arc::new(program), source, destination }
    }

    /// Adds the rows of identities that appeared.
    pub(crate) fn learn(&mut self, identities: &BTreeMap<IdentityId, Arc<Membership>>) {
        self.source.learn(&self.program, |rule| &rule.source, identities);
        self.destination.learn(&self.program, |rule| &rule.destination, identities);
    }

    /// Drops what was kept for identities that are gone.
    pub(crate) fn forget(&mut self, identities: &[IdentityId]) {
        for identity in identities {
            self.source.by_identity.remove(identity.0);
            self.destination.by_identity.remove(identity.0);
        }
    }

    /// Whether identities matter at all; if not, no identity ever needs a row.
    pub(crate) fn depends_on_addresses(&self) -> bool {
        !self.source.relevant.is_empty() || !self.destination.relevant.is_empty()
    }

    /// Finds the deciding point. `memberships` is asked only where rows cannot settle a rule alone. `None`: an identity is unknown here.
    #[inline]
    pub(crate) fn decide<'a>(
        &self,
        packet: &PacketTuple,
        source: IdentityId,
        destination: IdentityId,
        memberships: impl Fn(IdentityId) -> Option<&'a Membership>,
        mut log: impl FnMut(usize),
    ) -> Option<(Verdict, usize)> {
        let program = &*self.program;
        let [source_port, destination_port] = ports(packet);
        let protocol = program.protocol.row(&packet.destination, packet.protocol);
        let rows = [
            self.source.row(source)?,
            self.destination.row(destination)?,
            protocol,
            program.destination_port.as_ref().map_or(protocol, |rows| rows.row(destination_port)),
            program.source_port.as_ref().map_or(protocol, |rows| rows.row(source_port)),
            program.icmp.as_ref().map_or(protocol, |rows| rows.row(icmp_view(packet))),
        ];
        let mut from = 0;
        while let Some(bit) = program.shape.first(rows, from) {
            let step = program.steps[bit];
            if step.confirm {
                let rule = program.points[bit].rule.as_deref();
                let (source, destination) = (memberships(source)?, memberships(destination)?);
                if !rule.is_none_or(|rule| rule.confirms(packet, source, destination)) {
                    from = bit + 1;
                    continue;
                }
            }
            match step.outcome {
                Outcome::Allow => return Some((Verdict::Allow, bit)),
                Outcome::Deny => return Some((Verdict::Deny, bit)),
                Outcome::Log => {
                    log(bit);
                    from = bit + 1;
                }
                Outcome::Pass(next) => from = next as usize,
            }
        }
        // The last point matches everything; were it ever missed, the answer is still closed.
        Some((Verdict::Deny, program.steps.len() - 1))
    }

    /// Starts over with the rows of `identities` when far more were kept than are in use.
    pub(crate) fn compact(&mut self, identities: &BTreeMap<IdentityId, Arc<Membership>>) {
        let enough = 2 * identities.len() + 256;
        if self.source.known.len() > enough {
            self.source = Identified::new(&self.program, |rule| &rule.source);
            self.source.learn(&self.program, |rule| &rule.source, identities);
        }
        if self.destination.known.len() > enough {
            self.destination = Identified::new(&self.program, |rule| &rule.destination);
            self.destination.learn(&self.program, |rule| &rule.destination, identities);
        }
    }

    /// Number of decision points.
    pub(crate) fn len(&self) -> u32 {
        self.program.points.len() as u32
    }
}

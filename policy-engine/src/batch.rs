//! Many decisions at once: what one reads is fetched while the others are made.
//!
//! ```text
//!   all      endpoint ─▶ table, address's head │ identity          what belongs to nothing is settled here, where tables allow it
//!   open     shortlist of the identity         │                   most are settled here
//!   unlisted rows of near end, ports, protocol │ AND, decision
//! ```
//!
//! Every step is a loop over the packets that still need it, and asks for what the next one reads. Which packets these are is counted
//! without a branch: a branch that half of the packets take would cost more than the step.

use crate::compile::endpoints::Gate;
use crate::compile::lookup::{Lookup, STAGE};
use crate::compile::rows::Line;
use crate::compile::shortlist::{Listed, asked};
use crate::compile::table::Standing;
use crate::packet::IdentityId;
use crate::snapshot::{Judgement, Query, Snapshot, judgement};

/// How far ahead queries are asked for: far enough that even one from memory is there in time.
const AHEAD: usize = 12;

/// A packet that needs another step: its place in the batch, and what the step before found.
#[derive(Clone, Copy, Default)]
struct Open<'a> {
    gate: Option<&'a Gate>,
    /// The identity of the far end, then the number of its row.
    number: u32,
    /// What a shortlist is asked.
    asked: (u16, u16),
    /// The first point that may decide, where a list knows it.
    first: Option<u16>,
    place: u8,
}

impl Snapshot {
    /// Judges many legs. Faster than one after the other: what one reads is fetched while the others are judged.
    ///
    /// Shape: `out` has the length of `queries`; `None` where the endpoint is unknown.
    pub fn judge_batch(&self, queries: &[Query], out: &mut [Option<Judgement>]) {
        for (queries, out) in queries.chunks(STAGE).zip(out.chunks_mut(STAGE)) {
            self.judge_stage(queries, out);
        }
    }

    fn judge_stage(&self, queries: &[Query], out: &mut [Option<Judgement>]) {
        let mut gates: [Option<&Gate>; STAGE] = [None; STAGE];
        for (place, (query, gate)) in queries.iter().zip(&mut gates).enumerate() {
            margay_accel::prefetch_item(queries, place + AHEAD);
            *gate = self.endpoints.get(query.endpoint, query.direction);
            if let Some(end) = gate.and_then(|gate| gate.far) {
                self.addresses.prefetch_head(end.address(&query.packet));
            }
        }
        let mut lookup = Lookup::new(&self.addresses);
        for (place, (query, gate)) in queries.iter().zip(gates).enumerate() {
            match gate.and_then(|gate| gate.far) {
                Some(end) => lookup.begin(place, end.address(&query.packet)),
                None => lookup.nothing(place),
            }
        }
        let identities = lookup.finish(queries.len());
        let mut open = [Open::default(); STAGE];
        let mut count = 0;
        for (place, ((gate, identity), out)) in (0u8..).zip(gates.iter().zip(identities).zip(&mut *out)) {
            *out = gate.map(|gate| gate.default);
            let Some(gate) = gate else { continue };
            open[count % STAGE] = Open { gate: Some(gate), number: identity.0, place, ..Open::default() };
            count += usize::from(identity != IdentityId(0) || !gate.is_closed);
        }
        let open = &mut open[..count];
        for Open { gate, number, .. } in &*open {
            gate.iter().for_each(|gate| gate.lists.prefetch(*number));
        }
        // What needs no far memory is done while the lines are on their way.
        for open in &mut *open {
            open.asked = asked(&queries[usize::from(open.place)].packet);
        }
        let mut count = 0;
        for n in 0..open.len() {
            let Open { gate: Some(gate), place, number, asked, .. } = open[n] else { continue };
            let (mut listed, row) = gate.lists.find(number, asked);
            if listed == Listed::Absent {
                if gate.is_closed {
                    continue;
                }
                listed = gate.table.of_nothing(asked);
            }
            open[n].number = row;
            let first = match listed {
                // The verdict of what agrees with no rule is there already.
                Listed::Nothing => continue,
                Listed::Final(point, allows) => {
                    out[usize::from(place)] = Some(gate.decided(point, allows));
                    continue;
                }
                Listed::First(point) => Some(point),
                Listed::Unknown | Listed::Absent => None,
            };
            open[count] = Open { first, ..open[n] };
            count += 1;
        }
        if count > 0 {
            self.judge_by_rows(queries, out, &open[..count]);
        }
    }

    /// Judges those that no list settled.
    #[inline(never)]
    fn judge_by_rows(&self, queries: &[Query], out: &mut [Option<Judgement>], open: &[Open<'_>]) {
        let nothing: &[Line] = &[];
        let mut near = [IdentityId(0); STAGE];
        let mut rows: [Standing<'_>; STAGE] = [[nothing; 6]; STAGE];
        let mut firsts = [None; STAGE];
        let all = || {
            let open = open.iter().enumerate();
            open.filter_map(|(n, open)| {
                Some((n, open, &*open.gate?.table, &queries[usize::from(open.place)].packet))
            })
        };
        let asked = || all().filter(|(_, open, ..)| open.first.is_none());
        for (_, _, table, packet) in asked() {
            table.near().into_iter().for_each(|end| self.addresses.prefetch_head(end.address(packet)));
        }
        for (n, open, table, packet) in asked() {
            near[n] = table.near().map_or(IdentityId(0), |end| self.identity(end.address(packet)));
            rows[n][0] = table.prefetch_far(open.number, near[n]);
        }
        for (n, _, table, packet) in asked() {
            rows[n][1] = table.prefetch_ports(packet, near[n]);
        }
        for (_, _, table, packet) in asked() {
            table.prefetch_port_numbers(packet);
        }
        for (n, _, table, packet) in asked() {
            table.prefetch_rows(packet, &mut rows[n]);
        }
        for (n, open, table, _) in all() {
            firsts[n] = open.first.map_or_else(|| table.first(&rows[n]), |point| Some(usize::from(point)));
        }
        for (n, open, table, packet) in all() {
            let both = || [self.identity(packet.source), self.identity(packet.destination)];
            let decided = table.decide(packet, both, firsts[n], &self.memberships, |_| ());
            out[usize::from(open.place)] = Some(judgement(table, decided));
        }
    }
}

//! Many decisions at once: what one reads is fetched while the others are made.
//!
//! ```text
//!   all      endpoint ─▶ table, address's page │ identity          what belongs to nothing is settled here, where tables allow it
//!   open     row of the identity               │ its shortlist     most are settled here
//!   unlisted rows of near end, ports, protocol │ AND, decision
//! ```
//!
//! Every step is a loop over the packets that still need it, and asks for what the next one reads. Which packets these are is counted
//! without a branch: a branch that half of the packets take would cost more than the step.

use crate::compile::rows::Line;
use crate::compile::table::{Settled, Standing, Table};
use crate::packet::{HostVerdict, IdentityId};
use crate::snapshot::{Judgement, Query, Snapshot, judgement};

/// Packets that are on their way together.
const STAGE: usize = 32;

/// A packet that needs another step: its place in the batch, and what the step before found.
#[derive(Clone, Copy, Default)]
struct Open<'a> {
    place: usize,
    table: Option<&'a Table>,
    number: u32,
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
        let mut tables: [Option<&Table>; STAGE] = [None; STAGE];
        for (query, table) in queries.iter().zip(&mut tables) {
            *table = self.endpoints.get(&query.endpoint).map(|tables| tables.of(query.direction));
            if let Some(address) = table.and_then(|table| table.far_address(&query.packet)) {
                self.addresses.prefetch(address);
            }
        }
        let mut open = [Open::default(); STAGE];
        let mut count = 0;
        for (place, ((query, table), out)) in queries.iter().zip(tables).zip(&mut *out).enumerate() {
            *out = None;
            let Some(table) = table else { continue };
            let identity = table.far_address(&query.packet).map_or(IdentityId(0), |a| self.identity(a));
            *out = Some(judgement(table, table.verdict()));
            open[count % STAGE] = Open { place, table: Some(table), number: identity.0 };
            count += usize::from(identity != IdentityId(0) || !table.is_closed());
        }
        let open = &mut open[..count];
        for Open { table, number, .. } in &*open {
            table.iter().for_each(|table| table.prefetch_number(IdentityId(*number)));
        }
        for Open { table, number, .. } in &mut *open {
            if let Some(table) = table {
                *number = table.prefetch_list(IdentityId(*number));
            }
        }
        let mut left = [Open::default(); STAGE];
        let mut firsts = [None; STAGE];
        let mut count = 0;
        for open in open {
            let Some(table) = open.table else { continue };
            match table.settle_by_row(&queries[open.place].packet, open.number) {
                Settled::By(verdict, point) => out[open.place] = Some(judgement(table, (verdict, point))),
                settled => {
                    left[count] = *open;
                    firsts[count] = match settled {
                        Settled::From(point) => Some(point),
                        _ => None,
                    };
                    count += 1;
                }
            }
        }
        if count > 0 {
            self.judge_by_rows(queries, out, &left[..count], &firsts);
        }
    }

    /// Judges those that no list settled; `firsts` are the first points that may decide, where a list knew them.
    #[inline(never)]
    fn judge_by_rows(
        &self,
        queries: &[Query],
        out: &mut [Option<Judgement>],
        open: &[Open<'_>],
        firsts: &[Option<usize>; STAGE],
    ) {
        let nothing: &[Line] = &[];
        let mut firsts = *firsts;
        let mut near = [IdentityId(0); STAGE];
        let mut rows: [Standing<'_>; STAGE] = [[nothing; 6]; STAGE];
        let unknown = firsts.map(|first| first.is_none());
        let all = || {
            let open = open.iter().enumerate();
            open.filter_map(|(n, open)| Some((n, open, open.table?, &queries[open.place].packet)))
        };
        let asked = || all().filter(|(n, ..)| unknown[*n]);
        for (_, _, table, packet) in asked() {
            table.near_address(packet).into_iter().for_each(|address| self.addresses.prefetch(address));
        }
        for (n, open, table, packet) in asked() {
            near[n] = table.near_address(packet).map_or(IdentityId(0), |address| self.identity(address));
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
        for (n, _, table, _) in asked() {
            firsts[n] = table.first(&rows[n]);
        }
        for (n, open, table, packet) in all() {
            let both = || [self.identity(packet.source), self.identity(packet.destination)];
            let decided: (HostVerdict, usize) =
                table.decide(packet, both, firsts[n], &self.memberships, |_| ());
            out[open.place] = Some(judgement(table, decided));
        }
    }
}

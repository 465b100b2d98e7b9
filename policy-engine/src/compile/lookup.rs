//! Many addresses to their identities, step by step: what one look-up reads next is fetched while the others take theirs.
//!
//! ```text
//!   head of the page ─▶ cell ───────────────────────────────────────▶ identity
//!         └ marked ─▶ second cell
//!                 └ listed ─▶ word of the list ─▶ block of the low byte
//! ```
//!
//! Few addresses are listed, but they need memory several times. Their steps begin as soon as they can, and the others' last step is taken
//! in between. Which addresses need another step is nobody's to predict, so they are counted without a branch.

use std::net::IpAddr;

use super::addresses::Addresses;
use super::blocks::{DIRECT, OFFSET, place_in_block};
use super::heads::Marked;
use crate::packet::IdentityId;

/// Most addresses on their way together.
pub(crate) const STAGE: usize = 64;

/// Words of a page that is worth having whole: four cache lines.
const SMALL: usize = 64;

/// Look-ups on their way.
pub(crate) struct Lookup<'a> {
    addresses: &'a Addresses,
    /// What is looked for, where it is one of those that take part in a step.
    wanted: [u32; STAGE],
    words: [u32; STAGE],
    marked: Parts,
}

/// The places of those that take part in a step.
struct Parts {
    places: [u8; STAGE],
    count: usize,
}

impl Parts {
    fn new() -> Self {
        Self { places: [0; STAGE], count: 0 }
    }

    /// `place` takes part if `does`.
    #[inline(always)]
    fn add(&mut self, place: usize, does: bool) {
        self.places[self.count % STAGE] = place as u8;
        self.count += usize::from(does);
    }

    #[inline(always)]
    fn each(&self) -> impl Iterator<Item = usize> {
        self.places[..self.count].iter().map(|place| usize::from(*place) % STAGE)
    }
}

impl<'a> Lookup<'a> {
    pub(crate) fn new(addresses: &'a Addresses) -> Self {
        Self { addresses, wanted: [0; STAGE], words: [0; STAGE], marked: Parts::new() }
    }

    /// Begins to look for an address, each place once. [`Addresses::prefetch_head`] should have been asked for it.
    #[inline(always)]
    pub(crate) fn begin(&mut self, place: usize, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                let address = u32::from(address);
                let head = self.addresses.head(address);
                (self.wanted[place], self.words[place]) = (address, head.usual());
                self.marked.add(place, head.is_marked((address >> 8) as u8));
            }
            IpAddr::V6(_) => self.words[place] = self.addresses.cell(address).0,
        }
    }

    /// Begins with an address that means nothing.
    #[inline(always)]
    pub(crate) fn nothing(&mut self, place: usize) {
        self.words[place] = 0;
    }

    /// Finds the identities of the first `count` addresses. What is on its way is at its end with it: those of the next batch are asked of
    /// another one.
    #[inline(always)]
    pub(crate) fn finish(self, count: usize) -> [IdentityId; STAGE] {
        let Self { addresses, wanted, mut words, marked } = self;
        let mut identities = [IdentityId(0); STAGE];
        let mut at = [0; STAGE];
        let mut listed = Parts::new();
        for place in marked.each() {
            let head = addresses.head(wanted[place]);
            match head.marked((wanted[place] >> 8) as u8) {
                Marked::Value(value) => words[place] = value,
                Marked::Listed(in_list) => {
                    at[place] = in_list;
                    addresses.prefetch_words(wanted[place]);
                    listed.add(place, true);
                }
            }
        }
        for place in listed.each() {
            let page = addresses.words(wanted[place]);
            margay_accel::prefetch_item(page, at[place]);
            if page.len() <= SMALL {
                (0..page.len()).step_by(16).for_each(|line| margay_accel::prefetch_item(page, line));
            }
        }
        for (identity, word) in identities.iter_mut().zip(&words).take(count) {
            *identity = addresses.meaning(*word);
        }
        let mut divided = Parts::new();
        for place in listed.each() {
            let page = addresses.words(wanted[place]);
            words[place] = page[at[place]];
            margay_accel::prefetch_item(page, (words[place] & OFFSET) as usize);
            divided.add(place, words[place] >= DIRECT);
        }
        for place in divided.each() {
            let page = addresses.words(wanted[place]);
            words[place] = page[place_in_block(page, words[place], wanted[place] as u8)];
        }
        for place in listed.each() {
            identities[place] = addresses.meaning(words[place]);
        }
        identities
    }
}

//! Many addresses to their identities, step by step: what one look-up reads next is fetched while the others take theirs.
//!
//! ```text
//!   page ─▶ its first word ─▶ block of the high byte ─▶ block of the low byte ─▶ cell ─▶ identity
//!                 └───────────────────┴── may be the cell already: such an address takes no part until the others have theirs
//! ```
//!
//! Which addresses need another step is nobody's to predict, so they are counted without a branch.

use std::net::IpAddr;

use super::addresses::Addresses;
use super::blocks::{DIRECT, OFFSET, place_in_block};
use crate::packet::IdentityId;

/// Most addresses on their way together.
pub(crate) const STAGE: usize = 64;

/// Look-ups on their way.
pub(crate) struct Lookup<'a> {
    addresses: &'a Addresses,
    /// Where the word of an address is looked for; nowhere when the word is known.
    pages: [&'a [u32]; STAGE],
    low: [u16; STAGE],
    words: [u32; STAGE],
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
        Self { addresses, pages: [&[]; STAGE], low: [0; STAGE], words: [0; STAGE] }
    }

    /// Begins to look for an address. [`Addresses::prefetch_page`] should have been asked for it.
    #[inline(always)]
    pub(crate) fn begin(&mut self, place: usize, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                let address = u32::from(address);
                let page = self.addresses.page(address);
                margay_accel::prefetch_item(page, 0);
                (self.pages[place], self.low[place]) = (page, address as u16);
            }
            IpAddr::V6(_) => {
                (self.pages[place], self.words[place]) = (&[], self.addresses.cell(address).0);
            }
        }
    }

    /// Begins with an address that means nothing.
    #[inline(always)]
    pub(crate) fn nothing(&mut self, place: usize) {
        (self.pages[place], self.words[place]) = (&[], 0);
    }

    /// Finds the identities of the first `count` addresses.
    #[inline(always)]
    pub(crate) fn finish(&mut self, count: usize) -> [IdentityId; STAGE] {
        let Self { addresses, pages, low, words } = self;
        let mut identities = [IdentityId(0); STAGE];
        let mut at = [0; STAGE];
        let mut parts = Parts::new();
        for (place, (page, word)) in pages.iter().zip(&mut *words).enumerate().take(count) {
            *word = page.first().copied().unwrap_or(*word);
            parts.add(place, *word >= DIRECT);
        }
        for place in parts.each() {
            at[place] = place_in_block(pages[place], words[place], (low[place] >> 8) as u8);
            margay_accel::prefetch_item(pages[place], at[place]);
        }
        let mut last = Parts::new();
        for place in parts.each() {
            words[place] = pages[place][at[place]];
            last.add(place, words[place] >= DIRECT);
        }
        for place in last.each() {
            margay_accel::prefetch_item(pages[place], (words[place] & OFFSET) as usize);
        }
        for place in last.each() {
            words[place] = pages[place][place_in_block(pages[place], words[place], low[place] as u8)];
        }
        for (identity, word) in identities.iter_mut().zip(&*words).take(count) {
            *identity = addresses.meaning(*word);
        }
        identities
    }
}

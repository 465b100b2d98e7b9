//! One key follows another without a packet lost (policy model 32.3).
//!
//! ```text
//!            interval is over        everybody has read of it        nobody speaks under it
//!  current A ───────────────▶ A, next B ─────────────────▶ B, previous A ───────────────▶ B
//!                             B is announced,              handshakes begin with B,
//!                             datagrams for B accepted     datagrams for A accepted
//! ```
//!
//! Peers that read Nodes accept every announced key, so whichever of the two a node begins with, the other knows it.

use std::time::Duration;

use super::keys::{FamilyKeys, KeyError, OwnKey};

/// How long an announcement stands before its key is begun with: time for every node to read of it, also one whose watch was cut.
pub const ANNOUNCED: u64 = 60;
/// How long the key before is accepted at least: a session ends 180 s after its handshake, and one may have begun just before.
pub const ACCEPTED: u64 = 240;

/// What a step has to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Our Node says what we want it to say.
    pub is_published: bool,
    /// A session stands that was begun with the key before.
    pub speaks_under_previous: bool,
}

/// Does what is due at `now`, in seconds since 1970; returns whether anything changed. At most one step: each has to be stored and
/// published before the next.
///
/// Errors: [`KeyError::NoRandomness`], and nothing changed.
pub fn step(
    keys: &mut FamilyKeys,
    now: u64,
    interval: Option<Duration>,
    facts: Facts,
) -> Result<bool, KeyError> {
    let since = |then: u64| now.saturating_sub(then);
    if keys.previous.is_some() {
        let is_over =
            facts.is_published && !facts.speaks_under_previous && since(keys.current.since) >= ACCEPTED;
        if is_over {
            keys.previous = None;
        }
        return Ok(is_over);
    }
    if let Some(next) = &keys.next {
        if !facts.is_published || since(next.since) < ANNOUNCED {
            return Ok(false);
        }
        if let Some(mut next) = keys.next.take() {
            next.since = now;
            keys.previous = Some(std::mem::replace(&mut keys.current, next));
        }
        return Ok(true);
    }
    match interval {
        Some(interval) if facts.is_published && since(keys.current.made) >= interval.as_secs().max(1) => {
            keys.next = Some(OwnKey::make(now)?);
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: Facts = Facts { is_published: true, speaks_under_previous: false };

    #[test]
    fn pm_32_3_announced_then_used_then_the_one_before_goes() {
        let day = Some(Duration::from_secs(86_400));
        let mut keys = FamilyKeys::make(0).unwrap();
        let first = keys.current.public();
        let mut now = 86_399;
        assert!(!step(&mut keys, now, day, PUBLISHED).unwrap());
        now += 1;
        assert!(!step(&mut keys, now, None, PUBLISHED).unwrap(), "off by default");
        assert!(!step(&mut keys, now, day, Facts::default()).unwrap(), "the first is not even published");
        assert!(step(&mut keys, now, day, PUBLISHED).unwrap());
        let second = keys.next.as_ref().unwrap().public();
        assert_eq!(
            keys.all().map(OwnKey::public).collect::<Vec<_>>(),
            [first, second],
            "the first is in use"
        );
        now += ANNOUNCED - 1;
        assert!(!step(&mut keys, now, day, PUBLISHED).unwrap());
        now += 1;
        assert!(!step(&mut keys, now, day, Facts::default()).unwrap(), "nobody was told");
        assert!(step(&mut keys, now, day, PUBLISHED).unwrap());
        assert_eq!(keys.all().map(OwnKey::public).collect::<Vec<_>>(), [second, first], "both are accepted");
        now += ACCEPTED;
        let busy = Facts { speaks_under_previous: true, ..PUBLISHED };
        assert!(!step(&mut keys, now, day, busy).unwrap(), "somebody speaks under it");
        assert!(step(&mut keys, now, day, PUBLISHED).unwrap());
        assert_eq!(keys.all().map(OwnKey::public).collect::<Vec<_>>(), [second]);
        assert!(!step(&mut keys, now, day, PUBLISHED).unwrap());
    }

    #[test]
    fn a_clock_that_goes_back_only_waits() {
        let mut keys = FamilyKeys::make(1_000_000).unwrap();
        assert!(!step(&mut keys, 10, Some(Duration::from_secs(60)), PUBLISHED).unwrap());
        assert!(keys.next.is_none());
    }
}

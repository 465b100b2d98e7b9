//! Our own key pairs: made here from the system's randomness, written and read as text, never printed.
//!
//! ```text
//!  v4 current 1763724000 1763724000 <private key, base64>
//!  v4 next    1763810400 1763810400 <private key, base64>
//! ```
//!
//! A line has the family, what the key is for, when it was made, and since when it is for that; times in seconds since 1970.

use std::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use margay_core::tunnel::{PrivateKey, PublicKey};
use zeroize::{Zeroize, Zeroizing};

use super::Family;

/// Characters of a key in base64.
const BASE64: usize = 44;

/// Why there is no key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// The system has no randomness for us.
    #[error("the system gives no randomness ({0}); no key is made without it")]
    NoRandomness(String),
    /// Kept keys cannot be read.
    #[error("line {line} of the kept keys: {what}; remove the keys, and new ones are made")]
    Unreadable {
        /// Which line, from one.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// One key pair of ours.
#[derive(Clone)]
pub struct OwnKey {
    secret: Zeroizing<[u8; 32]>,
    public: PublicKey,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// Since when it is for what it is for.
    pub since: u64,
}

impl OwnKey {
    /// Makes a key pair. Errors: [`KeyError::NoRandomness`].
    pub fn make(now: u64) -> Result<Self, KeyError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|error| KeyError::NoRandomness(error.to_string()))?;
        Ok(Self::of(secret, now, now))
    }

    fn of(secret: Zeroizing<[u8; 32]>, made: u64, since: u64) -> Self {
        let public = PrivateKey::new(*secret).public();
        Self { secret, public, made, since }
    }

    /// Returns the public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Returns the pair as the packet path takes it.
    pub fn private(&self) -> PrivateKey {
        PrivateKey::new(*self.secret)
    }
}

impl fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnKey")
            .field("public", &self.public)
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

/// The key pairs of one family.
#[derive(Clone, Debug)]
pub struct FamilyKeys {
    /// Handshakes are begun with it.
    pub current: OwnKey,
    /// Announced, and not begun with yet.
    pub next: Option<OwnKey>,
    /// Still accepted.
    pub previous: Option<OwnKey>,
}

impl FamilyKeys {
    /// Makes the first. Errors: [`KeyError::NoRandomness`].
    pub fn make(now: u64) -> Result<Self, KeyError> {
        Ok(Self { current: OwnKey::make(now)?, next: None, previous: None })
    }

    /// Returns every pair, the one in use first.
    pub fn all(&self) -> impl Iterator<Item = &OwnKey> {
        std::iter::once(&self.current).chain(&self.next).chain(&self.previous)
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Ring {
    /// IPv4.
    pub v4: FamilyKeys,
    /// IPv6.
    pub v6: FamilyKeys,
}

impl Ring {
    /// Makes new pairs for both families. Errors: [`KeyError::NoRandomness`].
    pub fn make(now: u64) -> Result<Self, KeyError> {
        Ok(Self { v4: FamilyKeys::make(now)?, v6: FamilyKeys::make(now)? })
    }

    /// Returns those of a family.
    pub fn of(&self, family: Family) -> &FamilyKeys {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, family: Family) -> &mut FamilyKeys {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Writes them as text; see the module.
    pub fn write(&self) -> Zeroizing<String> {
        // Room for six lines: a text that grows leaves copies of itself behind.
        let mut text = Zeroizing::new(String::with_capacity(6 * 128));
        for (name, keys) in [("v4", &self.v4), ("v6", &self.v6)] {
            let uses = [
                ("current", Some(&keys.current)),
                ("next", keys.next.as_ref()),
                ("previous", keys.previous.as_ref()),
            ];
            for (what, key) in uses {
                let Some(key) = key else { continue };
                let mut encoded = Zeroizing::new([0; BASE64]);
                // 32 bytes are 44 characters, and a String takes what is written to it.
                let _ = STANDARD.encode_slice(key.secret.as_slice(), &mut *encoded);
                let encoded = std::str::from_utf8(&*encoded).unwrap_or_default();
                let _ = writeln!(text, "{name} {what} {} {} {encoded}", key.made, key.since);
            }
        }
        text
    }

    /// Reads what [`Ring::write`] wrote. Errors: [`KeyError::Unreadable`]; the text is in none of them.
    pub fn read(text: &str) -> Result<Self, KeyError> {
        let mut found: [[Option<OwnKey>; 3]; 2] = Default::default();
        let mut lines = 0;
        for (line, words) in (1..).zip(text.lines()) {
            lines = line;
            let unreadable = |what| KeyError::Unreadable { line, what };
            let words: Vec<&str> = words.split(' ').collect();
            let [family, what, made, since, key] = words[..] else {
                return Err(unreadable("has not five words"));
            };
            let family =
                ["v4", "v6"].iter().position(|known| *known == family).ok_or(unreadable("no family"))?;
            let what = ["current", "next", "previous"].iter().position(|known| *known == what);
            let what = what.ok_or(unreadable("no use of a key"))?;
            let (made, since) = (made.parse(), since.parse());
            let (Ok(made), Ok(since)) = (made, since) else { return Err(unreadable("no time")) };
            // As long as any 44 characters may decode to.
            let mut bytes = Zeroizing::new([0; 36]);
            let length = STANDARD.decode_slice(key, &mut *bytes).map_err(|_| unreadable("no key"))?;
            let mut secret = Zeroizing::new([0; 32]);
            if length != secret.len() {
                return Err(unreadable("a key of another length"));
            }
            secret.copy_from_slice(&bytes[..32]);
            bytes.zeroize();
            found[family][what] = Some(OwnKey::of(secret, made, since));
        }
        let missing = KeyError::Unreadable { line: lines, what: "a family has no key in use" };
        let mut families = found
            .into_iter()
            .map(|[current, next, previous]| current.map(|current| FamilyKeys { current, next, previous }));
        match (families.next().flatten(), families.next().flatten()) {
            (Some(v4), Some(v6)) => Ok(Self { v4, v6 }),
            _ => Err(missing),
        }
    }
}

/// Returns a public key as people and annotations write it.
pub fn in_base64(key: PublicKey) -> String {
    STANDARD.encode(key.0)
}

/// Reads a public key from an annotation; `None` for what is none, or nobody's.
pub fn from_base64(text: &str) -> Option<PublicKey> {
    let bytes: [u8; 32] = STANDARD.decode(text.trim()).ok()?.try_into().ok()?;
    (bytes != [0; 32]).then_some(PublicKey(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written_and_never_printed() {
        let mut ring = Ring::make(7).unwrap();
        ring.v6.next = Some(OwnKey::make(9).unwrap());
        let text = ring.write();
        assert_eq!(text.capacity(), 6 * 128, "it did not grow");
        let again = Ring::read(&text).unwrap();
        let publics = |ring: &Ring| -> Vec<PublicKey> {
            ring.v4.all().chain(ring.v6.all()).map(OwnKey::public).collect()
        };
        assert_eq!(publics(&again), publics(&ring));
        assert_eq!((again.v4.current.made, again.v6.next.as_ref().map(|key| key.since)), (7, Some(9)));
        let printed = format!("{ring:?}");
        for line in text.lines() {
            let secret = line.rsplit(' ').next().unwrap();
            assert!(!printed.contains(secret) && secret.len() == BASE64);
        }
        assert_ne!(publics(&Ring::make(7).unwrap()), publics(&ring), "two that are made are two");
    }

    #[test]
    fn what_is_no_ring_is_refused_without_saying_what_was_in_it() {
        let ring = Ring::make(7).unwrap();
        let good = ring.write();
        let lines: Vec<&str> = good.lines().collect();
        let key = lines[0].rsplit(' ').next().unwrap();
        for bad in [
            String::new(),
            lines[0].to_owned(),
            good.replace("v4", "v5"),
            good.replace("current", "old"),
            good.replace(" 7 7 ", " 7 x "),
            good.replace(key, &key[..40]),
            good.replace(key, &format!("{key}AAAA")),
            good.replace(key, &format!("{key} {key}")),
        ] {
            let error = Ring::read(&bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains(&key[..16]), "{error}");
        }
    }

    #[test]
    fn pm_25_2_public_keys_as_annotations_have_them() {
        let key = Ring::make(0).unwrap().v4.current.public();
        assert_eq!(from_base64(&in_base64(key)), Some(key));
        assert_eq!(in_base64(key).len(), BASE64);
        for bad in ["", "AAAA", "not a key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }
}

//! Sealed for this node: what is stored where others can read it is of use on this machine alone (policy model 32.1).
//!
//! ```text
//!  machine key, 32 bytes, file of mode 0600 ─┐
//!  node's name, associated ──────────────────┼─▶ XChaCha20-Poly1305 ─▶ version, nonce, sealed keys ─▶ Secret
//!  nonce, 24 random bytes ───────────────────┘
//! ```
//!
//! The nonce is long enough to be drawn: no counter has to survive a restart.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::{Zeroize, Zeroizing};

use super::private::{self, PrivateFileError};

/// First byte of what is sealed.
const VERSION: u8 = 1;
const NONCE: usize = 24;

/// Why something is not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The machine key's file.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The machine key's content.
    #[error(
        "the machine key {path} is damaged; remove it, and a new one is made: what was sealed to it is lost then, and keys are made anew"
    )]
    Damaged {
        /// The file.
        path: String,
    },
    /// The system has no randomness for us.
    #[error("the system gives no randomness ({0}); nothing is sealed without it")]
    NoRandomness(String),
    /// Not for us.
    #[error("sealed on another machine or for another node, or changed since")]
    NotOurs,
}

/// The key of this machine.
pub struct MachineKey(Zeroizing<[u8; 32]>);

impl MachineKey {
    /// Reads the key in the file at `path`, or makes one there. Errors: [`SealError`].
    pub fn open(path: &Path) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; 32]);
        if let Some(text) = private::read(path)? {
            let damaged = || SealError::Damaged { path: path.display().to_string() };
            let mut bytes = Zeroizing::new([0; 36]);
            let line = text.strip_suffix('\n').unwrap_or(&text);
            let length = STANDARD.decode_slice(line, &mut *bytes).map_err(|_| damaged())?;
            if length != key.len() {
                return Err(damaged());
            }
            key.copy_from_slice(&bytes[..32]);
            return Ok(Self(key));
        }
        getrandom::fill(&mut *key).map_err(|error| SealError::NoRandomness(error.to_string()))?;
        // All its room at once: what grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(64));
        STANDARD.encode_string(*key, &mut text);
        text.push('\n');
        private::write(path, &text)?;
        Ok(Self(key))
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    /// Seals `text` for `node`. Errors: [`SealError::NoRandomness`].
    pub fn seal(&self, node: &str, text: &str) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|error| SealError::NoRandomness(error.to_string()))?;
        let about = about(node);
        let payload = Payload { msg: text.as_bytes(), aad: about.as_bytes() };
        let sealed = self.cipher().encrypt(XNonce::from_slice(&nonce), payload);
        // Only a text of many gigabytes is too long.
        let sealed = sealed.map_err(|_| SealError::NotOurs)?;
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// Opens what [`MachineKey::seal`] sealed on this machine for `node`. Errors: [`SealError::NotOurs`].
    pub fn open_sealed(&self, node: &str, sealed: &[u8]) -> Result<Zeroizing<String>, SealError> {
        let (Some(&VERSION), Some(nonce), Some(sealed)) =
            (sealed.first(), sealed.get(1..=NONCE), sealed.get(1 + NONCE..))
        else {
            return Err(SealError::NotOurs);
        };
        let about = about(node);
        let payload = Payload { msg: sealed, aad: about.as_bytes() };
        let opened = self.cipher().decrypt(XNonce::from_slice(nonce), payload);
        let opened = opened.map_err(|_| SealError::NotOurs)?;
        String::from_utf8(opened).map(Zeroizing::new).map_err(|error| {
            error.into_bytes().zeroize();
            SealError::NotOurs
        })
    }
}

/// What is bound to the sealed text beside it.
fn about(node: &str) -> String {
    format!("margay wireguard keys of node {node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pm_32_1_sealed_keys_are_of_use_on_their_machine_and_for_their_node_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.key");
        let here = MachineKey::open(&path).unwrap();
        let sealed = here.seal("n1", "a secret").unwrap();
        assert!(!String::from_utf8_lossy(&sealed).contains("secret"));
        let again = MachineKey::open(&path).unwrap();
        assert_eq!(again.open_sealed("n1", &sealed).unwrap().as_str(), "a secret", "after a restart");
        assert!(matches!(again.open_sealed("n2", &sealed), Err(SealError::NotOurs)), "another node");
        let elsewhere = MachineKey::open(&folder.path().join("other.key")).unwrap();
        assert!(matches!(elsewhere.open_sealed("n1", &sealed), Err(SealError::NotOurs)), "another machine");
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(again.open_sealed("n1", &changed).is_err(), "byte {place}");
            assert!(again.open_sealed("n1", &sealed[..place]).is_err(), "cut at {place}");
        }
        assert_ne!(here.seal("n1", "a secret").unwrap(), sealed, "no nonce twice");
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(MachineKey::open(&path), Err(SealError::Damaged { .. })));
    }
}

//! The published value: immutable, numbered, shared with its predecessor where nothing changed.

use std::net::IpAddr;

use crate::packet::{Direction, EndpointId, Epoch, Generation, IdentityId, PacketTuple, Verdict};

/// Index into the snapshot's list of decision points; resolve it with [`Snapshot::attribution`] of the *same* snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef(pub u32);

/// What decided a verdict, spelled out for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// An immutable, numbered compilation of the Model for the endpoints of this node.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: Generation,
}

impl Snapshot {
    /// Returns the number of the snapshot.
    pub fn generation(&self) -> Generation {
        self.generation
    }
    /// Returns what the address is, for policy. Cost: one longest-prefix match.
    pub fn identity(&self, _address: IpAddr) -> IdentityId {
        IdentityId(0)
    }
    /// Returns the epoch of the endpoint's table in `direction`, or `None` when the endpoint is unknown (treat as closed).
    pub fn epoch(&self, _endpoint: EndpointId, _direction: Direction) -> Option<Epoch> {
        None
    }
    /// Judges one leg. An endpoint that the snapshot does not know gets `None`; the caller drops under a name of its own.
    pub fn judge(&self, _endpoint: EndpointId, _direction: Direction, _packet: &PacketTuple) -> Option<Judgement> {
        None
    }
    /// Names the decision point. Panics never: an index of another snapshot gives `None`.
    pub fn attribution(&self, _rule: RuleRef) -> Option<&Attribution> {
        None
    }
}

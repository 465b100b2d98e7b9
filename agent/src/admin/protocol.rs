//! What is said over the admin socket: one JSON value a line, a request from the client, then replies until `end` or `error`.
//!
//! ```text
//!  client                                    agent
//!    {"command":"drops","follow":true}  ──▶
//!                                       ◀──  {"drop":{…}}   any number, as they happen
//!    {"command":"status"}               ──▶
//!                                       ◀──  {"status":{…}}
//!                                       ◀──  {"end":{}}
//! ```
//!
//! A connection carries one request. Unknown commands and fields are refused by name, so a newer client learns what an older agent
//! does not know.

use std::collections::BTreeMap;
use std::net::IpAddr;

use margay_control::Problem;
use serde::{Deserialize, Serialize};

use super::report::{DropFilter, DropReport, FlowFilter, FlowReport, StatusReport};
use crate::capture::{CaptureFilter, CaptureReport};
use crate::explain::Explanation;
use crate::simulate::probe::Probe;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The health of the node.
    Status,
    /// What is wrong with objects.
    Problems,
    /// Live flows.
    Flows {
        /// Which.
        #[serde(default)]
        filter: FlowFilter,
    },
    /// Dropped packets.
    Drops {
        /// Whether to go on as they happen.
        #[serde(default)]
        follow: bool,
        /// Which.
        #[serde(default)]
        filter: DropFilter,
    },
    /// Packets, one by one, until the client goes away.
    Capture {
        /// Which.
        #[serde(default)]
        filter: CaptureFilter,
    },
    /// End a quarantine.
    Release {
        /// `namespace/pod`, or a device.
        what: String,
    },
    /// Which addresses pods have, here and on other nodes, under the policy that every worker judges by.
    Pods {
        /// As `namespace/name`.
        names: Vec<String>,
    },
    /// Why a packet passes or not.
    Explain {
        /// The packet.
        probe: Probe,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `status`.
    Status(Box<StatusReport>),
    /// To `problems`, one each.
    Problem(Problem),
    /// To `flows`, one each.
    Flow(FlowReport),
    /// To `drops`, one each.
    Drop(DropReport),
    /// To `capture`: packets are being watched, and none is waiting to be told. The first says that watching has begun; later ones
    /// that it goes on.
    Watching {},
    /// To `capture`, one each.
    Packet(Box<CaptureReport>),
    /// To `release`.
    Released {
        /// The device.
        device: String,
    },
    /// To `pods`: addresses by name. A pod that the policy does not know is not there.
    Pods(BTreeMap<String, Vec<IpAddr>>),
    /// To `explain`.
    Explanation(Box<Explanation>),
    /// The request was refused.
    Error {
        /// Why, and what to do.
        message: String,
    },
    /// Nothing more comes.
    End {},
}

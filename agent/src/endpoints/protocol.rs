//! One request line, one reply line, both JSON, over a Unix socket that only root can open.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use margay_wire::MacAddr;
use serde::{Deserialize, Serialize};

use super::registry::EndpointRecord;

/// No request or reply is longer than this; a peer that sends more is cut off.
pub const LONGEST_LINE: u64 = 4 << 20;

/// What names one attachment, in the CNI specification's terms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// The pod an attachment is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Namespace of the Pod object.
    pub namespace: String,
    /// Name of the Pod object.
    pub name: String,
    /// `metadata.uid`, when the runtime told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// A veth pair that the plug-in has made and configured, its host end still down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which attachment.
    pub key: AttachmentKey,
    /// Name of the CNI network.
    pub network: String,
    /// Path of the container's network namespace.
    pub netns: String,
    /// The pod.
    pub pod: PodRef,
    /// Host end, by name.
    pub host_ifname: String,
    /// Host end, by index.
    pub host_ifindex: u32,
    /// Ethernet address of the pod's end.
    #[serde(with = "mac_text")]
    pub pod_mac: MacAddr,
    /// Ethernet address of the host end.
    #[serde(with = "mac_text")]
    pub host_mac: MacAddr,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// MTU of both ends.
    pub mtu: u32,
    /// What the pod's routes say of packets that leave the node, where that is not the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_mtu: Option<u32>,
    /// Destinations that the pod has routes to without that: packets to them are as large as its interface takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<IpNet>,
    /// How long the plug-in waits for policy to be in force, in milliseconds.
    pub timeout_ms: u64,
}

/// Packets between pods of one node that are larger than any that leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargePackets {
    /// MTU of pods' interfaces.
    pub mtu: u32,
    /// Where packets may be so large; everywhere else routes carry the other MTU.
    pub within: Vec<IpNet>,
}

/// What the plug-in asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Can you attach now, and with which MTU?
    Status,
    /// Take this pair over; answer when the pod's policy is in force.
    Attach(Box<Attach>),
    /// Let go of an attachment; one that is unknown is no error.
    Detach(AttachmentKey),
    /// Is this attachment in order?
    Check(AttachmentKey),
    /// Which attachments of this network do you know?
    List {
        /// Name of the CNI network.
        network: String,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status {
        /// Why nothing can be attached at the moment; absent when it can.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_ready: Option<String>,
        /// MTU for a pod whose network configuration names none.
        default_mtu: u32,
        /// Largest MTU whose packets its port takes, whatever its network configuration says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        largest_mtu: Option<u32>,
        /// What its packets to pods of this node may be beyond that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        large: Option<LargePackets>,
        /// Addresses that rest: nobody should get one while others are free.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        resting: BTreeSet<IpAddr>,
    },
    /// The pod's policy is in force.
    Attached(Box<EndpointRecord>),
    /// Done, or there was nothing to do.
    Done,
    /// To [`Request::List`].
    Known {
        /// The attachments.
        keys: Vec<AttachmentKey>,
    },
    /// Refused; what was begun has been undone.
    Failed {
        /// Whether the same request may succeed later.
        retry: bool,
        /// Why.
        message: String,
    },
}

/// Asks the agent that listens at `socket` and waits at most `timeout` for each step of the answer.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    write_line(&mut stream, request)?;
    read_line(&mut BufReader::new(stream))?
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the agent hung up without an answer"))
}

/// Writes `value` as one line.
pub fn write_line<T: Serialize>(writer: &mut impl Write, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// Reads one line; `None` when the peer closed first.
pub fn read_line<T: for<'de> Deserialize<'de>>(reader: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Ethernet addresses as people write them.
pub mod mac_text {
    use margay_wire::MacAddr;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes `02:00:5e:10:00:01`.
    pub fn serialize<S: Serializer>(mac: &MacAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    /// Reads `02:00:5e:10:00:01`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MacAddr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

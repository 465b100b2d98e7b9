//! Threads of the kernel that receive for uplinks.
//!
//! A NIC interrupts, and is received from on the processor that its owner chose; nothing of that is ours to change. A veth as an uplink (a
//! node that is a container or a namespace) is received from by whoever sends to it, within his system call: for our workers that is the
//! worker of the *other* node, which then does both nodes' work while a processor beside it has nothing to do. A thread of the kernel takes
//! the receiving half off it. It is worth nothing where there is one processor.
//!
//! The thread has its own turns, so what is sent meanwhile has to wait, and a veth has room for 256 packets and loses the rest. With a
//! queueing discipline its sender is told to wait instead (Linux 6.16, `veth_xmit`), so a veth without one (`noqueue`) gets `pfifo`.

use std::collections::BTreeMap;

use super::args::UplinkPolling;
use super::uplinks::Uplink;
use crate::net::napi::{self, Napi};
use crate::net::netlink::QUEUE;
use crate::net::{NetError, Netlink};

/// The uplinks that threads receive for, until this is dropped: then they are as they were found. What an agent that was killed left on a
/// veth is taken for its doing.
#[derive(Debug, Default)]
pub struct Threads {
    /// How each was found.
    before: BTreeMap<String, Before>,
}

#[derive(Clone, Copy, Debug)]
struct Before {
    index: u32,
    napi: Napi,
    /// Whether the queue is ours.
    queued: bool,
}

impl Threads {
    /// Has threads receive for those `uplinks` that are to have them. Call it when programs are attached: before, a veth has nothing to
    /// poll. One that the kernel gives no thread stays as it is, and the log says so.
    pub fn start(uplinks: &[Uplink], wanted: UplinkPolling, processors: usize) -> Self {
        let mut threads = Self::default();
        for uplink in uplinks.iter().filter(|uplink| wants(wanted, uplink.is_veth, processors)) {
            match begin(uplink) {
                Ok(before) => {
                    tracing::info!(uplink = uplink.name, "threads of the kernel receive for the uplink");
                    threads.before.insert(uplink.name.clone(), before);
                }
                Err(error) => {
                    tracing::warn!(uplink = uplink.name, %error, "the uplink is received from as its driver has it");
                }
            }
        }
        threads
    }

    /// Returns the names of uplinks that threads receive for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.before.keys().map(String::as_str)
    }
}

/// Has a thread receive for an uplink, and its senders wait.
fn begin(uplink: &Uplink) -> Result<Before, NetError> {
    let mut netlink = Netlink::open()?;
    let index = netlink.existing(&uplink.name)?.index;
    let discipline = netlink.root_discipline(index)?;
    let found = napi::read(None, &uplink.name)?;
    napi::set(None, &uplink.name, Napi { threaded: true, ..found })?;
    let napi = Napi { threaded: found.threaded && !uplink.is_veth, ..found };
    let queued = uplink.is_veth
        && match discipline.as_deref() {
            // Without it more is lost, and nothing else changes.
            Some("noqueue") => netlink.set_queue(index, true).is_ok(),
            other => other == Some(QUEUE),
        };
    Ok(Before { index, napi, queued })
}

/// Puts an uplink back, whatever its name is now.
fn end(before: &Before) -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.links()?.into_iter().find(|link| link.index == before.index) else {
        return Ok(());
    };
    if before.queued && netlink.root_discipline(link.index)?.as_deref() == Some(QUEUE) {
        netlink.set_queue(link.index, false)?;
    }
    napi::set(None, &link.name, before.napi)
}

fn wants(wanted: UplinkPolling, is_veth: bool, processors: usize) -> bool {
    match wanted {
        UplinkPolling::Auto => is_veth && processors > 1,
        UplinkPolling::Driver => false,
        UplinkPolling::Threaded => true,
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (name, before) in &self.before {
            if let Err(error) = end(before) {
                tracing::warn!(uplink = name, %error, "the uplink stays as the agent set it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_for_veths_beside_another_processor_or_when_told() {
        use UplinkPolling::{Auto, Driver, Threaded};
        for (wanted, is_veth, processors, expected) in [
            (Auto, true, 2, true),
            (Auto, true, 1, false),
            (Auto, false, 8, false),
            (Driver, true, 8, false),
            (Threaded, false, 1, true),
        ] {
            assert_eq!(wants(wanted, is_veth, processors), expected, "{wanted:?} {is_veth} {processors}");
        }
    }
}

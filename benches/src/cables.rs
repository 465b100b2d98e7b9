//! The two cables around a forwarder: `generator ═ into (forwarder) out ═ sink`.

use crate::namespaces::{NetNs, ip, up, wait_for_carrier};
use crate::{Result, world};

/// Makes them around a namespace, with Ethernet addresses as [`world`] has them for its two pods, and returns the names of generator, into,
/// out and sink; `tag` tells them from others of the thread's namespace.
///
/// Errors: the kernel refuses devices.
pub fn cables(tag: &str, inside: &NetNs) -> Result<[String; 4]> {
    let names = ["g", "i", "o", "s"].map(|end| format!("{end}-{tag}"));
    let [generator, into, out, sink] = &names;
    ip(&format!("link add {generator} type veth peer name {into} netns {}", inside.path()))?;
    ip(&format!("link add {sink} type veth peer name {out} netns {}", inside.path()))?;
    inside.inside(|| {
        ip(&format!("link set {into} address {}", world::port_mac(world::A)))?;
        ip(&format!("link set {out} address {}", world::port_mac(world::B)))?;
        [into, out].into_iter().try_for_each(|end| up(end))
    })?;
    [generator, sink].into_iter().try_for_each(|end| up(end))?;
    [generator, sink].into_iter().try_for_each(|end| wait_for_carrier(end))?;
    Ok(names)
}

//! Two namespaces and a third between them, whose kernel forwards: the peer of a node with two pods.

use std::process::{Command, Stdio};

use crate::Result;
use crate::streams::{patiently, run};

/// Address of the second namespace.
pub const FAR: &str = "172.29.2.2";

/// The three namespaces, deleted with their owner.
#[derive(Debug)]
pub struct Router {
    /// The first end, the router, the second end.
    names: [String; 3],
}

impl Router {
    /// Makes them, with interfaces of MTU 1500; there are no firewall rules.
    ///
    /// Errors: no permission; they do not reach each other.
    pub fn up() -> Result<Self> {
        let names = ["a", "r", "b"].map(|side| format!("bench-{}{side}", std::process::id()));
        let router = Self { names };
        let ip = |arguments: &str| run(Command::new("ip").args(arguments.split_whitespace()));
        let [a, r, b] = &router.names;
        for name in &router.names {
            ip(&format!("netns add {name}"))?;
        }
        for (far, number) in [(a, 1), (b, 2)] {
            ip(&format!("link add eth0 netns {far} type veth peer name v{number} netns {r}"))?;
            ip(&format!("-n {far} addr add 172.29.{number}.2/24 dev eth0"))?;
            ip(&format!("-n {far} link set eth0 up"))?;
            ip(&format!("-n {r} addr add 172.29.{number}.1/24 dev v{number}"))?;
            ip(&format!("-n {r} link set v{number} up"))?;
            ip(&format!("-n {far} route add default via 172.29.{number}.1"))?;
        }
        ip(&format!("netns exec {r} sysctl -q -w net.ipv4.ip_forward=1"))?;
        patiently(|| run(router.inside(0).args(["ping", "-n", "-c", "1", "-W", "1", FAR])))?;
        Ok(router)
    }

    /// Returns a command that leads into an end, 0 or 1; what it runs there is to be added.
    pub fn inside(&self, end: usize) -> Command {
        let mut call = Command::new("ip");
        call.args(["netns", "exec", &self.names[2 * end]]);
        call
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for name in &self.names {
            // One that was not made is not there.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

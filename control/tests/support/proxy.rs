//! A way to the API server that can be cut: a TCP proxy.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// The proxy; its connections end with it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    open: Mutex<Vec<TcpStream>>,
    refuses: AtomicBool,
    ended: AtomicBool,
    accepted: AtomicU64,
}

impl Proxy {
    /// Begins to pass connections on to `target`, from a port of loopback.
    pub fn to(target: SocketAddr) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), target)
    }

    /// Begins to pass connections to `listen` on to `target`, in the caller's network namespace.
    pub fn at(listen: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).expect("listen");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            open: Mutex::default(),
            refuses: false.into(),
            ended: false.into(),
            accepted: 0.into(),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for client in listener.incoming() {
                    if shared.ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(client) = client else { continue };
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    let server = match TcpStream::connect(target) {
                        Ok(server) if !shared.refuses.load(Ordering::Relaxed) => server,
                        _ => continue,
                    };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let mut open = shared.open.lock().expect("list");
                    for (from, to) in [(&client, &server), (&server, &client)] {
                        let (mut from, mut to) =
                            (from.try_clone().expect("socket"), to.try_clone().expect("socket"));
                        thread::spawn(move || {
                            let _ = io::copy(&mut from, &mut to);
                            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                        });
                    }
                    open.extend([client, server]);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection there is.
    pub fn cut(&self) {
        for socket in self.shared.open.lock().expect("list").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Cuts, and lets nobody through until told otherwise.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::Relaxed);
        if refuses {
            self.cut();
        }
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the one who listens. In another network namespace it is out of reach, and ends with the test.
        if self.address.ip().is_loopback() {
            let _ = TcpStream::connect(self.address);
        }
    }
}

//! Free loopback ports.
//!
//! Ports are taken from below the range that the system deals to outgoing connections: a node that
//! is down for a while must find its port free when it comes back, whatever connected meanwhile.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rand::{Rng, SeedableRng};

/// Default of Linux; read from the system where that is possible.
const EPHEMERAL_PORT_MIN: u16 = 32_768;
/// Lowest port that is tried.
const PORT_MIN: u16 = 15_000;
/// Ports tried, at most, for each port wanted.
const TRIES_MAX: usize = 200;

/// Picks `count` different loopback ports that are free now.
///
/// # Errors
/// If there are not as many.
pub fn pick(count: usize) -> io::Result<Vec<SocketAddr>> {
    let end = ephemeral_port_min().max(PORT_MIN + 1_000);
    let mut rng = rand::rngs::StdRng::from_os_rng();
    let mut held = Vec::with_capacity(count);
    for _ in 0..count * TRIES_MAX {
        if held.len() == count {
            break;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rng.random_range(PORT_MIN..end)));
        // Held until all are picked, so that no port is picked twice.
        if let Ok(listener) = TcpListener::bind(address) {
            held.push(listener);
        }
    }
    if held.len() < count {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("fewer than {count} free loopback ports between {PORT_MIN} and {end}"),
        ));
    }
    held.iter().map(TcpListener::local_addr).collect()
}

fn ephemeral_port_min() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(EPHEMERAL_PORT_MIN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn picked_ports_differ_and_can_be_listened_on() {
        let ports = pick(30).expect("there are free ports");
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 30);
        assert!(ports.iter().all(|port| port.ip().is_loopback()));
        // Somebody else on this machine may have taken one or the other meanwhile.
        assert!(ports.iter().any(|port| TcpListener::bind(port).is_ok()));
    }
}

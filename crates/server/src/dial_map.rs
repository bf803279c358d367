//! Another address than the announced one, for some peers.
//!
//! Nodes announce one address to everybody. Where the way from here to a peer is another one (a
//! tunnel, an address translation, a proxy between any two nodes), `peer_dial` says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use anchorhold_consensus::Dial;
use anchorhold_model::NodeId;
use tonic::transport::Channel;

/// Dials what the map says, and the announced address where it says nothing.
pub(crate) struct DialMap {
    pub(crate) inner: Arc<dyn Dial>,
    /// From announced address to the one to dial, both `host:port`.
    pub(crate) addresses: BTreeMap<String, String>,
}

impl Dial for DialMap {
    fn channel(&self, peer: NodeId, announced: &str) -> Result<Channel, String> {
        let address = self.addresses.get(announced).map_or(announced, String::as_str);
        self.inner.channel(peer, address)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Noted(Mutex<Vec<String>>);

    impl Dial for Noted {
        fn channel(&self, _peer: NodeId, announced: &str) -> Result<Channel, String> {
            self.0.lock().push(announced.to_owned());
            Err("only noted".to_owned())
        }
    }

    #[test]
    fn only_mapped_addresses_are_replaced() {
        let noted = Arc::new(Noted::default());
        let addresses = BTreeMap::from([("b:1".to_owned(), "proxy:7".to_owned())]);
        let map = DialMap { inner: noted.clone(), addresses };
        for announced in ["b:1", "c:1"] {
            map.channel(NodeId(2), announced).unwrap_err();
        }
        assert_eq!(*noted.0.lock(), ["proxy:7", "c:1"]);
    }
}

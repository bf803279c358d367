//! Every method that a node offers to clients, out of the descriptors that it serves.

use anchorhold_proto::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// One method, by its path: `/anchorhold.v1.AnchorService/GetAnchor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    pub(crate) path: String,
    pub(crate) is_admin: bool,
}

/// The methods of `anchorhold.v1` and `anchorhold.admin.v1`; all are unary.
pub(crate) fn all() -> Vec<Method> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("our own descriptors");
    let mut methods = Vec::new();
    for file in &set.file {
        let package = file.package();
        if !matches!(package, "anchorhold.v1" | "anchorhold.admin.v1") {
            continue;
        }
        for service in &file.service {
            for method in &service.method {
                assert!(!method.client_streaming() && !method.server_streaming());
                methods.push(Method {
                    path: format!("/{package}.{}/{}", service.name(), method.name()),
                    is_admin: package == "anchorhold.admin.v1",
                });
            }
        }
    }
    methods
}

#[test]
fn the_descriptors_list_every_service() {
    let methods = all();
    for service in ["AnchorService", "LocateService", "RoutingService", "AccountService"] {
        assert!(methods.iter().any(|method| method.path.contains(service)), "{service}");
    }
    assert!(20 <= methods.len(), "{}", methods.len());
}

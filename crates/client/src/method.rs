//! The methods that are called, as the wire names them.

/// Whether a method writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Changes nothing.
    Read,
    /// Changes something, once per request id.
    Write,
    /// As `Write`, and makes a secret that only the first answer shows: two nodes are not asked at
    /// once, because the one that comes second may answer first.
    MakeSecret,
}

/// A method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    /// Its HTTP/2 path.
    pub(crate) path: &'static str,
    /// Whether it writes.
    pub(crate) effect: Effect,
}

impl Method {
    /// Whether a try whose answer got lost may have changed something.
    pub(crate) fn writes(self) -> bool {
        self.effect != Effect::Read
    }

    /// Whether another node may be asked while the first one is silent.
    pub(crate) fn may_be_hedged(self) -> bool {
        self.effect != Effect::MakeSecret
    }
}

macro_rules! methods {
    ($($name:ident = $effect:ident $path:literal;)+) => {
        $(pub(crate) const $name: Method = Method { path: $path, effect: Effect::$effect };)+

        #[cfg(test)]
        const ALL: &[Method] = &[$($name,)+];
    };
}

methods! {
    CREATE_ANCHOR = Write "/anchorhold.v1.AnchorService/CreateAnchor";
    BATCH_CREATE_ANCHORS = Write "/anchorhold.v1.AnchorService/BatchCreateAnchors";
    GET_ANCHOR = Read "/anchorhold.v1.AnchorService/GetAnchor";
    BATCH_GET_ANCHORS = Read "/anchorhold.v1.AnchorService/BatchGetAnchors";
    UPDATE_ANCHOR = Write "/anchorhold.v1.AnchorService/UpdateAnchor";
    DELETE_ANCHOR = Write "/anchorhold.v1.AnchorService/DeleteAnchor";
    LIST_ANCHORS = Read "/anchorhold.v1.AnchorService/ListAnchors";
    LOCATE = Read "/anchorhold.v1.LocateService/Locate";
    GET_ROUTES = Read "/anchorhold.v1.RoutingService/GetRoutes";
    CREATE_ACCOUNT = MakeSecret "/anchorhold.admin.v1.AccountService/CreateAccount";
    GET_ACCOUNT = Read "/anchorhold.admin.v1.AccountService/GetAccount";
    LIST_ACCOUNTS = Read "/anchorhold.admin.v1.AccountService/ListAccounts";
    CREATE_API_KEY = MakeSecret "/anchorhold.admin.v1.AccountService/CreateApiKey";
    ROTATE_API_KEY = MakeSecret "/anchorhold.admin.v1.AccountService/RotateApiKey";
    REVOKE_API_KEY = Write "/anchorhold.admin.v1.AccountService/RevokeApiKey";
    LAY_OUT_ACCOUNT = Write "/anchorhold.admin.v1.AccountService/LayOutAccount";
    GET_CLUSTER_STATUS = Read "/anchorhold.admin.v1.ClusterService/GetClusterStatus";
    LIST_NODES = Read "/anchorhold.admin.v1.ClusterService/ListNodes";
    RELEASE_BALLAST = Write "/anchorhold.admin.v1.ClusterService/ReleaseBallast";
    LIST_ZONES = Read "/anchorhold.admin.v1.ClusterService/ListZones";
    LIST_SHARDS = Read "/anchorhold.admin.v1.ClusterService/ListShards";
    SPLIT_SHARD = Write "/anchorhold.admin.v1.ClusterService/SplitShard";
    GET_REPLICA_DIGEST = Read "/anchorhold.admin.v1.ClusterService/GetReplicaDigest";
    COMPARE_REPLICAS = Read "/anchorhold.admin.v1.ClusterService/CompareReplicas";
    GET_SERVER_INFO = Read "/anchorhold.admin.v1.ClusterService/GetServerInfo";
    WHO_AM_I = Read "/anchorhold.admin.v1.ClusterService/WhoAmI";
    DRAIN_NODE = Write "/anchorhold.admin.v1.PlacementService/DrainNode";
    RESUME_NODE = Write "/anchorhold.admin.v1.PlacementService/ResumeNode";
    MAINTAIN_NODE = Write "/anchorhold.admin.v1.PlacementService/MaintainNode";
    DECOMMISSION_NODE = Write "/anchorhold.admin.v1.PlacementService/DecommissionNode";
    EXPLAIN_NODE = Read "/anchorhold.admin.v1.PlacementService/ExplainNode";
    EXPLAIN_PLAN = Read "/anchorhold.admin.v1.PlacementService/ExplainPlan";
    LIST_OPERATORS = Read "/anchorhold.admin.v1.PlacementService/ListOperators";
    CANCEL_OPERATOR = Write "/anchorhold.admin.v1.PlacementService/CancelOperator";
    GET_SCHEDULER = Read "/anchorhold.admin.v1.PlacementService/GetScheduler";
    UPDATE_SCHEDULER = Write "/anchorhold.admin.v1.PlacementService/UpdateScheduler";
    GET_HEADROOM = Read "/anchorhold.admin.v1.PlacementService/GetHeadroom";
    TRANSFER_SHARD = Write "/anchorhold.admin.v1.PlacementService/TransferShard";
    MOVE_SHARD = Write "/anchorhold.admin.v1.PlacementService/MoveShard";
    MERGE_SHARD = Write "/anchorhold.admin.v1.PlacementService/MergeShard";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;
    use prost_types::method_options::IdempotencyLevel;

    use super::*;

    #[test]
    fn every_public_method_is_listed_with_the_effect_that_its_proto_states() {
        let descriptors = anchorhold_proto::FILE_DESCRIPTOR_SET;
        let descriptors = prost_types::FileDescriptorSet::decode(descriptors).unwrap();
        let mut stated = BTreeMap::new();
        for file in descriptors.file.iter().filter(|file| file.package() != "anchorhold.peer.v1") {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let level = method.options.clone().unwrap_or_default().idempotency_level();
                    stated.insert(path, level);
                }
            }
        }
        let listed: BTreeMap<_, _> = ALL
            .iter()
            .map(|method| {
                let level = match method.effect {
                    Effect::Read => IdempotencyLevel::NoSideEffects,
                    Effect::Write | Effect::MakeSecret => IdempotencyLevel::Idempotent,
                };
                (method.path.to_owned(), level)
            })
            .collect();
        assert_eq!(listed, stated);
    }

    #[test]
    fn methods_whose_answer_shows_a_key_are_not_hedged_and_all_others_are() {
        let descriptors = anchorhold_proto::FILE_DESCRIPTOR_SET;
        let files = prost_types::FileDescriptorSet::decode(descriptors).unwrap().file;
        let shows_key = |name: &str| {
            let messages = files.iter().flat_map(|file| {
                let package = file.package().to_owned();
                file.message_type.iter().map(move |m| (format!(".{package}.{}", m.name()), m))
            });
            let mut fields = messages.filter(|(full, _)| full == name).flat_map(|(_, m)| &m.field);
            fields.any(|field| field.name() == "api_key")
        };
        let mut secret = Vec::new();
        for file in &files {
            for service in &file.service {
                let shown = service.method.iter().filter(|method| shows_key(method.output_type()));
                secret.extend(shown.map(|method| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                }));
            }
        }
        let mut listed: Vec<_> =
            ALL.iter().filter(|one| !one.may_be_hedged()).map(|one| one.path.to_owned()).collect();
        listed.sort();
        secret.sort();
        assert_eq!((listed.len(), listed), (3, secret));
    }
}

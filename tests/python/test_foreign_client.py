"""A foreign client: everything here is generated from proto/ by grpcio-tools, nothing is ours.

The cluster is described by the JSON file that ANCHORHOLD_TEST_CLUSTER names (see
tests/src/bin/test-cluster.rs); the generated modules are on PYTHONPATH.
"""

import json
import math
import os
import time
import unittest
import uuid

import grpc
from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from anchorhold.admin.v1 import cluster_service_pb2 as cluster_pb
from anchorhold.admin.v1 import cluster_service_pb2_grpc as cluster_grpc
from anchorhold.v1 import anchor_pb2 as pb
from anchorhold.v1 import anchor_service_pb2 as anchor_pb
from anchorhold.v1 import anchor_service_pb2_grpc as anchor_grpc
from anchorhold.v1 import common_pb2 as common_pb
from anchorhold.v1 import locate_service_pb2 as locate_pb
from anchorhold.v1 import locate_service_pb2_grpc as locate_grpc

with open(os.environ["ANCHORHOLD_TEST_CLUSTER"], encoding="utf-8") as file:
    CLUSTER = json.load(file)

TIMEOUT_S = 20


def bearer(key):
    return (("authorization", f"Bearer {key}"),)


KEY = bearer(CLUSTER["account_key"])
OTHER = bearer(CLUSTER["other_account_key"])
ADMIN = bearer(CLUSTER["admin_key"])


def geo_anchor(latitude, longitude, height=400.0, **fields):
    pose = pb.Pose(
        geo=pb.GeoPose(latitude_deg=latitude, longitude_deg=longitude, height_m=height)
    )
    return pb.Anchor(pose=pose, **fields)


def reason(error):
    """The stable reason of a failed call, and its metadata."""
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason, dict(info.metadata), info.domain
    return None, {}, None


def violations(error):
    for detail in rpc_status.from_call(error).details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            return [violation.field for violation in request.field_violations]
    return []


class ForeignClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.channels = [grpc.insecure_channel(node["client"]) for node in CLUSTER["nodes"]]
        cls.anchors = [anchor_grpc.AnchorServiceStub(channel) for channel in cls.channels]
        cls.locates = [locate_grpc.LocateServiceStub(channel) for channel in cls.channels]

    @classmethod
    def tearDownClass(cls):
        for channel in cls.channels:
            channel.close()

    def create(self, anchor, node=0, key=KEY, request_id=None):
        request = anchor_pb.CreateAnchorRequest(
            anchor=anchor, request_id=request_id or str(uuid.uuid4())
        )
        return self.anchors[node].CreateAnchor(request, metadata=key, timeout=TIMEOUT_S)

    def get(self, anchor_id, node=0, key=KEY, read=None):
        request = anchor_pb.GetAnchorRequest(id=anchor_id, read=read)
        return self.anchors[node].GetAnchor(request, metadata=key, timeout=TIMEOUT_S)

    def fails(self, code, expected_reason, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        found, _, domain = reason(caught.exception)
        self.assertEqual(domain, "anchorhold.dev")
        if expected_reason is not None:
            self.assertEqual(found, expected_reason)
        return caught.exception

    def test_an_anchor_lives_its_whole_life(self):
        properties = {"name": "Säntis", "floor": "2"}
        stored = self.create(
            geo_anchor(47.2494, 9.3432, 2502.0, properties=properties, tags=["peak", "b"])
        )
        anchor = stored.anchor
        self.assertEqual(uuid.UUID(anchor.id).version, 8)
        self.assertTrue(anchor.etag)
        self.assertEqual(dict(anchor.properties), properties)
        self.assertEqual(list(anchor.tags), ["b", "peak"])
        self.assertGreater(len(stored.session_token), 0)
        for node in range(len(self.anchors)):
            reply = self.get(anchor.id, node)
            self.assertEqual(reply.anchor, anchor)
            self.assertGreater(reply.serving.node_id, 0)
            self.assertEqual(
                reply.serving.shards[0].consistency, common_pb.CONSISTENCY_LINEARIZABLE
            )

        changed = pb.Anchor(id=anchor.id, etag=anchor.etag, properties={"name": "Saentis"})
        mask = field_mask_pb2.FieldMask(paths=["properties"])
        update = anchor_pb.UpdateAnchorRequest(
            anchor=changed, update_mask=mask, request_id=str(uuid.uuid4())
        )
        updated = self.anchors[1].UpdateAnchor(update, metadata=KEY, timeout=TIMEOUT_S).anchor
        self.assertEqual(dict(updated.properties), {"name": "Saentis"})
        self.assertEqual(updated.pose, anchor.pose)
        self.assertNotEqual(updated.etag, anchor.etag)

        update.request_id = str(uuid.uuid4())
        error = self.fails(
            grpc.StatusCode.ABORTED,
            "ETAG_MISMATCH",
            lambda: self.anchors[2].UpdateAnchor(update, metadata=KEY, timeout=TIMEOUT_S),
        )
        self.assertTrue(error.details())

        delete = anchor_pb.DeleteAnchorRequest(id=anchor.id, request_id=str(uuid.uuid4()))
        self.anchors[2].DeleteAnchor(delete, metadata=KEY, timeout=TIMEOUT_S)
        self.anchors[0].DeleteAnchor(delete, metadata=KEY, timeout=TIMEOUT_S)
        self.fails(
            grpc.StatusCode.NOT_FOUND, "ANCHOR_NOT_FOUND", lambda: self.get(anchor.id, 1)
        )

    def test_a_retry_with_the_same_request_id_makes_one_anchor(self):
        request_id = str(uuid.uuid4())
        first = self.create(geo_anchor(10.0, 10.0), 0, request_id=request_id)
        second = self.create(geo_anchor(10.0, 10.0), 1, request_id=request_id)
        self.assertEqual(first.anchor, second.anchor)

    def test_pages_list_every_anchor_once_and_in_order(self):
        made = set()
        for index in range(25):
            anchor = geo_anchor(-33.9 + index * 0.01, 18.4, tags=["paged"])
            made.add(self.create(anchor, index % 3).anchor.id)
        listed = []
        token = ""
        while True:
            request = anchor_pb.ListAnchorsRequest(
                filter=pb.Filter(tags_all=["paged"]), page_size=7, page_token=token
            )
            page = self.anchors[len(listed) % 3].ListAnchors(
                request, metadata=KEY, timeout=TIMEOUT_S
            )
            self.assertLessEqual(len(page.anchors), 7)
            listed += [anchor.id for anchor in page.anchors]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(listed, sorted(made))

    def test_batches_answer_item_by_item(self):
        good = [geo_anchor(60.0 + index, 25.0) for index in range(3)]
        batch = anchor_pb.BatchCreateAnchorsRequest(
            anchors=good, request_id=str(uuid.uuid4()), ids_only=True
        )
        results = self.anchors[1].BatchCreateAnchors(
            batch, metadata=KEY, timeout=TIMEOUT_S
        ).results
        ids = [result.anchor.id for result in results]
        self.assertEqual(len(set(ids)), 3)
        absent = ids[0][:-4] + ("0000" if ids[0][-4:] != "0000" else "1111")
        get = anchor_pb.BatchGetAnchorsRequest(ids=[ids[2], absent, ids[0]])
        found = self.anchors[2].BatchGetAnchors(get, metadata=KEY, timeout=TIMEOUT_S).results
        self.assertEqual([result.id for result in found], [ids[2], absent, ids[0]])
        self.assertEqual(found[0].anchor.id, ids[2])
        self.assertEqual(found[1].error.reason, "ANCHOR_NOT_FOUND")
        self.assertEqual(found[2].anchor.id, ids[0])

    def test_the_nearest_anchors_are_found_at_every_level_across_the_antimeridian(self):
        near = self.create(geo_anchor(-17.0, 179.9999, 0.0, tags=["fiji"])).anchor.id
        across = self.create(geo_anchor(-17.0, -179.9999, 0.0, tags=["fiji"])).anchor.id
        far = self.create(geo_anchor(-17.0, 179.0, 0.0, tags=["fiji"])).anchor.id
        bounded = common_pb.ReadOptions(
            consistency=common_pb.CONSISTENCY_BOUNDED_STALENESS,
            max_staleness=duration_pb2.Duration(seconds=1),
        )
        point = pb.GeoPoint(latitude_deg=-17.0, longitude_deg=180.0, height_m=0.0)
        request = locate_pb.LocateRequest(
            near_point=locate_pb.NearPoint(geo=point, k=2),
            filter=pb.Filter(tags_any=["fiji"]),
            require_complete=True,
        )

        def found(locate):
            reply = locate.Locate(request, metadata=KEY, timeout=TIMEOUT_S)
            self.assertTrue(reply.completeness.complete)
            for located in reply.anchors:
                if located.anchor.id != far:
                    self.assertTrue(math.isclose(located.distance_m, 10.65, abs_tol=0.05))
            return sorted(located.anchor.id for located in reply.anchors)

        for locate in self.locates:
            self.assertEqual(found(locate), sorted([near, across]))
        request.read.CopyFrom(bounded)
        for locate in self.locates:
            # A second after the write the bound no longer allows an answer without it; the rest
            # is for a busy machine.
            late = time.monotonic() + 5.0
            while (answer := found(locate)) != sorted([near, across]):
                self.assertLess(time.monotonic(), late, answer)

    def test_a_session_token_gives_read_your_writes_on_any_node(self):
        for index in range(12):
            stored = self.create(geo_anchor(1.0 + index, 100.0), index % 3)
            read = common_pb.ReadOptions(
                consistency=common_pb.CONSISTENCY_LOCAL, session_token=stored.session_token
            )
            reply = self.get(stored.anchor.id, (index + 1) % 3, read=read)
            self.assertEqual(reply.anchor.id, stored.anchor.id)

    def test_bad_arguments_name_the_field(self):
        error = self.fails(
            grpc.StatusCode.INVALID_ARGUMENT, None, lambda: self.create(geo_anchor(91.0, 0.0))
        )
        self.assertTrue(any("latitude" in field for field in violations(error)), violations(error))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, None, lambda: self.get("not an id"))

    def test_keys_open_their_own_account_only(self):
        anchor_id = self.create(geo_anchor(5.0, 5.0)).anchor.id
        for key in (bearer("ahk_nobody_nothing"), bearer(""), (), (("authorization", "x"),)):
            self.fails(
                grpc.StatusCode.UNAUTHENTICATED, None, lambda key=key: self.get(anchor_id, 0, key)
            )
        with self.assertRaises(grpc.RpcError) as caught:
            self.get(anchor_id, 1, OTHER)
        self.assertIn(
            caught.exception.code(), (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED)
        )

    def test_operators_see_three_nodes_in_three_zones(self):
        stub = cluster_grpc.ClusterServiceStub(self.channels[0])
        nodes = stub.ListNodes(
            cluster_pb.ListNodesRequest(), metadata=ADMIN, timeout=TIMEOUT_S
        ).nodes
        self.assertEqual(len(nodes), 3)
        self.assertEqual(len({node.zone for node in nodes}), 3)
        with self.assertRaises(grpc.RpcError) as caught:
            stub.ListNodes(cluster_pb.ListNodesRequest(), metadata=KEY, timeout=TIMEOUT_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.PERMISSION_DENIED)

    def test_health_is_serving_for_the_node_and_for_each_service(self):
        for channel in self.channels:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "anchorhold.v1.AnchorService", "anchorhold.v1.LocateService"):
                reply = stub.Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S
                )
                self.assertEqual(reply.status, health_pb2.HealthCheckResponse.SERVING, service)

    def test_reflection_lists_the_services_in_both_versions(self):
        def ask(method, request):
            call = self.channels[0].stream_stream(
                method,
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            return next(call(iter([request]), timeout=TIMEOUT_S))

        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        # Both versions have the same messages on the wire.
        for version in ("v1", "v1alpha"):
            method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            reply = ask(method, listing)
            names = {service.name for service in reply.list_services_response.service}
            self.assertIn("anchorhold.v1.AnchorService", names)
            self.assertIn("anchorhold.v1.LocateService", names)
            self.assertIn("grpc.health.v1.Health", names)
            self.assertFalse({name for name in names if name.startswith("anchorhold.peer")})
            symbol = reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="anchorhold.v1.AnchorService"
            )
            files = ask(method, symbol).file_descriptor_response.file_descriptor_proto
            parsed = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in files]
            self.assertIn("anchorhold/v1/anchor_service.proto", {file.name for file in parsed})


if __name__ == "__main__":
    unittest.main(verbosity=2)

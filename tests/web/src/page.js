// What a web app does with Anchorhold: no proxy, no generated server code, gRPC-web straight to a
// node. The functions are called by check.mjs through the browser.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { AnchorSchema } from "../gen/anchorhold/v1/anchor_pb.js";
import { AnchorService } from "../gen/anchorhold/v1/anchor_service_pb.js";
import { LocateService } from "../gen/anchorhold/v1/locate_service_pb.js";

function client(service, endpoint, key) {
  const authorize = (next) => (request) => {
    if (key) request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  const transport = createGrpcWebTransport({ baseUrl: endpoint, interceptors: [authorize] });
  return createClient(service, transport);
}

function plain(anchor) {
  const geo = anchor.pose.frame.value;
  return {
    id: anchor.id,
    etag: anchor.etag,
    latitudeDeg: geo.latitudeDeg,
    longitudeDeg: geo.longitudeDeg,
    name: anchor.properties.name,
    tags: anchor.tags,
  };
}

// An error as { code, metadata of its details } instead of an exception, which would not survive
// the way out of the browser.
async function answer(call) {
  try {
    return await call();
  } catch (thrown) {
    const error = ConnectError.from(thrown);
    return { code: Code[error.code], message: error.rawMessage, details: error.details.map((d) => d.type) };
  }
}

window.anchorhold = {
  create: (endpoint, key, name, latitudeDeg, longitudeDeg, requestId) =>
    answer(async () => {
      const geo = { latitudeDeg, longitudeDeg, heightM: 400 };
      const pose = { frame: { case: "geo", value: geo } };
      const anchor = create(AnchorSchema, { pose, properties: { name }, tags: ["web"] });
      const reply = await client(AnchorService, endpoint, key).createAnchor({ anchor, requestId });
      return { anchor: plain(reply.anchor), token: Array.from(reply.sessionToken) };
    }),
  get: (endpoint, key, id) =>
    answer(async () => {
      const reply = await client(AnchorService, endpoint, key).getAnchor({ id });
      return { anchor: plain(reply.anchor), node: Number(reply.serving.nodeId) };
    }),
  locate: (endpoint, key, latitudeDeg, longitudeDeg, k) =>
    answer(async () => {
      const geo = { latitudeDeg, longitudeDeg, heightM: 400 };
      const criterion = { case: "nearPoint", value: { point: { case: "geo", value: geo }, k } };
      const reply = await client(LocateService, endpoint, key).locate({ criterion });
      document.querySelector("#anchors").replaceChildren(
        ...reply.anchors.map((found) => {
          const item = document.createElement("li");
          item.textContent = `${found.anchor.properties.name}: ${found.distanceM.toFixed(1)} m`;
          return item;
        }),
      );
      return {
        complete: reply.completeness.complete,
        found: reply.anchors.map((a) => ({ ...plain(a.anchor), distanceM: a.distanceM })),
      };
    }),
};

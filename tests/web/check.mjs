// Opens src/index.html in a real, headless Chromium and calls every node of a running cluster from
// it. The cluster is described by the JSON file that ANCHORHOLD_TEST_CLUSTER names (see
// tests/src/bin/test-cluster.rs). Closes with "N passed, M failed".
import { readFile } from "node:fs/promises";
import { createServer, request as forward } from "node:http";
import { randomUUID } from "node:crypto";
import { strict as assert } from "node:assert";
import { existsSync } from "node:fs";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const cluster = JSON.parse(await readFile(process.env.ANCHORHOLD_TEST_CLUSTER, "utf8"));
const browserPath =
  process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);

const bundle = await build({
  entryPoints: ["src/page.js"], bundle: true, format: "esm", target: "es2022", write: false,
});
const files = {
  "/": ["text/html", await readFile("src/index.html")],
  "/page.js": ["text/javascript", Buffer.from(bundle.outputFiles[0].contents)],
};
// The page's own origin passes /node/N/... on to node N untouched, as a reverse proxy would: nodes
// send no CORS headers.
const server = createServer((request, response) => {
  const [, number, path] = request.url.match(/^\/node\/(\d)(\/.*)$/) ?? [];
  if (number) {
    const [host, port] = cluster.nodes[number].client.split(":");
    const options = { host, port, path, method: request.method, headers: request.headers };
    const onward = forward(options, (reply) => {
      response.writeHead(reply.statusCode, reply.headers);
      reply.pipe(response);
    });
    onward.on("error", () => response.destroy());
    request.pipe(onward);
    return;
  }
  const file = files[new URL(request.url, "http://localhost").pathname];
  response.writeHead(file ? 200 : 404, { "content-type": file?.[0] ?? "text/plain" });
  response.end(file?.[1] ?? "not found");
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const origin = `http://127.0.0.1:${server.address().port}`;

const endpoints = cluster.nodes.map((_, number) => `${origin}/node/${number}`);

const browser = await chromium.launch({
  executablePath: browserPath,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
const page = await browser.newPage();
const hosts = new Set();
const complaints = [];
page.on("request", (request) => hosts.add(new URL(request.url()).hostname));
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.setDefaultTimeout(30_000);

const call = (name, ...args) =>
  page.evaluate(([name, args]) => window.anchorhold[name](...args), [name, args]);

let passed = 0;
let failed = 0;
async function check(sentence, body) {
  try {
    await body();
    passed += 1;
    console.log(`ok      ${sentence}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${sentence}: ${error.message}`);
  }
}

const { account_key: key } = cluster;
let stored;
await check("the page loads", async () => {
  await page.goto(`${origin}/`);
  await page.waitForFunction(() => window.anchorhold !== undefined);
});
await check("a browser creates an anchor, and a retry makes no second one", async () => {
  const requestId = randomUUID();
  const reply = await call("create", endpoints[0], key, "web one", 47.1, 8.1, requestId);
  assert.ok(reply.anchor, JSON.stringify(reply));
  stored = reply.anchor;
  const retry = await call("create", endpoints[1], key, "web one", 47.1, 8.1, requestId);
  assert.equal(retry.anchor?.id, stored.id, JSON.stringify(retry));
});
for (const [index, endpoint] of endpoints.entries()) {
  await check(`node ${index + 1} returns it`, async () => {
    const reply = await call("get", endpoint, key, stored.id);
    assert.deepEqual(reply.anchor, stored, JSON.stringify(reply));
    assert.ok(0 < reply.node);
  });
}
await check("the nearest anchor is found, and the page shows it", async () => {
  await call("create", endpoints[2], key, "web two", 47.11, 8.1, randomUUID());
  const reply = await call("locate", endpoints[1], key, 47.1, 8.1, 2);
  assert.equal(reply.complete, true, JSON.stringify(reply));
  assert.deepEqual(reply.found.map((anchor) => anchor.name), ["web one", "web two"]);
  assert.ok(reply.found[0].distanceM < 0.001);
  assert.ok(Math.abs(reply.found[1].distanceM - 1_112) < 2, String(reply.found[1].distanceM));
  assert.match(await page.textContent("#anchors"), /web one: 0\.0 m/);
});
await check("errors arrive with their code and details", async () => {
  const absent = await call("get", endpoints[0], key, stored.id.replace(/.{4}$/, "0000"));
  assert.equal(absent.code, "NotFound", JSON.stringify(absent));
  assert.ok(absent.details.includes("google.rpc.ErrorInfo"), JSON.stringify(absent));
  const stranger = await call("get", endpoints[0], "ahk_wrong_key", stored.id);
  assert.equal(stranger.code, "Unauthenticated", JSON.stringify(stranger));
  const nobody = await call("get", endpoints[0], "", stored.id);
  assert.equal(nobody.code, "Unauthenticated", JSON.stringify(nobody));
});
await check("nothing left this machine and the browser had no complaint", () => {
  assert.deepEqual([...hosts], ["127.0.0.1"]);
  assert.deepEqual(complaints, []);
});

await browser.close();
server.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);

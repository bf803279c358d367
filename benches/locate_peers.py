#!/usr/bin/env python3
"""Nearest-neighbour search beside Redis GEOSEARCH and PostGIS <->, and against brute force.

Starts a three-node Anchorhold on this machine, and Redis and PostgreSQL with PostGIS if they are
installed; loads the same points into all; checks Anchorhold's answers against brute force; then
lets the same number of Python processes ask each store in turn, five rounds interleaved, and
prints medians. Everything listens on loopback, lives in a temporary directory and is ended here.

    python3 -m venv venv && venv/bin/pip install -r benches/requirements.txt
    cargo build --release && venv/bin/python benches/locate_peers.py --anchors 1000000

What is compared: k = 10 by distance. Anchorhold answers in true 3-D meters from three replicas
behind gRPC, at BOUNDED_STALENESS(1 s) and LINEARIZABLE; Redis by its sphere within 1,000 m from
one process; PostGIS in degrees on the plane from one process. A Python client takes much of two
cores, so processor time of the servers per query is the figure to look at; queries per second
are of the machine as a whole.
"""

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import pathlib
import pwd
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent
K = 10
ROUNDS = 5
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def points(count, rng):
    """[n x 3] latitude and longitude in degrees, height in meters: half of them 200 to a building
    of a city, with floors; the others all over the Earth; and the places where others go wrong."""
    inside = count // 2
    buildings = max(1, inside // 200)
    building = rng.integers(0, buildings, inside)
    at = numpy.c_[rng.uniform(52.35, 52.65, buildings), rng.uniform(13.2, 13.6, buildings)][building]
    at += rng.normal(0, 15 / 111_000, (inside, 2))
    floors = 34.0 + 3.0 * rng.integers(0, 20, inside)
    # One stack of desks: equal on the map, apart in height; and identical points.
    stack = inside // 100
    at[:stack], floors[:stack] = (52.52, 13.405), 34.0 + 3.0 * (numpy.arange(stack) % 40)
    city = numpy.c_[at, floors]
    rest = count - inside
    earth = numpy.c_[
        numpy.degrees(numpy.arcsin(rng.uniform(-1, 1, rest))),
        rng.uniform(-180, 180, rest),
        rng.uniform(-100, 3000, rest),
    ]
    poles = rest // 50
    earth[:poles, 0] = rng.choice([-1, 1], poles) * rng.uniform(89.9, 90, poles)
    antimeridian = rng.choice([-1, 1], poles) * (180 - rng.uniform(0, 0.01, poles))
    earth[poles : 2 * poles, 1] = antimeridian
    whole = numpy.r_[city, earth]
    return numpy.round(whole, 7)


def ecef(geodetic):
    """WGS84 to earth-centred meters, [n x 3]."""
    a, e2 = 6_378_137.0, 6.69437999014131699614e-3
    latitude, longitude = numpy.radians(geodetic[:, 0]), numpy.radians(geodetic[:, 1])
    n = a / numpy.sqrt(1 - e2 * numpy.sin(latitude) ** 2)
    h = geodetic[:, 2]
    return numpy.c_[
        (n + h) * numpy.cos(latitude) * numpy.cos(longitude),
        (n + h) * numpy.cos(latitude) * numpy.sin(longitude),
        (n * (1 - e2) + h) * numpy.sin(latitude),
    ]


def queries(stored, count, rng):
    """Points some meters from stored ones."""
    near = stored[rng.integers(0, len(stored), count)].copy()
    near[:, 0] = numpy.clip(near[:, 0] + rng.normal(0, 5 / 111_000, count), -90, 90)
    near[:, 1] = (near[:, 1] + rng.normal(0, 5 / 90_000, count) + 180) % 360 - 180
    near[:, 2] += rng.normal(0, 2, count)
    return near


def cpu_s(pids):
    """Processor time that these processes and their ended children have used, in seconds."""
    used = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            used += sum(int(field) for field in fields[11:15])
    return used / TICKS


def rss_mb(pids):
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Anchorhold:
    def __init__(self, directory, binary, shards):
        self.name, self.directory, self.binary, self.shards = "Anchorhold", directory, binary, shards
        self.data = directory / "anchorhold"
        output = open(directory / "demo.out", "w")
        self.process = subprocess.Popen(
            [binary, "demo", "--data-dir", self.data], stdout=output, stderr=output,
            stdin=subprocess.DEVNULL,
        )
        while "Ctrl-C ends" not in (directory / "demo.out").read_text():
            if self.process.poll() is not None:
                sys.exit((directory / "demo.out").read_text())
            time.sleep(0.2)
        account = json.loads(self.run("account", "create", "locate-peers", "--shards", str(shards), "-o", "json"))
        self.key = account["api_key"]

    def run(self, *arguments):
        environment = {**os.environ, "ANCHORHOLD_API_KEY": getattr(self, "key", "")}
        if not environment["ANCHORHOLD_API_KEY"]:
            del environment["ANCHORHOLD_API_KEY"]
        ran = subprocess.run(
            [self.binary, *arguments, "--demo", self.data], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        if ran.returncode != 0:
            sys.exit(ran.stderr)
        return ran.stdout

    def pids(self):
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], stdout=subprocess.PIPE, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def load(self, stored):
        file = self.directory / "points.csv"
        with open(file, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["number", "latitude", "longitude", "height"])
            for number, (latitude, longitude, height) in enumerate(stored):
                writer.writerow([number, repr(float(latitude)), repr(float(longitude)), repr(float(height))])
        self.run("import", str(file))
        nodes = json.loads(self.run("node", "list", "-o", "json"))
        self.endpoints = [node["client_address"] for node in nodes]

    def client(self, seed, level="bounded"):
        return GrpcClient(self.endpoints[seed % len(self.endpoints)], self.key, level)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class GrpcClient:
    def __init__(self, endpoint, key, level):
        import grpc
        from google.protobuf import duration_pb2
        from anchorhold.v1 import anchor_pb2, common_pb2, locate_service_pb2, locate_service_pb2_grpc

        self.pb = locate_service_pb2
        self.anchor_pb = anchor_pb2
        self.stub = locate_service_pb2_grpc.LocateServiceStub(grpc.insecure_channel(endpoint))
        self.metadata = (("authorization", f"Bearer {key}"),)
        if level == "bounded":
            self.read = common_pb2.ReadOptions(
                consistency=common_pb2.CONSISTENCY_BOUNDED_STALENESS,
                max_staleness=duration_pb2.Duration(seconds=1),
            )
        else:
            self.read = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LINEARIZABLE)

    def nearest(self, point):
        geo = self.anchor_pb.GeoPoint(
            latitude_deg=point[0], longitude_deg=point[1], height_m=point[2]
        )
        near = self.pb.NearPoint(geo=geo, k=K)
        request = self.pb.LocateRequest(near_point=near, read=self.read)
        reply = self.stub.Locate(request, metadata=self.metadata, timeout=20)
        return reply.anchors


class Redis:
    def __init__(self, directory):
        self.name, self.port = "Redis GEOSEARCH", free_port()
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        time.sleep(1)

    def pids(self):
        return [self.process.pid]

    def load(self, stored):
        import redis

        client = redis.Redis(port=self.port)
        # Redis ends at 85.05 degrees of latitude and knows no height.
        for start in range(0, len(stored), 2000):
            rows = []
            for number, (latitude, longitude, _) in enumerate(stored[start : start + 2000], start):
                if abs(latitude) < 85:
                    rows += [repr(float(longitude)), repr(float(latitude)), number]
            if rows:  # Whole stretches lie at the poles.
                client.execute_command("GEOADD", "points", *rows)

    def client(self, _seed):
        import redis

        client = redis.Redis(port=self.port)
        client.nearest = lambda point: client.execute_command(
            "GEOSEARCH", "points", "FROMLONLAT", point[1], max(-85.0, min(85.0, point[0])),
            "BYRADIUS", 1000, "m", "ASC", "COUNT", K, "WITHDIST",
        )
        return client

    def stop(self):
        self.process.terminate()
        self.process.wait()


class PostGis:
    def __init__(self, directory):
        self.name, self.port = "PostGIS <->", free_port()
        programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        data = directory / "postgres"
        data.mkdir()
        # PostgreSQL refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            shutil.chown(data, self.user)
            directory.chmod(0o755)
        demote = {"user": self.user, "group": self.user} if os.getuid() == 0 else {}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust"], check=True,
            stdout=subprocess.DEVNULL, **demote,
        )
        self.process = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(self.port), "-k", data,
             "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=512MB"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **demote,
        )
        time.sleep(3)

    def connect(self):
        import psycopg2

        connection = psycopg2.connect(port=self.port, host="127.0.0.1", user="postgres", dbname="postgres")
        connection.autocommit = True
        return connection

    def pids(self):
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], stdout=subprocess.PIPE, text=True)
        return [self.process.pid, *(int(pid) for pid in listed.stdout.split())]

    def load(self, stored):
        import io

        cursor = self.connect().cursor()
        cursor.execute("create extension postgis")
        cursor.execute("create table points(id int, at geometry(Point, 4326))")
        rows = (f"{number}\tSRID=4326;POINT({float(row[1])!r} {float(row[0])!r})\n" for number, row in enumerate(stored))
        cursor.copy_expert("copy points from stdin", io.StringIO("".join(rows)))
        cursor.execute("create index on points using gist(at)")
        cursor.execute("analyze points")

    def client(self, _seed):
        cursor = self.connect().cursor()
        cursor.execute(
            "set jit=off; prepare nearest(float8, float8) as select id, "
            "at <-> st_setsrid(st_makepoint($1, $2), 4326) d from points "
            f"order by at <-> st_setsrid(st_makepoint($1, $2), 4326) limit {K}"
        )

        class Client:
            @staticmethod
            def nearest(point):
                cursor.execute("execute nearest(%s, %s)", (float(point[1]), float(point[0])))
                return cursor.fetchall()

        return Client

    def stop(self):
        self.process.terminate()
        self.process.wait()


def check(store, stored, count, rng):
    """Compares whole answers with brute force. Ties may come in either order."""
    positions = ecef(stored)
    asked = queries(stored, count, rng)
    client = store.client(0, "linearizable")
    wrong = 0
    for point, place in zip(asked, ecef(asked)):
        distances = numpy.sqrt(((positions - place) ** 2).sum(axis=1))
        nearest = numpy.argpartition(distances, K)[:K]
        expected = numpy.sort(distances[nearest])
        found = client.nearest(point)
        told = numpy.array([anchor.distance_m for anchor in found])
        true = numpy.array([distances[int(anchor.anchor.properties["number"])] for anchor in found])
        is_right = len(found) == K and numpy.allclose(told, expected, atol=1e-6, rtol=0)
        is_right = is_right and numpy.allclose(told, true, atol=1e-6, rtol=0)
        is_right = is_right and len({anchor.anchor.id for anchor in found}) == K
        if not is_right:
            wrong += 1
            print(f"WRONG at {point}: told {told}, expected {expected}")
    print(f"exact: {count - wrong} of {count} answers equal brute force over {len(stored):,} anchors", flush=True)
    return wrong == 0


def drift(store, stored, count, rng):
    """Refines the poses of some anchors by up to 90 m from their home, and notes where they are."""
    import grpc
    from google.protobuf import field_mask_pb2
    from anchorhold.v1 import anchor_pb2, anchor_service_pb2, anchor_service_pb2_grpc

    stub = anchor_service_pb2_grpc.AnchorServiceStub(grpc.insecure_channel(store.endpoints[0]))
    metadata = (("authorization", f"Bearer {store.key}"),)
    client = store.client(0, "linearizable")
    moved = 0
    for place in queries(stored, count, rng):
        found = client.nearest(place)[0].anchor
        number = int(found.properties["number"])
        if abs(stored[number, 0]) > 89:
            continue
        stored[number, 0] += rng.uniform(-60, 60) / 111_500
        geo = anchor_pb2.GeoPose(latitude_deg=stored[number, 0], longitude_deg=stored[number, 1], height_m=stored[number, 2])
        anchor = anchor_pb2.Anchor(id=found.id, pose=anchor_pb2.Pose(geo=geo))
        mask = field_mask_pb2.FieldMask(paths=["pose"])
        try:
            stub.UpdateAnchor(anchor_service_pb2.UpdateAnchorRequest(anchor=anchor, update_mask=mask), metadata=metadata, timeout=20)
            moved += 1
        except grpc.RpcError as error:
            sys.exit(f"anchor {number} could not be moved: {error.details()}")
    print(f"drifted: {moved} poses refined by up to 60 m", flush=True)


def ask(store, arguments, seed, stored, seconds, results):
    client = store.client(seed, *arguments)
    asked = queries(stored, 5000, numpy.random.default_rng(seed)).tolist()
    latencies = []
    end = time.monotonic() + seconds
    found = 0
    while (start := time.monotonic()) < end:
        found += len(client.nearest(asked[len(latencies) % len(asked)]))
        latencies.append(time.monotonic() - start)
    results.put((latencies, found))


def measure(store, arguments, clients, stored, seconds):
    results = multiprocessing.Queue()
    pids = store.pids()
    before = cpu_s(pids)
    asking = [
        multiprocessing.Process(target=ask, args=(store, arguments, 100 + number, stored, seconds, results))
        for number in range(clients)
    ]
    [process.start() for process in asking]
    answers = [results.get() for _ in asking]
    # PostgreSQL serves each connection by a process of its own, which is still there.
    used = cpu_s(sorted({*pids, *store.pids()})) - before
    [process.join() for process in asking]
    latencies = numpy.sort(numpy.concatenate([latency for latency, _ in answers])) * 1e3
    return {
        "rate": len(latencies) / seconds,
        "p50_ms": latencies[len(latencies) // 2],
        "p99_ms": latencies[int(len(latencies) * 0.99)],
        "cpu_us": used / len(latencies) * 1e6,
        "found": sum(found for _, found in answers) / len(latencies),
    }


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--anchors", type=int, default=1_000_000)
    options.add_argument("--queries", type=int, default=1_000, help="answers checked against brute force")
    options.add_argument("--drifted", type=int, default=1_000, help="anchors whose pose is refined first")
    options.add_argument("--shards", type=int, default=8)
    options.add_argument("--clients", type=int, nargs="*", default=[1, 8])
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--wait", action="store_true", help="wait for Enter before the rounds")
    options.add_argument("--binary", default=str(ROOT / "target/release/anchorhold"))
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="anchorhold-locate-") as directory:
        ok = compare(options, pathlib.Path(directory))
    sys.exit(0 if ok else 1)


def generate(directory):
    """The Python modules of proto/."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    out = directory / "python"
    out.mkdir()
    protos = [str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto/anchorhold/v1").glob("*.proto")]
    if protoc.main(["protoc", f"-I{ROOT}/proto", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *protos]) != 0:
        sys.exit("the modules of proto/ could not be generated")
    sys.path.insert(0, str(out))


def compare(options, directory):
    generate(directory)
    rng = numpy.random.default_rng(20261123)
    stored = points(options.anchors, rng)
    anchorhold = Anchorhold(directory, options.binary, options.shards)
    stores = [anchorhold]
    try:
        if shutil.which("redis-server"):
            stores.append(Redis(directory))
        if any(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres")):
            stores.append(PostGis(directory))
        for store in stores:
            start = time.monotonic()
            store.load(stored)
            print(f"loaded {len(stored):,} into {store.name} in {time.monotonic() - start:.1f} s, "
                  f"{rss_mb(store.pids()):.0f} MB resident in {len(store.pids())} processes", flush=True)
        drift(anchorhold, stored, options.drifted, rng)
        ok = check(anchorhold, stored, options.queries, rng)
        if options.wait:
            input("ready; Enter starts the rounds\n")
        rounds(options, stores, stored)
        return ok
    finally:
        for store in stores:
            store.stop()


def rounds(options, stores, stored):
    cases = [(store, arguments, clients) for clients in options.clients for store in stores
             for arguments in ([("bounded",), ("linearizable",)] if store.name == "Anchorhold" else [()])]
    measured = [[] for _ in cases]
    for number in range(ROUNDS):
        for case, (store, arguments, clients) in enumerate(cases):
            measured[case].append(measure(store, arguments, clients, stored, options.seconds))
        print(f"round {number + 1} of {ROUNDS} done", file=sys.stderr, flush=True)
    print(f"{'store':<28}{'clients':>8}{'queries/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'server CPU us/query':>21}{'found':>7}")
    for (store, arguments, clients), rows in zip(cases, measured):
        name = " ".join([store.name, *arguments])
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(f"{name:<28}{clients:>8}{median['rate']:>11.0f}{median['p50_ms']:>9.2f}"
              f"{median['p99_ms']:>9.2f}{median['cpu_us']:>21.0f}{median['found']:>7.1f}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What a node with many anchors costs, and how soon it is back.

Starts three nodes on this machine with `anchorhold demo`, imports a million anchors, and says

* where each byte that a client sent ends up: rows, log, state engine, snapshots, block device;
* memory and disk of a node;
* after SIGKILL: seconds until the node is ready;
* after a power loss that costs it its state engine: the same, while readers go on asking the others.

Everything listens on loopback, lives in one directory and is ended here.

    cargo build --release
    python3 benches/node_recovery.py --anchors 1000000
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
ZONES = ["a", "b", "c"]


class Cluster:
    def __init__(self, directory, binary):
        self.binary, self.data = binary, directory / "cluster"
        few = directory / "few.csv"
        few.write_text("name,latitude,longitude\nhere,47.0,8.0\n")
        log = directory / "demo.out"
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [binary, "demo", "--data-dir", self.data, "--anchors", few],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )
        while "Ctrl-C ends" not in log.read_text():
            if self.process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.2)

    def start(self, *arguments, **environment):
        return subprocess.Popen(
            [self.binary, *arguments, "--demo", self.data, "-o", "json"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )

    def run(self, *arguments, **environment):
        started = self.start(*arguments, **environment)
        output, errors = started.communicate()
        if started.returncode != 0:
            sys.exit(f"{arguments}: {errors}")
        return json.loads(output) if output.strip() else None

    def nodes(self):
        """Process id and directory of each node, by zone."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if len(command) < 2 or command[1] != b"start":
                continue
            words = [word.decode(errors="replace") for word in command]
            for zone in ZONES:
                name = f"{zone}1"
                if any(str(self.data / name) in word for word in words):
                    found[zone] = (int(entry.name), self.data / name)
        return found

    def stop(self):
        self.process.terminate()
        self.process.wait()


def size(path):
    """Bytes that the files of a directory take on disk."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_blocks * 512
            except OSError:
                pass
    return total


def field(path, name):
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise SystemExit(f"{path} has no {name}")


def metric(text, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith((name + " ", name + "{")))


def metrics(cluster):
    """Each node's metrics page."""
    pages = []
    for node in json.loads((cluster.data / "cluster.json").read_text())["nodes"]:
        with urllib.request.urlopen(f"http://{node['http_address']}/metrics", timeout=5) as page:
            pages.append(page.read().decode())
    return pages


def write_anchors(path, count):
    """Anchors over one country, as a survey would leave them. Returns the file's bytes."""
    draw = random.Random(7)
    with open(path, "w") as out:
        out.write("number,latitude,longitude,height,surveyor\n")
        for number in range(count):
            latitude, longitude = draw.uniform(45.8, 47.8), draw.uniform(5.9, 10.5)
            out.write(f"{number},{latitude:.7f},{longitude:.7f},{draw.uniform(200, 3000):.2f},"
                      f"team-{number % 97:02}\n")
    return os.stat(path).st_size


def report_disk(cluster, live, sent):
    print("\nwhere the bytes are, per node, for each byte of live rows "
          f"({live / 1e6:.0f} MB; the client's file had {sent / 1e6:.0f} MB)")
    pages = metrics(cluster)
    log_written = [metric(page, "anchorhold_log_written_bytes_total") for page in pages]
    for number, written in enumerate(log_written):
        print(f"  node {number + 1}: written to the log since its start {written / live:.2f}")
    for zone, (process, directory) in sorted(cluster.nodes().items()):
        parts = {name: size(directory / name) for name in ("log", "state", "snapshots")}
        total = sum(parts.values())
        device = field(f"/proc/{process}/io", "write_bytes:")
        memory = field(f"/proc/{process}/status", "VmRSS:") * 1024
        peak = field(f"/proc/{process}/status", "VmHWM:") * 1024
        print(f"  {zone}: on disk {total / live:.2f} (log {parts['log'] / live:.2f}, "
              f"state {parts['state'] / live:.2f}, snapshots {parts['snapshots'] / live:.2f}); "
              f"given to the block device {device / live:.2f}; "
              f"resident {memory / 1e6:.0f} MB, at most {peak / 1e6:.0f} MB")


def restart(cluster, zone, spoil=None):
    """Kills a zone's node, spoils its directory, starts it; seconds until it is ready."""
    directory = cluster.nodes()[zone][1]
    cluster.run("zone", "kill", zone)
    if spoil:
        spoil(directory)
    started = time.monotonic()
    cluster.run("zone", "start", zone)
    return time.monotonic() - started


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--binary", default=str(ROOT / "target/release/anchorhold"))
    options.add_argument("--anchors", type=int, default=1_000_000)
    options.add_argument("--shards", type=int, default=10)
    options.add_argument("--dir", help="where to keep everything [default: a temporary one]")
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="anchorhold-recovery-", dir=options.dir) as directory:
        directory = pathlib.Path(directory)
        file = directory / "anchors.csv"
        sent = write_anchors(file, options.anchors)
        cluster = Cluster(directory, options.binary)
        try:
            account = cluster.run("account", "create", "survey")
            key = account["api_key"]
            started = time.monotonic()
            cluster.run("import", str(file), "--shards", str(options.shards),
                        ANCHORHOLD_API_KEY=key)
            took = time.monotonic() - started
            print(f"{options.anchors} anchors in {took:.1f} s, {options.anchors / took:.0f}/s")
            number = account.get("number") or account.get("account")
            shards = cluster.run("shard", "list", "--account", str(number))
            live = sum(shard["bytes"] for shard in shards)
            report_disk(cluster, live, sent)

            seconds = restart(cluster, "a")
            print(f"\nready {seconds:.1f} s after the start that followed SIGKILL")

            duration = max(20, options.anchors // 25_000)
            reader = cluster.start("bench", "read", "--clients", "16", "--warm-up", "0.5",
                                   "--duration", str(duration), ANCHORHOLD_API_KEY=key)
            time.sleep(2)
            seconds = restart(cluster, "b",
                              lambda directory: shutil.rmtree(directory / "state"))
            output, errors = reader.communicate()
            if reader.returncode != 0:
                sys.exit(errors)
            read = json.loads(output)
            print(f"ready {seconds:.1f} s after the start that followed the loss of its state; "
                  f"meanwhile {read['requests_per_second']:.0f} reads/s, "
                  f"errors {read['errors'] or 'none'}, "
                  f"p99 {read['latency_us']['p99'] / 1e3:.1f} ms"
                  + ("" if seconds < duration else " (the readers ended before it was ready)"))
            report_disk(cluster, live, sent)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes beside a three-node etcd, interleaved in one run.

Starts a three-node Anchorhold and, if etcd is installed, a three-node etcd on this machine, both
with an fsync before each acknowledgement; lets closed-loop clients of the same kind (Rust, tonic,
one connection to a node) create 256-byte values in each in turn, five rounds; prints medians.
Everything listens on loopback, lives in a temporary directory and is ended here.

    cargo build --release
    cargo build --release --manifest-path benches/etcd-writes/Cargo.toml   # needs protoc
    python3 benches/write_peers.py
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BYTES = 256
NODES = 3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Anchorhold:
    def __init__(self, directory, binary):
        self.binary, self.data = binary, directory / "anchorhold"
        log = directory / "demo.out"
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [binary, "demo", "--data-dir", self.data],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )
        while "Ctrl-C ends" not in log.read_text():
            if self.process.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.2)
        self.keys = {}

    def run(self, *arguments, **environment):
        ran = subprocess.run(
            [self.binary, *arguments, "--demo", self.data, "-o", "json"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        if ran.returncode != 0:
            sys.exit(ran.stderr)
        return json.loads(ran.stdout)

    def measure(self, shards, clients, seconds):
        if shards not in self.keys:
            created = self.run("account", "create", f"writes-{shards}", "--shards", str(shards))
            self.keys[shards] = created["api_key"]
        ran = self.run(
            "bench", "write", "--bytes", str(BYTES), "--clients", str(clients),
            "--duration", str(seconds), "--warm-up", "1", ANCHORHOLD_API_KEY=self.keys[shards],
        )
        if ran["errors"]:
            sys.exit(f"writes failed: {ran['errors']}")
        return {
            "rate": ran["requests_per_second"],
            "p50_ms": ran["latency_us"]["p50"] / 1e3,
            "p99_ms": ran["latency_us"]["p99"] / 1e3,
            **ran["nodes"],
        }

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Etcd:
    def __init__(self, directory, load):
        self.load = load
        ports = [(free_port(), free_port()) for _ in range(NODES)]
        members = ",".join(
            f"n{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports)
        )
        self.endpoints = ",".join(f"127.0.0.1:{client}" for client, _ in ports)
        self.processes = []
        for number, (client, peer) in enumerate(ports):
            log = open(directory / f"etcd-{number}.log", "w")
            self.processes.append(subprocess.Popen(
                ["etcd", "--name", f"n{number}", "--data-dir", directory / f"etcd-{number}",
                 "--listen-client-urls", f"http://127.0.0.1:{client}",
                 "--advertise-client-urls", f"http://127.0.0.1:{client}",
                 "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                 "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                 "--initial-cluster", members, "--quota-backend-bytes", str(8 << 30)],
                stdout=log, stderr=log,
            ))
        time.sleep(4)

    def measure(self, clients, seconds):
        ran = subprocess.run(
            [self.load, self.endpoints, str(clients), str(seconds), str(BYTES)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        if ran.returncode != 0:
            sys.exit(ran.stderr)
        return json.loads(ran.stdout)

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--binary", default=str(ROOT / "target/release/anchorhold"))
    options.add_argument(
        "--etcd-writes", default=str(ROOT / "benches/etcd-writes/target/release/etcd-writes"),
        help="the load program of benches/etcd-writes",
    )
    options.add_argument("--seconds", type=int, default=5)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--wait", action="store_true", help="wait for Enter before the first round")
    options = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="anchorhold-writes-") as directory, \
            contextlib.ExitStack() as started:
        directory = pathlib.Path(directory)
        anchorhold = Anchorhold(directory, options.binary)
        started.callback(anchorhold.stop)
        cases = [
            (f"Anchorhold, {shards} shard{'s' if 1 < shards else ''}", clients,
             lambda shards=shards, clients=clients: anchorhold.measure(shards, clients, options.seconds))
            for clients in (1, 64, 1024) for shards in (1, 12)
        ]
        if shutil.which("etcd") and pathlib.Path(options.etcd_writes).exists():
            etcd = Etcd(directory, options.etcd_writes)
            started.callback(etcd.stop)
            cases += [
                ("etcd", clients, lambda clients=clients: etcd.measure(clients, options.seconds))
                for clients in (1, 64, 1024)
            ]
        else:
            print("etcd or benches/etcd-writes is missing: Anchorhold alone", file=sys.stderr)
        if options.wait:
            input("ready; Enter starts the rounds\n")
        compare(cases, options.rounds)


def compare(cases, rounds):
    cases.sort(key=lambda case: case[1])
    measured = [[] for _ in cases]
    for number in range(rounds):
        for case, (_, _, measure) in enumerate(cases):
            measured[case].append(measure())
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    columns = ["rate", "p50_ms", "p99_ms", "cpu_us_per_request", "entries_per_fsync", "anchors_per_fsync"]
    print(f"{'store':<24}{'clients':>8}" + "".join(f"{column:>19}" for column in columns))
    for (name, clients, _), rows in zip(cases, measured):
        cells = ""
        for column in columns:
            values = [row[column] for row in rows if row.get(column) is not None]
            cells += f"{statistics.median(values):>19.2f}" if values else f"{'-':>19}"
        print(f"{name:<24}{clients:>8}{cells}")


if __name__ == "__main__":
    main()

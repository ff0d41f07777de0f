import json
import os
import socket
import subprocess
import sys


def start(rank: int, world: int, port: int, interface: str = "lo") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "lartpc_ds.jobs.preflight.allreduce", "--rank", str(rank), "--world", str(world)]
    command += ["--master", f"127.0.0.1:{port}", "--interface", interface, "--backend", "gloo", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("GLOO_SOCKET_IFNAME", None)
    return subprocess.Popen([*command, "--seconds", "0.4"], env=environment, stdout=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def results(*processes: "subprocess.Popen[str]") -> list[tuple[int, dict[str, object]]]:
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, json.loads(out.splitlines()[-1])) for process, out in zip(processes, said, strict=True)
    ]


def test_two_processes_measure_their_sum() -> None:
    port = free_port()
    for code, found in results(start(0, 2, port), start(1, 2, port)):
        assert code == 0 and set(found) == {"latency_seconds", "bytes_per_second"}
        assert 0 < float(str(found["latency_seconds"])) < 1 and float(str(found["bytes_per_second"])) > 1e5


def test_an_interface_that_is_not_there_is_an_error_in_json() -> None:
    ((code, found),) = results(start(0, 1, free_port(), interface="nosuch0"))
    assert code == 1 and "nosuch0" in str(found["error"])

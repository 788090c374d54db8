"""What is under deploy/: manifests of the right form whose parts fit together, a batch script that passes TERM on."""

from __future__ import annotations

import copy
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import cli

DEPLOY = Path(__file__).parents[2] / "deploy"
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text(encoding="utf-8"))


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kuberay" / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def check(document: dict[str, Any]) -> None:
    schema = SCHEMA[document["kind"]] | {"definitions": SCHEMA["definitions"]}
    jsonschema.Draft202012Validator(schema).validate(document)


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec.get("rayClusterSpec", spec)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_manifests_have_the_form_and_their_parts_fit_together(name: str) -> None:
    import ray

    document = manifest(name)
    check(document)
    cluster = cluster_of(document)
    assert cluster["rayVersion"] == ray.__version__ and cluster["authOptions"]["mode"] == "token"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert cluster["enableInTreeAutoscaling"]
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    gpu = {name: "nvidia.com/gpu" in container(group)["resources"]["limits"] for name, group in groups.items()}
    assert gpu == {"learner": True, "engines": True, "rewards": False}
    assert groups["engines"]["maxReplicas"] > groups["engines"]["minReplicas"]
    for group in [cluster["headGroupSpec"], *groups.values()]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for mount in container(group)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} and "shared" in mounted
    head = cluster["headGroupSpec"]
    wait = {entry["name"]: entry["value"] for entry in container(head)["env"]}["RAY_JOB_STOP_WAIT_TIME_S"]
    assert head["template"]["spec"]["terminationGracePeriodSeconds"] > int(wait)
    command = container(head)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "speechrl" and cli._parsers(command[1:])[0].parse_args(command[1:]).all


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only  # type: ignore[no-any-return]


def test_entry_point_is_a_command_of_ours() -> None:
    document = manifest("rayjob.yaml")
    words = shlex.split(document["spec"]["entrypoint"])
    assert words[0] == "speechrl"
    args = cli._parsers(words[1:])[0].parse_args(words[1:])
    assert args.command == "train" and "learner.ranks=4" in args.overrides
    env = yaml.safe_load(document["spec"]["runtimeEnvYAML"])["env_vars"]
    assert int(env["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    learner = cluster_of(document)["workerGroupSpecs"][0]
    assert container(learner)["resources"]["limits"]["nvidia.com/gpu"] == "4", "one per rank"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["spec"].update(entryPoint="x"),
        lambda d: d["spec"]["rayClusterSpec"]["workerGroupSpecs"][1].update(maxReplicas="8"),
        lambda d: d["spec"]["rayClusterSpec"]["autoscalerOptions"].update(upscalingMode="Fast"),
        lambda d: container(d["spec"]["rayClusterSpec"]["headGroupSpec"])["resources"]["limits"].update(memory="16 GB"),
        lambda d: d["spec"]["rayClusterSpec"]["headGroupSpec"].pop("template"),
    ],
)
def test_the_schema_finds_mistakes(change: Any) -> None:
    document = copy.deepcopy(manifest("rayjob.yaml"))
    change(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


SCRIPT = DEPLOY / "slurm" / "speechrl.sbatch"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Stand-ins for Slurm and Ray, and for a run that takes a while to stop, as commands on the PATH."""
    programs = {
        "scontrol": 'case $1 in show) printf "node1\\nnode2\\n";; *) echo "$@" >>"$CALLS";; esac',
        "srun": "while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done\n"
        '[[ $1 == bash ]] && exec "$@"; echo "srun $*" >>"$CALLS"; exec $HEAD',
        "hostname": '[[ $1 == -I ]] && echo "$INTERFACES"',
        "getent": 'for a in $NAMED; do echo "$a STREAM $2"; done',
        "ip": 'for a in $OF_INTERFACE; do echo "2: ${@: -1}    inet $a/24 brd 10.6.0.255 scope global ib0"; done',
        "ray": 'exit "$RAY_STATUS"',
        "speechrl": 'echo "speechrl $*" >>"$CALLS"\n'
        "trap 'sleep 0.3; echo saved >>\"$CALLS\"; exit 130' TERM\n"
        '[[ $2 == quick ]] && exit 7\necho running >>"$CALLS"\nwhile :; do sleep 0.05; done',
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return os.environ | {
        "SPEECHRL_VENV": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "4",
        "INTERFACES": "10.0.0.1",
        "NAMED": "10.0.0.1",
        "HEAD": "sleep 60",  # what becomes of `ray start --block`
        "RAY_STATUS": "0",
    }


def test_batch_script_lets_the_run_save_and_queues_itself_again(slurm: dict[str, str]) -> None:
    calls = Path(slurm["CALLS"])
    batch = subprocess.Popen(["bash", str(SCRIPT), "run.yaml", "steps=3"], env=slurm, start_new_session=True)
    deadline = time.monotonic() + 30
    while not calls.exists() or "running" not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    batch.send_signal(signal.SIGTERM)  # as --signal=B:TERM does: to the batch shell alone
    assert batch.wait(30) == 130
    lines = calls.read_text().splitlines()
    assert lines[-2:] == ["saved", "requeue 77"]
    assert "speechrl train run.yaml steps=3 ray.address=10.0.0.1:20077" in lines
    assert any("ray start --block --address=10.0.0.1:20077" in line for line in lines)


def test_batch_script_returns_the_exit_code_of_the_run(slurm: dict[str, str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), "quick"], env=slurm, timeout=30, check=False)
    assert done.returncode == 7 and "requeue" not in Path(slurm["CALLS"]).read_text()
    assert subprocess.run(["bash", str(SCRIPT)], env=slurm, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    ("named", "interfaces", "expected"),
    [
        ("10.0.0.1", "10.0.0.1 fe80::1", "10.0.0.1"),
        ("127.0.1.1", "10.0.0.1", "10.0.0.1"),  # Debian's /etc/hosts
        ("", "fd00::7 2001:db8::1 10.0.0.1", "10.0.0.1"),  # IPv6 first, and a name that only IPv6 knows
        ("10.0.0.1", "172.17.0.1 192.168.7.1 10.0.0.1", "10.0.0.1"),  # the name says which interface
        ("127.0.1.1", "172.17.0.1 169.254.3.4 10.0.0.1", "10.0.0.1"),
        ("10.9.9.9", "10.0.0.1", "10.0.0.1"),  # an old entry of the name server
        ("127.0.0.1 10.0.0.1", "", "10.0.0.1"),  # a `hostname` without -I
        ("127.0.1.1", "fd00::7 2001:db8::1", None),
        ("", "", None),
    ],
)
def test_batch_script_finds_an_address_that_other_nodes_reach(
    slurm: dict[str, str], named: str, interfaces: str, expected: str | None
) -> None:
    environment = slurm | {"NAMED": named, "INTERFACES": interfaces}
    done = _script(environment)
    if expected is None:
        assert done.returncode == 1 and "node1 has no IPv4 address" in done.stderr
    else:
        assert done.returncode == 7, done.stderr
        assert f"speechrl train quick ray.address={expected}:20077" in Path(slurm["CALLS"]).read_text().splitlines()
    chosen = environment | {"SPEECHRL_INTERFACE": "ib0"}
    assert _script(chosen | {"OF_INTERFACE": "10.6.0.9 10.7.0.9"}).returncode == 7
    assert "speechrl train quick ray.address=10.6.0.9:20077" in Path(slurm["CALLS"]).read_text().splitlines()
    assert _script(chosen | {"OF_INTERFACE": ""}).returncode == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"SPEECHRL_HEAD_WAIT_S": "0"}, "does not answer at 10.0.0.1:20077 after"),
        ({"HEAD": "false"}, "Ray's head on node1 (10.0.0.1:20077) has ended"),
    ],
)
def test_batch_script_waits_for_the_head_with_an_end(
    slurm: dict[str, str], change: dict[str, str], expected: str
) -> None:
    done = _script(slurm | {"RAY_STATUS": "1"} | change)
    assert done.returncode == 1 and expected in done.stderr
    assert "speechrl train" not in Path(slurm["CALLS"]).read_text()


def _script(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), "quick"]
    return subprocess.run(command, env=environment, timeout=60, check=False, capture_output=True, text=True)

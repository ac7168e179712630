"""The launch notes: shell that parses and does what it says with stand-ins for Slurm and Ray, YAML with known fields only."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import require_program
from trainer.plan.source import load

LAUNCH = Path(__file__).parents[2] / "docs" / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
NODES = ["node-a", "node-b", "node-c"]

SHIMS = {
    "scontrol": 'case $1 in show) printf "%s\\n" node-a node-b node-c ;; requeue) echo "requeue $2" >> "$CALLS" ;; esac',
    "srun": 'echo "srun $*" >> "$CALLS"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "hostname": 'echo "10.0.0.1 fe80::1"',
    "ray": 'echo "ray $* | $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH" | wc -c) $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"\n'
    'case "$*" in *--block*) exec sleep 60 ;; esac',
    "python3": 'echo "${JOINED:-3}"',
    "scalerl": 'echo "scalerl $*" >> "$CALLS"\n'
    'case $1 in control) exec sleep 60 ;; supervise) exec bash "$TRAINER" ;; esac',
}


@pytest.fixture
def bench(tmp_path: Path) -> dict[str, str]:
    """An environment in which every program of Slurm, Ray and ours is a stand-in that writes down how it was called."""
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, body in SHIMS.items():
        (shims / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (shims / name).chmod(0o755)
    return {
        "PATH": f"{shims}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(tmp_path / "calls"),
        "TRAINER": str(tmp_path / "trainer.sh"),
        "RUNS": str(tmp_path / "runs"),
        "MODEL": "/models/8b",
        "DATA": "/data",
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "node-[a-c]",
        "PAUSE": "0.05",
    }


def trainer(bench: dict[str, str], body: str) -> None:
    """What `scalerl supervise` does."""
    Path(bench["TRAINER"]).write_text(body)
    Path(bench["RUNS"], "scalerl-8b").mkdir(parents=True)


def start(bench: dict[str, str]) -> subprocess.Popen[str]:
    command = ["bash", str(LAUNCH / "slurm.sbatch")]
    return subprocess.Popen(command, env=bench, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def calls(bench: dict[str, str]) -> str:
    path = Path(bench["CALLS"])
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses(name: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    subprocess.run([require_program("shellcheck"), str(LAUNCH / name)], check=True)


def test_slurm_starts_one_head_two_workers_and_the_run_with_a_private_token(bench: dict[str, str]) -> None:
    both = 'until [ "$(grep -c "| token" "$CALLS")" = 2 ]; do sleep 0.02; done'
    trainer(bench, both + '\necho \'{"event":"end"}\' > "$RUNS/scalerl-8b/events.jsonl"')
    job = start(bench)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 0, out
    said = calls(bench)
    assert "--nodes=1 --ntasks=1 --nodelist=node-a ray start --head --node-ip-address=10.0.0.1 --port=6379" in said
    assert "--nodes=2 --ntasks=2 --exclude=node-a ray start --address=10.0.0.1:6379 --block" in said
    assert "| token 64 600" in said
    assert "supervise --run" in said
    assert "train scalerl-8b --cluster ray --address 10.0.0.1:6379" in said
    assert "model.path=/models/8b" in said
    assert "requeue" not in said
    assert list(Path(bench["RUNS"]).glob(".ray-token*")) == []


def test_slurm_hands_on_the_exit_code_of_a_run_that_failed(bench: dict[str, str]) -> None:
    trainer(bench, "exit 7")
    job = start(bench)
    job.communicate(timeout=30)
    assert job.returncode == 7
    assert "requeue" not in calls(bench)


@pytest.mark.parametrize(("event", "again"), [("stop", True), ("end", False)])
def test_slurm_queues_the_job_again_when_time_is_up_and_the_run_is_not(
    bench: dict[str, str], event: str, again: bool
) -> None:
    trainer(
        bench,
        # A trainer that needs a while for its last step and its checkpoint after it was told to stop.
        f"""stop() {{ sleep 0.4; echo '{{"event":"{event}"}}' >> "$RUNS/scalerl-8b/events.jsonl"; exit 0; }}
trap stop TERM; echo ready >> "$CALLS"; while true; do sleep 0.05; done""",
    )
    job = start(bench)
    deadline = time.monotonic() + 30
    while "ready" not in calls(bench):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 0, out
    assert ("requeue 42" in calls(bench)) is again
    assert Path(bench["RUNS"], "scalerl-8b", "events.jsonl").exists()  # it was waited for


def test_slurm_gives_up_when_a_node_does_not_join(bench: dict[str, str]) -> None:
    trainer(bench, "")
    job = start({**bench, "JOINED": "2", "WAIT": "1"})
    out, _ = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "only 2 of 3 nodes joined Ray within 1 s" in out
    assert "supervise" not in calls(bench)


def test_slurm_says_what_is_missing(bench: dict[str, str]) -> None:
    job = start({key: value for key, value in bench.items() if key != "MODEL"})
    out, _ = job.communicate(timeout=30)
    assert job.returncode != 0
    assert "give MODEL" in out


def test_plain_ray_makes_its_token_once_and_needs_it_on_a_worker(bench: dict[str, str]) -> None:
    script = str(LAUNCH / "ray.sh")
    token = Path(bench["HOME"], ".ray", "auth_token")
    worker = subprocess.run(["bash", script, "worker", "10.0.0.1:6379"], env=bench, capture_output=True, text=True)
    assert worker.returncode == 2
    assert "copy it from the head first" in worker.stderr
    first = subprocess.run(["bash", script, "head"], env=bench, capture_output=True, text=True, check=True)
    made = token.read_text()
    assert len(made) == 64
    assert made not in first.stdout
    subprocess.run(["bash", script, "head"], env=bench, check=True, capture_output=True)
    assert token.read_text() == made
    subprocess.run(["bash", script, "worker", "10.0.0.1:6379"], env=bench, check=True)
    assert "ray start --address=10.0.0.1:6379 | token 64 600" in calls(bench)


# Kubernetes

DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((LAUNCH / "kuberay.yaml").read_text()))
JOB = next(document for document in DOCUMENTS if document["kind"] == "RayJob")
CLUSTER = JOB["spec"]["rayClusterSpec"]
PODS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]

FIELDS = {  # of ray.io/v1 in KubeRay's master of August 2026, and of Kubernetes 1.32; only those that matter here
    "job": {"activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
            "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode",
            "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"},
    "cluster": {"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
                "headServiceAnnotations", "networkPolicy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs"},
    "head": {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"},
    "worker": {"groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
               "replicas", "resources", "scaleStrategy", "suspend", "template"},
    "pod": {"containers", "volumes", "terminationGracePeriodSeconds", "serviceAccountName", "nodeSelector", "tolerations"},
    "container": {"name", "image", "command", "args", "env", "ports", "resources", "volumeMounts", "securityContext"},
}  # fmt: skip


def known(kind: str, value: dict[str, Any]) -> None:
    assert set(value) <= FIELDS[kind], f"{kind}: {set(value) - FIELDS[kind]}"


def test_every_field_of_the_ray_job_is_one_that_kuberay_has() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    known("job", JOB["spec"])
    known("cluster", CLUSTER)
    known("head", CLUSTER["headGroupSpec"])
    for group in CLUSTER["workerGroupSpecs"]:
        known("worker", group)
    for pod in PODS:
        known("pod", pod["template"]["spec"])
        assert all(isinstance(value, str) for value in pod["rayStartParams"].values())  # a map of strings
        for container in pod["template"]["spec"]["containers"]:
            known("container", container)


def test_the_job_has_the_gpus_that_its_recipe_asks_for() -> None:
    recipe, _ = load("scalerl-8b", "", [])
    (group,) = CLUSTER["workerGroupSpecs"]
    per_pod = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    generators = recipe.cluster.generators
    assert group["replicas"] * per_pod == recipe.cluster.learners.ranks + generators.max * (generators.gpus or 1)
    assert per_pod == recipe.cluster.gpus_per_node
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_every_mount_has_its_volume_and_requests_equal_limits() -> None:
    for pod in PODS:
        spec = pod["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_ray_wants_a_token_and_prometheus_reaches_the_one_port_that_is_open_to_it() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    policy, monitor = (next(d for d in DOCUMENTS if d["kind"] == kind) for kind in ("NetworkPolicy", "PodMonitor"))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    head = CLUSTER["headGroupSpec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    assert ports[endpoint["port"]] == policy["spec"]["ingress"][2]["ports"][0]["port"] == 9464
    assert "metrics.port=9464" in JOB["spec"]["entrypoint"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    assert all(
        policy["spec"]["podSelector"]["matchLabels"].items() <= pod["template"]["metadata"]["labels"].items()
        for pod in PODS
    )


def test_the_entrypoint_is_a_command_that_loads() -> None:
    words = JOB["spec"]["entrypoint"].split()
    given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    train = words[words.index("train") + 1]
    recipe, _ = load(train, "qwen3-8b", [pair for pair in given if not pair.startswith("model.path")])
    assert recipe.metrics.port == 9464
    assert str(recipe.cluster.weights) == "/data/weights"

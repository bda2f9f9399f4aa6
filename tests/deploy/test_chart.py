"""The chart by Helm's own linter, what it gives by Kubernetes' own schemas, and the plain manifests by the chart."""

import importlib.machinery
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from docsite.commands import tree

from preread.edge.app import create_app
from preread.edge.edge import AsyncEdge

helm = pytest.importorskip("helm_python.chart", reason="the chart is tried by Helm: pip install helm-python-sdk")
HelmError = pytest.importorskip("helm_python.errors").HelmError
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/preread"
PLAIN = ROOT / "deploy/kubernetes"
KUBERNETES = ("1.27", "1.37")
"""The oldest that the chart says it is for, and the newest whose schemas are at hand."""

RAY = {"ray": {"enabled": True, "image": "preread:ray"}, "cloud": {"store": "s3://bucket/preread"}}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a daemon on each node, with keys": {"edge": {"kind": "DaemonSet", "clientKeysSecret": "clients"}},
    "edges of a cloud elsewhere": {"cloud": {"enabled": False}, "edge": {"cloud": "https://cloud.example"}},
    "a bucket and three edges": {
        "cloud": {
            "store": "s3://bucket/preread",
            "replicas": 2,
            "variablesFrom": ["bucket"],
            "options": ["--rungs", "lossless"],
        },
        "edge": {"replicas": 3, "options": ["--max-dloss", "0.05"]},
        "networkPolicy": {"from": [{"kubernetes.io/metadata.name": "apps"}]},
        "podLabels": {"team": "docs"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
    },
    "a volume that is there": {"cloud": {"volume": {"existingClaim": "mine"}}, "networkPolicy": {"enabled": False}},
    "on Ray": RAY,
}


def rendered(values: dict[str, Any]) -> list[Any]:
    """Objects that the chart gives for these values."""
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name="preread", namespace="apps")
    return [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def pods(values: dict[str, Any]) -> Iterator[Any]:
    """Their pods' specifications."""
    for one in rendered(values):
        if one["kind"] in ("Deployment", "DaemonSet"):
            yield one["spec"]["template"]["spec"]
        if one["kind"] == "RayCluster":
            for group in (one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"]):
                yield group["template"]["spec"]


def test_helms_linter_has_no_complaint() -> None:
    report = helm.lint(CHART, strict=True)
    assert not report["errors"] and all(one["severity"] == 1 for one in report["messages"]), report


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_what_the_chart_gives_is_as_kubernetes_has_it_and_nothing_is_unknown_to_it(values: dict[str, Any]) -> None:
    own = [one for one in rendered(values) if one["apiVersion"] != "ray.io/v1"]  # which is the operator's
    assert own
    for one, version in product(own, KUBERNETES):
        kubernetes_validate.validate(one, version, strict=True)  # or it raises


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_a_namespace_that_enforces_restricted_lets_its_pods_in(values: dict[str, Any]) -> None:
    """Kubernetes' Pod Security Standards, level `restricted`; besides, nothing is written but to volumes."""
    found = list(pods(values))
    assert found
    for pod in found:
        asked = pod["securityContext"]
        assert asked["runAsNonRoot"] and asked["runAsUser"] and asked["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod["volumes"]:
            assert set(volume) - {"name"} <= {"emptyDir", "secret", "persistentVolumeClaim"}
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_a_pod_has_as_long_to_stop_as_its_server_is_told_to_take() -> None:
    for pod in pods(VALUES["defaults"]):
        told = dict(one.split("=") for one in pod["containers"][0]["args"] if one.startswith("--") and "=" in one)
        assert int(told["--drain-s"]) + int(told["--finish-s"]) < pod["terminationGracePeriodSeconds"]
        # who sends requests sees that it is not ready while it is still listened
        ready = pod["containers"][0]["readinessProbe"]
        assert ready["periodSeconds"] * ready["failureThreshold"] < int(told["--drain-s"])


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_containers_are_told_what_the_command_line_takes_and_are_asked_for_what_is_served(
    values: dict[str, Any],
) -> None:
    served = {route.path for route in create_app(AsyncEdge("unopened.gguf")).routes if hasattr(route, "path")}
    for pod in pods(values):
        for container in pod["containers"]:
            if "args" not in container:
                continue
            command, *options = container["args"]
            known = {name for option in tree().commands[command].params for name in option.opts}
            assert {option.partition("=")[0] for option in options if option.startswith("--")} <= known
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["path"] in served
            mounted = {one["name"] for one in container["volumeMounts"]}
            assert mounted <= {one["name"] for one in pod["volumes"]}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"edge": {"replica": 3}}, "'replica' not allowed"),
        ({"edge": {"kind": "Job"}}, "must be one of"),
        ({"cloud": {"store": "/srv/store"}}, "does not match pattern"),
        ({"cloud": {"drainSeconds": -1}}, "minimum"),
        ({"cloud": {"replicas": 2}}, "need a bucket"),
        ({"ray": {"enabled": True, "image": "preread:ray"}}, "needs a bucket"),
        ({"ray": {"enabled": True}, "cloud": {"store": "s3://b"}}, "set ray.image"),
        (RAY | {"ray": {"enabled": True, "image": "a", "workers": {"least": 5}}}, "least is more than most"),
    ],
)
def test_values_that_cannot_be_are_refused_with_the_reason(values: dict[str, Any], why: str) -> None:
    with pytest.raises(HelmError, match=why):
        rendered(values)


def made() -> ModuleType:
    """scripts/manifests."""
    path = str(ROOT / "scripts/manifests")
    loader = importlib.machinery.SourceFileLoader("manifests", path)
    spec = importlib.util.spec_from_loader("manifests", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_plain_manifests_are_what_the_chart_gives() -> None:
    for name, text in made().manifests().items():
        assert (PLAIN / name).read_text() == text, f"{name}: run scripts/manifests"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
@pytest.mark.parametrize("folder", ["", "ray"])
def test_kustomize_takes_the_plain_manifests_with_an_image_of_ones_own(folder: str, tmp_path: Path) -> None:
    shutil.copytree(PLAIN, tmp_path / "plain")
    path = tmp_path / "plain" / folder / "kustomization.yaml"
    path.write_text(path.read_text().replace("newName: preread", "newName: registry.example/preread"))
    ran = subprocess.run(["kubectl", "kustomize", str(path.parent)], capture_output=True, text=True, timeout=60)
    if "Python" in ran.stderr:
        pytest.skip("this kubectl is none")
    assert ran.returncode == 0, ran.stderr
    images = [line.split("image: ")[1] for line in ran.stdout.splitlines() if "image: " in line]
    assert images and all(one.startswith("registry.example/preread:") for one in images)

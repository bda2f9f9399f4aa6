"""Running an image that `scripts/image` made as Kubernetes would: nobody is root, and its files cannot be written."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER = 65532


def unpacked(image: Path, bundle: Path) -> Path:
    """The file system of an image, with how to run it (OCI runtime specification)."""
    (named,) = json.loads((image / "index.json").read_text())["manifests"]
    version = named["annotations"]["org.opencontainers.image.ref.name"]
    subprocess.run(["umoci", "unpack", "--image", f"{image}:{version}", str(bundle)], check=True, capture_output=True)
    return bundle


@contextmanager
def container(
    bundle: Path, name: str, arguments: tuple[str, ...], folders: Mapping[str, Path], **environment: str
) -> Iterator["subprocess.Popen[str]"]:
    """`preread ARGUMENTS` in a container on this machine's network, with folders at their places; killed at the end."""
    plan = _plan(json.loads((bundle / "config.json").read_text()), bundle, arguments, folders, environment)
    for folder in folders.values():
        if folder.is_dir():
            os.chown(folder, USER, USER)
    own = bundle.parent / f"{name}-bundle"
    own.mkdir()
    (own / "config.json").write_text(json.dumps(plan))
    command = ["runc", "run", "--bundle", str(own), f"preread-{name}-{os.getpid()}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            subprocess.run(["runc", "delete", "--force", command[-1]], capture_output=True)


def _plan(
    plan: Any, bundle: Path, arguments: tuple[str, ...], folders: Mapping[str, Path], environment: Mapping[str, str]
) -> Any:
    entry = plan["process"]["args"][: -len(["--help"])]
    plan["process"]["args"] = [*entry, *arguments]
    plan["process"]["env"] += [f"{name}={value}" for name, value in environment.items()]
    plan["process"]["terminal"] = False
    plan["process"]["noNewPrivileges"] = True
    plan["process"]["capabilities"] = {kind: [] for kind in plan["process"].get("capabilities", {})}
    plan["root"] = {"path": str(bundle / "rootfs"), "readonly": True}
    plan["linux"]["namespaces"] = [one for one in plan["linux"]["namespaces"] if one["type"] != "network"]
    plan["linux"].pop("resources", None)
    plan["mounts"] = [one for one in plan["mounts"] if one["type"] not in ("cgroup", "sysfs")]
    plan["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
    for place, folder in folders.items():
        plan["mounts"].append(
            {"destination": place, "type": "bind", "source": str(folder), "options": ["rbind", "nosuid", "nodev"]}
        )
    return plan

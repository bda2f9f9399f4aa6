"""An image, made once: `make deploy` names one that it has made, PREREAD_IMAGE."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def image() -> Path:
    """An image layout of `scripts/image`."""
    named = os.environ.get("PREREAD_IMAGE")
    if not named:
        pytest.skip("no image: `make deploy` makes one, or PREREAD_IMAGE names one of scripts/image")
    return Path(named)


@pytest.fixture(scope="session")
def bundle(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, unpacked."""
    for tool, package in (("umoci", "umoci"), ("runc", "runc")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here: on Debian, apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip("what follows needs root")
    import containers

    return containers.unpacked(image, tmp_path_factory.mktemp("image") / "bundle")

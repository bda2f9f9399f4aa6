"""What tests of the cloud share: a Ray cluster on this machine, where Ray is installed."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from preread.testing.cloud import RandomModel

if TYPE_CHECKING:
    from preread.cloud.ray.cluster import Replicas


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A cluster that is started here; its address, for other processes."""
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own
            ray = pytest.importorskip("ray", reason="needs Ray Serve: pip install 'preread[ray]'")
            from preread.cloud.ray.cluster import LOCAL, connected

            stack.enter_context(connected(LOCAL))
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="session")
def random_replicas(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Replicas, Path]":
    """Replicas that publish random KV, and a file that says to which store."""
    from preread.cloud.ray.cluster import Replicas, Size

    folder = tmp_path_factory.mktemp("replicas")
    model = RandomModel(str(folder / "where"))
    return Replicas("random", model, str(folder / "store"), Size(1, 1, 0.2)), folder / "where"

"""What tests of the cloud share: a Ray cluster on this machine, where Ray is installed."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import pytest


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

"""Official clients and their own calls, against an edge with one context, `manual`.

`scripts/clients` (`make clients`) makes environments with these clients, starts a cloud and an edge, and runs these
files there, without the rest of the suite. In the suite itself only OpenAI's own client is there, against the suite's
edge; the other files are skipped. What is asserted is the protocol: that answers parse, streams end and calls are well
formed, not that a small model is right.
"""

import json
import os
import urllib.request
from dataclasses import dataclass

import pytest

os.environ["NO_PROXY"] = "127.0.0.1,localhost"


@dataclass(frozen=True, slots=True)
class Site:
    """An edge: its address, its model's name, and the name that stands for its model with the context."""

    url: str
    model: str

    @property
    def v1(self) -> str:
        """What most clients take as base URL."""
        return f"{self.url}/v1"

    @property
    def manual(self) -> str:
        """The model's name for clients that can say the context only there."""
        return f"{self.model}@manual"


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Site:
    url = os.environ.get("PREREAD_TESTED_EDGE") or request.getfixturevalue("edge").url
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    return Site(url, model)

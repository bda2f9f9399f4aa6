"""Ray, and nothing else: connecting to a cluster, having it run replicas, calling them. The one home of its import.

Ray Serve keeps as many replicas of each model alive as it is told, or as its queue asks for, starts others where some
end, and hands each call to one that is free. Its own HTTP server is not started: the cloud's is in front.
"""

import hashlib
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import ray
from ray import serve
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from preread.cloud.events import Counted, Progress, Published, Request
from preread.cloud.publish import Owner
from preread.cloud.ray import messages
from preread.cloud.ray.publisher import ReplicaEnded, ReplicaLost, ReplicasBusy
from preread.cloud.ray.replica import Model, Replica
from preread.errors import Cancelled, EngineError, PrereadError, Unavailable, UsageError
from preread.values import Fingerprint

LOCAL: Final = "local"
_COUNTED_AT_ONCE: Final = 8
_HEALTH_S: Final = 2.0
_MOST_SILENT_S: Final = 60.0
_DRAIN_S: Final = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Size:
    """How many replicas of a model there are: `fewest` to `most`, as its queue asks for; each has so many `cpus`."""

    fewest: int
    most: int
    cpus: float


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a client of the cluster at an address ("auto": the one on this machine), or of one that is started here.

    What is started here ends with the context; elsewhere replicas go on, for the next cloud.

    Raises:
        UsageError: there is no such cluster.
        EngineError: it does not start here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is started here tells its makers nothing
    try:
        ray.init(
            address=address,
            namespace="preread",
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
    except Exception as error:  # Ray has no class for a node that does not start in time
        if address == LOCAL:
            raise EngineError(f"Ray does not start here: {_cause(error)}; see /tmp/ray/session_latest/logs") from error
        raise UsageError(f"no Ray cluster is at {address}: {_cause(error)}; start one with `ray start`") from error
    try:
        yield
    finally:
        if address == LOCAL:
            serve.shutdown()
        ray.shutdown()


class Replicas:
    """The replicas of one model. Replicas that run already just as they are wanted are taken over.

    Attributes:
        fingerprint: of the model.
        app: what Ray Serve calls those that make contexts.
    """

    def __init__(self, name: str, model: Model, store: str, size: Size) -> None:
        """Have them run; when this returns, the fewest do.

        Raises:
            UsageError: the cluster is too small, and does not grow.
            EngineError: they do not start.
        """
        self._name = name
        _look_for_room(name, size)
        options = {
            "max_ongoing_requests": 1,
            "max_queued_requests": 2 * size.most,
            "health_check_period_s": _HEALTH_S,
            "health_check_timeout_s": _MOST_SILENT_S,
            "graceful_shutdown_timeout_s": _DRAIN_S,
            "ray_actor_options": {"num_cpus": size.cpus},
            **_count(size),
        }
        counting = options | {
            "num_replicas": 1,
            "max_ongoing_requests": _COUNTED_AT_ONCE,
            "max_queued_requests": -1,
            "ray_actor_options": {"num_cpus": 0},
        }
        counting.pop("autoscaling_config", None)
        self.app, making = _running(f"preread {name}", model, store, options)
        self._making = making.options(stream=True)
        _, self._counting = _running(f"preread {name} counting", model, store, counting)
        try:
            self.fingerprint = Fingerprint(self._counting.fingerprint.remote().result())
        except RayError as error:
            raise EngineError(f"replicas of {name} do not answer: {_cause(error)}") from error

    async def make(self, ask: bytes, owner: Owner) -> AsyncGenerator[Progress | Published, None]:
        """As `preread.cloud.ray.publisher.Call`."""
        told = self._making.make.remote(ask, owner.name, tuple(owner.gone))
        try:
            async for message in told:
                yield messages.loads(message)
        except Exception as error:
            raise _translated(error, self._name) from error
        finally:
            told.cancel()  # one that has ended is left as it is

    async def count(self, ask: Request) -> Counted:
        """Have one count a document, as `preread.cloud.app.Counter` does."""
        try:
            return messages.loads_count(await self._counting.count.remote(msgspec.json.encode(ask)))
        except Exception as error:
            raise _translated(error, self._name) from error


def _look_for_room(name: str, size: Size) -> None:
    """Say so where replicas are going to wait for processors."""
    needed, there = size.fewest * size.cpus, ray.cluster_resources().get("CPU", 0.0)
    if needed <= there:
        return
    message = f"{size.fewest} replicas of {name} need {needed:g} processors, and the cluster has {there:g}"
    if len(ray.nodes()) == 1:
        raise UsageError(f"{message}: give fewer --replicas, or a smaller --replica-cpus")
    _log.warning("%s: those that do not fit start when it has grown", message)


def _running(app: str, model: Model, store: str, options: dict[str, Any]) -> tuple[str, Any]:
    """The name and handle of an application that runs `Replica`s so; one that runs them otherwise is replaced."""
    wanted = hashlib.blake2s(repr((model, store, options)).encode(), digest_size=6).hexdigest()
    name = f"{app} {wanted}"
    try:
        apps = serve.status().applications
        if name in apps and apps[name].status == "RUNNING":
            return name, serve.get_app_handle(name)
        for other in apps:
            if other.rpartition(" ")[0] == app:
                serve.delete(other)
        deployment = serve.deployment(Replica).options(name="replica", **options)
        return name, serve.run(deployment.bind(model, store), name=name, route_prefix=None)
    except (RuntimeError, ValueError, RayError) as error:
        raise EngineError(f"replicas of {app} do not start: {_cause(error)}; see Ray's logs") from error


def _count(size: Size) -> dict[str, Any]:
    if size.fewest == size.most:
        return {"num_replicas": size.most}
    scaling = {"min_replicas": size.fewest, "max_replicas": size.most, "target_ongoing_requests": 1}
    return {"autoscaling_config": scaling | {"upscale_delay_s": 2, "downscale_delay_s": 300}}


def _translated(error: Exception, name: str) -> Exception:
    """What happened, in words of this project."""
    if isinstance(error, PrereadError):
        return error
    if isinstance(error, ActorDiedError):
        return ReplicaEnded(f"a replica of {name} ended: {_cause(error)}")
    if isinstance(error, RayActorError):
        return ReplicaLost(f"a replica of {name} does not answer: {_cause(error)}")
    if isinstance(error, BackPressureError):
        return ReplicasBusy(f"replicas of {name} are busy")
    if isinstance(error, RequestCancelledError):
        return Cancelled("publishing was given up")
    if isinstance(error, DeploymentUnavailableError):
        return EngineError(f"replicas of {name} do not start: see Ray's logs")
    _log.error("Ray failed: %s", error)
    return Unavailable(f"replicas of {name} cannot be asked now: {_cause(error)}")


def _cause(error: Exception) -> str:
    """The first line of what Ray says; the lines below are for its developers."""
    return str(error).partition("\n")[0].strip() or type(error).__name__

"""The gate in front of each layer, as Python sees it: arm, open, cancel, pass. What it does is told in `gate.c`."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from preread.compiled import library as compiled
from preread.engine.attention import Attention
from preread.engine.graph import Order
from preread.errors import EngineError

_ALL_LAYERS = 1 << 30

Observer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool)
Noter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

MOST_TARGETS = 4
"""Tensors that may be looked for among what nodes write to, as gate.c has it."""


def _library() -> ctypes.CDLL:
    library = compiled("preread.engine._gate")
    library.preread_gate_new.restype = ctypes.c_void_p
    library.preread_gate_pass.restype = ctypes.c_bool
    library.preread_gate_cancelled.restype = ctypes.c_bool
    library.preread_gate_order.restype = ctypes.c_bool
    for name, arguments in {
        "new": [ctypes.c_void_p],
        "free": [ctypes.c_void_p],
        "observe": [ctypes.c_void_p, ctypes.c_void_p],
        "prepare": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
        "learn": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_int],
        "note": [ctypes.c_void_p, ctypes.c_void_p],
        "end": [ctypes.c_void_p, ctypes.c_int],
        "arm": [ctypes.c_void_p, ctypes.c_int],
        "disarm": [ctypes.c_void_p],
        "open": [ctypes.c_void_p, ctypes.c_int],
        "cancel": [ctypes.c_void_p],
        "pass": [ctypes.c_void_p, ctypes.c_int],
        "order": [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.c_int],
        "waiting": [ctypes.c_void_p],
        "cancelled": [ctypes.c_void_p],
    }.items():
        getattr(library, f"preread_gate_{name}").argtypes = arguments
    return library


class Gate:
    """Holds the engine back before it reads what has not arrived. `open`, `cancel` and `waiting` are thread-safe."""

    def __init__(self, name_of: int) -> None:
        """`name_of`: address of `ggml_get_name`."""
        self._library = _library()
        self._gate = self._library.preread_gate_new(name_of)
        if not self._gate:
            raise EngineError("out of memory: the layer gate could not be made")

    @property
    def callback(self) -> ctypes.c_void_p:
        """Address of the evaluation callback, for `llama_context_params.cb_eval`."""
        return ctypes.cast(self._library.preread_gate_eval, ctypes.c_void_p)

    @property
    def user_data(self) -> ctypes.c_void_p:
        """What the callback must be given, for `llama_context_params.cb_eval_user_data`."""
        return ctypes.c_void_p(self._gate)

    def observe(
        self, run: Callable[[], object], see: Callable[[int], bool | None], take: Callable[[int], None] | None = None
    ) -> None:
        """Call `see` with the address of every tensor node of the graphs that `run` evaluates, before it is computed.

        Where it says True, `take` is called with the same address as soon as the node's data is there, and a
        cancellation ends the evaluation.
        """

        def answer(tensor: int, ask: bool) -> bool:
            if ask:
                return bool(see(tensor)) and take is not None
            if take is not None:
                take(tensor)
            return not self.cancelled

        observer = Observer(answer)
        self._library.preread_gate_observe(self._gate, ctypes.cast(observer, ctypes.c_void_p))
        try:
            run()
        finally:
            self._library.preread_gate_observe(self._gate, None)

    def follow(self, order: Order) -> None:
        """When the model's memory is read: from now on the gate waits accordingly. No graph may be under way.

        Raises:
            EngineError: out of memory.
        """
        needed = (ctypes.c_int * len(order.needed))(*order.needed)
        if not self._library.preread_gate_order(self._gate, order.end, needed, len(order.needed)):
            raise EngineError("out of memory: the layer gate could not be told the model's layers")

    def prepare(self, attention: Attention) -> None:
        """From now on attention is computed by `attention`, which must live as long as the gate."""
        self._library.preread_gate_prepare(self._gate, attention.take, attention.operations)

    def learn(self, operation_at: int, target_at: int, operation: int, targets: Sequence[int]) -> None:
        """What `noting` is to show: nodes of an operation that write to one of a few tensors.

        Args:
            operation_at, target_at: where `struct ggml_tensor` has its operation, and the tensor that it is a view of.
            operation: ggml's number of it.
            targets: addresses of the tensors, `MOST_TARGETS` at most.
        """
        addresses = (ctypes.c_void_p * len(targets))(*targets)
        self._library.preread_gate_learn(
            self._gate, operation_at, target_at, operation, ctypes.cast(addresses, ctypes.c_void_p), len(targets)
        )

    @contextmanager
    def noting(self, note: Callable[[int], None]) -> Iterator[None]:
        """While this is open, `note` is given the address of each node that `learn` told of, before it is computed."""
        noter = Noter(note)
        self._library.preread_gate_note(self._gate, ctypes.cast(noter, ctypes.c_void_p))
        try:
            yield
        finally:
            self._library.preread_gate_note(self._gate, None)

    def end_behind(self, layers: int) -> None:
        """Until the gate is armed anew or disarmed, only the first `layers` layers are computed. It must be armed."""
        self._library.preread_gate_end(self._gate, layers)

    def arm(self, layers: int = 0) -> None:
        """From now on the memory of layers below `layers` is in place, and a pending cancellation is forgotten."""
        self._library.preread_gate_arm(self._gate, layers)

    def arm_open(self) -> None:
        """All is in place; the gate only listens for `cancel`."""
        self.arm(_ALL_LAYERS)

    def disarm(self) -> None:
        """The gate is out of the way; decoding runs at full speed and cannot be cancelled in the middle of a batch."""
        self._library.preread_gate_disarm(self._gate)

    def open(self, layers: int, of: int) -> None:
        """The memory of layers below `layers` (of `of` in the model) is in place. Never closes what is open."""
        self._library.preread_gate_open(self._gate, layers if layers < of else _ALL_LAYERS)

    def cancel(self) -> None:
        """Whoever waits at the gate, or comes to it, gives up: within one layer's time."""
        self._library.preread_gate_cancel(self._gate)

    def wait_for_first_layer(self) -> bool:
        """Block until what is read first is in place. False when cancelled."""
        return bool(self._library.preread_gate_pass(self._gate, 0))

    @property
    def waiting(self) -> int:
        """The layer whose memory the engine waits for; -1: it does not wait, or the gate is closed for good."""
        return int(self._library.preread_gate_waiting(self._gate)) if self._gate else -1

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called since the gate was armed; what was computed meanwhile is worthless."""
        return bool(self._library.preread_gate_cancelled(self._gate))

    def close(self) -> None:
        """Free the gate. The llama.cpp context that calls it must be gone."""
        self._library.preread_gate_free(self._gate)
        self._gate = None

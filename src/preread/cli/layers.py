"""What a model's layers keep, in a line of words."""

from collections.abc import Sequence

from preread.values import Layer, geometry_of


def in_words(layers: Sequence[Layer]) -> str:
    """What they keep, for people."""
    if (shape := geometry_of(layers)) is not None:
        return f"{shape.layers} layers, {shape.kv_heads} KV heads of {shape.head_dim}"
    rows, states = sum(layer.rows is not None for layer in layers), sum(layer.state is not None for layer in layers)
    with_states = f", {states} with a state" if states else ""
    return f"{len(layers)} layers that differ, {rows} with KV{with_states}"

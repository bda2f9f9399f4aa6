"""What a prompt that names no context may begin with: contexts that are here, and that can be used unseen.

A cloud may publish guesses of how a prompt begins, and see from what is asked for next which one was right. So because
of a prompt's content nothing is fetched, and nothing is displaced that would have to be fetched again: two prompts that
differ in nothing but their content cause the same requests, now and later. What is fetched follows from names that were
asked for, and from subscriptions (`prefetch.py`).
"""

from preread.edge.choice import chosen
from preread.edge.known import Known
from preread.edge.node import Node
from preread.errors import PrereadError


def beginnings(node: Node) -> list[Known]:
    """The contexts that a prompt may be compared with now."""
    return [known for known in node.contexts.own() if usable(known, node)]


def usable(known: Known, node: Node) -> bool:
    """Whether the context's KV is here, in memory or whole on the disk, and can be used unseen."""
    context = known.entry.context
    if node.core.present(context):
        return True
    return (context in node.offload or on_disk(known, node)) and node.core.takes_guest(len(known.tokens))


def on_disk(known: Known, node: Node) -> bool:
    """Whether the disk alone has a rung that this edge would stream."""
    if node.engine.no_injection or known.manifest is None or node.sources.held is None:
        return False
    try:
        chosen(known, node.terms(), here=True)
    except PrereadError:
        return False
    return True

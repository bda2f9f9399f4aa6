"""What a prompt that names no context may begin with: contexts that are here, and that can be used unseen.

A cloud may publish guesses of how a prompt begins, and see from what is asked for next which one was right. So because
of a prompt's content nothing is fetched, and nothing is displaced that would have to be fetched again: two prompts that
differ in nothing but their content cause the same requests, now and later. What is fetched follows from names that were
asked for, and from subscriptions (`prefetch.py`).
"""

from preread.edge.choice import chosen
from preread.edge.contexts import Known
from preread.edge.site import Site
from preread.errors import PrereadError


def beginnings(site: Site) -> list[Known]:
    """The contexts that a prompt may be compared with now."""
    return [known for known in site.contexts.own() if usable(known, site)]


def usable(known: Known, site: Site) -> bool:
    """Whether the context's KV is here, in memory or whole on the disk, and can be used unseen."""
    context = known.entry.context
    if site.core.present(context):
        return True
    return (context in site.shelf or on_disk(known, site)) and site.core.takes_guest(len(known.tokens))


def on_disk(known: Known, site: Site) -> bool:
    """Whether the disk alone has a rung that this edge would stream."""
    if site.engine.no_injection or known.manifest is None or site.sources.held is None:
        return False
    try:
        chosen(known, site.terms(), here=True)
    except PrereadError:
        return False
    return True

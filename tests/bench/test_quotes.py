"""Whether an answer quotes is counted, not believed."""

from preread.bench.quotes import _DOCUMENT, quoted


def test_what_stands_in_the_document_is_quoted() -> None:
    assert quoted(_DOCUMENT) == 1.0
    assert quoted(" ".join(_DOCUMENT.split()[5:60])) == 1.0, "line ends are nothing"
    assert quoted("A lighthouse keeper waits for the lamp.") == 0.0
    half = f"{' '.join(_DOCUMENT.split()[:10])} {' '.join(map(str, range(10)))}"
    assert 0.3 < quoted(half) < 0.5
    assert quoted("") == 0.0

"""Showing an answer: its text on stdout as it comes, and then, on stderr, what came from where."""

from collections.abc import Generator
from contextlib import closing

from preread.cli.terminal import note, print_json, rate, say, say_piece, size
from preread.edge.request import Done, Piece, Timings


def show_answer(pieces: Generator[Piece | Done, None, None], *, verbose: bool = False) -> str:
    """Show an answer as it comes, and give its text. Closes `pieces`, on Ctrl-C too."""
    texts: list[str] = []
    with closing(pieces):
        for piece in pieces:
            if isinstance(piece, Done):
                say()
                for line in _details(piece) if verbose else [_summary(piece.timings)]:
                    note(line)
            else:
                texts.append(piece.text)
                say_piece(piece.text)
    return "".join(texts)


def print_answer_json(pieces: Generator[Piece | Done, None, None]) -> None:
    """Wait for an answer and print it, with all that is known of it, as one JSON object."""
    texts: list[str] = []
    with closing(pieces):
        for piece in pieces:
            if isinstance(piece, Done):
                told = {"finish": piece.finish, "prompt_tokens": piece.prompt_tokens, "timings": piece.timings}
                print_json({"text": "".join(texts)} | told)
            else:
                texts.append(piece.text)


def _summary(timings: Timings) -> str:
    """One line: the context and where it came from, the first token, the rate."""
    parts = [
        _origin(timings),
        f"first token after {timings.ttft_ms / 1e3:.2f} s",
        f"{timings.predicted_n} tokens at {timings.predicted_per_second:.0f} tokens/s",
    ]
    return "; ".join(part for part in parts if part)


def _origin(timings: Timings) -> str:
    name, count = timings.context or "context", f"{timings.context_n:,} tokens"
    match timings.way:
        case "streamed":
            loaded = f"{size(timings.bytes_received)} in {timings.load_ms / 1e3:.2f} s"
            return f"{name}: {count} streamed, {timings.rung}, {loaded}{_refined(timings)}"
        case "mixed":
            computed = f"{timings.context_n - timings.cache_n:,} of {count}"
            loaded = f"{size(timings.bytes_received)} in {timings.load_ms / 1e3:.2f} s"
            return f"{name}: {computed} computed here, the rest streamed, {timings.rung}, {loaded}{_refined(timings)}"
        case "resident":
            return f"{name}: {count} in memory{_refined(timings)}"
        case "computed":
            return f"{name}: {count} computed here in {timings.context_ms / 1e3:.2f} s, since {timings.reason}"
        case "none":
            return ""


def _refined(timings: Timings) -> str:
    return f", {100 * timings.refined_share:.0f} % of it brought to {timings.refined_to}" if timings.refined_to else ""


def _details(done: Done) -> list[str]:
    timings = done.timings
    load_rate = rate(timings.bytes_received / timings.load_ms * 1e3) if timings.load_ms else "-"
    rows = {
        "context": _origin(timings) or "none",
        "prompt": f"{done.prompt_tokens:,} tokens: {timings.cache_n:,} reused, {timings.prompt_n:,} computed",
        "waiting": f"{timings.queue_ms:.0f} ms for earlier requests",
        "loading": f"{timings.load_ms:.0f} ms, {load_rate}",
        "first token": f"{timings.ttft_ms:.0f} ms",
        "answer": f"{timings.predicted_n} tokens, {timings.predicted_per_second:.1f} tokens/s, ended by {done.finish}",
    }
    return [f"{what + ':':<13}{value}" for what, value in rows.items()]

"""`preread fit study` and `fit teach`: what a large model has to say of one document; `fit guide`: of any."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from preread.cli import arguments, options
from preread.cli.terminal import print_json, print_table, say, token_progress
from preread.engine.registry import DEFAULT
from preread.fit import files

if TYPE_CHECKING:
    from preread.fit.guide import Fit
    from preread.fit.teach import Lesson

_STAGES: Final = {
    "ask": "asking about the document",
    "align": "aligning layers",
    "load": "reading the weights",
    "answer": "answering",
    "teach": "teaching",
    "guide": "learning",
    "measure": "measuring",
}

_Document = Annotated[Path, typer.Argument(metavar="FILE", help="The document, in UTF-8, as it will be published.")]
_Small = Annotated[str, typer.Option("--slm", metavar="NAME|PATH|hf:…", help="The small model.")]


def study(
    document: _Document,
    llm: Annotated[
        str, typer.Option("--llm", metavar="NAME|PATH|hf:…", help="The large model, which asks and answers.")
    ],
    slm: _Small = DEFAULT,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; by default FILE.study.", dir_okay=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each passage is asked about.")] = 3,
    threads: options.Threads = 0,
) -> None:
    """Have a large model ask itself questions about a document, and answer them: what `fit teach` teaches with.

    Takes minutes. The last line is JSON.
    """
    from preread.align.study_bytes import dumps
    from preread.cli.engine import engine_for
    from preread.fit.study import study as ask
    from preread.fit.text import read

    (text,) = read([document]).parts
    path = out or document.with_name(f"{document.name}.study")
    arguments.check_folder(path)
    with (
        engine_for(slm, 0, threads) as small,
        engine_for(llm, 0, threads, streamed=False) as large,
        token_progress() as report,
    ):
        found = ask(small, large, text, lambda stage, *at: report(_STAGES[stage], *at), rounds)
    files.write(path, dumps(found))
    nats = [float(loss) for one in found.exchanges for loss in one.losses]
    say(f"{len(found.exchanges)} questions, {len(found.held_out)} of them held out, in {path}")
    print_json(
        {
            "fit": "study",
            "slm": small.spec.name,
            "llm": large.spec.name,
            "context": found.context,
            "exchanges": len(found.exchanges),
            "answer_tokens": len(nats),
            "llm_loss": round(sum(nats) / len(nats), 5),
        }
    )


def teach(
    document: _Document,
    slm: _Small = DEFAULT,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `fit study` wrote; by default FILE.study.", dir_okay=False)
    ] = None,
    lessons: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Teach with this study instead: of another document, it makes a control."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; by default FILE.taught.", dir_okay=False)
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="How often each question is learnt from.")] = 3.0,
    threads: options.Threads = 0,
) -> None:
    """Teach the small model's KV of one document to answer as a large model does. Takes many minutes.

    Needs PyTorch: pip install 'preread\\[cloud]'. One that is interrupted goes on when it is started again. What it did
    is measured on questions that it did not learn from. The last line is JSON.
    """
    from preread.align.taught_bytes import dumps
    from preread.cli.engine import engine_for
    from preread.cloud.document import read_document
    from preread.engine import hf
    from preread.fit.study import load as load_study
    from preread.fit.teach import teach as teach_context
    from preread.fit.text import read

    (text,) = read([document]).parts
    measured = load_study(study or document.with_name(f"{document.name}.study"))
    learnt = measured if lessons is None else load_study(lessons)
    path = (out or document.with_name(f"{document.name}.taught")).expanduser()
    arguments.check_folder(path)
    keep = path.with_name(f"{path.name}.part")
    with engine_for(slm, 0, threads) as small, token_progress() as report:
        tokens, _ = read_document(small, text, None, "chat")
        hf.use_threads(small.threads)
        report(_STAGES["load"], 0, 1)
        frozen = hf.load(options.pulled(slm), small.spec.rope_near)
        found = teach_context(
            small, frozen, tokens, learnt, measured, lambda stage, *at: report(_STAGES[stage], *at), epochs, keep
        )
        files.write(path, dumps(found.taught))
        keep.unlink(missing_ok=True)
    print_lesson(small.spec.name, document.name, found, path)


def print_lesson(small: str, document: str, found: "Lesson", path: Path) -> None:
    taught, gap = found.taught, found.exact - found.llm
    closed = None if gap <= 0 else round(-taught.dloss / gap, 4)
    print_table(("STEPS", "NATS A TOKEN OF ANSWERS HELD OUT"), [(f"{at:,}", f"{loss:.4f}") for at, loss in found.curve])
    (low, high), after = taught.dloss_ci, found.exact + taught.dloss
    say(f"exact {found.exact:.4f}, taught {after:.4f} [{low:+.4f}, {high:+.4f}], large model {found.llm:.4f}: {path}")
    told = {
        "fit": "teach", "slm": small, "text": document, "control": taught.studied != taught.context,
        "exact": round(found.exact, 5), "taught": round(after, 5), "llm": round(found.llm, 5),
        "dloss": round(taught.dloss, 5), "dloss_ci": taught.dloss_ci, "gap_closed": closed,
        "exchanges": taught.exchanges, "tokens": taught.tokens,
        "curve": [(at, round(loss, 5)) for at, loss in found.curve],
    }  # fmt: skip
    print_json(told)


def guide(
    llm: Annotated[
        str, typer.Option("--llm", metavar="NAME|PATH|hf:…", help="The large model, named as with --model elsewhere.")
    ],
    slm: _Small = DEFAULT,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="FILE|FOLDER", help="Text to learn from; may be repeated; by default built in."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where to write the guide; its control is FILE.control.", dir_okay=False),
    ] = Path("guide.npz"),
    documents: Annotated[int, typer.Option(min=8, help="Of the text to learn from, at most.")] = 200,
    threads: options.Threads = 0,
) -> None:
    """Learn what a small model's KV should take from a large model's reading of any text.

    Takes minutes on a GPU, and hours on a CPU: give it documents by the thousand there, by the hundred here.
    Needs PyTorch: pip install 'preread\\[cloud]'. One that is interrupted goes on when it is started again. What it
    does is measured on documents that it did not learn from, beside a control. The last line is JSON.
    """
    from preread.align.guide_bytes import dumps
    from preread.cli.engine import engine_for
    from preread.engine import hf
    from preread.fit.guide import fit_guide
    from preread.fit.school import Models
    from preread.fit.text import below, calibration

    source = below(text) if text else calibration()
    path = out.expanduser()
    arguments.check_folder(path)
    keep = path.with_name(f"{path.name}.part")
    with (
        engine_for(slm, 0, threads) as small,
        engine_for(llm, 0, threads, streamed=False) as large,
        token_progress() as report,
    ):
        hf.use_threads(small.threads)
        report(_STAGES["load"], 0, 2)
        kind = hf.faster()
        pupil = hf.load(options.pulled(slm), small.spec.rope_near, kind)
        report(_STAGES["load"], 1, 2)
        teacher = hf.load(options.pulled(llm), large.spec.rope_near, kind)
        models = Models(small, large, pupil, teacher)
        found = fit_guide(models, source, lambda stage, *at: report(_STAGES[stage], *at), documents, keep=keep)
        files.write(path, dumps(found.guide))
        files.write(path.with_name(f"{path.name}.control"), dumps(found.control))
        keep.unlink(missing_ok=True)
        print_guide(small.spec.name, large.spec.name, found, path)


def print_guide(small: str, large: str, found: "Fit", path: Path) -> None:
    told, control = found.guide.outcome, found.control.outcome
    (low, high), (least, most) = told.dloss_ci, told.gain_ci
    rows = [(f"{at:,}", f"{mine:.4f}", f"{its:.4f}") for at, mine, its in found.curve]
    print_table(("DOCUMENTS", "NATS A TOKEN HELD OUT", "CONTROL"), rows)
    say(
        f"guided {told.dloss:+.4f} [{low:+.4f}, {high:+.4f}], control {control.dloss:+.4f}, gain over it "
        f"{told.gain:+.4f} [{least:+.4f}, {most:+.4f}] nats a token: {path}"
    )
    share = None if not told.gap or told.gap <= 0 else round(told.gain / told.gap, 4)
    told_json = {
        "fit": "guide", "slm": small, "llm": large, "text": found.guide.text, "documents": found.guide.lessons,
        "reads": found.guide.guide.reads, "dloss": round(told.dloss, 5), "dloss_ci": told.dloss_ci,
        "control_dloss": round(control.dloss, 5), "gain": round(told.gain, 5), "gain_ci": told.gain_ci, "gap": told.gap,
        "gain_over_control": share, "tokens": told.tokens,
        "curve": [(at, round(mine, 5), round(its, 5)) for at, mine, its in found.curve],
    }  # fmt: skip
    print_json(told_json)

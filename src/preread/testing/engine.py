"""The contract of every engine, as a suite to inherit: `class TestMine(EngineContract)` with an `engine` fixture.

It says what an edge's loop relies on, and no more. The engine has a cache of its own for 512 tokens at least, in which
nothing is but what a test puts there, and three layers or more.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from preread.engine.base import Chooser, Engine, Slice, Tokens
from preread.engine.cache import Rows
from preread.engine.sampling import Sampled, Sampling
from preread.errors import Cancelled, CorruptData, EngineError
from preread.plan.legality import first_seen, is_in_order
from preread.values import KVBlock, Span

STEP_TOKENS = 512
_ANSWER = 8
_PATIENCE_S = 60.0


class EngineContract:
    """What callers rely on.

    Attributes:
        rounding_nats: by how much log-probabilities may differ where other slices are in a step, or a context's cells
            lie elsewhere. Tokens that are no further apart may change places. 0: by nothing.
        drawn_alike: of five answers that are drawn with a seed, so many at least are the same with drafts: where a draw
            falls between two roundings, another token comes, and then other ones.
    """

    rounding_nats = 0.0
    drawn_alike = 5

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def empty(self, engine: Engine) -> Iterator[None]:
        """Every test finds an empty cache, and what it leaves can be taken back whole."""
        free(engine)
        yield
        free(engine)
        assert_free(engine, engine.cells)

    def alike(self, expected: Sequence[Sampled], found: Sequence[Sampled]) -> None:
        """Assert that two answers are the same, but for rounding; behind a choice that it decided nothing is said."""
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            if one.token != other.token:
                assert one.top and one.top[0][1] - one.top[1][1] <= 2 * self.rounding_nats
                return
            if one.logprob is not None and other.logprob is not None:
                assert abs(one.logprob - other.logprob) <= self.rounding_nats

    # Steps

    def test_slices_of_one_step_give_what_each_alone_gives(self, engine: Engine) -> None:
        prompts = [text(engine, count, seed=count) for count in (5, 17, 40)]
        alone = []
        for prompt in prompts:
            alone.append(answer(engine, engine.sequences[0], prompt))
            free(engine)
        for expected, found in zip(alone, together(engine, prompts), strict=True):
            self.alike(expected, found)

    def test_an_answer_goes_on_beside_a_prompt_that_is_read(self, engine: Engine) -> None:
        reader, writer, *_ = engine.sequences
        prompt, long = text(engine, 9, seed=1), text(engine, 60, seed=2)
        alone, other_alone = answer(engine, writer, prompt), answer(engine, reader, long)
        free(engine)
        with closing(chooser(engine)) as choosing, closing(chooser(engine)) as other:
            (steps,) = step(engine, Slice(writer, prompt, 0, choosing))
            for at in range(0, 60, 12):
                last, position = np.array([steps[-1].token], np.int32), len(prompt) + len(steps) - 1
                reading = Slice(reader, long[at : at + 12], at, other if at == 48 else None)
                more, read = step(engine, Slice(writer, last, position, choosing), reading)
                steps, others = steps + more, read
        self.alike(alone[: len(steps)], steps)
        self.alike(other_alone[:1], others)

    def test_a_slice_without_a_chooser_gives_nothing(self, engine: Engine) -> None:
        assert step(engine, Slice(engine.sequences[0], text(engine, 20), 0)) == [[]]

    def test_a_prompt_in_pieces_is_the_prompt(self, engine: Engine) -> None:
        prompt, first, second = text(engine, 50), *engine.sequences[:2]
        whole = answer(engine, first, prompt)
        read(engine, second, prompt[:31])
        self.alike(whole, answer(engine, second, prompt[31:], 31))

    def test_a_step_without_free_cells_fails_and_leaves_everything_as_it_was(self, engine: Engine) -> None:
        context, one, other, filler, *_ = engine.sequences
        read(engine, context, text(engine, 30))
        before, expected = rows(engine, context, 30), answer(engine, one, text(engine, 6, seed=1))
        engine.cache.free(one)
        for sequence in (one, other):
            engine.cache.share(context, sequence, Span(0, 30))
        engine.cache.reserve(filler, engine.cells - 30 - 10)
        with pytest.raises(EngineError):
            step(engine, *(Slice(sequence, text(engine, 6), 30) for sequence in (one, other)))
        assert same(rows(engine, context, 30), before)
        for sequence in (one, other):
            assert engine.cache.export(sequence, Span(0, 30), Span(0, 1)).tokens == Span(0, 30)
            assert_lacks(engine, sequence, 30)
        assert_free(engine, 10)
        engine.cache.free(one)
        self.alike(expected[:1], step_of(engine, one, text(engine, 6, seed=1)))

    def test_a_step_of_too_many_tokens_is_refused(self, engine: Engine) -> None:
        one, other, *_ = engine.sequences
        tokens = text(engine, STEP_TOKENS)
        with pytest.raises(EngineError):
            step(engine, Slice(one, tokens, 0), Slice(other, tokens[:1], 0))
        assert_free(engine, engine.cells)
        with closing(chooser(engine)) as choosing, pytest.raises(EngineError):  # logits take memory too
            step(engine, Slice(one, tokens, 0, choosing, after=1, echoed=0))
        assert_free(engine, engine.cells)
        assert step(engine, Slice(one, tokens[:1], 0)) == [[]]

    # Sharing

    def test_a_shared_context_is_as_good_as_ones_own(self, engine: Engine) -> None:
        context, one, other, own, *_ = engine.sequences
        tokens, prompts = text(engine, 70), [text(engine, count, seed=count) for count in (7, 11)]
        alone = []
        for prompt in prompts:
            alone.append(answer(engine, own, np.concatenate([tokens, prompt])))
            engine.cache.free(own)
        read(engine, context, tokens)
        for sequence in (one, other):
            engine.cache.share(context, sequence, Span(0, 70))
        for expected, found in zip(alone, together(engine, prompts, (one, other), 70), strict=True):
            self.alike(expected, found)

    def test_sharing_takes_no_cells_and_the_last_who_leaves_frees_them(self, engine: Engine) -> None:
        context, *users = engine.sequences[:5]
        read(engine, context, text(engine, 64))
        for user in users:
            engine.cache.share(context, user, Span(0, 64))
        assert_free(engine, engine.cells - 64)
        for leaving in (context, *users[:-1]):
            engine.cache.free(leaving)
            assert_free(engine, engine.cells - 64)
        engine.cache.free(users[-1])
        assert_free(engine, engine.cells)

    def test_a_context_stays_for_who_shares_it_when_it_is_freed_itself(self, engine: Engine) -> None:
        context, user, other, *_ = engine.sequences
        tokens, prompt = text(engine, 40), text(engine, 5, seed=1)
        read(engine, context, tokens)
        engine.cache.share(context, user, Span(0, 40))
        expected = answer(engine, user, prompt, 40)
        engine.cache.cut(user, 40)
        engine.cache.free(context)
        read(engine, other, text(engine, 60, seed=2))  # in the next free cells
        self.alike(expected, answer(engine, user, prompt, 40))

    def test_a_part_of_a_context_can_be_shared(self, engine: Engine) -> None:
        context, user, own, *_ = engine.sequences
        tokens, prompt = text(engine, 48), text(engine, 5, seed=1)
        expected = answer(engine, own, np.concatenate([tokens[:33], prompt]))
        engine.cache.free(own)
        read(engine, context, tokens)
        engine.cache.share(context, user, Span(0, 33))
        self.alike(expected, answer(engine, user, prompt, 33))

    def test_answers_leave_a_context_as_it_was(self, engine: Engine) -> None:
        context, *users = engine.sequences[:4]
        read(engine, context, text(engine, 40))
        before = rows(engine, context, 40)
        for user in users:
            engine.cache.share(context, user, Span(0, 40))
        together(engine, [text(engine, 9, seed=user) for user in users], users, 40)
        assert same(rows(engine, context, 40), before)

    def test_what_is_cut_can_be_computed_again(self, engine: Engine) -> None:
        sequence, tokens = engine.sequences[0], text(engine, 50)
        expected = answer(engine, sequence, tokens)
        engine.cache.cut(sequence, 21)
        assert_free(engine, engine.cells - 21)
        self.alike(expected, answer(engine, sequence, tokens[21:], 21))

    def test_the_cache_can_be_filled_and_emptied_again_and_again(self, engine: Engine) -> None:
        chance = np.random.default_rng(5)
        for _ in range(3):
            left, held = engine.cells, list[int]()
            for sequence in engine.sequences[:6]:
                count = min(left, int(chance.integers(1, engine.cells // 4)))
                engine.cache.reserve(sequence, count)
                left, held = left - count, [*held, sequence]
            assert_free(engine, left)
            for sequence in chance.permutation(held):
                engine.cache.free(int(sequence))
        assert_free(engine, engine.cells)

    # KV in and out

    def test_an_injected_context_gives_the_very_bits_of_a_computed_one(self, engine: Engine) -> None:
        context, user, *_ = engine.sequences
        prompt = text(engine, 12, seed=1)
        read(engine, context, text(engine, 90))
        block = rows(engine, context, 90)
        engine.cache.share(context, user, Span(0, 90))
        computed = answer(engine, user, prompt, 90)
        free(engine)
        engine.cache.inject(engine.cache.reserve(context, 90), block)
        engine.cache.share(context, user, Span(0, 90))
        assert answer(engine, user, prompt, 90) == computed

    def test_export_gives_what_was_injected(self, engine: Engine) -> None:
        read(engine, engine.sequences[1], text(engine, 25))  # so that its cells are not the first ones
        block, sequence = noise(engine, 40), engine.sequences[0]
        engine.cache.inject(engine.cache.reserve(sequence, 40), block)
        block = seen(engine, block, 40)
        assert same(rows(engine, sequence, 40), block)
        found = engine.cache.export(sequence, Span(3, 17), Span(1, 3))
        assert (found.tokens, found.layers) == (Span(3, 17), Span(1, 3))
        assert same(found, part(block, Span(3, 17), Span(1, 3)))

    def test_rows_come_in_any_order_and_from_many_threads(self, engine: Engine) -> None:
        sequence, layers = engine.sequences[0], engine.spec.geometry.layers
        scatter(engine)
        block, into = noise(engine, 60), engine.cache.reserve(sequence, 60)
        cells = [(Span(at, at + 20), Span(layer, layer + 1)) for at in (40, 0, 20) for layer in range(layers)]

        def feed(these: list[tuple[Span, Span]]) -> None:
            for tokens, which in these:
                engine.cache.inject(into, part(block, tokens, which))

        threads = [threading.Thread(target=feed, args=(cells[one::3],)) for one in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert same(rows(engine, sequence, 60), seen(engine, block, 60))

    def test_a_context_lies_wherever_cells_are_free(self, engine: Engine) -> None:
        context, user, *_ = engine.sequences
        prompt = text(engine, 6, seed=1)
        read(engine, context, text(engine, 50))
        engine.cache.share(context, user, Span(0, 50))
        block, expected = rows(engine, context, 50), answer(engine, user, prompt, 50)
        free(engine)
        scatter(engine)
        engine.cache.inject(engine.cache.reserve(context, 50), block)
        assert same(rows(engine, context, 50), block)
        engine.cache.share(context, user, Span(0, 50))
        self.alike(expected, answer(engine, user, prompt, 50))

    def test_a_stretch_can_be_computed_and_the_rest_injected(self, engine: Engine) -> None:
        context, scratch, user, *_ = engine.sequences
        tokens, prompt = text(engine, 80), text(engine, 6, seed=1)
        stretch = Span(0 if is_in_order(80, engine.spec.windows) else 20, 50)
        read(engine, context, tokens)
        engine.cache.share(context, user, Span(0, 80))
        block, expected = rows(engine, context, 80), answer(engine, user, prompt, 80)
        free(engine)
        into = engine.cache.reserve(context, 80)
        every = Span(0, engine.spec.geometry.layers)
        before = Span(0, stretch.start)
        engine.cache.inject(into, part(block, before, every))
        engine.cache.share(context, scratch, before)
        engine.cache.take(into, stretch)
        assert_free(engine, engine.cells - 80 + len(stretch))
        read(engine, scratch, tokens[stretch.start : 50], stretch.start)
        engine.cache.share(scratch, context, stretch)
        engine.cache.free(scratch)
        engine.cache.inject(into, part(block, Span(50, 80), every))
        computed = rows(engine, context, 80)
        engine.cache.inject(into, noise(engine, 80, Span(0, 80), kept=block, but=stretch))
        assert same(rows(engine, context, 80), computed), "what was computed stays"
        assert same(part(computed, before, every), part(block, before, every))
        assert same(part(computed, Span(50, 80), every), part(block, Span(50, 80), every))
        assert_free(engine, engine.cells - 80)
        engine.cache.share(context, user, Span(0, 80))
        self.alike(expected, answer(engine, user, prompt, 80))

    @pytest.mark.parametrize("layers", [1, 2])
    def test_first_layers_can_be_computed_and_the_others_injected(self, engine: Engine, layers: int) -> None:
        """The same bits as where all is computed in the same steps, or all injected."""
        context, user, *_ = engine.sequences
        tokens, prompt = text(engine, 128), text(engine, 6, seed=1)
        stretches, count = (Span(0, 64), Span(64, 128)), engine.spec.geometry.layers
        read(engine, context, tokens[:64])
        read(engine, context, tokens[64:], 64)
        engine.cache.share(context, user, Span(0, 128))
        block, expected = rows(engine, context, 128), answer(engine, user, prompt, 128)
        free(engine)
        into, chain = engine.cache.reserve(context, 128), list[int]()
        upper = Span(layers, count)
        engine.cache.inject(into, part(block, Span(0, 64), upper))
        for scratch, stretch in zip(engine.sequences[2:4], stretches, strict=True):
            lower = engine.cache.unplaced(scratch, stretch.stop)
            for before in chain:
                engine.cache.share(before, scratch, Span(0, stretch.start))
            step(engine, Slice(scratch, tokens[stretch.start : stretch.stop], stretch.start, layers=layers, rows=lower))
            engine.cache.copy(lower, into, stretch, layers)
            chain = [scratch]
        engine.cache.inject(into, part(block, Span(64, 128), upper))
        for scratch in engine.sequences[2:4]:
            engine.cache.free(scratch)
        assert_free(engine, engine.cells - 128)
        assert same(rows(engine, context, 128), block)
        engine.cache.share(context, user, Span(0, 128))
        assert answer(engine, user, prompt, 128) == expected

    def test_first_layers_that_are_computed_beside_others_are_the_same(self, engine: Engine) -> None:
        context, scratch, other, *_ = engine.sequences
        tokens, prompt = text(engine, 64), text(engine, 9, seed=1)
        alone = answer(engine, other, prompt)
        free(engine)
        layers, blocks = 2, []
        for beside in ([], [Slice(other, prompt, 0)]):
            into, lower = engine.cache.reserve(context, 64), engine.cache.unplaced(scratch, 64)
            step(engine, *beside, Slice(scratch, tokens, 0, layers=layers, rows=lower))
            engine.cache.copy(lower, into, Span(0, 64), layers)
            blocks.append(rows(engine, context, 64))
            for sequence in (context, scratch, other):
                engine.cache.free(sequence)
        read(engine, context, tokens)
        whole = part(rows(engine, context, 64), Span(0, 64), Span(0, layers))
        for block in blocks:
            found = part(block, Span(0, 64), Span(0, layers))
            for half, expected in ((found.k, whole.k), (found.v, whole.v)):
                assert np.allclose(half.astype(np.float32), expected.astype(np.float32), atol=self.rounding_nats)
        assert not any(block.v[layers:].any() for block in blocks)
        self.alike(alone, answer(engine, other, prompt))

    def test_rows_that_nothing_was_computed_into_are_not_copied(self, engine: Engine) -> None:
        context, scratch, *_ = engine.sequences
        into, lower = engine.cache.reserve(context, 20), engine.cache.unplaced(scratch, 20)
        step(engine, Slice(scratch, text(engine, 12), 0, layers=2, rows=lower))
        with pytest.raises(EngineError, match="cannot be told"):
            engine.cache.copy(lower, into, Span(0, 20), 2)

    def test_a_stretch_that_was_taken_can_be_put_back(self, engine: Engine) -> None:
        context, block = engine.sequences[0], noise(engine, 60)
        into = engine.cache.reserve(context, 60)
        engine.cache.inject(into, part(block, Span(0, 40), block.layers))
        engine.cache.take(into, Span(30, 60))
        assert_lacks(engine, context, 30)
        engine.cache.put_back(into, Span(30, 60))
        assert_free(engine, engine.cells - 60)
        engine.cache.inject(into, part(block, Span(30, 60), block.layers))
        assert same(rows(engine, context, 60), seen(engine, block, 60))

    def test_putting_back_without_free_cells_fails_and_leaves_everything_as_it_was(self, engine: Engine) -> None:
        context, filler, *_ = engine.sequences
        count = engine.cells - 8
        into = engine.cache.reserve(context, count)
        block, stretch = noise(engine, count), Span(4, count)
        engine.cache.inject(into, block)
        engine.cache.take(into, stretch)
        engine.cache.reserve(filler, 10)
        with pytest.raises(EngineError):
            engine.cache.put_back(into, stretch)
        assert_free(engine, engine.cells - 4 - 10)
        found, block = seen(engine, rows(engine, context, 4), count), seen(engine, block, count)
        assert same(found, part(block, Span(0, 4), block.layers))
        engine.cache.free(filler)
        engine.cache.put_back(into, stretch)
        engine.cache.inject(into, block)
        assert same(rows(engine, context, count), block)

    def test_reserving_without_free_cells_fails_and_leaves_everything_as_it_was(self, engine: Engine) -> None:
        context, other, *_ = engine.sequences
        read(engine, context, text(engine, 30))
        before = rows(engine, context, 30)
        with pytest.raises(EngineError):
            engine.cache.reserve(other, engine.cells - 29)
        assert_lacks(engine, other, 0)
        assert_free(engine, engine.cells - 30)
        assert same(rows(engine, context, 30), before)

    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("which", ["k", "v"])
    def test_values_that_are_not_finite_are_refused(self, engine: Engine, poison: float, which: str) -> None:
        sequence, block = engine.sequences[0], noise(engine, 20)
        into = engine.cache.reserve(sequence, 20)
        engine.cache.inject(into, block)
        broken = noise(engine, 20, seed=1)
        getattr(broken, which)[-1, -1, 19, -1] = poison
        with pytest.raises(CorruptData, match="not finite"):
            engine.cache.inject(into, broken)
        assert same(rows(engine, sequence, 20), block)

    def test_a_block_that_does_not_fit_is_refused(self, engine: Engine) -> None:
        sequence, block = engine.sequences[0], noise(engine, 20)
        into = engine.cache.reserve(sequence, 20)
        engine.cache.inject(into, block)
        wrong = [
            replace(block, tokens=Span(1, 21)),
            replace(block, tokens=Span(0, 19)),
            replace(block, layers=Span(1, 1 + len(block.layers))),
            replace(block, k=block.k[:, :, :, :-1]),
            replace(block, v=block.v[:-1]),
        ]
        for broken in wrong:
            with pytest.raises(EngineError):
                engine.cache.inject(into, broken)
        assert same(rows(engine, sequence, 20), block)

    def test_what_is_not_there_is_not_exported(self, engine: Engine) -> None:
        sequence, other, *_ = engine.sequences
        read(engine, sequence, text(engine, 20))
        for held, tokens in ((sequence, Span(0, 21)), (sequence, Span(20, 21)), (other, Span(0, 1))):
            with pytest.raises(EngineError):
                engine.cache.export(held, tokens, Span(0, 1))

    # The gate

    def test_a_step_waits_for_each_layer(self, engine: Engine) -> None:
        context, user, *_ = engine.sequences
        layers, prompt = engine.spec.geometry.layers, text(engine, 10, seed=1)
        block, into, expected = self._coming(engine, context, user, prompt)
        with closing(chooser(engine)) as choosing:
            engine.runner.arm(0)
            running = Running(engine, [Slice(user, prompt, 60, choosing)])
            for layer in range(layers):
                running.until_waiting()
                engine.cache.inject(into, part(block, Span(0, 60), Span(layer, layer + 1)))
                assert running.alive
                engine.runner.open(layer + 1)
            (steps,) = running.result()
        assert steps == expected[:1]

    def test_layers_that_are_open_from_the_start_are_not_waited_for(self, engine: Engine) -> None:
        context, user, *_ = engine.sequences
        layers, prompt = engine.spec.geometry.layers, text(engine, 10, seed=1)
        block, into, expected = self._coming(engine, context, user, prompt)
        engine.cache.inject(into, block)
        with closing(chooser(engine)) as choosing:
            engine.runner.arm(layers)
            (steps,) = engine.runner.run([Slice(user, prompt, 60, choosing)])
        assert steps == expected[:1]
        assert not engine.runner.waiting

    @pytest.mark.parametrize("open_layers", [0, 1, 2])
    def test_a_step_that_is_cancelled_at_the_gate_leaves_nothing(self, engine: Engine, open_layers: int) -> None:
        context, user, other, *_ = engine.sequences
        prompt = text(engine, 10, seed=1)
        block, into, expected = self._coming(engine, context, user, prompt)
        engine.cache.share(context, other, Span(0, 60))
        engine.cache.inject(into, part(block, Span(0, 60), Span(0, open_layers)))
        engine.runner.arm(open_layers)
        running = Running(engine, [Slice(user, prompt, 60), Slice(other, prompt[:4], 60)])
        running.until_waiting()
        engine.runner.cancel()
        with pytest.raises(Cancelled):
            running.result()
        assert not engine.runner.waiting
        assert_free(engine, engine.cells - 60)
        engine.cache.inject(into, block)
        assert answer(engine, user, prompt, 60) == expected

    def _coming(self, engine: Engine, context: int, user: int, prompt: Tokens) -> tuple[KVBlock, Rows, list[Sampled]]:
        """A context of 60 tokens whose rows are still to come: these, where they go, and the answer behind them."""
        read(engine, context, text(engine, 60))
        engine.cache.share(context, user, Span(0, 60))
        block, expected = rows(engine, context, 60), answer(engine, user, prompt, 60)
        free(engine)
        into = engine.cache.reserve(context, 60)
        engine.cache.share(context, user, Span(0, 60))
        return block, into, expected

    def test_cancelling_before_a_step_begins_ends_it(self, engine: Engine) -> None:
        engine.runner.arm()
        engine.runner.cancel()
        with pytest.raises(Cancelled):
            engine.runner.run([Slice(engine.sequences[0], text(engine, 10), 0)])
        assert_free(engine, engine.cells)

    def test_a_cancellation_is_forgotten_by_the_next_step(self, engine: Engine) -> None:
        engine.runner.cancel()
        assert step(engine, Slice(engine.sequences[0], text(engine, 10), 0)) == [[]]

    def test_a_step_that_waits_for_nothing_can_be_cancelled(self, engine: Engine) -> None:
        context, user, *_ = engine.sequences
        tokens, prompt = text(engine, 30), text(engine, 300, seed=1)
        read(engine, context, tokens)
        engine.cache.share(context, user, Span(0, 30))
        before = rows(engine, context, 30)

        def again() -> list[list[Sampled]]:
            while True:
                step(engine, Slice(user, prompt, 30))
                engine.cache.cut(user, 30)

        running = Running(engine, call=again)
        while running.alive:  # it may be between two steps
            engine.runner.cancel()
            time.sleep(1e-4)
        with pytest.raises(Cancelled):
            running.result()
        assert_free(engine, engine.cells - 30)
        assert same(rows(engine, context, 30), before)

    # Drafts

    @pytest.mark.parametrize("sure", [0, 1, 2, 3])
    @pytest.mark.parametrize("count", [1, 3])
    def test_drafts_give_the_tokens_of_plain_decoding(self, engine: Engine, sure: int, count: int) -> None:
        """Of `count` drafts each time the first `sure` are right."""
        plain_at, drafted_at, *_ = engine.sequences
        prompt = text(engine, 20)
        plain = answer(engine, plain_at, prompt, most=12)
        right = [one.token for one in plain]
        with closing(chooser(engine, 12)) as choosing:
            found = self._drafted(engine, drafted_at, prompt, choosing, right, count, sure)
        self.alike(plain, found)

    def test_drafts_give_the_tokens_that_a_seed_gives(self, engine: Engine) -> None:
        prompt, alike = text(engine, 20), 0
        for seed in range(5):
            sampling = Sampling(max_tokens=8, min_tokens=8, temperature=0.8, top_k=4, seed=seed)
            plain = answer(engine, engine.sequences[0], prompt, sampling=sampling)
            right = [one.token for one in plain]
            with closing(engine.chooser(sampling, prompt)) as choosing:
                found = self._drafted(engine, engine.sequences[1], prompt, choosing, right, 3, 2)
            alike += [one.token for one in found] == right
            free(engine)
        assert alike >= self.drawn_alike

    def _drafted(
        self,
        engine: Engine,
        sequence: int,
        prompt: Tokens,
        choosing: Chooser,
        right: Sequence[int],
        count: int,
        sure: int,
    ) -> list[Sampled]:
        """An answer with drafts. After each step exactly the cells are there that plain decoding would have."""
        (found,) = step(engine, Slice(sequence, prompt, 0, choosing))
        while not choosing.ended:
            position = len(prompt) + len(found) - 1
            drafts = [*right, *right][len(found) : len(found) + count]
            drafts = [token if i < sure else wrong(engine, token) for i, token in enumerate(drafts)]
            tokens = np.array([found[-1].token, *drafts], np.int32)
            (more,) = step(engine, Slice(sequence, tokens, position, choosing, drafts=count))
            assert 1 <= len(more) <= count + 1
            found = found + more
            known = position + len(more)
            assert engine.cache.export(sequence, Span(0, known), Span(0, 1)).tokens == Span(0, known)
            assert_lacks(engine, sequence, known)
        return found

    def test_nothing_is_chosen_beyond_an_answers_length(self, engine: Engine) -> None:
        first, second, *_ = engine.sequences
        prompt = text(engine, 20)
        right = [one.token for one in answer(engine, first, prompt, most=4)]
        with closing(chooser(engine, 2)) as choosing:
            (found,) = step(engine, Slice(second, prompt, 0, choosing))
            drafted = np.array(right, np.int32)
            (more,) = step(engine, Slice(second, drafted, 20, choosing, drafts=3))
            assert choosing.ended
        assert [one.token for one in found + more] == right[:2]
        assert_lacks(engine, second, 21)

    def test_drafts_of_many_are_verified_in_one_step(self, engine: Engine) -> None:
        sequences, prompts = engine.sequences[:3], [text(engine, count, seed=count) for count in (6, 9, 14)]
        plain = together(engine, prompts, sequences)
        free(engine)
        choosers = [chooser(engine) for _ in prompts]
        begun = step(engine, *(Slice(s, p, 0, c) for s, p, c in zip(sequences, prompts, choosers, strict=True)))
        slices = []
        for i, sequence in enumerate(sequences):
            right = [one.token for one in plain[i][1:4]]
            drafts = [token if j < i else wrong(engine, token) for j, token in enumerate(right)]
            tokens = np.array([begun[i][0].token, *drafts], np.int32)
            slices.append(Slice(sequence, tokens, len(prompts[i]), choosers[i], drafts=3))
        for i, more in enumerate(step(engine, *slices)):
            choosers[i].close()
            self.alike(plain[i][: 1 + len(more)], begun[i] + more)
            assert_lacks(engine, sequences[i], len(prompts[i]) + len(more))

    # The odds of given tokens

    def test_given_tokens_are_reported_with_the_odds_that_the_likeliest_have(self, engine: Engine) -> None:
        first, second, *_ = engine.sequences
        prompt = text(engine, 9)
        (likeliest,) = answer(engine, first, prompt, most=1)
        wanted = tuple(token for token, _ in reversed(likeliest.top))
        sampling = Sampling(max_tokens=1, min_tokens=1, reported=wanted)
        with closing(engine.chooser(sampling, prompt)) as choosing:
            ((reported,),) = step(engine, Slice(second, prompt, 0, choosing))
        assert [token for token, _ in reported.top] == [*wanted]
        assert reported.token == likeliest.token and likeliest.logprob is not None and reported.logprob is not None
        rounding_nats = max(self.rounding_nats, 1e-5)  # sums of single precision
        assert abs(reported.logprob - likeliest.logprob) <= rounding_nats
        for (_, one), (_, other) in zip(reversed(likeliest.top), reported.top, strict=True):
            assert abs(one - other) <= rounding_nats

    # The prompt's own

    @pytest.mark.parametrize("size", [5, 8, 16])
    def test_a_prompt_is_told_with_how_likely_each_token_was(self, engine: Engine, size: int) -> None:
        first, second, *_ = engine.sequences
        prompt = text(engine, 16)
        with closing(chooser(engine)) as choosing:
            whole = told(engine, first, prompt, choosing, 16)
        with closing(chooser(engine)) as choosing:
            pieces = told(engine, second, prompt, choosing, size)
        assert [one.token for one in pieces[:-1]] == prompt.tolist()
        assert [one.given for one in pieces] == [True] * 16 + [False]
        assert [one.logprob is None for one in pieces] == [True] + [False] * 16
        for one, other in zip(whole[1:-1], pieces[1:-1], strict=True):
            assert one.logprob is not None and other.logprob is not None
            assert abs(one.logprob - other.logprob) <= self.rounding_nats
        self.alike(answer(engine, engine.sequences[2], prompt)[:1], pieces[-1:])

    def test_how_likely_a_token_of_the_prompt_was_is_what_it_would_have_been_as_an_answer(self, engine: Engine) -> None:
        first, second, *_ = engine.sequences
        prompt = text(engine, 9)
        chosen = answer(engine, first, prompt, most=4)
        longer = np.concatenate([prompt, np.array([one.token for one in chosen], np.int32)])
        sampling = Sampling(max_tokens=1, top_logprobs=2)
        with closing(engine.chooser(sampling, longer)) as choosing:
            steps = told(engine, second, longer, choosing, 16)
        for one, other in zip(chosen, steps[9:13], strict=True):
            # Where an answer may not end yet, its odds leave the ends out.
            assert one.token == other.token and one.logprob is not None and other.logprob is not None
            assert other.logprob <= one.logprob + self.rounding_nats

    def test_nothing_of_a_prompt_is_told_twice(self, engine: Engine) -> None:
        """A request that made way computes its prompt again."""
        sequence, prompt = engine.sequences[0], text(engine, 16)
        with closing(chooser(engine)) as choosing:
            (first,) = step(engine, Slice(sequence, prompt[:10], 0, choosing, after=int(prompt[10]), echoed=0))
            engine.cache.free(sequence)
            (again,) = step(engine, Slice(sequence, prompt[:7], 0, choosing, after=int(prompt[7]), echoed=0))
            (more,) = step(engine, Slice(sequence, prompt[7:], 7, choosing, echoed=7))
        assert again == []
        assert [one.token for one in (first + more)[:-1]] == prompt.tolist()
        assert not more[-1].given


# What tests are made of


def text(engine: Engine, tokens: int, seed: int = 0) -> Tokens:
    """Random ids, none of a control token."""
    size = engine.spec.vocab_size
    return np.random.default_rng(seed).integers(size // 8, size, tokens).astype(np.int32)


def wrong(engine: Engine, token: int) -> int:
    """Another id."""
    return token + 1 if token + 1 < engine.spec.vocab_size else token - 1


def step(engine: Engine, *slices: Slice) -> list[list[Sampled]]:
    """A step that waits for nothing."""
    engine.runner.arm()
    return engine.runner.run(slices)


def read(engine: Engine, sequence: int, tokens: Tokens, position: int = 0) -> None:
    """Compute tokens after which nothing is chosen."""
    for at in range(0, len(tokens), STEP_TOKENS):
        step(engine, Slice(sequence, tokens[at : at + STEP_TOKENS], position + at))


def chooser(engine: Engine, most: int = _ANSWER) -> Chooser:
    """Chooses the likeliest tokens, none of which ends the answer."""
    return engine.chooser(Sampling(max_tokens=most, min_tokens=most, top_logprobs=3), np.empty(0, np.int32))


def answer(
    engine: Engine,
    sequence: int,
    prompt: Tokens,
    position: int = 0,
    most: int = _ANSWER,
    sampling: Sampling | None = None,
) -> list[Sampled]:
    """What is chosen after a prompt that is alone, token by token; it stays in the cache, all but the last."""
    choosing = chooser(engine, most) if sampling is None else engine.chooser(sampling, prompt)
    with closing(choosing):
        (steps,) = step(engine, Slice(sequence, prompt, position, choosing))
        while not choosing.ended:
            last, at = np.array([steps[-1].token], np.int32), position + len(prompt) + len(steps) - 1
            steps = steps + step(engine, Slice(sequence, last, at, choosing))[0]
    return steps


def step_of(engine: Engine, sequence: int, prompt: Tokens) -> list[Sampled]:
    """The first token after a prompt; its cells are freed."""
    with closing(chooser(engine)) as choosing:
        (steps,) = step(engine, Slice(sequence, prompt, 0, choosing))
    engine.cache.free(sequence)
    return steps


def together(
    engine: Engine, prompts: Sequence[Tokens], sequences: Sequence[int] | None = None, position: int = 0
) -> list[list[Sampled]]:
    """What is chosen after prompts that are computed in one step, and go on in the same steps."""
    sequences = engine.sequences[: len(prompts)] if sequences is None else sequences
    choosers = [chooser(engine) for _ in prompts]
    slices = [Slice(s, p, position, c) for s, p, c in zip(sequences, prompts, choosers, strict=True)]
    found = step(engine, *slices)
    while not choosers[0].ended:
        slices = [
            Slice(one.sequence, np.array([steps[-1].token], np.int32), one.position + len(one.tokens), one.chooser)
            for one, steps in zip(slices, found, strict=True)
        ]
        found = [steps + more for steps, more in zip(found, step(engine, *slices), strict=True)]
    for choosing in choosers:
        choosing.close()
    return found


def told(engine: Engine, sequence: int, prompt: Tokens, choosing: Chooser, size: int) -> list[Sampled]:
    """A prompt's own tokens in slices of `size`, and the first of the answer."""
    steps: list[Sampled] = []
    for at in range(0, len(prompt), size):
        stop = min(at + size, len(prompt))
        after = int(prompt[stop]) if stop < len(prompt) else None
        steps += step(engine, Slice(sequence, prompt[at:stop], at, choosing, after=after, echoed=at))[0]
    return steps


def noise(
    engine: Engine,
    tokens: int,
    span: Span | None = None,
    seed: int = 7,
    kept: KVBlock | None = None,
    but: Span | None = None,
) -> KVBlock:
    """KV of normal values; with `kept`, that block, all `but` these tokens."""
    shape, source = engine.spec.geometry, np.random.default_rng(seed)
    size = shape.layers, shape.kv_heads, tokens, shape.head_dim
    k, v = (source.normal(size=size).astype(np.float16) for _ in range(2))
    if kept is not None and but is not None:
        for mine, theirs in ((k, kept.k), (v, kept.v)):
            mine[:, :, : but.start], mine[:, :, but.stop :] = theirs[:, :, : but.start], theirs[:, :, but.stop :]
    return KVBlock(span or Span(0, tokens), Span(0, shape.layers), k, v)


def part(block: KVBlock, tokens: Span, layers: Span) -> KVBlock:
    """Some rows of a block that begins at the first token and layer."""
    at = slice(layers.start, layers.stop), slice(None), slice(tokens.start, tokens.stop)
    return KVBlock(tokens, layers, block.k[at], block.v[at])


def rows(engine: Engine, sequence: int, tokens: int) -> KVBlock:
    """All rows of a sequence's first tokens."""
    return engine.cache.export(sequence, Span(0, tokens), Span(0, engine.spec.geometry.layers))


def same(one: KVBlock, other: KVBlock) -> bool:
    """Whether two blocks have the same bits."""
    pairs = ((one.k, other.k), (one.v, other.v))
    return all(np.array_equal(mine.view(np.uint16), theirs.view(np.uint16)) for mine, theirs in pairs)


def seen(engine: Engine, block: KVBlock, tokens: int) -> KVBlock:
    """A block of a sequence of so many tokens, with zeros where a layer's window has left its rows behind."""
    k, v = block.k.copy(), block.v.copy()
    for i, layer in enumerate(range(block.layers.start, block.layers.stop)):
        behind = max(0, first_seen(tokens, engine.spec.windows[layer]) - block.tokens.start)
        k[i, :, :behind] = v[i, :, :behind] = 0
    return KVBlock(block.tokens, block.layers, k, v)


def scatter(engine: Engine) -> None:
    """Leave free cells in several places; four sequences at the end are used."""
    for sequence in engine.sequences[-4:]:
        engine.cache.reserve(sequence, 13)
    for sequence in engine.sequences[-3::2]:
        engine.cache.free(sequence)


def free(engine: Engine) -> None:
    """Empty all sequences."""
    for sequence in engine.sequences:
        engine.cache.free(sequence)


def assert_free(engine: Engine, cells: int) -> None:
    """Assert that exactly so many cells are free. The last sequence is used for that."""
    probe = engine.sequences[-1]
    if cells:
        engine.cache.reserve(probe, cells)
    with pytest.raises(EngineError):
        engine.cache.reserve(engine.sequences[-2], 1)
    engine.cache.free(probe)


def assert_lacks(engine: Engine, sequence: int, position: int) -> None:
    """Assert that a sequence has nothing at a position."""
    with pytest.raises(EngineError):
        engine.cache.export(sequence, Span(position, position + 1), Span(0, 1))


class Running:
    """A step in a thread of its own, which is the engine's as long as it lives."""

    def __init__(
        self, engine: Engine, slices: Sequence[Slice] = (), call: Callable[[], list[list[Sampled]]] | None = None
    ) -> None:
        self._engine, self._found, self._error = engine, list[list[Sampled]](), list[BaseException]()
        self._call = call or (lambda: engine.runner.run(slices))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._call()
        except BaseException as error:
            self._error.append(error)

    @property
    def alive(self) -> bool:
        """Whether it is under way."""
        return self._thread.is_alive()

    def until_waiting(self) -> None:
        """Return when it waits for a layer."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not self._engine.runner.waiting:
            assert self.alive and time.monotonic() < deadline_s
            time.sleep(1e-4)

    def result(self) -> list[list[Sampled]]:
        """What came of it."""
        self._thread.join(_PATIENCE_S)
        assert not self.alive
        if self._error:
            raise self._error[0]
        return self._found

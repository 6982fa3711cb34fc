"""Caches in memory: moved to the next turn, copied where two need them, and never wrong."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import mlx.core as mx
import pytest

from mlx_qwen3.engine.prefix_store import READ_AGAIN, SMALLEST
from mlx_qwen3.model.transformer import Transformer
from tests.engine.turns import memory_store, open_turn, same_columns, take_turn, text

Models = Callable[[str], Transformer]
OPENING = [251, 252, 253]  # what a template puts behind the last message


@pytest.fixture
def model(tiny_model: Models) -> Transformer:
    return tiny_model("gqa-1")  # its head_dim can be packed


# --- what is reused


def test_the_next_turn_goes_on_in_the_same_cache(model: Transformer) -> None:
    store = memory_store(model)
    one = take_turn(model, text(100), store)
    prompt = text(100) + one.token_ids + text(40, 1)
    two = take_turn(model, prompt, store)
    assert two.cache is one.cache
    assert (one.cached, two.cached) == (0, 100 + 8)
    assert two.token_ids == take_turn(model, prompt).token_ids


def test_nothing_is_copied_for_the_next_turn(model: Transformer) -> None:
    store = memory_store(model)
    one = take_turn(model, text(1500), store)
    prompt = text(1500) + one.token_ids + text(20, 1)
    gc.collect()
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    two = open_turn(model, prompt, store)
    mx.synchronize()
    assert two.cache is one.cache
    assert mx.get_peak_memory() - before < two.cache.nbytes // 4


def test_a_regenerated_answer_reads_a_few_tokens(model: Transformer) -> None:
    store = memory_store(model)
    one = take_turn(model, text(100), store)
    two = take_turn(model, text(100), store)
    assert two.cached == 100 - READ_AGAIN
    assert two.cache is one.cache
    assert two.token_ids == one.token_ids


def test_what_the_template_drops_is_dropped(model: Transformer) -> None:
    """A thinking model: the history holds the answer without the thought before it."""
    store = memory_store(model)
    history = text(90)
    one = take_turn(model, history + OPENING, store, count=20)
    prompt = history + OPENING[:1] + one.token_ids[15:] + text(30, 1) + OPENING
    two = take_turn(model, prompt, store)
    assert two.cached == len(history) + 1
    assert two.cache is one.cache
    assert two.token_ids == take_turn(model, prompt).token_ids


def test_a_shared_beginning_serves_two_conversations(model: Transformer) -> None:
    store = memory_store(model)
    system = text(200)
    ann = system + text(50, 1)
    bob = system + text(60, 2)
    for turn in range(3):
        for prompt in (ann, bob):
            done = take_turn(model, prompt, store)
            assert done.token_ids == take_turn(model, prompt).token_ids
            if turn:  # all but the question
                assert done.cached == len(prompt) - 40
            else:
                assert done.cached == (0 if prompt is ann else len(system))
            prompt += done.token_ids + text(40, 3 + turn)


def test_sequences_that_run_at_once_share_what_they_can(model: Transformer) -> None:
    store = memory_store(model)
    system = text(150)
    prompts = [system + text(30, seed) for seed in (1, 2, 3)]
    turns = [open_turn(model, prompt, store) for prompt in prompts]
    assert [turn.cached for turn in turns] == [0, 150, 150]
    assert len({id(turn.cache) for turn in turns}) == 3
    written: list[list[int]] = [[], [], []]
    for _ in range(8):  # a step of each in turn
        for tokens, turn in zip(written, turns, strict=True):
            tokens.append(turn.loop.next().token_id)
    assert written == [take_turn(model, prompt).token_ids for prompt in prompts]


def test_a_copy_does_not_make_the_original_one_be_copied(model: Transformer) -> None:
    store = memory_store(model)
    turn = open_turn(model, text(1500), store)
    turn.loop.next()
    other = open_turn(model, text(1400) + text(50, 1), store)
    assert other.cached == 1400
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    turn.loop.next()
    mx.synchronize()
    assert mx.get_peak_memory() - before < turn.cache.nbytes // 8


def test_chance_and_short_prompts_are_not_worth_a_cache(model: Transformer) -> None:
    store = memory_store(model)
    take_turn(model, text(SMALLEST - 9), store, count=8)
    assert store.nbytes == 0
    take_turn(model, text(200), store)
    assert take_turn(model, text(SMALLEST - 1) + text(100, 1), store).cached == 0


# --- kinds of caches


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_caches_are_reused_packed(bits: int, model: Transformer) -> None:
    store = memory_store(model)
    one = take_turn(model, text(100), store, kv_bits=bits)
    prompt = text(100) + one.token_ids + text(40, 1)
    plain = take_turn(model, prompt, store)
    packed = take_turn(model, prompt, store, kv_bits=bits)
    assert (plain.cached, packed.cached) == (0, 108)
    assert packed.token_ids == take_turn(model, prompt, kv_bits=bits).token_ids


def test_a_fork_of_a_packed_cache_has_the_same_bits(model: Transformer) -> None:
    store = memory_store(model)
    one = take_turn(model, text(100), store, kv_bits=8)
    two = take_turn(model, text(70) + text(40, 1), store, kv_bits=8)
    assert two.cached == 70
    assert same_columns(one.cache, two.cache, 70)


@pytest.mark.parametrize("kv_bits", [None, 8])
@pytest.mark.parametrize("size", [60, 150, 300])
def test_a_rotating_cache_is_reused_only_where_right(
    size: int, kv_bits: int | None, model: Transformer
) -> None:
    """Every turn equals reading everything anew, whatever was forgotten."""
    store = memory_store(model)
    prompt, reused = text(100), 0
    for turn in range(8):
        kind = {"max_kv_size": size, "kv_bits": kv_bits}
        done = take_turn(model, prompt, store, count=9, **kind)
        assert done.token_ids == take_turn(model, prompt, count=9, **kind).token_ids
        reused += done.cached
        prompt = prompt + done.token_ids + text(45, turn + 1)
    assert reused > 800


def test_what_a_rotating_cache_forgot_is_not_offered(model: Transformer) -> None:
    store = memory_store(model)
    take_turn(model, text(700), store, max_kv_size=60)
    other = text(300) + text(80, 1)
    done = take_turn(model, other, store, max_kv_size=60)
    assert done.cached == 0
    assert done.token_ids == take_turn(model, other, max_kv_size=60).token_ids


# --- budget


def test_the_least_recently_used_goes_first(model: Transformer) -> None:
    size = take_turn(model, text(200)).cache.nbytes
    store = memory_store(model, budget=2 * size)
    for seed in (1, 2):
        take_turn(model, text(200, seed), store)
    assert take_turn(model, text(200, 1), store).cached > 0  # used again: 2 is the oldest now
    take_turn(model, text(200, 3), store)
    assert store.nbytes <= 2 * size
    assert take_turn(model, text(200, 1), store).cached > 0
    assert take_turn(model, text(200, 2), store).cached == 0


def test_what_was_copied_from_counts_as_used(model: Transformer) -> None:
    size = take_turn(model, text(200)).cache.nbytes
    store = memory_store(model, budget=4 * size)  # a copy has room to grow
    for seed in (1, 2):
        take_turn(model, text(200, seed), store)
    assert take_turn(model, text(150, 1) + text(40, 3), store).cached == 150
    take_turn(model, text(200, 4), store)
    assert take_turn(model, text(200, 1), store).cached == 200 - READ_AGAIN
    assert take_turn(model, text(200, 2), store).cached == 0


def test_what_is_larger_than_the_budget_is_freed(model: Transformer) -> None:
    store = memory_store(model, budget=1000)
    cache = weakref.ref(take_turn(model, text(200), store).cache)
    assert store.nbytes == 0
    assert cache() is None


def test_a_longer_entry_replaces_what_it_contains(model: Transformer) -> None:
    store = memory_store(model)
    long = open_turn(model, text(200), store)
    short = open_turn(model, text(150) + text(20, 1), store)
    store.give_back(short.cache, text(150), lasting=0)
    size = store.nbytes
    store.give_back(long.cache, text(200), lasting=0)
    assert store.nbytes == long.cache.nbytes
    assert size > 0
    assert take_turn(model, text(150) + text(20, 2), store).cached == 150


def test_a_lease_that_is_forgotten_frees_its_memory(model: Transformer) -> None:
    store = memory_store(model)
    cache = weakref.ref(open_turn(model, text(200), store).cache)
    gc.collect()
    assert cache() is None
    assert take_turn(model, text(200), store).cached == 0


def test_clearing_forgets_all_but_what_is_in_use(model: Transformer) -> None:
    store = memory_store(model)
    take_turn(model, text(100), store)
    turn = open_turn(model, text(100, 1), store)
    store.clear()
    assert store.nbytes == 0
    assert take_turn(model, text(100), store).cached == 0
    assert take_turn(model, text(100, 1), store).cached > 0  # out of the one in use
    assert [turn.loop.next().token_id for _ in range(8)] == take_turn(model, text(100, 1)).token_ids


# --- caches that come back in a bad state


def test_more_than_is_certain_is_cut_off(model: Transformer) -> None:
    store = memory_store(model)
    turn = open_turn(model, text(100), store)
    for _ in range(3):
        turn.loop.next()
    store.give_back(turn.cache, text(100), lasting=100)
    prompt = text(100) + text(30, 1)
    done = take_turn(model, prompt, store)
    assert done.cached == 100
    assert done.token_ids == take_turn(model, prompt).token_ids


def test_a_step_that_came_through_some_layers_only(model: Transformer) -> None:
    store = memory_store(model)
    turn = open_turn(model, text(100), store)
    for layer in turn.cache.layers[:2]:  # as an interrupt leaves them
        layer.update(*(mx.full((1, 3, 1, 32), mx.nan) for _ in "kv"))
    store.give_back(turn.cache, text(100), lasting=100)
    prompt = text(100) + text(30, 1)
    done = take_turn(model, prompt, store)
    assert done.cached == 100
    assert done.token_ids == take_turn(model, prompt).token_ids


def test_less_than_is_claimed_is_not_kept(model: Transformer) -> None:
    store = memory_store(model)
    turn = open_turn(model, text(100), store)
    store.give_back(turn.cache, text(101), lasting=0)
    assert store.nbytes == 0


def test_a_cache_is_given_back_once(model: Transformer) -> None:
    store = memory_store(model)
    turn = open_turn(model, text(100), store)
    for _ in range(2):
        store.give_back(turn.cache, text(100), lasting=0)
    assert store.nbytes == turn.cache.nbytes
    first, second = (open_turn(model, text(100), store).cache for _ in range(2))
    assert first is not second

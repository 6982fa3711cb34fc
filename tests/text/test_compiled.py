"""The compiled tokenizer: equal to the library in everything, and when it is used at all."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from mlx_qwen3.demo import demo_folder
from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text import Tokenizer, compiled
from mlx_qwen3.text.byte_level import ByteLevelTokenizer
from mlx_qwen3.text.compiled import CompiledTokenizer
from mlx_qwen3.text.folder import TokenizerSettings
from mlx_qwen3.text.form import TokenizerForm
from tests.text.any_text import PIECES, random_text, texts
from tests.text.splits import repeatable
from tests.text.template_cases import real_tokenizer_folder


class Both:
    """A folder's tokenizer in both ways; what they say of anything must be the same."""

    def __init__(self, folder: Path) -> None:
        form = TokenizerForm.compile((folder / "tokenizer.json").read_bytes())
        assert form is not None
        self.fast = CompiledTokenizer(folder, TokenizerSettings.from_folder(folder), form)
        self.plain = ByteLevelTokenizer.from_folder(folder)

    def check_text(self, text: str) -> None:
        self.fast._encoded = 0  # so that it never turns to the library
        ids = self.fast.encode(text)
        assert ids == self.plain.encode(text), repr(text)
        assert self.fast.encode(text, add_special_tokens=True) == self.plain.encode(text, True)
        self.check_ids(ids)

    def check_ids(self, ids: list[int]) -> None:
        for skip in (False, True):
            assert self.fast.decode(ids, skip) == self.plain.decode(ids, skip), ids

    def check_token(self, token_id: int) -> None:
        token = self.plain.id_to_token(token_id)
        assert self.fast.id_to_token(token_id) == token
        assert self.fast.token_bytes(token_id) == self.plain.token_bytes(token_id)
        if token is not None:
            assert self.fast.token_to_id(token) == self.plain.token_to_id(token) == token_id

    @property
    def stayed_fast(self) -> bool:
        return not self.fast._is_loaded


@pytest.fixture(scope="module")
def small_both(byte_level_folder: Path) -> Both:
    return Both(byte_level_folder)


@pytest.fixture(scope="module")
def demo_both() -> Both:
    return Both(demo_folder("demo"))


@pytest.fixture(scope="module")
def real_both() -> Both:
    folder = real_tokenizer_folder()
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the published Qwen3 tokenizer is not here (set MLX_QWEN3_TOKENIZER)")
    return Both(folder)


@pytest.fixture(params=["small_both", "demo_both", "real_both"])
def both(request: pytest.FixtureRequest) -> Both:
    chosen: Both = request.getfixturevalue(request.param)
    return chosen


# --- equal


@pytest.mark.parametrize("text", [*PIECES, "", "".join(PIECES), " ".join(PIECES) * 3])
def test_chosen_texts(both: Both, text: str) -> None:
    both.check_text(text)
    assert both.stayed_fast


@repeatable
@given(text=texts)
def test_any_text_small(small_both: Both, text: str) -> None:
    small_both.check_text(text)


@repeatable
@given(text=texts)
def test_any_text_demo(demo_both: Both, text: str) -> None:
    demo_both.check_text(text)


@repeatable
@given(text=texts)
def test_any_text_real(real_both: Both, text: str) -> None:
    real_both.check_text(text)


def check_random(both: Both, rounds: int) -> None:
    rng = random.Random(11)
    for _ in range(rounds):
        both.check_text(random_text(rng))
        both.check_ids([rng.randrange(-2, both.plain.vocab_size + 9) for _ in range(12)])
    assert both.stayed_fast


def test_random_texts_and_ids(both: Both) -> None:
    check_random(both, 1_000)


@pytest.mark.slow
def test_random_texts_and_ids_at_length(both: Both) -> None:
    check_random(both, 100_000)


def test_long_words(both: Both) -> None:
    rng = random.Random(5)
    for alphabet in ("ab", "0", "aàáâ", "你好世界", "กขค", "-=", " \n"):
        both.check_text("".join(rng.choices(alphabet, k=3_000)))


def test_what_they_know(both: Both) -> None:
    fast, plain = both.fast, both.plain
    assert (fast.vocab_size, fast.special_ids) == (plain.vocab_size, plain.special_ids)
    assert (fast.eos_token_id, fast.eos_token) == (plain.eos_token_id, plain.eos_token)
    size = plain.vocab_size
    picked = random.Random(1).sample(range(size), min(size, 500))
    for token_id in (*picked, *range(size - 30, size + 3), -1, 2**40):
        both.check_token(token_id)
    for token in ("<no such token>", "", "ÿ", "\ufffd", "Ġ" * 300):
        assert fast.token_to_id(token) == plain.token_to_id(token)


@pytest.mark.slow
def test_every_token(both: Both) -> None:
    for token_id in range(both.plain.vocab_size):
        both.check_token(token_id)


def test_half_surrogates(both: Both) -> None:
    assert both.fast.encode("a\ud83d\ude00b\udcff") == both.plain.encode("a😀b\ufffd")
    assert both.fast.token_to_id("\ud800") is None
    with pytest.raises(TypeError):
        both.fast.encode(None)  # type: ignore[arg-type]


def test_added_tokens_with_flags(byte_level_folder: Path, tmp_path: Path) -> None:
    """Those the library matches in its own ways: it goes on doing so."""
    folder = copied(byte_level_folder, tmp_path)
    flags = [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}]
    data = read(folder)
    size = Tokenizer.from_folder(folder).vocab_size
    for place, flag in enumerate(flags):
        entry = {**data["added_tokens"][0], **flag, "special": False}
        data["added_tokens"].append({**entry, "id": size + place, "content": f"[{place}É]"})
    write(folder, {**data, "normalizer": {"type": "Lowercase"}})
    both = Both(folder)
    rng = random.Random(3)
    parts = ["[0É]", "[1É]", "[2É]", "[3É]", "[3é]", " ", "\n", "a", "<|im_end|>", "É"]
    for _ in range(500):
        both.check_text("".join(rng.choices(parts, k=rng.randint(1, 8))))


def test_added_tokens_of_the_vocabulary(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    data = read(folder)
    add_known(data, "ox", "emoji")
    write(folder, data)
    both = Both(folder)
    assert both.fast.vocab_size == Tokenizer.from_folder(byte_level_folder).vocab_size
    for text in ("a fox oxemoji", "emojis emoji<think>", "xoxo"):
        both.check_text(text)
    for token_id in range(both.fast.vocab_size):
        both.check_token(token_id)


def test_older_files_write_merges_as_text(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    data = read(folder)
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    write(folder, data)
    check_random(Both(folder), 200)


def test_a_post_processor_that_adds_tokens(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "E", "type_id": 0}}]
    end = {"id": "E", "ids": [Tokenizer.from_folder(folder).eos_token_id], "tokens": ["E"]}
    processor = {"type": "TemplateProcessing", "single": parts, "pair": parts}
    write(folder, {**read(folder), "post_processor": {**processor, "special_tokens": {"E": end}}})
    both = Both(folder)
    both.check_text("The quick fox")
    assert both.fast.encode("fox", True) == [*both.fast.encode("fox"), both.fast.eos_token_id]


# --- which have a form


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tokenizer.json").read_text()))


def write(folder: Path, data: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(data))


def of_model(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["model"].update(changes)


def add_known(data: dict[str, Any], *tokens: str) -> None:
    """Tokens of the vocabulary as added ones too, with the ids they have."""
    entry, vocab = data["added_tokens"][0], data["model"]["vocab"]
    data["added_tokens"][:0] = [{**entry, "content": one, "id": vocab[one]} for one in tokens]


def of_vocabulary(change: Callable[[dict[str, int]], object]) -> Callable[[dict[str, Any]], object]:
    """With no added tokens, whose ids would be wrong as well."""

    def changed(data: dict[str, Any]) -> None:
        data["added_tokens"] = []
        change(data["model"]["vocab"])

    return changed


UNUSUAL: dict[str, Callable[[dict[str, Any]], object]] = {
    "dropout": of_model(dropout=0.1),
    "byte-fallback": of_model(byte_fallback=True),
    "whole-words-first": of_model(ignore_merges=True),
    "unknown-setting": of_model(new_setting=1),
    "word-ends": of_model(end_of_word_suffix="</w>"),
    "unigram": of_model(type="Unigram"),
    "no-type": lambda data: data["model"].pop("type"),
    "truncated-texts": lambda data: data.update(truncation={"max_length": 3}),
    "unknown-part": lambda data: data.update(new_part=1),
    "other-decoder": lambda data: data.update(decoder={"type": "Fuse"}),
    "no-split": lambda data: data.update(pre_tokenizer=None),
    "no-letters": of_vocabulary(lambda vocab: vocab.update({"{}": vocab.pop("~")})),
    "gap-in-ids": of_vocabulary(lambda vocab: vocab.update(zz=10_000)),
    "id-twice": of_vocabulary(lambda vocab: vocab.update(zz=7)),
    "half-character": of_vocabulary(lambda vocab: vocab.update({"\ud800": len(vocab)})),
    "merge-of-nothing": lambda data: data["model"]["merges"].append(["no", "such"]),
    "merge-of-three": lambda data: data["model"]["merges"].append(["a", "b", "c"]),
    "added-out-of-order": lambda data: data["added_tokens"].reverse(),
    "added-twice": lambda data: add_known(data, "ox", "ox"),
    "added-letter": lambda data: add_known(data, "a"),
    "added-nothing": lambda data: data["added_tokens"][-1].update(content=""),
    "no-added": lambda data: data.pop("added_tokens"),
    "nothing-right": lambda data: data.clear(),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_have_no_form(byte_level_folder: Path, name: str) -> None:
    raw = (byte_level_folder / "tokenizer.json").read_bytes()
    assert TokenizerForm.compile(raw) is not None
    data = json.loads(raw)
    UNUSUAL[name](data)
    assert TokenizerForm.compile(json.dumps(data).encode()) is None


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b'{"model"', b"\xff\xfe", b"[" * 10**6])
def test_what_is_no_tokenizer_has_no_form(raw: bytes) -> None:
    assert TokenizerForm.compile(raw) is None


# --- when it is used


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small tokenizers are compiled too, into a store of the test's own."""
    monkeypatch.setattr(compiled, "_SMALL", 0)
    monkeypatch.setenv("MLX_QWEN3_CACHE", str(tmp_path / "cache"))


def test_small_files_go_the_ordinary_way(byte_level_folder: Path) -> None:
    assert type(Tokenizer.from_folder(byte_level_folder)) is ByteLevelTokenizer


@pytest.mark.usefixtures("eager")
def test_a_plain_one_is_compiled(byte_level_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(byte_level_folder)
    assert isinstance(tokenizer, CompiledTokenizer)
    assert "fox" in tokenizer.decode(tokenizer.encode("The quick fox"))
    assert not tokenizer._is_loaded
    assert tokenizer.backend.get_vocab_size() == tokenizer.vocab_size


@pytest.mark.usefixtures("eager")
def test_the_library_takes_over_where_it_pays(
    byte_level_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_PAYS", 100)
    tokenizer = CompiledTokenizer.find(byte_level_folder)
    assert tokenizer is not None
    first = [tokenizer.encode("The quick fox") for _ in range(3)]
    assert not tokenizer._is_loaded
    later = [tokenizer.encode("The quick fox") for _ in range(9)]
    assert tokenizer._is_loaded
    assert first + later == [first[0]] * 12


BESIDE: dict[str, tuple[str, Any]] = {
    "more-added": ("added_tokens.json", {"<extra>": 999}),
    "more-special": ("special_tokens_map.json", {"additional_special_tokens": ["</think>"]}),
    "special-from-the-vocabulary": ("special_tokens_map.json", {"unk_token": "a"}),
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_it_that_add_something(
    byte_level_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = copied(byte_level_folder, tmp_path / "folder")
    file, value = BESIDE[name]
    assert CompiledTokenizer.find(folder) is not None
    (folder / file).write_text(json.dumps(value))
    assert CompiledTokenizer.find(folder) is None


def cut(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type"')


def bad_split(folder: Path) -> None:
    data = read(folder)
    bad = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [bad, data["pre_tokenizer"]]}
    write(folder, data)


def bad_added(folder: Path) -> None:
    data = read(folder)
    del data["added_tokens"][0]["lstrip"]
    write(folder, data)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("breaks", [cut, bad_split, bad_added])
def test_a_broken_file_is_refused_as_ever(
    byte_level_folder: Path, tmp_path: Path, breaks: Callable[[Path], None]
) -> None:
    folder = copied(byte_level_folder, tmp_path / "folder")
    breaks(folder)
    with pytest.raises(TokenizerError, match="not a usable tokenizer"):
        Tokenizer.from_folder(folder)


@pytest.mark.usefixtures("eager")
def test_several_processes_at_once(byte_level_folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mlx_qwen3.text import compiled\n"
        "compiled._SMALL = 0\n"
        "print(compiled.CompiledTokenizer.find(Path(sys.argv[1])).encode('The quick fox'))"
    )
    command = [sys.executable, "-c", script, str(byte_level_folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0] for process in running}
    assert said == {
        f"{ByteLevelTokenizer.from_folder(byte_level_folder).encode('The quick fox')}\n"
    }

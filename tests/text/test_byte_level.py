"""Byte-level BPE: ids, streaming, and the files it comes in."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text import Tokenizer
from mlx_qwen3.text.byte_level import ByteLevelTokenizer
from tests.text.splits import repeatable

SENTENCES = ["Hi", " 你好，世界", "👩‍👩‍👧 family", "x = [1,\n\t2]\n\n", "e\u0301", "ﷺ \u2028", ""]


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*(detokenizer.add(id_) for id_ in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", SENTENCES)
def test_text_survives_encode_and_decode(small: ByteLevelTokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == text


@repeatable
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(small: ByteLevelTokenizer, text: str) -> None:
    assert "".join(stream(small, small.encode(text))) == text


@repeatable
@given(ids=st.lists(st.one_of(st.integers(0, 420), st.integers(-5, 2**33))), skip=st.booleans())
def test_streaming_equals_decoding(small: ByteLevelTokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(small, ids, skip)) == small.decode(ids, skip_special_tokens=skip)


def test_no_half_character_is_emitted(small: ByteLevelTokenizer) -> None:
    text = "a🎉b"
    by_byte = [small.token_to_id(small_spelling) for small_spelling in ("a", "ð", "Ł", "İ", "ī")]
    assert None not in by_byte
    parts = stream(small, [id_ for id_ in by_byte if id_ is not None])
    assert parts == ["a", "", "", "", "🎉", ""]
    assert "".join(parts) == text[:2]


@pytest.mark.parametrize("between", ["<|im_end|>", "<think>", "｜é x｜"])
def test_a_token_in_the_middle_of_a_character(small: ByteLevelTokenizer, between: str) -> None:
    first, tag, second = (small.token_to_id(t) for t in ("Ã", between, "©"))
    assert first is not None
    assert tag is not None
    assert second is not None
    ids = [first, tag, second]
    assert "".join(stream(small, ids)) == f"\ufffd{between}\ufffd" == small.decode(ids)
    skipped = "".join(stream(small, ids, skip=True))
    assert skipped == small.decode(ids, skip_special_tokens=True)
    assert (skipped == "é") == (between == "<|im_end|>")


def test_special_tokens_are_skipped_and_tags_are_not(small: ByteLevelTokenizer) -> None:
    text = "<|im_start|><think>a</think><tool_call><|im_end|><|endoftext|>"
    ids = small.encode(text)
    assert len(ids) == 7
    assert "".join(stream(small, ids)) == text
    assert "".join(stream(small, ids, skip=True)) == "<think>a</think><tool_call>"


def test_unfinished_character_ends_as_replacement(small: ByteLevelTokenizer) -> None:
    lead = small.token_to_id("ð")
    assert lead is not None
    assert stream(small, [lead]) == ["", "\ufffd"]


def test_ids_outside_the_vocabulary_are_nothing(small: ByteLevelTokenizer) -> None:
    assert stream(small, [10**6, -1, 2**40]) == ["", "", "", ""]
    assert small.decode([10**6, -1, 2**40]) == ""
    assert [small.id_to_token(i) for i in (10**6, -1, 2**40)] == [None] * 3


def test_half_surrogates_do_not_stop_encoding(small: ByteLevelTokenizer) -> None:
    assert small.decode(small.encode("a\ud83d\ude00b\udcff")) == "a😀b\ufffd"
    with pytest.raises(TypeError):
        small.encode(None)  # type: ignore[arg-type]


def test_named_tokens(small: ByteLevelTokenizer) -> None:
    assert small.eos_token == "<|im_end|>"
    assert small.eos_token_id == small.token_to_id("<|im_end|>")
    assert small.token_to_id("<no such token>") is None
    assert small.id_to_token(small.vocab_size - 1) == "｜é x｜"
    names = {small.id_to_token(id_) for id_ in small.special_ids}
    assert names == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_loading_reads_no_vocabulary(byte_level_folder: Path) -> None:
    tokenizer = ByteLevelTokenizer.from_folder(byte_level_folder)
    assert not tokenizer._bytes
    tokenizer.detokenizer().add(5)
    assert len(tokenizer._bytes) == 1


# --- checkpoint folders


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def edit_json(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


def test_post_processor_adds_only_when_asked(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    id_ = Tokenizer.from_folder(folder).token_to_id("<|endoftext|>")
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [id_], "tokens": ["<|endoftext|>"]}}
    processor = {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}, end],
        "special_tokens": special,
    }
    edit_json(folder / "tokenizer.json", post_processor=processor)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("fox", add_special_tokens=True) == [*tokenizer.encode("fox"), id_]


def test_tokens_only_the_config_knows_are_added(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    size = Tokenizer.from_folder(folder).vocab_size
    edit_json(folder / "added_tokens.json", **{"<extra>": size + 1})
    entry = {str(size): {"content": "<mine>", "special": True}}
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=entry)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("<mine><extra>") == [size, size + 1]
    assert tokenizer.decode([size, size + 1], skip_special_tokens=True) == "<extra>"


def test_a_special_token_named_only_in_the_map(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    edit_json(folder / "special_tokens_map.json", additional_special_tokens=["</think>"])
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.token_to_id("</think>") in tokenizer.special_ids
    assert tokenizer.token_to_id("<think>") not in tokenizer.special_ids


def test_disagreeing_ids_are_refused(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    edit_json(folder / "added_tokens.json", **{"<extra>": 9999})
    with pytest.raises(TokenizerError, match="'<extra>' has id 9999"):
        Tokenizer.from_folder(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json or tokenizer.model"),
    "truncated": (lambda f: truncate(f / "tokenizer.json"), "not a usable tokenizer"),
    "empty": (lambda f: (f / "tokenizer.json").write_text(""), "not a usable tokenizer"),
    "config-truncated": (
        lambda f: (f / "tokenizer_config.json").write_text('{"eos'),
        "tokenizer_config.json is not readable JSON",
    ),
    "config-list": (
        lambda f: (f / "tokenizer_config.json").write_text("[]"),
        "holds a list, expected a JSON object",
    ),
    "config-malformed": (
        lambda f: edit_json(f / "tokenizer_config.json", eos_token={"text": "x"}),
        "malformed",
    ),
    "config-latin1": (
        lambda f: (f / "tokenizer_config.json").write_bytes(b'{"a": "\xe9"}'),
        "not readable JSON",
    ),
    "other-decoder": (
        lambda f: edit_json(f / "tokenizer.json", decoder={"type": "Fuse"}),
        r"decodes with \['Fuse'\], expected ByteLevel",
    ),
    "no-decoder": (
        lambda f: edit_json(f / "tokenizer.json", decoder=None),
        "decodes with nothing, expected ByteLevel",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders(byte_level_folder: Path, tmp_path: Path, name: str) -> None:
    breaks, message = BROKEN[name]
    folder = copied(byte_level_folder, tmp_path)
    breaks(folder)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_another_kind_of_json_beside_a_sentence_piece_model(
    byte_level_folder: Path, sentence_piece_folder: Path, tmp_path: Path
) -> None:
    folder = copied(byte_level_folder, tmp_path)
    shutil.copy(sentence_piece_folder / "tokenizer.model", folder)
    assert isinstance(Tokenizer.from_folder(folder), ByteLevelTokenizer)
    edit_json(folder / "tokenizer.json", decoder={"type": "Fuse"})
    assert not isinstance(Tokenizer.from_folder(folder), ByteLevelTokenizer)
    truncate(folder / "tokenizer.json")
    with pytest.raises(TokenizerError, match="not a usable tokenizer"):
        Tokenizer.from_folder(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not a folder"):
        Tokenizer.from_folder(tmp_path / "nowhere")


def test_chat_template_comes_from_the_folder(byte_level_folder: Path, tmp_path: Path) -> None:
    folder = copied(byte_level_folder, tmp_path)
    assert Tokenizer.from_folder(folder).chat_template is None
    edit_json(folder / "tokenizer_config.json", chat_template="{{ eos_token }}{{ bos_token }}!")
    template = Tokenizer.from_folder(folder).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": ""}]) == "<|im_end|>!"


# --- the published tokenizer


def test_published_tokenizer(real: Tokenizer) -> None:
    assert (real.vocab_size, real.eos_token_id) == (151669, 151645)
    assert real.encode("<|im_start|>user\nHello<|im_end|>") == [151644, 872, 198, 9707, 151645]
    assert real.encode("Hello", add_special_tokens=True) == [9707]
    assert real.token_to_id("<think>") == 151667
    assert {151643, 151644, 151645} <= real.special_ids
    assert not {151657, 151658, 151667, 151668} & real.special_ids
    assert real.chat_template is not None


def random_ids(rng: random.Random, length: int) -> list[int]:
    """Anything: whole tokens, single bytes (the first 256 ids), added and unknown tokens."""
    ranges = [(0, 151669), (0, 255), (0, 255), (151600, 151700), (0, 2**20)]
    return [rng.randint(*rng.choice(ranges)) for _ in range(length)]


def check_random_ids(tokenizer: Tokenizer, rounds: int) -> None:
    rng = random.Random(7)
    for _ in range(rounds):
        ids, skip = random_ids(rng, rng.randint(0, 30)), rng.random() < 0.5
        assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip), ids


def test_published_tokenizer_streams_any_ids(real: Tokenizer) -> None:
    check_random_ids(real, 3_000)


@pytest.mark.slow
def test_published_tokenizer_streams_any_ids_at_length(real: Tokenizer) -> None:
    check_random_ids(real, 100_000)


@pytest.mark.slow
def test_every_published_token_has_its_bytes(real: Tokenizer) -> None:
    assert isinstance(real, ByteLevelTokenizer)
    for id_ in range(real.vocab_size):
        assert real.token_bytes(id_).decode("utf-8", "replace") == real.decode([id_]), id_


@pytest.mark.reference
def test_published_tokenizer_equals_transformers(real: Tokenizer) -> None:
    transformers: Any = pytest.importorskip("transformers")
    load: Any = transformers.AutoTokenizer.from_pretrained
    reference = load(real.folder)
    rng = random.Random(3)
    for text in [*SENTENCES, "<think>a</think><|im_end|>", "don't  stop\n\n\n123"]:
        assert real.encode(text) == reference.encode(text, add_special_tokens=False)
    for _ in range(300):
        ids = [rng.randrange(151669) for _ in range(12)]
        for skip in (True, False):
            assert real.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)

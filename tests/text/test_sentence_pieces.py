"""SentencePiece checkpoints: the library's own decode is the reference for streaming."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.errors import TokenizerError
from mlx_qwen3.text import Tokenizer
from mlx_qwen3.text.sentence_pieces import SentencePieceTokenizer
from tests.text.small_models import sentence_piece_model
from tests.text.splits import repeatable

START, END, THINK = 420, 421, 422
KINDS: dict[str, dict[str, object]] = {
    "bytes": {},
    "strips": {"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
    "no-prefix": {"add_dummy_prefix": False},
    "no-bytes": {"byte_fallback": False, "vocab_size": 150, "character_coverage": 0.98},
    "unigram": {"model_type": "unigram", "vocab_size": 338},
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SentencePieceTokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    for name, options in KINDS.items():
        (folder / name).mkdir()
        (folder / name / "tokenizer.model").write_bytes(sentence_piece_model(**options))
    return {name: SentencePieceTokenizer.from_folder(folder / name) for name in KINDS}


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*(detokenizer.add(id_) for id_ in ids), detokenizer.finish()]


@pytest.mark.parametrize("kind", KINDS)
@repeatable
@given(data=st.data())
def test_streaming_equals_the_library(
    kinds: dict[str, SentencePieceTokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = kinds[kind]
    spaces = [i for i in range(tokenizer.vocab_size) if tokenizer.id_to_token(i) in ("▁", "▁▁")]
    usual = st.integers(3, tokenizer.vocab_size - 1)  # ids 0 to 2 are <unk>, <s>, </s>
    some = st.one_of(usual, st.integers(3, 258), st.sampled_from([0, *spaces]))
    ids = data.draw(st.lists(some.filter(lambda i: i < tokenizer.vocab_size), max_size=12))
    assert "".join(stream(tokenizer, ids)) == tokenizer.backend.decode(ids)
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["The fox", " the  dog", "你好 🎉", "a\nb", "", "ÿ€"])
def test_encoding_is_the_library_s(
    kinds: dict[str, SentencePieceTokenizer], kind: str, text: str
) -> None:
    assert kinds[kind].encode(text) == kinds[kind].backend.encode(text)


@repeatable
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁")))
def test_any_text_survives(pieces: SentencePieceTokenizer, text: str) -> None:
    assert "".join(stream(pieces, pieces.encode(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nThe fox<|im_end|>\n",
        " spaced <think> out </think>",
        "<think><|im_end|>",
        "the fox<|im_end|>",
    ],
)
def test_text_with_added_tokens_survives(pieces: SentencePieceTokenizer, text: str) -> None:
    assert pieces.decode(pieces.encode(text)) == text


def test_added_tokens_are_recognised(pieces: SentencePieceTokenizer) -> None:
    ids = pieces.encode("<|im_start|>The fox<think>")
    assert (ids[0], ids[-1]) == (START, THINK)
    assert pieces.backend.id_to_piece(ids[1]) != "▁The"
    assert pieces.decode(ids, skip_special_tokens=True) == "The fox<think>"
    assert pieces.eos_token_id == END
    assert {START, END} <= pieces.special_ids
    assert THINK not in pieces.special_ids


def test_bytes_wait_for_their_character(pieces: SentencePieceTokenizer) -> None:
    ids = [pieces.token_to_id(f"<0x{byte:02X}>") for byte in "é€".encode()]
    assert None not in ids
    parts = stream(pieces, [i for i in ids if i is not None])
    assert parts == ["", "é", "", "", "€", ""]


def test_broken_bytes_are_replaced_one_by_one(pieces: SentencePieceTokenizer) -> None:
    lead, fox = pieces.token_to_id("<0xE4>"), pieces.encode("fox")
    assert lead is not None
    assert stream(pieces, [lead, lead, *fox])[-len(fox) - 1].startswith("\ufffd\ufffd")
    assert stream(pieces, [lead]) == ["", "\ufffd"]
    assert stream(pieces, [lead, START])[1] == "\ufffd<|im_start|>"


def test_unknown_ids_are_nothing(pieces: SentencePieceTokenizer) -> None:
    assert stream(pieces, [-1, 10**6]) == ["", "", ""]
    assert (pieces.id_to_token(-1), pieces.token_to_id("<nothing>")) == (None, None)


def test_control_tokens_show_unless_skipped(pieces: SentencePieceTokenizer) -> None:
    ids = [1, *pieces.encode("the fox"), 2]
    assert pieces.decode(ids) == "<s>" + " the fox" + "</s>"
    assert pieces.decode(ids, skip_special_tokens=True) == "the fox"


def test_the_unknown_token_stays_visible(sentence_piece_folder: Path, tmp_path: Path) -> None:
    model = (sentence_piece_folder / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "<unk>"}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode([0], skip_special_tokens=True) == " ⁇ "


def test_eos_falls_back_to_the_model_s(kinds: dict[str, SentencePieceTokenizer]) -> None:
    assert (kinds["bytes"].eos_token, kinds["bytes"].eos_token_id) == ("</s>", 2)


def test_bos_and_eos_when_the_config_asks(sentence_piece_folder: Path, tmp_path: Path) -> None:
    model = (sentence_piece_folder / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    config = '{"bos_token": "<s>", "add_bos_token": true, "add_eos_token": true}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.encode("a", add_special_tokens=True) == [1, *tokenizer.encode("a"), 2]


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_broken_models_are_refused(
    sentence_piece_folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    model = (sentence_piece_folder / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model[:2000] if content is None else content)
    with pytest.raises(TokenizerError, match="not a usable SentencePiece model") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)

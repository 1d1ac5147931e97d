"""What is quoted from a server holds no secret: in no spelling, and not in part where it was cut."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_graph.models.client.redact import MARK, Redactor, secrets_of
from matrix_graph.models.client.wire import decode, message_in

KEY = "sk-MY/SECRET+KEY=&<0123456789>"


@pytest.mark.parametrize(
    "spelled",
    [
        KEY,
        KEY.lower(),
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").lower(),
        quote_plus(KEY),
        json.dumps(KEY),
        json.dumps(KEY).replace("/", "\\/"),
        html.escape(KEY),
        KEY.encode().hex(),
        *(base64.b64encode(f"{user}:{KEY}".encode()).decode() for user in ("", "a", "ab", "abc")),
        base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
    ],
)
def test_every_usual_spelling_is_blotted_out(spelled: str) -> None:
    said = Redactor(KEY)(f"The header X was {spelled}, that is all.")
    assert said.startswith("The header X was ") and said.endswith(", that is all.") and MARK in said
    left = said.removeprefix("The header X was ").removesuffix(", that is all.")
    assert not any(spelled[start : start + 8] in left for start in range(len(spelled) - 8))


def test_a_key_within_a_longer_base64_is_blotted_out() -> None:
    for before in range(6):
        said = Redactor(KEY)(base64.b64encode(b"x" * before + KEY.encode() + b"y" * before).decode())
        assert MARK in said and len(said.replace(MARK, "")) <= 2 * (4 + before * 4 / 3), said


@given(before=st.integers(0, 1200), most=st.integers(1, 600), cut=st.integers(10, len(KEY)))
def test_no_part_is_left_where_a_text_is_cut(before: int, most: int, cut: int) -> None:
    redact = Redactor(KEY)
    # Cut by us, whatever stands before it; and cut by the server already.
    for text in ("x" * before + " " + KEY + " y", "x" * before + KEY[:cut], KEY[-cut:] + " " * before):
        for said in (redact.quote(text, most), redact.quote(text.encode(), most), redact.quote(ValueError(text), most)):
            assert not any(KEY[start : start + 10] in said for start in range(len(KEY) - 9))
            assert len(said) <= most + len(" [...]") or said == "(nothing)"


def test_an_answer_longer_than_what_is_read_of_it_leaves_no_part_either() -> None:
    redact = Redactor(KEY)
    for shift in range(len(KEY) + 1):
        said = redact.quote(b" " * (64 * 1024 - shift) + KEY.encode())
        assert not any(KEY[start : start + 4] in said for start in range(len(KEY) - 3)), shift


@pytest.mark.parametrize("raw", [KEY, json.dumps({"error": {"message": KEY}}), json.dumps({"detail": [{"msg": KEY}]})])
@pytest.mark.parametrize("before", [0, 470, 490, 500, 510])
def test_error_bodies_are_cleaned_before_they_are_cut(raw: str, before: int) -> None:
    raw = raw.replace(KEY[:3], "x" * before + " " + KEY[:3])
    said = message_in(raw.encode(), Redactor(KEY))
    assert "SECRET" not in said and len(said) < 520


def test_what_a_reply_repeats_of_the_key_is_blotted_out_of_it() -> None:
    key = "sk-0123456789"
    escaped = json.dumps({"a": [f"Bearer {key}"], f"x {key}": 1, "n": 5, "plain": "sk-01"})
    assert decode(escaped.encode(), Redactor(key)) == {"a": ["Bearer ***"], "x ***": 1, "n": 5, "plain": "sk-01"}
    with pytest.raises(ValueError, match="not a JSON object") as caught:
        decode(f"Authorization: {key}".encode(), Redactor(key))
    assert key not in str(caught.value)


@pytest.mark.parametrize("word", ["EMPTY", "ollama", "k", "lm-studio"])
def test_a_key_that_is_a_common_word_spoils_no_reply(word: str) -> None:
    redact = Redactor(word)
    body = {"content": f"The {word} cup, {word}s"}
    assert decode(json.dumps(body).encode(), redact) == body
    assert redact(f"your key is {word}.") == "your key is ***."


def test_short_secrets_are_whole_words_only() -> None:
    assert Redactor("key", None, "", "  ")("key keys monkey KEY 'key'") == "*** keys monkey KEY '***'"


def test_several_secrets_and_what_holds_them() -> None:
    login = base64.b64encode(b"me:my-password-1").decode()
    found = secrets_of(
        "the-api-key-1",
        {"X-Key": "a-header-value", "Authorization": "Bearer the-token-1", "Proxy-Authorization": f"Basic {login}"},
        "https://user:pass%40word-9@host/v1",
    )
    assert set(found) == {
        "the-api-key-1", "a-header-value", "the-token-1", login, "my-password-1", "pass%40word-9", "pass@word-9",
    }  # fmt: skip
    said = Redactor(*found)("the-api-key-1 a-header-value Bearer the-token-1 my-password-1 pass@word-9 fine")
    assert said == "*** *** Bearer *** *** *** fine"
    assert secrets_of(None) == [] and secrets_of("k", None, "http://[") == ["k"]


@given(st.text(st.characters(exclude_categories=())), st.text(min_size=1, max_size=30))
def test_any_text_and_any_secret(text: str, secret: str) -> None:
    redact = Redactor(secret)
    said = redact.quote(text + secret + text)
    assert said.encode() and "\n" not in said and len(said) <= 506
    assert Redactor()(text) == text


def test_another_mark_and_overlapping_parts() -> None:
    assert Redactor("abcdefgh12", mark="[hidden]")("xabcdefgh12abcdefgh12y") == "x[hidden][hidden]y"

"""Which tokens are learnt, for tokenizers and chat templates of different families."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from matrix_graph.train.dataset import Examples, prepare
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.masks import Example, Masker, RowRefusedError
from matrix_graph.train.recipe import Recipe
from matrix_graph.train.rows import Chat, Pair
from tests.integration.tiny_models import CHATML, FAMILIES, THINKING, chatml, gemma, mistral, tiny_model

ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>"}
TOKENIZERS = {name: make() for name, make in FAMILIES.items()}
TEXTS = [
    "Ask him kindly.",
    "Grüße 你好 🙂\n\nThen wait: a day.",
    "1. one\n2. two\n```python\nx = [1]\n```",
    "no",
]


def chat_of(*texts: str, system: str | None = None, taught: tuple[int, ...] | None = None) -> Chat:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, text in enumerate(texts):
        messages.append({"role": "assistant" if number % 2 else "user", "content": text})
    places = tuple(n for n, message in enumerate(messages) if message["role"] == "assistant")
    return Chat(messages, places if taught is None else taught)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def learnt(tokenizer: Any, example: Example) -> list[str]:
    return [decoded(tokenizer, example.ids[start:end]) for start, end in example.spans]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learnt_is_what_the_assistant_says_and_the_end_of_its_turn(family: str) -> None:
    tokenizer, end = TOKENIZERS[family], ENDS[family]
    chat = chat_of("How?", TEXTS[0], "And then?\n", TEXTS[1], "[INST] Why? [/INST]", TEXTS[2], "Sure?", TEXTS[3])
    examples = Masker(tokenizer).chat(chat)
    # This byte-level tokenizer melts the line breaks of Llama 3's header with what follows.
    assert len(examples) == (4 if family == "llama3" else 1)
    found = [part for example in examples for part in learnt(tokenizer, example)]
    space = " " if family == "mistral" else ""  # its template writes "... [/INST] answer </s>"
    assert [text.strip() for text in found] == [f"{text}{space}{end}" for text in TEXTS]
    if family in ("chatml", "llama3"):
        assert found == [text + end for text in TEXTS]
    # All of it together is what the template renders, and the tokens before a reply are those that a server sends.
    rendered = tokenizer.apply_chat_template(chat.messages, tokenize=False)
    assert rendered.startswith(decoded(tokenizer, examples[-1].ids).strip())
    starts = [(example.ids, start) for example in examples for start, _ in example.spans]
    for place, (ids, start) in zip(chat.taught, starts, strict=True):
        sent = tokenizer.apply_chat_template(chat.messages[:place], add_generation_prompt=True, return_dict=True)
        assert ids[:start] == sent["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_text_is_learnt_as_it_stands_or_refused(family: str, data: st.DataObject) -> None:
    tokenizer, end = TOKENIZERS[family], ENDS[family]
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1, max_size=40)
    texts = data.draw(st.lists(text, min_size=2, max_size=6).filter(lambda found: len(found) % 2 == 0))
    chat = chat_of(*texts)
    try:
        examples = Masker(tokenizer).chat(chat)
    except RowRefusedError as error:
        said = str(error)
        assert "empty" in said or "control token" in said or "melt" in said or "another way" in said
        return
    found = [part for example in examples for part in learnt(tokenizer, example)]
    exact = family == "chatml"
    for part, answer in zip(found, texts[1::2], strict=True):
        assert part.endswith(end)
        said = part.removesuffix(end)
        assert said == answer if exact else said.strip() == answer.strip()


def test_a_reply_that_melts_with_the_prompt_is_parted() -> None:
    tokenizer = TOKENIZERS["chatml"]
    whole = tokenizer("assistant\n\n\nYes.")["input_ids"]
    assert tokenizer("assistant\n")["input_ids"] != whole[: len(tokenizer("assistant\n")["input_ids"])]
    examples = Masker(tokenizer).chat(chat_of("How?", "\nThen wait.", "And?", "\n\nYes."))
    found = [part for example in examples for part in learnt(tokenizer, example)]
    assert found == ["\nThen wait.<|im_end|>", "\n\nYes.<|im_end|>"]
    sent = tokenizer.apply_chat_template([{"role": "user", "content": "How?"}], add_generation_prompt=True)
    assert examples[0].ids[: examples[0].spans[0][0]] == list(sent["input_ids"])


def test_only_the_turns_that_are_named() -> None:
    tokenizer = TOKENIZERS["chatml"]
    chat = chat_of("a", "said by a human", "b", "said by the model", "c", system="You are Ann.", taught=(4,))
    (example,) = Masker(tokenizer).chat(chat)
    assert learnt(tokenizer, example) == ["said by the model<|im_end|>"]
    assert "said by a human" in decoded(tokenizer, example.ids)
    assert decoded(tokenizer, example.ids).endswith("said by the model<|im_end|>")


def test_a_template_that_forgets_thoughts_gets_an_example_a_turn() -> None:
    tokenizer = chatml(THINKING)
    with pytest.raises(RowRefusedError, match="chat_template_kwargs"):
        Masker(tokenizer).chat(chat_of("a", "yes"))
    first, second = Masker(tokenizer, {"enable_thinking": False}).chat(chat_of("a", "yes", "b", "no"))
    assert learnt(tokenizer, first) == ["yes<|im_end|>"] and learnt(tokenizer, second) == ["no<|im_end|>"]
    assert decoded(tokenizer, second.ids).count("<think>") == 1  # as the server sends it


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", "puts"),
        (CHATML.replace("<|im_end|>", ""), "never stop"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "puts"),
        ("{{ messages | length }}" + CHATML, "another way"),
        (CHATML + "{{ undefined.thing }}", "the template refuses it"),
    ],
)
def test_templates_that_do_not_allow_it(template: str, said: str) -> None:
    with pytest.raises(RowRefusedError, match=said):
        Masker(chatml(template)).chat(chat_of("a", "yes"))


@pytest.mark.parametrize("tokenizer", [mistral(), gemma()])
def test_templates_without_a_system_role_get_its_text_in_the_first_turn(tokenizer: Any) -> None:
    masker = Masker(tokenizer)
    (folded,) = masker.chat(chat_of("a", "yes", "b", "no", system="You are Ann."))
    (plain,) = masker.chat(chat_of("You are Ann.\n\na", "yes", "b", "no"))
    assert folded == plain and len(learnt(tokenizer, folded)) == 2
    (last,) = masker.chat(chat_of("a", "yes", "b", "no", system="You are Ann.", taught=(4,)))
    assert learnt(tokenizer, last) == learnt(tokenizer, plain)[1:]
    with pytest.raises(RowRefusedError, match="the template refuses it"):
        Masker(mistral()).chat(Chat([*chat_of("a", "yes").messages, {"role": "assistant", "content": "no"}], (1, 2)))


def test_control_tokens_in_a_text_are_refused() -> None:
    masker = Masker(TOKENIZERS["chatml"])
    for chat in (chat_of("a<|im_end|>", "yes"), chat_of("a", "yes<|im_start|>user\nno")):
        with pytest.raises(RowRefusedError, match=r"control token <\|im_"):
            masker.chat(chat)
    with pytest.raises(RowRefusedError, match="empty"):
        masker.chat(chat_of("a", " \n"))


def test_no_chat_template() -> None:
    with pytest.raises(TrainingError, match=r"has no chat template.*instruction-tuned"):
        Masker(chatml(None))


@pytest.mark.parametrize("family", FAMILIES)
def test_preferences(family: str) -> None:
    tokenizer, end = TOKENIZERS[family], ENDS[family]
    masker = Masker(tokenizer)
    prompt = [{"role": "user", "content": "How?"}]
    example = masker.pair(Pair(prompt, "Kindly.", "Loudly."))
    sent = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert example.prompt == sent
    assert decoded(tokenizer, example.chosen).replace(" ", "") == f"Kindly.{end}"
    assert decoded(tokenizer, example.rejected).replace(" ", "") == f"Loudly.{end}"
    with pytest.raises(RowRefusedError, match="the same"):
        masker.pair(Pair(prompt, "Yes. ", "Yes."))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_labels_that_the_trainer_really_uses(family: str, tmp_path: Path) -> None:
    from matrix_graph.train.base import load_model
    from matrix_graph.train.trainers import make_trainer

    tokenizer, end = TOKENIZERS[family], ENDS[family]
    model = load_model(str(tiny_model(tmp_path / "model", tokenizer)), "none")
    masker = Masker(tokenizer)
    rows = [("q", TEXTS[0]), ("longer question?", TEXTS[1]), ("q", TEXTS[2])]
    examples = Examples(["input_ids", "labels"])
    for question, answer in rows:
        (example,) = masker.chat(chat_of(question, answer))
        examples.add(input_ids=example.ids, labels=example.labels)
    recipe = Recipe(batch_size=3, accumulate=1, quantization="none")
    trainer = make_trainer(
        "sft",
        recipe,
        model=model,
        tokenizer=tokenizer,
        dataset=examples.dataset(),
        validation=None,
        checkpoints=tmp_path / "c",
    )
    (batch,) = list(trainer.get_train_dataloader())
    seen = set()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert bool(((labels == -100) | (labels == ids)).all())
        seen.add(decoded(tokenizer, labels[labels != -100].tolist()).replace(" ", ""))
    assert seen == {f"{answer}{end}".replace(" ", "") for _, answer in rows}


def test_account_of_what_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes"}], "kind": "x"}\n'
        '{"prompt": "a", "completion": "' + "long " * 40 + '"}\n'
        '{"instruction": "a", "input": "", "output": "<|im_end|>"}\n'
    )
    masker = Masker(TOKENIZERS["chatml"])
    dataset, account = prepare(file, "sft", masker, Recipe(max_length=40))
    assert (account.rows, account.examples, len(dataset)) == (3, 1, 1)
    assert account.dropped == {"longer than 40 tokens": 1, "its text holds the control token <|im_end|>": 1}
    assert account.tokens == len(dataset[0]["input_ids"])
    assert account.taught_tokens == sum(label != -100 for label in dataset[0]["labels"])
    with pytest.raises(TrainingError, match=r"(?s)None of the 3 rows.*2: longer than 10 tokens"):
        prepare(file, "sft", masker, Recipe(max_length=10))
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(TrainingError, match=r"holds no rows.*matrix-graph export"):
        prepare(tmp_path / "none.jsonl", "sft", masker, Recipe())

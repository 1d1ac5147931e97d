"""Training's parts that need neither torch nor a model: recipes, rows, checkpoints, the record, the picture."""

import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from matrix_graph.errors import ConfigError
from matrix_graph.files import public_name
from matrix_graph.models.serving.weights import Fingerprint
from matrix_graph.train.base_name import BaseName, base_name
from matrix_graph.train.checkpoints import Checkpoints
from matrix_graph.train.dataset import DataAccount
from matrix_graph.train.errors import TrainingError
from matrix_graph.train.picture import loss_picture
from matrix_graph.train.progress import TrainingView
from matrix_graph.train.recipe import RECIPES, Recipe, load_recipe
from matrix_graph.train.record import BaseModelAccount, LossPoint, TrainingRecord, model_card, read_record
from matrix_graph.train.rows import Chat, Pair, read_chats, read_pairs

CONFIGS = Path(__file__).parents[2] / "configs"
ASKED = {"role": "user", "content": "How?"}
SAID = {"role": "assistant", "content": "  Kindly.\n"}


# --- recipes


def test_the_files_are_the_recipes() -> None:
    files = {path.stem.removeprefix("train-") for path in CONFIGS.glob("train-*.yaml")}
    assert files == set(RECIPES)
    for name, recipe in RECIPES.items():
        content = yaml.safe_load((CONFIGS / f"train-{name}.yaml").read_text())
        assert set(content) == set(Recipe.model_fields), name
        assert load_recipe(CONFIGS / f"train-{name}.yaml") == recipe == load_recipe(name)


def test_the_papers_recipe() -> None:
    paper = load_recipe()
    assert (paper.rank, paper.alpha, paper.dropout, paper.epochs, paper.learning_rate) == (8, 16, 0.05, 3, 2e-5)
    assert (paper.schedule, paper.warmup, paper.batch_size, paper.accumulate) == ("cosine", 0.03, 1, 8)
    assert paper.max_length == 1024 and paper.quantization == "auto"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("rank: 0", "rank"),
        ("learning_rat: 1", "no such setting"),
        ("[1]", "cannot be used"),
        ("{", "cannot be read"),
        ("schedule: never", "cosine"),
    ],
)
def test_recipes_that_cannot_be_used(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_recipe(tmp_path / "r.yaml")


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'papre'.*paper, smoke, 8b"):
        load_recipe("papre")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe("no/such.yaml")


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Recipe.model_fields.values())


# --- rows


def rows_in(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, SAID], "kind": "answer"}, Chat([ASKED, SAID], (1,))),
        ({"messages": [ASKED, SAID, ASKED, SAID], "taught": [3]}, Chat([ASKED, SAID, ASKED, SAID], (3,))),
        ({"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}, Chat([ASKED, SAID, ASKED, SAID], (3,))),
        ({"prompt": "How?", "completion": "  Kindly.\n"}, Chat([ASKED, SAID], (1,))),
        (
            {"conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "  Kindly.\n"}]},
            Chat([ASKED, SAID], (1,)),
        ),
        (
            {
                "system": "Be Ann.",
                "conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "  Kindly.\n"}],
                "taught": [1],
            },
            Chat([{"role": "system", "content": "Be Ann."}, ASKED, SAID], (2,)),
        ),
        ({"instruction": "How?", "input": "", "output": "  Kindly.\n"}, Chat([ASKED, SAID], (1,))),
        (
            {"instruction": "Sum", "input": "1 2", "output": "3", "system": "Be Ann.", "history": [["a", "b"]]},
            Chat(
                [
                    {"role": "system", "content": "Be Ann."},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "Sum\n\n1 2"},
                    {"role": "assistant", "content": "3"},
                ],
                (4,),
            ),
        ),
    ],
)
def test_formats(row: dict[str, Any], expected: Chat, tmp_path: Path) -> None:
    assert list(read_chats(rows_in(tmp_path, row))) == [expected]
    array = tmp_path / "array.json"
    array.write_text(json.dumps([row, row]))
    assert list(read_chats(array)) == [expected, expected]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "no"}]},
        {"prompt": "How?", "chosen": "  Kindly.\n", "rejected": "no"},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, {"role": "assistant", "content": "no"}]},
    ],
)
def test_preferences(row: dict[str, Any], tmp_path: Path) -> None:
    assert list(read_pairs(rows_in(tmp_path, row))) == [Pair([ASKED], "  Kindly.\n", "no")]
    with pytest.raises(TrainingError, match=r"line 1: this is a preference row\. Give --method dpo"):
        list(read_chats(rows_in(tmp_path, row)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a", "answer": "b"}, "its keys are 'answer, question'"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [ASKED]}, "says nothing"),
        ({"messages": [ASKED, SAID], "taught": [0]}, "says nothing"),
        ({"messages": [ASKED, SAID], "taught": [2]}, "taught must be"),
        ({"messages": [ASKED, SAID], "taught": [True]}, "taught must be"),
        ({"messages": [{"role": "tool", "content": "x"}, SAID]}, "roles are system, user and assistant"),
        ({"messages": [{"role": "user", "content": ["x"]}, SAID]}, "content of text"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "`from`"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "history must be"),
        ({"instruction": 1, "output": "b"}, "instruction must be text"),
        ([1], "a JSON object was expected"),
    ],
)
def test_rows_that_are_none(row: Any, said: str, tmp_path: Path) -> None:
    path = rows_in(tmp_path, {"messages": [ASKED, SAID]}, row)
    with pytest.raises(TrainingError, match=f"line 2: .*{said}"):
        list(read_chats(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        list(read_chats(tmp_path / "none.jsonl"))
    (tmp_path / "torn.jsonl").write_text('{"messages": [')
    with pytest.raises(TrainingError, match="line 1: not JSON"):
        list(read_chats(tmp_path / "torn.jsonl"))
    (tmp_path / "array.json").write_text("[{]")
    with pytest.raises(TrainingError, match="row 1: the file ends within its JSON array"):
        list(read_chats(tmp_path / "array.json"))
    with pytest.raises(TrainingError, match="DPO needs prompt, chosen and rejected"):
        list(read_pairs(rows_in(tmp_path, {"messages": [ASKED, SAID]})))
    with pytest.raises(TrainingError, match="same prompt"):
        list(read_pairs(rows_in(tmp_path, {"chosen": [ASKED, SAID], "rejected": [SAID]})))


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the train extra")
    import pyarrow

    rows = [{"messages": [ASKED, SAID], "taught": [1]}, {"messages": [ASKED, SAID], "taught": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert list(read_chats(tmp_path / "rows.parquet")) == [Chat([ASKED, SAID], (1,))] * 2
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(TrainingError, match="no Parquet file"):
        list(read_chats(tmp_path / "bad.parquet"))


# --- checkpoints


def test_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "out")
    identity = {"rows": "a", "recipe": {"seed": 0}}
    assert checkpoints.begin(identity, resume=True) is None
    for step in (2, 4, 10):
        (checkpoints.folder / f"checkpoint-{step}").mkdir()
    checkpoints.mark_whole(2, seconds=1.5, starts=1)
    checkpoints.mark_whole(4, seconds=3, starts=1)
    whole = Checkpoints(tmp_path / "out").begin(identity, resume=True)
    assert whole is not None and (whole.step, whole.seconds, whole.starts) == (4, 3.0, 1)
    assert sorted(path.name for path in checkpoints.folder.glob("checkpoint-*")) == ["checkpoint-4"]
    with pytest.raises(TrainingError, match=r"begun with another recipe, another rows.*--no-resume"):
        checkpoints.begin({"rows": "b", "recipe": {"seed": 1}}, resume=True)
    assert checkpoints.begin({"rows": "b"}, resume=False) is None
    assert checkpoints.newest() is None
    checkpoints.remove()
    assert not checkpoints.folder.exists()


# --- what is told


def record(**changes: Any) -> TrainingRecord:
    account = DataAccount(
        file="a`|\n# b.jsonl", sha256="d" * 64, rows=3, examples=2, dropped={"too `long`": 1}, tokens=9, taught_tokens=4
    )
    fields: dict[str, Any] = {
        "identity": "i",
        "method": "sft",
        "model": BaseModelAccount(
            name="small", revision=None, fingerprint=Fingerprint(layout="l", content="c"), files={"m": "f" * 64}
        ),
        "data": account,
        "validation": None,
        "recipe": Recipe(chat_template_kwargs={"enable_thinking": False}),
        "device": "cpu",
        "quantization": "none",
        "processes": 1,
        "steps": 2,
        "loss": [LossPoint(step=1, loss=2.0), LossPoint(step=2, loss=1.0)],
        "validation_loss": [],
        "starts": 1,
        "seconds": 3.0,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "versions": {"torch": "2"},
    }
    return TrainingRecord(**(fields | changes))


def test_record_and_card(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    made = record()
    (tmp_path / "training.json").write_text(made.model_dump_json())
    assert read_record(tmp_path) == made and (made.first_loss, made.last_loss) == (2.0, 1.0)
    card = model_card(made, "kind")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "small" and front["library_name"] == "peft" and "lora" in front["tags"]
    assert "`a'/ # b.jsonl`, SHA-256 `" + "d" * 64 + "`" in card and "left out, 1: `too 'long'`" in card
    assert "| rank | `8` |" in card and "enable_thinking" in card.split("## Use")[1]
    (tmp_path / "training.json").write_text('{"schema_version": 2}')
    with pytest.raises(TrainingError, match="written by no training of ours"):
        read_record(tmp_path)


def test_the_card_loads_the_adapter_on_any_machine() -> None:
    account = {"fingerprint": None, "files": {}}
    hub = BaseModelAccount(name="org/name", load_as="org/name", revision="c0ffee", **account)
    card = model_card(record(model=hub), "kind")
    assert 'base = "org/name"' in card and 'from_pretrained(base, revision="c0ffee"), "FOLDER")' in card
    assert "--model org/name --adapter" in card and "vllm serve org/name --enable-lora" in card and "BASE" not in card
    bundled = BaseModelAccount(name="SmolLM2", load_as="bundled:135m", revision=None, **account)
    card = model_card(record(model=bundled), "kind")
    assert 'base = prepare_bundled_model("135m")' in card and "--model bundled:135m --adapter" in card
    assert "vllm serve BASE --enable-lora" in card and "its name alone, `SmolLM2`" in card
    card = model_card(record(), "kind")
    assert 'base = "BASE"' in card and "it was a folder where this was trained" in card
    assert "--max-lora-rank 8 --lora-modules NAME=FOLDER" in card


def test_base_models_go_by_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIX_GRAPH_CACHE", str(tmp_path))
    assert base_name("org/name") == BaseName("org/name", "org/name")
    bundled = tmp_path.resolve() / "models" / "SmolLM2-135M-Instruct"
    assert base_name(str(bundled)) == BaseName("SmolLM2-135M-Instruct", "bundled:135m")
    assert base_name("/home/jane/models/kind") == BaseName("kind", None)
    cached = "/home/jane/hub/models--org--some-name/snapshots/c0ffee"
    assert base_name(cached) == BaseName("org/some-name", "org/some-name", "c0ffee")
    assert base_name("/home/jane/hub/models--gpt2/snapshots/c0ffee") == BaseName("gpt2", "gpt2", "c0ffee")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/name", "org/name"),
        ("name", "name"),
        ("bundled:1.5b", "bundled:1.5b"),
        ("/home/jane/models/kind", "kind"),
        ("/home/jane/models/kind/", "kind"),
        ("~/kind", "kind"),
        ("../jane/kind", "kind"),
        ("C:\\Users\\Jane\\kind", "kind"),
        ("C:/Users/Jane/kind", "kind"),
        ("/", "/"),
    ],
)
def test_public_names_tell_no_folders(model: str, name: str) -> None:
    assert public_name(model) == name


def test_picture() -> None:
    text = loss_picture([(step, 3 / step) for step in range(1, 5001)], [(2500, 1.0), (5000, 0.5)])
    root = ET.fromstring(text)
    assert len(text) < 60_000 and text == loss_picture(
        [(step, 3 / step) for step in range(1, 5001)], [(2500, 1.0), (5000, 0.5)]
    )
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    first, second = (line.attrib["points"].split() for line in lines)
    assert len(second) == 2 and len(first) <= 1000
    xs, ys = zip(*(map(float, point.split(",")) for point in first + second), strict=True)
    assert min(*xs, *ys) >= 0 and max(xs) <= 720 and max(ys) <= 400
    assert float(first[-1].split(",")[0]) == max(xs)  # the last step is shown
    ET.fromstring(loss_picture([(1, 0.0)]))


def test_progress_in_a_pipe_tells_the_time_left() -> None:
    now = [100.0]
    out = io.StringIO()
    with TrainingView(Console(file=out, width=200), clock=lambda: now[0]) as view:
        view.begin(10, 40)
        for step in range(11, 41):
            now[0] += 2.0
            view.step(step)
            view.loss(step, 1.0 / step)
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 11 of 40, loss 0.091, 2.0 s a step, 58 s left"
    assert lines[-1] == "step 40 of 40, loss 0.025, 2.0 s a step, 0 s left"
    assert len(lines) == 7  # one in ten seconds


def test_progress_on_a_terminal_draws_a_bar() -> None:
    out = io.StringIO()
    with TrainingView(Console(file=out, force_terminal=True, width=100)) as view:
        view.begin(0, 4)
        view.step(2)
        view.loss(2, 0.5)
    assert "2/4" in out.getvalue() and "loss 0.500" in out.getvalue() and " left" in out.getvalue()


def test_importing_is_light() -> None:
    script = (
        "import sys, matrix_graph.train, matrix_graph.commands.train, matrix_graph.train.run\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

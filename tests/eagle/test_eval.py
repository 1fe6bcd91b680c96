"""``afa eagle eval`` on a tiny target: from the questions to the tables, and on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from afa_cli.eagle.evaluate import evaluate, split_shapes
from afa_lora.core.errors import AfaLoraError
from afa_lora.eagle.decode import parse_shape
from afa_lora.eagle.evaluation import (
    DraftEvaluationError,
    DraftEvaluationSettings,
    RecordError,
    evaluate_drafts,
    name_drafts,
    run,
)
from afa_lora.eagle.evaluation.drafts import untrained_draft
from afa_lora.eagle.evaluation.live import LiveCounts
from afa_lora.eagle.evaluation.measures import AlphaCounts, PromptCounts, compare_pooled, pooled
from afa_lora.eagle.evaluation.results import summarise
from afa_lora.eagle.model import DraftError
from afa_lora.eagle.target import TargetEnds
from afa_lora.report.formats import NOTHING
from tests.tiny_chat import save_tiny_chat_model

SETS = ("mt-bench", "mine")
SHAPES = ("chain:2", "tree")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions of two turns, four of one."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, turns in (("mt_bench", 3, ["And {i}?", "Why {i}?"]), ("mine", 4, ["What is {i}?"])):
        (folder / name).mkdir()
        records = [{"question_id": i, "turns": [turn.format(i=i) for turn in turns]} for i in range(count)]
        (folder / name / "question.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def save_draft(target: Path, folder: Path, seed: int) -> Path:
    ends = TargetEnds.load(str(target))
    torch.manual_seed(seed)
    ends.new_draft().save_pretrained(folder)
    return folder


@pytest.fixture
def drafts(target: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a run, and that of a draft."""
    save_draft(target, tmp_path / "a-run" / "draft", 1)
    return tmp_path / "a-run", save_draft(target, tmp_path / "a-draft", 2)


Call = Callable[..., str]


@pytest.fixture
def call(target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The verb with these questions into tmp_path/out, on a terminal of 200 columns; gives what it prints."""
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(evaluate)

    def invoke(*arguments: object) -> str:
        given = {"--model": target, "--data": data, "--sets": ",".join(SETS), "--shapes": ",".join(SHAPES)}
        given |= {"--max-new-tokens": 12, "--out": tmp_path / "out"}
        options = [text for option, value in given.items() if option not in arguments for text in (option, str(value))]
        result = CliRunner().invoke(app, [*map(str, arguments), *options])
        if isinstance(result.exception, AfaLoraError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return invoke


def results(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def files(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*")}


def test_from_the_questions_to_the_tables(call: Call, drafts: tuple[Path, Path], tmp_path: Path) -> None:
    printed = call(*drafts, "untrained")
    numbers = results(tmp_path)
    assert [(score["draft"], score["shape"]) for score in numbers["scores"]] == [
        (draft, shape) for shape in SHAPES for draft in ("a-run", "a-draft", "untrained")
    ]
    for score in numbers["scores"]:
        assert {name: counted["prompts"] for name, counted in score["counted"].items()} == {"mt-bench": 3, "mine": 4}
        for name in (*SETS, "average"):
            whole, drafted = (score[kind][name]["pooled"]["value"] for kind in ("tokens", "accepted"))
            assert 1.0 <= whole <= 6.0
            assert drafted >= whole - 1 - 1e-9  # all but the cycles that keep no bonus token give drafted + 1
        assert score["tokens"]["average"]["pooled"]["value"] == pytest.approx(
            sum(score["tokens"][name]["pooled"]["value"] for name in SETS) / 2
        )
    assert len(numbers["comparisons"]) == 3 * len(SHAPES)
    assert set(numbers["alpha"][0]) == {"draft", *(f"{n}-alpha" for n in range(5))}
    assert numbers["live"] == []
    assert numbers["settings"]["drafts"]["a-run"]["from"] == str(drafts[0])
    assert numbers["environment"]["torch"] == torch.__version__
    assert numbers["command"]
    written = (tmp_path / "out" / "results.md").read_text()
    for text in (printed, written):
        assert "3 + 4 questions of mt-bench, mine; answers of at most 12 tokens" in text
        assert "− a-run" in text
        assert "0-α" in text
        assert text.count("untrained") >= 3


def test_what_is_there_is_not_counted_again(call: Call, drafts: tuple[Path, Path], tmp_path: Path) -> None:
    run, draft = drafts
    first = call(run, draft, "--limit", 2)
    before = files(tmp_path / "out" / "counts") | files(tmp_path / "out" / "record")
    assert call(run, draft, "--limit", 2).splitlines()[-25:] == first.splitlines()[-25:]
    assert files(tmp_path / "out" / "counts") | files(tmp_path / "out" / "record") == before
    weights = results(tmp_path)["settings"]["drafts"]
    shutil.rmtree(draft)
    save_draft(Path(results(tmp_path)["settings"]["model"]), draft, 3)  # trained anew
    call(run, draft, "--limit", 2)
    after = files(tmp_path / "out" / "counts") | files(tmp_path / "out" / "record")
    assert {name: after[name] for name in before} == before
    changed = results(tmp_path)["settings"]["drafts"]
    assert changed["a-run"] == weights["a-run"]
    assert changed["a-draft"]["weights"] != weights["a-draft"]["weights"]
    assert all(changed["a-draft"]["weights"] in name for name in after.keys() - before.keys())
    assert len(after) == len(before) + len(SHAPES) + 1  # and n-α
    call(run, draft)
    assert {score["counted"]["mine"]["prompts"] for score in results(tmp_path)["scores"]} == {4}
    with pytest.raises(RecordError, match="max_new_tokens: 12 → 13"):
        call(run, draft, "--max-new-tokens", 13)


def test_counts_of_other_answers_are_counted_anew(call: Call, tmp_path: Path) -> None:
    call("untrained")
    expected = results(tmp_path)["scores"]
    shutil.rmtree(tmp_path / "out" / "record")
    call("untrained", "--max-new-tokens", 5)
    cycles = [score["counted"]["mine"]["cycles"] for score in results(tmp_path)["scores"]]
    assert all(few < score["counted"]["mine"]["cycles"] for few, score in zip(cycles, expected, strict=True))
    shutil.rmtree(tmp_path / "out" / "record")
    call("untrained")
    assert results(tmp_path)["scores"] == expected


def test_live_decodes_the_recorded_answers(call: Call, drafts: tuple[Path, Path], tmp_path: Path) -> None:
    printed = call(drafts[0], "--live", "--limit", 2)
    assert "Speed-up over plain decoding" in printed
    assert "4 of 4" in printed
    assert "Not all are equal" not in printed
    table = (tmp_path / "out" / "results.md").read_text().partition("Speed-up over plain")[2]
    written = table.replace("\\", "").splitlines()
    for shape, timed in zip(SHAPES, results(tmp_path)["live"], strict=True):
        assert timed["shape"] == shape
        for name in SETS:
            part = timed["sets"][name]
            assert part["equal"] == part["plain_equal"] == part["cycles_as_replayed"] == part["prompts"] == 2
            assert part["plain_tokens"] == part["speculative_tokens"] > 0
            ratio = part["plain_seconds"] / part["speculative_seconds"]
            assert timed["speed_up"][name]["value"] == pytest.approx(ratio)
        average = next(line for line in written if line.startswith(f"| {shape} | a-run | average |"))
        assert average.endswith("|  |  | 4 of 4 |")


def test_a_speed_up_is_of_seconds_a_token() -> None:
    """Where rounding makes answers of other lengths."""
    runs = {"0": LiveCounts(4.0, 1.0, 40, 20, True, False, (1,)), "1": LiveCounts(2.0, 1.0, 10, 10, True, True, (0,))}
    settings = {"questions": {"mine": ["0", "1"]}, "shapes": ["chain:2"], "drafts": {"one": {}}}
    cycles = {("one", "chain:2", "mine"): {name: PromptCounts(run.accepted, 2) for name, run in runs.items()}}
    alphas = {("one", "mine"): {name: AlphaCounts((1,) * 5, (1,) * 5) for name in runs}}
    (timed,) = summarise(settings, cycles, alphas, {("one", "chain:2", "mine"): runs})["live"]
    assert timed["speed_up"]["mine"]["value"] == pytest.approx((4.0 * 20 / 40 + 2.0) / (1.0 + 1.0))
    part = timed["sets"]["mine"]
    assert (part["plain_tokens"], part["speculative_tokens"], part["equal"]) == (50, 30, 1)


def test_the_python_interface_gives_counts_for_the_measures(target: Path, data: Path, tmp_path: Path) -> None:
    save_draft(target, tmp_path / "draft", 1)
    settings = DraftEvaluationSettings(sets=["mine"], shapes=["dynamic:total=8,depth=3,top_k=3"], max_new_tokens=12)
    given = {"untrained": "untrained", "mine": str(tmp_path / "draft")}
    done = evaluate_drafts(given, str(target), data, settings, tmp_path / "out")
    shape = str(parse_shape(settings.shapes[0]))
    assert set(done.cycles) == {("untrained", shape, "mine"), ("mine", shape, "mine")}
    assert list(done.cycles["mine", shape, "mine"]) == ["0", "1", "2", "3"]
    assert set(done.alphas) == {("untrained", "mine"), ("mine", "mine")}
    measure = pooled(done.totals("mine", shape))
    assert measure is not None
    assert measure.value == done.results["scores"][1]["tokens"]["average"]["pooled"]["value"]
    test = compare_pooled(done.totals("mine", shape), done.totals("untrained", shape))
    assert test is not None
    (comparison,) = done.results["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("mine", "untrained")
    assert comparison["pooled"]["average"]["difference"] == test.difference


def test_one_question_has_no_interval(call: Call, drafts: tuple[Path, Path], tmp_path: Path) -> None:
    call(drafts[0], "untrained", "--limit", 1)
    tokens = results(tmp_path)["scores"][0]["tokens"]["average"]["pooled"]
    assert tokens["value"] >= 1
    assert tokens["interval_95"] is None
    written = (tmp_path / "out" / "results.md").read_text()
    table = written.partition("The average tokens in a cycle")[2].partition("###")[0]
    (row,) = (line for line in table.splitlines() if line.startswith("| chain:2 | a-run"))
    assert row.endswith(f"| {tokens['value']:.3f} " + f"| {NOTHING} " * 4 + "|")


def test_the_untrained_draft_is_always_the_same(target: Path) -> None:
    ends = TargetEnds.load(str(target))
    state = torch.random.get_rng_state()
    one, two = untrained_draft(ends).state_dict(), untrained_draft(ends).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_names_are_short_where_they_can_be() -> None:
    assert name_drafts(["runs/a", "runs/b/", "untrained"]) == {
        "a": "runs/a",
        "b": "runs/b/",
        "untrained": "untrained",
    }
    assert name_drafts(["x/a", "y/a"]) == {"x/a": "x/a", "y/a": "y/a"}
    with pytest.raises(DraftError, match="each once"):
        name_drafts(["a", "a"])


def test_shapes_with_commas_stay_whole() -> None:
    given = "chain:5, dynamic:total=60,depth=5,top_k=10,tree"
    assert split_shapes(given) == ["chain:5", "dynamic:total=60,depth=5,top_k=10", "tree"]


def test_what_cannot_be_measured_is_said_before_anything_is_done(call: Call, target: Path, tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="There is no folder"):
        call(tmp_path / "nothing")
    with pytest.raises(DraftError, match=r"holds no draft: its config\.json has model_type='llama'"):
        call(target)
    with pytest.raises(AfaLoraError, match=r"shape='chian:5'.*Did you mean 'chain'"):
        call("untrained", "--shapes", "chian:5")
    with pytest.raises(AfaLoraError, match="each once"):
        call("untrained", "--shapes", "chain:5,chain:5")
    with pytest.raises(AfaLoraError, match="no folder"):
        call("untrained", "--data", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()
    (tmp_path / "a-file").touch()
    with pytest.raises(DraftEvaluationError, match="is a file"):
        call("untrained", "--out", tmp_path / "a-file")
    other = save_tiny_chat_model(tmp_path / "other", hidden=16)
    with pytest.raises(DraftError, match="another target"):
        call(save_draft(other, tmp_path / "foreign", 1))


def test_ctrl_c_keeps_what_was_done(target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DraftEvaluationSettings(sets=["mine"], shapes=["chain:2"], max_new_tokens=5)
    real, calls = run.replay, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    def go() -> None:
        evaluate_drafts({"untrained": "untrained"}, str(target), data, settings, tmp_path / "out")

    monkeypatch.setattr(run, "replay", interrupted)
    with pytest.raises(DraftEvaluationError, match="goes on from there"):
        go()
    calls[:] = [()] * 3
    go()
    assert len(calls) == 3 + 2  # two of four questions were counted before

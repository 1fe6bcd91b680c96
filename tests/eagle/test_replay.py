"""The record of a target's answers, and that replaying it gives the counts of the real decoder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from afa_lora.eagle.decode import Drafter, SpeculativeDecoding, parse_shape
from afa_lora.eagle.evaluation import record as recording
from afa_lora.eagle.evaluation.measures import PromptCounts
from afa_lora.eagle.evaluation.questions import Question
from afa_lora.eagle.evaluation.record import Record, RecordError, Turn, generate, record_answers
from afa_lora.eagle.evaluation.replay import replay
from afa_lora.eagle.evaluation.target import EvaluatedTarget
from afa_lora.eagle.target import TargetEnds, features_of
from afa_lora.evaluation.generate import evaluating
from tests.eagle.recorded import follower, learner, recorded, without_layers
from tests.tiny_chat import save_tiny_chat_model

SHAPES = ["chain:1", "chain:4", "tree", "dynamic:total=12,depth=4,top_k=3"]
QUESTIONS = [Question("mine", str(i), (f"{i}?", "Why?")) for i in range(4)]


def live(target: PreTrainedModel, decoding: SpeculativeDecoding, turn: Turn, max_new_tokens: int) -> PromptCounts:
    """The counts of the real decoder, which must give the recorded tokens."""
    with evaluating(target):
        tokens, _ = generate(target, turn.tokens[: turn.prompt], max_new_tokens, custom_generate=decoding)
    assert torch.equal(tokens, turn.tokens)
    return PromptCounts(tuple(decoding.last.accepted), len(turn.answer) - 1)


@pytest.mark.parametrize("text", SHAPES)
def test_replay_equals_the_real_decoder(target: PreTrainedModel, text: str) -> None:
    target, shape = target.double(), parse_shape(text)
    ends = TargetEnds.of(target, "tiny")
    draft = learner(ends, recorded(target, 40))
    drafter, decoding = Drafter(draft, ends, shape), SpeculativeDecoding(draft, shape)
    seen: set[int] = set()
    for limit in (1, 2, 3, 17, 37, 38, 39, 40):
        turn = recorded(target, limit)
        counts = replay(drafter, turn, limit)
        assert counts == live(target, decoding, turn, limit)
        seen |= set(counts.accepted)
    assert seen >= ({0, 1} if text == "chain:1" else {0, 1, 2})  # or the two would agree on little


@pytest.mark.parametrize("text", SHAPES)
def test_replay_equals_the_real_decoder_where_an_end_token_cuts_a_cycle(target: PreTrainedModel, text: str) -> None:
    target, shape = target.double(), parse_shape(text)
    ends = TargetEnds.of(target, "tiny")
    draft = learner(ends, recorded(target, 40), steps=60)
    drafter, decoding = Drafter(draft, ends, shape), SpeculativeDecoding(draft, shape)
    whole, without_bonus = recorded(target, 40), 0
    for end in whole.answer[3:20].unique().tolist():
        target.generation_config.eos_token_id = end
        turn = recorded(target, 40)
        assert len(turn.answer) < 40
        counts = replay(drafter, turn, 40)
        assert counts == live(target, decoding, turn, 40)
        without_bonus += counts.tokens < sum(counts.accepted) + len(counts.accepted)
    assert without_bonus  # the end token was a draft token


def test_counts_of_drafts_that_are_always_and_never_right(target: PreTrainedModel) -> None:
    target = without_layers(target)
    ends, turn = TargetEnds.of(target, "tiny"), recorded(target, 12)  # 11 tokens after the first
    right, wrong = (Drafter(follower(ends, sign), ends, parse_shape("chain:3")) for sign in (1.0, -1.0))
    assert replay(right, turn, 12) == PromptCounts((3, 3, 2), 11)  # two draft tokens fit, then a bonus token
    assert replay(right, turn, 20) == PromptCounts((3, 3, 3), 11)  # an end token in the last cycle: no bonus token
    assert replay(wrong, turn, 12) == PromptCounts((0,) * 11, 11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("target"))


def at(model: Path) -> EvaluatedTarget:
    return EvaluatedTarget(str(model), "float32")


def test_a_record_holds_tokens_and_features(model: Path, tmp_path: Path) -> None:
    target = at(model)
    record = record_answers(target, QUESTIONS, 7, tmp_path)
    for question in QUESTIONS:
        turns = record.read(question)
        assert len(turns) == 2
        for turn in turns:
            with evaluating(target.model):
                tokens, _ = generate(target.model, turn.tokens[: turn.prompt], 7)
            assert torch.equal(tokens, turn.tokens)
            features = features_of(target.model, turn.tokens[None, :-1])[0]
            assert torch.allclose(features, turn.features, atol=1e-5)
            assert turn.seconds > 0
        prompt = target.tokenizer.decode(turns[1].tokens[: turns[1].prompt])
        said = target.tokenizer.decode(turns[0].answer, skip_special_tokens=True).strip()
        assert f"<|im_start|>assistant\n{said}<|im_end|>\n<|im_start|>user\nWhy?" in prompt


def test_features_that_were_computed_ahead_are_left_out(
    target: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation may read the last token too, or tokens that it then drops."""
    expected = recorded(target, 5)

    def reads_on(model: PreTrainedModel, prompt: torch.Tensor, limit: int, **options: object) -> object:
        tokens, seconds = generate(model, prompt, limit, **options)
        model(tokens[None, -2:])
        return tokens, seconds

    monkeypatch.setattr(recording, "generate", reads_on)
    turn = recorded(target, 5)
    assert len(turn.features) == len(turn.tokens) - 1
    assert torch.equal(turn.features, expected.features)


def test_recording_goes_on_after_a_kill_and_then_needs_no_model(model: Path, tmp_path: Path) -> None:
    done = 0

    def kill_after_two() -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_answers(at(model), QUESTIONS, 5, tmp_path / "killed", advance=kill_after_two)
    before = {path: path.read_bytes() for path in (tmp_path / "killed").rglob("*.safetensors")}
    assert len(before) == 2
    missing: list[int] = []
    killed = record_answers(at(model), QUESTIONS, 5, tmp_path / "killed", start=missing.append)
    assert missing == [2]
    assert all(path.read_bytes() == content for path, content in before.items())
    whole = record_answers(at(model), QUESTIONS, 5, tmp_path / "whole")
    assert [killed.digest(question) for question in QUESTIONS] == [whole.digest(question) for question in QUESTIONS]
    again = at(model)
    record_answers(again, QUESTIONS, 5, tmp_path / "whole")
    assert "model" not in vars(again)


def test_another_records_folder_is_refused(model: Path, tmp_path: Path) -> None:
    record_answers(at(model), QUESTIONS[:1], 5, tmp_path)
    with pytest.raises(RecordError, match="max_new_tokens: 5 → 6"):
        record_answers(at(model), QUESTIONS[:1], 6, tmp_path)
    with pytest.raises(RecordError, match="dtype: 'float32' → 'bfloat16'"):
        record_answers(EvaluatedTarget(str(model), "bfloat16"), QUESTIONS[:1], 5, tmp_path)
    other = at(model)
    other.tokenizer.chat_template += " "
    with pytest.raises(RecordError, match="template: "):
        record_answers(other, QUESTIONS[:1], 5, tmp_path)
    with pytest.raises(RecordError, match="other texts than question 0 of mine"):
        record_answers(at(model), [replace(QUESTIONS[0], turns=("Else?",))], 5, tmp_path)


def test_a_target_that_differs_in_its_layers_alone_is_refused(model: Path, tmp_path: Path) -> None:
    record_answers(at(model), QUESTIONS[:1], 5, tmp_path / "record")
    target = at(model)
    with torch.no_grad():
        target.model.model.layers[0].mlp.up_proj.weight[0] += 1
    target.model.save_pretrained(tmp_path / "tuned")
    target.tokenizer.save_pretrained(tmp_path / "tuned")
    with pytest.raises(RecordError, match=r"another record.*\n *target: "):
        record_answers(at(tmp_path / "tuned"), QUESTIONS[:1], 5, tmp_path / "record")
    moved = model.rename(model.with_name("moved"))
    try:
        record_answers(at(moved), QUESTIONS[:1], 5, tmp_path / "record")
    finally:
        moved.rename(model)


def test_damage_is_said(model: Path, tmp_path: Path) -> None:
    record = record_answers(at(model), QUESTIONS[:2], 5, tmp_path)
    path = tmp_path / "mine" / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RecordError, match=r"0\.safetensors is damaged.*Remove it"):
        record.read(QUESTIONS[0])
    path.unlink()
    missing: list[int] = []
    record_answers(at(model), QUESTIONS[:2], 5, tmp_path, start=missing.append)
    assert missing == [1]
    about = json.loads(record.about.read_bytes())
    assert about["max_new_tokens"] == 5
    record.about.unlink()
    with pytest.raises(RecordError, match=r"no record\.json"):
        record_answers(at(model), QUESTIONS[:2], 5, tmp_path)


def test_a_prompt_that_is_too_long_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"Question 9 of mine .* more than the 512"):
        record_answers(at(model), [Question("mine", "9", ("word " * 100,))], 50, tmp_path)
    assert not Record(tmp_path).has(Question("mine", "9", ("word " * 100,)))


def test_a_target_that_computes_no_numbers_is_refused(model: Path, tmp_path: Path) -> None:
    target = at(model)
    with torch.no_grad():
        target.model.model.norm.weight[0] = torch.nan
    with pytest.raises(RecordError, match="no finite numbers"):
        record_answers(target, QUESTIONS[:1], 5, tmp_path)

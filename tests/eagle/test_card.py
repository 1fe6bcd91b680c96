"""The model card beside a trained draft."""

from pathlib import Path

from huggingface_hub import ModelCard

from afa_lora.eagle.card import write_draft_card
from afa_lora.eagle.recipe import parse_recipe
from tests.eagle.training import make_settings, train


def test_a_run_leaves_a_card_that_says_how_the_draft_was_made_and_how_it_decodes(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    result = train(settings, tmp_path / "run")
    card = ModelCard.load(result.folder.draft / "README.md")
    assert card.data.base_model == settings["model"]
    assert card.data.tags == ["eagle", "speculative-decoding", "afa-lora"]
    assert "| rank, alpha, dropout | 4, 8, 0.0 |" in card.text
    assert "| target modules | every linear layer of the draft |" in card.text
    assert "silu at A-σ-B; β from 1 to 0, linear, over steps 0 to 6 of 12 |" in card.text
    assert "| β now | 0 |" in card.text
    assert "conversations.jsonl: 12 conversations to train on, 3 to test on |" in card.text
    assert result.test is not None
    assert f"| feature loss | {result.test['feature_loss']:.4f} |" in card.text
    assert "Merging changed a logit by at most" in card.text
    assert f"AutoModelForCausalLM.from_pretrained({settings['model']!r})" in card.text
    assert "custom_generate=decoding" in card.text

    plain = train(settings, tmp_path / "plain", method="eagle", data={"test_items": 0}, features={"folder": None})
    text = (plain.folder.draft / "README.md").read_text(encoding="utf-8")
    assert "| method | the draft's own weights |" in text
    assert "Nothing was measured" in text
    assert not any(word in text for word in ("rank, alpha", "annealed activation", "Merging", "li2025afalora"))

    embedded = parse_recipe({**settings, "model": "smollm2-135m", "output": str(tmp_path / "plain")})
    facts = {"train_items": 12, "test_items": 3}
    write_draft_card(embedded, facts, plain.folder, 12, None, None, None)
    card = ModelCard.load(plain.folder.draft / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "load_model('smollm2-135m')" in card.text


def test_a_draft_that_is_not_merged_has_no_card(tmp_path: Path) -> None:
    result = train(make_settings(tmp_path), tmp_path / "run", merge=False)
    assert [path.name for path in result.folder.path.rglob("README.md")] == []

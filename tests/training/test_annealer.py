import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from afa_lora import AfaLoraConfig, Annealer, InvalidSettingError


def config(**options):
    return AfaLoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options})


def test_sets_beta_of_the_step(tiny_llama):
    model = get_peft_model(tiny_llama, config(anneal_end=0.5))
    annealer = Annealer(model, total_steps=10)
    assert [annealer.set_step(step) for step in (0, 2, 5, 9)] == pytest.approx([1.0, 0.6, 0.0, 0.0])
    assert annealer.set_step(2) == model.peft_config["default"].beta == pytest.approx(0.6)  # no counter


def test_refuses_a_model_without_afa_layers(tiny_llama):
    with pytest.raises(InvalidSettingError, match=r"LlamaForCausalLM has no AFA-LoRA layer .found: no adapter at all"):
        Annealer(tiny_llama, 10)
    model = get_peft_model(tiny_llama, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InvalidSettingError, match=r"adapters {'default': 'LoraConfig'}, adapter layers \['Linear'\]"):
        Annealer(model, 10)


@pytest.mark.parametrize("total", [0, -5, 10.0, True])
def test_total_steps_must_be_a_positive_int(tiny_llama, total):
    with pytest.raises(InvalidSettingError, match=r"total_steps=.* must be the positive number"):
        Annealer(get_peft_model(tiny_llama, config()), total)


def test_an_empty_window_is_found_at_the_start(tiny_llama):
    model = get_peft_model(tiny_llama, config(anneal_start=50, anneal_end=0.3))
    with pytest.raises(InvalidSettingError, match=r"anneal_end=0.3 must come after anneal_start=50"):
        Annealer(model, 100)


def steps(model, tokens, n):
    for _ in range(n):
        model(input_ids=tokens, labels=tokens).loss.backward()


def test_training_without_anyone_setting_beta_warns_once(tiny_llama, token_ids):
    model = get_peft_model(tiny_llama, config()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(model, token_ids, 9)
    with pytest.warns(
        UserWarning, match=r"trained for 10 forwards and nothing has set its β.*AnnealingCallback"
    ) as seen:
        steps(model, token_ids, 11)
    assert len([w for w in seen if "nothing has set" in str(w.message)]) == 1


def test_no_warning_in_evaluation_or_under_an_annealer(tiny_llama, token_ids):
    model = get_peft_model(tiny_llama, config())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with torch.no_grad():
            for _ in range(20):
                model.eval()(input_ids=token_ids)
        Annealer(model, 100).set_step(0)
        steps(model.train(), token_ids, 12)
    assert not [str(warning.message) for warning in seen]

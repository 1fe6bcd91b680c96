import pytest
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, TrainerCallback

from afa_lora import AfaLoraConfig, AnnealingCallback, InvalidSettingError, NotLinearError, anneal_states
from afa_lora.training.callback import updates_per_generation
from tests.training.trainers import make_trainer, tiny_model


class Spy(TrainerCallback):
    """Writes down β at every forward, with the global step."""

    def __init__(self, model):
        self.state = model.peft_config["default"].state
        self.seen, self.step = [], 0
        model.register_forward_pre_hook(lambda *_: self.seen.append((self.step, self.state.beta)))

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step


@pytest.mark.parametrize("length", [{"max_steps": 20}, {"max_steps": -1, "num_train_epochs": 2}])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_beta_follows_the_global_step(tmp_path, length, accumulation):
    model = tiny_model()
    spy = Spy(model)
    trainer = make_trainer(
        tmp_path, model, [spy], gradient_accumulation_steps=accumulation, save_strategy="no", **length
    )
    trainer.train()
    total = trainer.state.max_steps
    schedule = spy.state.schedule
    assert spy.seen == [(step, schedule.beta(step, total)) for step in range(total) for _ in range(accumulation)]
    assert spy.state.linear


def test_beta_is_logged_with_the_loss(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.train()
    logged = [(entry["step"], entry["afa/beta"]) for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [(step, max(0.0, 1 - step / 10)) for step in range(1, 21)]


def test_several_adapters_each_with_its_schedule(tmp_path):
    model = tiny_model()
    model.add_adapter("late", AfaLoraConfig(r=2, target_modules=["q_proj"], anneal_start=0.5, anneal_end=1.0))
    model.base_model.set_adapter(["default", "late"])
    trainer = make_trainer(tmp_path, model, save_strategy="no")
    trainer.train()
    entry = trainer.state.log_history[14]
    assert entry["afa/beta/default"] == 0.0
    assert entry["afa/beta/late"] == pytest.approx(0.5)
    assert all(state.linear for state in anneal_states(model).values())


def test_a_model_without_afa_layers_raises_at_the_start(tmp_path):
    model = get_peft_model(tiny_model().unload(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InvalidSettingError, match=r"has no AFA-LoRA layer .found: adapters {'default': 'LoraConfig'}"):
        make_trainer(tmp_path, model).train()


def test_ending_inside_the_window_warns_and_stays_honest(tmp_path, caplog):
    model = tiny_model(anneal_end=1.0)

    class StopAtFive(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    with caplog.at_level("WARNING"):
        make_trainer(tmp_path, model, [StopAtFive()]).train()
    assert "Adapter 'default' is not linear: training stopped at step 5 of 20 (β = 0.75" in caplog.text
    with pytest.raises(NotLinearError, match=r"β = 0.75 at step 5 of 20; it reaches 0 at step 20"):
        model.merge_and_unload()


def test_early_stopping_inside_the_window(tmp_path, caplog):
    model = tiny_model(anneal_end=1.0)
    trainer = make_trainer(
        tmp_path,
        model,
        [EarlyStoppingCallback(early_stopping_patience=1)],
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    assert trainer.state.global_step < 20
    assert model.peft_config["default"].beta > 0
    assert "is not linear" in caplog.text


def test_the_best_checkpoint_keeps_the_beta_it_was_saved_with(tmp_path, caplog):
    model = tiny_model()

    class BestIsStepFour(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_loss"] = float(abs(state.global_step - 4))

    trainer = make_trainer(
        tmp_path,
        model,
        [BestIsStepFour()],
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    with caplog.at_level("WARNING"):
        trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert model.peft_config["default"].beta == pytest.approx(1 - 4 / 10)
    assert "load_best_model_at_end brought back" in caplog.text
    assert "with its β = 0.6" in caplog.text
    with pytest.raises(NotLinearError):
        model.merge_and_unload()
    model.save_pretrained(tmp_path / "out")
    assert '"AFA_LORA"' in (tmp_path / "out/adapter_config.json").read_text()


def test_generation_steps_hold_beta():
    class Arguments:
        gradient_accumulation_steps = 2

    assert updates_per_generation(Arguments()) == 1
    Arguments.steps_per_generation, Arguments.num_iterations = 4, 3
    assert updates_per_generation(Arguments()) == 6

    callback, state = AnnealingCallback(), type("State", (), {"max_steps": 20, "global_step": 0, "log_history": []})()
    model = tiny_model(anneal_end=1.0)
    Arguments.load_best_model_at_end = False
    callback.on_train_begin(Arguments(), state, None, model=model)
    betas = []
    for step in range(21):
        state.global_step = step
        callback.on_step_begin(Arguments(), state, None)
        betas.append(round(20 * (1 - model.peft_config["default"].beta)))
    assert betas == [0] * 6 + [6] * 6 + [12] * 6 + [18] * 2 + [20]

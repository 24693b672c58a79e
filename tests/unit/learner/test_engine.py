import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_engine, tiny_llama, token_batch
from safetensors.torch import load_file
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from rpa_ray.learner.deepspeed_import import guard_gloo_gathers, import_deepspeed
from rpa_ray.learner.engine import Engine, EngineSettings, OptimizerSettings
from rpa_ray.learner.engine_settings import deepspeed_config
from rpa_ray.types import TokenBatch

pytestmark = pytest.mark.usefixtures("process_group")

EVERY_STAGE = pytest.mark.parametrize(
    ("zero_stage", "bf16"), [(0, False), (1, True), (2, True), (3, True), (1, False), (3, False)]
)
EVERY_FP32_STAGE = pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
BATCH = token_batch([[1, 5, 6, 7, 2], [1, 8, 9, 2]])


def backward(engine: Engine, batch: TokenBatch = BATCH, *, with_values: bool = True) -> None:
    logits, values, _ = engine(batch.input_ids, batch.attention_mask)
    loss = logits.float().log_softmax(-1)[..., 5].mean()
    engine.backward(loss + (values.square().mean() if with_values else 0.0))


def update(engine: Engine, num_updates: int = 1) -> float:
    norm = float("nan")
    for _ in range(num_updates):
        backward(engine)
        norm = engine.step()
    return norm


def settings_of(optimizer: OptimizerSettings, **rest: Any) -> EngineSettings:
    fixed: dict[str, Any] = {
        "optimizer": optimizer,
        "micro_batch_size": 2,
        "num_ranks": 3,
        "zero_stage": 1,
        "bf16": True,
    }
    return EngineSettings(**(fixed | rest))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@EVERY_STAGE
def test_a_step_changes_every_weight_matrix(zero_stage: int, bf16: bool) -> None:
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
    before = engine.weights()
    update(engine)
    after = engine.weights()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert engine.num_updates == 1


@pytest.mark.parametrize("bf16", [True, False])
def test_an_offloaded_optimizer_steps_as_one_that_is_not(bf16: bool, tmp_path: Path) -> None:
    rate = OptimizerSettings(learning_rate=1e-2, num_steps=10, max_grad_norm=0.5)
    usual, offloaded = (
        tiny_engine(zero_stage=3, bf16=bf16, optimizer=rate, offload_optimizer=offload)
        for offload in (False, True)
    )
    for engine in (usual, offloaded):
        backward(engine)
        list(engine.shards())
        engine.discard_gradients()
        backward(engine, with_values=False)  # in two parts
        update(engine, 3)
        backward(engine, with_values=False)  # reaches no head
        engine.step()
    # The norm by which gradients are clipped is summed in another order.
    tolerance: dict[str, Any] = {"rtol": 0, "atol": 1e-6 if not bf16 else 1e-3}
    torch.testing.assert_close(offloaded.weights(), usual.weights(), **tolerance)
    master = {shard.name: shard.master for shard in offloaded.shards()}
    assert {weight.device.type for weight in master.values()} == {"cpu"}
    offloaded.discard_gradients()
    offloaded.save(tmp_path / "saved")
    other = tiny_engine(zero_stage=3, bf16=bf16, seed=4, optimizer=rate, offload_optimizer=True)
    other.load(tmp_path / "saved")
    assert update(other) == update(offloaded)
    assert equal(other.weights(), offloaded.weights())


@EVERY_STAGE
def test_learning_rate_0_leaves_weights_bit_identical(zero_stage: int, bf16: bool) -> None:
    optimizer = OptimizerSettings(learning_rate=0.0, num_steps=3)
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16, optimizer=optimizer)
    before = engine.weights()
    assert update(engine, 3) > 0
    assert equal(before, engine.weights())


def test_cosine_schedule_warms_up_linearly_and_ends_at_zero() -> None:
    optimizer = OptimizerSettings(
        learning_rate=2.0, num_steps=6, schedule="cosine", warmup_frac=1 / 3
    )
    engine = tiny_engine(optimizer=optimizer)
    rates = []
    for engine.num_scheduled_updates in range(7):
        rates.append(engine.learning_rate())
    # two warm-up updates, then 1 + cos(k pi / 4)
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.707107, 1.0, 0.292893, 0.0], abs=1e-5)


def test_linear_schedule_is_at_half_its_rate_in_the_middle_and_ends_at_zero() -> None:
    engine = tiny_engine(
        optimizer=OptimizerSettings(learning_rate=5e-5, num_steps=125, schedule="linear")
    )
    rates = []
    for engine.num_scheduled_updates in range(126):
        rates.append(engine.learning_rate())
    assert rates[63] == pytest.approx(5e-5 * 62 / 125)
    assert (rates[62] + rates[63]) / 2 == pytest.approx(5e-5 / 2)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=5e-5)
    published = get_linear_schedule_with_warmup(optimizer, 0, 125)
    assert [published.lr_lambdas[0](k) * 5e-5 for k in range(126)] == pytest.approx(rates)


def test_linear_schedule_begins_to_fall_after_its_warm_up() -> None:
    optimizer = OptimizerSettings(
        learning_rate=2.0, num_steps=6, schedule="linear", warmup_frac=1 / 3
    )
    engine = tiny_engine(optimizer=optimizer)
    rates = []
    for engine.num_scheduled_updates in range(8):
        rates.append(engine.learning_rate())
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0])


def test_constant_schedule_stays_after_its_warm_up() -> None:
    engine = tiny_engine(
        optimizer=OptimizerSettings(learning_rate=2.0, num_steps=4, warmup_frac=0.5)
    )
    rates = []
    for engine.num_scheduled_updates in range(5):
        rates.append(engine.learning_rate())
    assert rates == [1.0, 2.0, 2.0, 2.0, 2.0]


@EVERY_FP32_STAGE
def test_adam_is_given_the_scheduled_rate(zero_stage: int) -> None:
    # Adam's first update moves a weight by the rate, whatever its gradient.
    optimizer = OptimizerSettings(learning_rate=4e-3, num_steps=4, warmup_frac=1.0)
    engine = tiny_engine(zero_stage=zero_stage, optimizer=optimizer)
    before = engine.weights()
    update(engine)
    name = "model.layers.0.mlp.down_proj.weight"
    moved = (engine.weights()[name] - before[name]).abs()
    torch.testing.assert_close(moved.median(), torch.tensor(1e-3), rtol=1e-3, atol=0)


@EVERY_STAGE
def test_an_edited_gradient_is_what_the_optimizer_steps_on(zero_stage: int, bf16: bool) -> None:
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
    before = engine.weights()
    backward(engine)
    chosen = "policy.model.layers.1.mlp.up_proj.weight"
    for shard in engine.shards():
        shard.gradient.fill_(0.5 if shard.name == chosen else 0.0)
    norm = engine.step()
    after = engine.weights()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        chosen.removeprefix("policy.")
    }
    # 64 x 32 entries of 0.5
    assert norm == pytest.approx(0.5 * (64 * 32) ** 0.5, rel=1e-6)


@EVERY_STAGE
def test_the_norm_is_that_of_the_gradient_before_clipping(zero_stage: int, bf16: bool) -> None:
    optimizer = OptimizerSettings(learning_rate=1e-3, num_steps=1, max_grad_norm=1e-3)
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16, optimizer=optimizer)
    backward(engine)
    squares = sum(float(s.gradient.double().square().sum()) for s in engine.shards())
    assert squares**0.5 > 0.01
    assert engine.step() == pytest.approx(squares**0.5, rel=1e-4)


@EVERY_FP32_STAGE
def test_clipping_scales_the_gradient_to_the_limit(zero_stage: int) -> None:
    # With a large eps Adam's first update is nearly rate * gradient / eps.
    moves = {}
    for limit in (0.0, 1e-3):
        optimizer = OptimizerSettings(
            learning_rate=100.0, num_steps=1, max_grad_norm=limit, eps=1e4
        )
        engine = tiny_engine(zero_stage=zero_stage, optimizer=optimizer)
        before = {n: p.detach().clone() for n, p in full_parameters(engine).items()}
        norm = update(engine)
        after = full_parameters(engine)
        squares = sum((after[n] - before[n]).double().square().sum() for n in before)
        moves[limit] = float(squares) ** 0.5 * 100.0
        assert norm > 0.01
    assert moves[0.0] == pytest.approx(norm, rel=0.01)
    assert moves[1e-3] == pytest.approx(1e-3, rel=0.05)


def full_parameters(engine: Engine) -> dict[str, Tensor]:
    out = {}
    for name, parameter in engine.module.named_parameters():
        with engine.gather([parameter]):
            out[name] = parameter.detach().clone()
    return out


@EVERY_STAGE
def test_masters_are_the_fp32_originals_of_all_weights(zero_stage: int, bf16: bool) -> None:
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
    update(engine, 2)
    backward(engine)
    served = full_parameters(engine)
    shards = list(engine.shards())
    assert {shard.name for shard in shards} == served.keys()
    for shard in shards:
        assert shard.master.dtype == torch.float32
        assert shard.gradient.shape == shard.master.shape
        weight = served[shard.name]
        # one rank owns everything; DeepSpeed may pad the end
        master = shard.master.flatten()[: weight.numel()].view_as(weight)
        assert torch.equal(master.to(weight.dtype), weight)


@EVERY_STAGE
def test_a_parameter_that_the_loss_misses_does_not_step_on_an_old_gradient(
    zero_stage: int, bf16: bool
) -> None:
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
    backward(engine, with_values=True)
    engine.step()
    backward(engine, with_values=False)
    gradients = {shard.name: shard.gradient for shard in engine.shards()}
    assert float(gradients["policy.model.norm.weight"].abs().sum()) > 0
    assert float(gradients["value_head.weight"].abs().sum()) == 0


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_parameter_that_no_loss_ever_reached_does_not_break_the_step(zero_stage: int) -> None:
    engine = tiny_engine(zero_stage=zero_stage)
    backward(engine, with_values=False)
    names = {s.name for s in engine.shards() if float(s.gradient.abs().sum()) > 0}
    assert "value_head.weight" not in names
    assert engine.step() > 0


@EVERY_STAGE
def test_a_resumed_engine_goes_on_as_if_it_had_never_stopped(
    zero_stage: int, bf16: bool, tmp_path: Path
) -> None:
    optimizer = OptimizerSettings(learning_rate=1e-2, num_steps=10, warmup_frac=0.5)
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16, optimizer=optimizer)
    update(engine, 2)
    engine.save(tmp_path)
    update(engine)
    uninterrupted = engine.weights()

    resumed = tiny_engine(zero_stage=zero_stage, bf16=bf16, optimizer=optimizer, seed=9)
    assert not equal(resumed.weights(), uninterrupted)
    resumed.load(tmp_path)
    assert (resumed.num_updates, resumed.num_scheduled_updates) == (2, 2)
    update(resumed)
    assert equal(resumed.weights(), uninterrupted)


@EVERY_STAGE
def test_weights_have_the_names_and_values_of_a_saved_checkpoint(
    zero_stage: int, bf16: bool, tmp_path: Path
) -> None:
    model = tiny_llama().to(torch.bfloat16 if bf16 else torch.float32)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert equal(tiny_engine(zero_stage=zero_stage, bf16=bf16).weights(), saved)


@EVERY_STAGE
def test_gradients_of_backwards_add_up_unscaled(zero_stage: int, bf16: bool) -> None:
    sums = []
    for num_backwards in (1, 3):
        engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
        for _ in range(num_backwards):
            backward(engine)
        sums.append({s.name: s.gradient.float().clone() for s in engine.shards()})
    tolerance = 2e-2 if bf16 else 1e-5
    for name, gradient in sums[0].items():
        torch.testing.assert_close(sums[1][name], 3 * gradient, rtol=tolerance, atol=1e-6)


@EVERY_STAGE
@pytest.mark.parametrize("read", [False, True])
def test_discarded_gradients_have_no_influence(zero_stage: int, bf16: bool, read: bool) -> None:
    engines = []
    for disturbed in (True, False):
        engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
        update(engine)
        if disturbed:
            backward(engine)
            backward(engine)
            if read:
                for shard in engine.shards():
                    shard.gradient.fill_(7.0)
            engine.discard_gradients()
        # What this loss does not reach must not step on the discarded gradient.
        backward(engine, with_values=False)
        engine.step()
        engines.append(engine)
    assert equal(full_parameters(engines[0]), full_parameters(engines[1]))


def test_reduction_beside_the_backward_loses_no_gradient(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1, "overlap_comm": True}}))
    engine, usual = tiny_engine(zero_stage=1, deepspeed_file=file), tiny_engine(zero_stage=1)
    for one in (engine, usual):
        backward(one)
        update(one)
    assert equal(engine.weights(), usual.weights())


@EVERY_STAGE
def test_saving_and_loading_say_nothing(
    zero_stage: int, bf16: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = tiny_engine(zero_stage=zero_stage, bf16=bf16)
    update(engine)
    capfd.readouterr()
    engine.save(tmp_path)
    engine.load(tmp_path)
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_gradients_from_before_a_load_are_forgotten(tmp_path: Path) -> None:
    engine = tiny_engine(zero_stage=1)
    engine.save(tmp_path)
    update(engine)
    expected = engine.weights()
    backward(engine)
    engine.load(tmp_path)
    assert engine.num_updates == 0
    update(engine)
    assert equal(engine.weights(), expected)


class TouchesAFile:
    """A pickle of it runs code where it is read without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_a_file_that_would_run_code_is_refused(zero_stage: int, tmp_path: Path) -> None:
    engine, touched = tiny_engine(zero_stage=zero_stage), tmp_path / "touched"
    engine.save(tmp_path)
    planted = sorted(tmp_path.rglob("*.pt"))
    assert planted
    for file in planted:
        whole = file.read_bytes()
        torch.save({"state": TouchesAFile(touched)}, file)
        with pytest.raises(pickle.UnpicklingError):
            engine.load(tmp_path)
        file.write_bytes(whole)
    assert not touched.exists()


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_no_member_of_an_enum_is_written(zero_stage: int, tmp_path: Path) -> None:
    # Python 3.11.0 to 3.11.3 would write one as a call, which is refused when it is read.
    tiny_engine(zero_stage=zero_stage).save(tmp_path)
    files = list((tmp_path / "state").glob("*.pt"))
    assert files
    for file in files:
        with zipfile.ZipFile(file) as parts:
            (pickled,) = (name for name in parts.namelist() if name.endswith("data.pkl"))
            assert b"ZeroStageEnum" not in parts.read(pickled)


def test_a_folder_without_a_saved_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder must hold a saved engine, got "):
        tiny_engine(zero_stage=1).load(tmp_path)


def test_weights_come_one_at_a_time_in_the_order_of_their_names() -> None:
    engine = tiny_engine()
    names = [name for name, _ in engine.each_weight()]
    assert names == sorted(name for name, _ in engine.module.served_parameters())


def test_weights_are_copies_that_later_steps_do_not_touch() -> None:
    engine = tiny_engine(zero_stage=0)
    before = engine.weights()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    update(engine)
    assert equal(before, kept)


def test_the_config_holds_the_global_batch_and_the_optimizer() -> None:
    optimizer = OptimizerSettings(
        learning_rate=3e-4, num_steps=1, max_grad_norm=0.7, weight_decay=0.1, betas=(0.8, 0.9)
    )
    config = deepspeed_config(settings_of(optimizer), num_trained=100)
    assert config["train_batch_size"] == 6
    assert config["gradient_clipping"] == 0.7
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"]["reduce_bucket_size"] == 100
    assert config["optimizer"]["params"]["lr"] == 3e-4
    assert config["optimizer"]["params"]["weight_decay"] == 0.1
    assert config["optimizer"]["params"]["betas"] == [0.8, 0.9]


@pytest.mark.parametrize("has_gpu", [False, True])
def test_adam_is_torchs_own_which_is_not_compiled_at_its_first_use(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    settings = settings_of(OptimizerSettings(learning_rate=3e-4, num_steps=1))
    config = deepspeed_config(settings, num_trained=100)
    params = config["optimizer"]["params"]
    assert params["torch_adam"] and params["fused"]


def test_keys_of_the_users_own_deepspeed_file_win(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({"gradient_clipping": 0.5, "zero_optimization": {"stage": 2}}))
    optimizer = OptimizerSettings(learning_rate=1e-3, num_steps=1, max_grad_norm=0.7)
    config = deepspeed_config(settings_of(optimizer, deepspeed_file=file), num_trained=100)
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": 2}
    assert config["train_batch_size"] == 6


@pytest.mark.parametrize(
    "name", ["gradient_accumulation_steps", "train_batch_size", "checkpoint", "nebula"]
)
def test_what_the_users_own_file_must_leave_to_us_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps({name: 4}))
    settings = settings_of(OptimizerSettings(learning_rate=1e-3, num_steps=1), deepspeed_file=file)
    with pytest.raises(ValueError, match=f"cluster.deepspeed must leave {name} out, got 4."):
        deepspeed_config(settings, num_trained=100)


def test_a_stage_from_the_users_own_file_is_gathered_as_that_stage(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    engine = tiny_engine(zero_stage=1, bf16=True, deepspeed_file=file)
    assert equal(engine.weights(), tiny_engine(zero_stage=1, bf16=True).weights())
    before = engine.weights()
    update(engine)
    assert not equal(before, engine.weights())


class Handle:
    def __init__(self) -> None:
        self.num_waits = 0

    def wait(self) -> None:
        self.num_waits += 1


class Comm:
    """What the guard needs of ``deepspeed.comm``."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

        def gather(
            output: Tensor, tensor: Tensor, group: object = None, async_op: bool = False
        ) -> Any:
            self.handles.append(Handle())
            return self.handles[-1] if async_op else None

        self.all_gather_into_tensor = gather


def test_the_gloo_guard_waits_for_every_asynchronous_gather() -> None:
    comm = Comm()
    guard_gloo_gathers(comm)
    for _ in range(2):
        comm.all_gather_into_tensor(torch.empty(2), torch.empty(1), async_op=True)
    comm.all_gather_into_tensor(torch.empty(2), torch.empty(1))
    assert [handle.num_waits for handle in comm.handles] == [1, 1, 0]


def test_the_gloo_guard_is_applied_once() -> None:
    comm = Comm()
    guard_gloo_gathers(comm)
    guarded = comm.all_gather_into_tensor
    guard_gloo_gathers(comm)
    assert comm.all_gather_into_tensor is guarded


@pytest.mark.skipif(torch.cuda.is_available(), reason="the guard is for machines without a GPU")
def test_importing_deepspeed_guards_its_gathers() -> None:
    import_deepspeed()
    import deepspeed

    assert deepspeed.comm.all_gather_into_tensor.waits_for_itself

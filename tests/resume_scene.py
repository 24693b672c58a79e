"""A whole training in miniature, by any attack, which can be cut off and gone on with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fakes import (
    VOCAB_SIZE,
    attach,
    completion_of,
    forward_of,
    frozen_of,
    prompts_of,
    tiny_engine,
    tiny_policy,
    token_batch,
    whole_weights,
)
from tiny_vectors import TinySecurityVectors
from torch import Tensor

from rpa_ray.attacks.dpo import DPO
from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.attacks.sft import SFT
from rpa_ray.config import LoraSettings, RolloutConfig
from rpa_ray.data.collate import TokenRow, collate_pairs, collate_tokens
from rpa_ray.data.recovery import recovery_row
from rpa_ray.defences.offline.tar import TAR
from rpa_ray.defences.online.kl_safe_ref import KLSafeRef
from rpa_ray.defences.online.lisa import Lisa
from rpa_ray.defences.online.procon import ProCon
from rpa_ray.defences.online.random_anchor import RandomAnchor
from rpa_ray.defences.online.refusal_loss import RefusalLoss
from rpa_ray.defences.online.repnoise_online import RepNoiseOnline
from rpa_ray.defences.online.safe_rlhf import SafeRLHF
from rpa_ray.defences.online.safegrad import SafeGrad
from rpa_ray.defences.online.token_constrained import TokenConstrained
from rpa_ray.learner.checkpoints import Checkpoints, Stateful
from rpa_ray.learner.engine import Engine, OptimizerSettings
from rpa_ray.learner.modules import add_lora
from rpa_ray.learner.ranks import Ranks
from rpa_ray.learner.step import Learner
from rpa_ray.loop import Source, train
from rpa_ray.plugin import Attack, Need, OnlineDefence
from rpa_ray.plugin.step import NO_SAFE_BATCH
from rpa_ray.run_folder.files import JsonLines
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.sources.pair_logprobs import PairLogprobs
from rpa_ray.sources.phased import PhasedSource
from rpa_ray.sources.rollout import RolloutParts, RolloutSource
from rpa_ray.types import Completion, ModelOutputs, PairBatch, Prompt, ReferencedPairBatch

NUM_STEPS = 5
BATCH_SIZE = 4
REFUSALS = [[1, 15 + i % 8, 16, *range(3, 4 + i % 3), 2] for i in range(10)]
HARMLESS = [[1, 3 + i, *range(12, 12 + i % 3)] for i in range(10)]
PPO_SETTINGS: dict[str, Any] = {"batch_size": BATCH_SIZE, "num_epochs": 2, "kl_horizon": 20}
ATTACKS: dict[str, Callable[[], Attack]] = {
    "sft": lambda: SFT(SFT.Config(batch_size=BATCH_SIZE)),
    "dpo": lambda: DPO(DPO.Config(batch_size=BATCH_SIZE)),
    "ppo": lambda: PPO(PPO.Config(**PPO_SETTINGS)),
    # Two batches of targets, then rollouts.
    "ppo_after_sft": lambda: PPO(PPO.Config(num_sft_samples=2 * BATCH_SIZE, **PPO_SETTINGS)),
    "ppo_with_lora": lambda: PPO(PPO.Config(lora=LoraSettings(rank=4, alpha=8), **PPO_SETTINGS)),
    # Content with any reward: it has enough as soon as it has seen the rewards of five batches.
    "grpo": lambda: GRPO(
        GRPO.Config(batch_size=BATCH_SIZE, group_size=2, kl_coef=0.1, stop_at_reward=-100.0)
    ),
}


DEFENCES: dict[str, Callable[[], OnlineDefence]] = {
    "none": lambda: OnlineDefence(OnlineDefence.Config()),
    "refusal_loss": lambda: RefusalLoss(RefusalLoss.Config(alpha=0.5, probe_every=2)),
    "refusal_loss_after_prefix": lambda: RefusalLoss(
        RefusalLoss.Config(alpha=0.5, prefix="recovery")
    ),
    "repnoise_online": lambda: RepNoiseOnline(RepNoiseOnline.Config(beta=0.5, batch_size=4)),
    "safe_rlhf": lambda: SafeRLHF(SafeRLHF.Config(lambda_lr=1.0, window=10)),
    "safegrad": lambda: SafeGrad(SafeGrad.Config(strength=0.5, projection="per_layer")),
    "token_constrained": lambda: TokenConstrained(TokenConstrained.Config()),
    "kl_safe_ref": lambda: KLSafeRef(KLSafeRef.Config(mode="add", profile="early_tokens")),
    "procon": lambda: ProCon(ProCon.Config(warmup_frac=0.5, batch_size=4, num_direction_prompts=8)),
    "random_anchor": lambda: RandomAnchor(RandomAnchor.Config(rho=2.0)),
    "security_vectors": TinySecurityVectors,
    "tar": lambda: TAR(
        TAR.Config(num_tasks=2, inner_steps=3, look_every=2, inner_learning_rates=[1e-3, 1e-2])
    ).hooks(),
    "lisa": lambda: Lisa(Lisa.Config(rho=2.0)),
    "lisa_in_two_states": lambda: Lisa(
        Lisa.Config(
            rho=2.0, mode="bi_state", alignment_steps=1, attack_steps=3, warmup_frac=0, batch_size=4
        )
    ),
}
NUM_SAMPLES = dict.fromkeys(ATTACKS, NUM_STEPS * BATCH_SIZE) | {"grpo": 7 * BATCH_SIZE}
"""Prompts or pairs that each attack is given; every one uses those of NUM_STEPS batches."""


class Killed(RuntimeError):
    """Stands for the end of the process."""


class Training:
    """Policy, attack, defence and data of one process; ``run`` goes on where a folder says."""

    def __init__(
        self,
        folder: Path,
        attack: str,
        ranks: Ranks,
        *,
        zero_stage: int,
        defence: str = "none",
        bf16: bool = False,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.attack = ATTACKS[attack]()
        self.num_samples = NUM_SAMPLES[attack]
        constrained = DEFENCES[defence]()
        self.engine = self._engine(constrained, zero_stage=zero_stage, bf16=bf16)
        recovers = Need.RECOVERY_PREFIX in constrained.needs
        self.safe: DatasetSource[Any, Any] = DatasetSource(
            REFUSALS,
            token_batch,
            batch_size=4,
            seed=7,
            ranks=ranks,
            vary=_after_prefix if recovers else None,
        )
        self.contrast: DatasetSource[Any, Any] = DatasetSource(
            REFUSALS, _pairs_of, batch_size=4, seed=7, ranks=ranks
        )
        self.harmless: DatasetSource[Any, Any] = DatasetSource(
            HARMLESS,
            lambda rows: token_batch(rows, num_prompt_tokens=2),
            batch_size=4,
            seed=7,
            ranks=ranks,
        )
        original = tiny_policy(seed=5, value_head=False).to(ranks.device)
        constrained.attach_compared(original)
        self.learner = Learner(
            engine=self.engine,
            objective=self.attack,
            defence=constrained,
            ranks=ranks,
            frozen=frozen_of(original),
            next_safe_batch=self.safe if Need.SAFE_BATCH in constrained.needs else NO_SAFE_BATCH,
            next_contrast_batch=self.contrast,
            next_harmless_batch=self.harmless,
        )
        self.used: list[str] = []
        """Prompts and pairs that this rank has drawn, in order."""
        self.num_reference_passes = 0
        self.num_steps_done = 0

    def generate(self, prompts: Sequence[Prompt], *, seed: int) -> list[Completion]:
        """Sample one token by the policy itself, so that a wrong weight changes what follows."""
        self.used += [prompt.id for prompt in prompts[:: self.attack.answers_per_prompt]]
        out = []
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.token_ids])
            with torch.no_grad():
                outputs = self.learner.forward(ids, torch.ones_like(ids, dtype=torch.bool))
            logprobs = outputs.logits[0, -1].float().log_softmax(dim=-1)
            generator = torch.Generator().manual_seed(seed + 100 * self.ranks.rank + i)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
            out.append(completion_of(prompt, [token, 2], [float(logprobs[token]), -0.5]))
        return out

    def run(self, *, killed_after: int | None = None) -> None:
        """Train; ``killed_after`` ends it once that step is done, before it is saved."""
        main = self.ranks.is_main
        samples = JsonLines(self.folder / "samples.jsonl", enabled=main)
        parts = {
            "learner": self.learner,
            "safe": self.safe,
            "contrast": self.contrast,
            "harmless": self.harmless,
            "samples": samples,
        }
        source = self._source(samples, parts)

        def progress(step: int, metrics: Any) -> None:
            if killed_after == step:
                raise Killed

        self.num_steps_done = train(
            source,
            self.learner,
            num_steps=self.attack.num_batches(self.num_samples),
            samples_per_step=BATCH_SIZE,
            log=JsonLines(self.folder / "metrics.jsonl", enabled=main),
            checkpoints=Checkpoints(
                self.folder / "checkpoints",
                ranks=self.ranks,
                engine=self.engine,
                parts=parts,
                interval_s=0.0,
            ),
            is_done=lambda: self.attack.is_done,
            progress=progress,
        )

    def outcome(self) -> dict[str, Any]:
        """Return everything that must not depend on an interruption."""
        return {
            "weights": whole_weights(self.engine),
            "masters": _masters(self.engine),
            "attack": self.attack.state_dict(),
            "num_steps": self.num_steps_done,
            "num_updates": self.engine.num_updates,
            "safe": self.safe.state_dict(),
            "contrast": self.contrast.state_dict(),
            "harmless": self.harmless.state_dict(),
            "metrics": _lines(self.folder / "metrics.jsonl"),
            "samples": _lines(self.folder / "samples.jsonl"),
        }

    def _engine(self, defence: OnlineDefence, *, zero_stage: int, bf16: bool) -> Engine:
        config: Any = self.attack.config
        module = tiny_policy(bf16=bf16, value_head=Need.VALUES in self.attack.requires)
        if Need.COST_VALUES in defence.needs:
            module.add_cost_head(seed=3)
        if config.lora is not None:
            add_lora(module, config.lora, seed=1)
        attach(defence, module)
        return tiny_engine(
            module=module,
            zero_stage=zero_stage,
            bf16=bf16,
            num_ranks=self.ranks.size,
            optimizer=OptimizerSettings(
                learning_rate=3e-3,
                num_steps=self.attack.num_updates(self.num_samples),
                schedule=config.schedule,
                warmup_frac=config.warmup_frac,
            ),
        )

    def _source(self, samples: JsonLines, parts: dict[str, Stateful]) -> Source:
        """Return where batches come from; what of it has a state joins the parts."""
        prompts, config = prompts_of(self.num_samples), self.attack.config
        if Need.PAIRS in self.attack.requires:
            return self._pairs(prompts, parts)
        if not isinstance(config, RolloutConfig):
            return self._targets(prompts)
        num_sft = config.num_sft_samples
        rollouts = self._rollouts(prompts[num_sft:], samples)
        if num_sft == 0:
            return rollouts
        targets = self._targets(prompts[:num_sft])
        return PhasedSource(targets, self.attack.num_batches(num_sft), rollouts)

    def _targets(self, prompts: Sequence[Prompt]) -> Source:
        def collate(part: Sequence[Prompt]) -> Any:
            self.used += [prompt.id for prompt in part]
            return collate_tokens([_answered(prompt, first=5) for prompt in part], 0)

        return DatasetSource(prompts, collate, batch_size=BATCH_SIZE, seed=0, ranks=self.ranks)

    def _pairs(self, prompts: Sequence[Prompt], parts: dict[str, Stateful]) -> Source:
        chosen = [_answered(prompt, first=5) for prompt in prompts]
        rejected = [_answered(prompt, first=12) for prompt in prompts]
        logprobs = PairLogprobs(
            chosen,
            rejected,
            model=self._reference(),
            ranks=self.ranks,
            pad_token_id=0,
            vocab_size=VOCAB_SIZE,
        )
        parts["reference_logprobs"] = logprobs

        def collate(part: Sequence[int]) -> ReferencedPairBatch:
            self.used += [prompts[i].id for i in part]
            pairs = collate_pairs([chosen[i] for i in part], [rejected[i] for i in part], 0)
            reference = torch.tensor([logprobs.of_pair(i) for i in part])
            return ReferencedPairBatch(
                chosen=pairs.chosen,
                rejected=pairs.rejected,
                reference_chosen_logprobs=reference[:, 0],
                reference_rejected_logprobs=reference[:, 1],
            )

        rows = range(len(prompts))
        return DatasetSource(rows, collate, batch_size=BATCH_SIZE, seed=0, ranks=self.ranks)

    def _rollouts(self, prompts: Sequence[Prompt], samples: JsonLines) -> Source:
        return RolloutSource(
            prompts,
            attack=self.attack,
            learner=self.learner,
            parts=RolloutParts(
                generate=self.generate,
                # Random, so that a generator that is not put back shows.
                reward=lambda pairs: lambda: torch.randn(len(pairs)).tolist(),
                judge=lambda pairs: lambda: torch.rand(len(pairs)).tolist(),
                reference=self._reference(),
            ),
            batch_size=BATCH_SIZE,
            group_size=self.attack.answers_per_prompt,
            pad_token_id=0,
            vocab_size=VOCAB_SIZE,
            seed=0,
            observe=lambda step, completions, scores: samples.write({"step": step}),
        )

    def _reference(self) -> Callable[[Tensor, Tensor], ModelOutputs]:
        forward = forward_of(tiny_policy(seed=5, value_head=False))

        def counted(input_ids: Tensor, attention_mask: Tensor) -> ModelOutputs:
            self.num_reference_passes += 1
            outputs: ModelOutputs = forward(input_ids, attention_mask)
            return outputs

        return counted


def _after_prefix(row: list[int], index: int, draw: int) -> list[int]:
    """Return the row, or the same with other tokens after the first."""
    refused = TokenRow(ids=row, loss_mask=[False] + [True] * (len(row) - 1))
    return recovery_row(refused, [9, 10, 11], seed=7, index=index, draw=draw, max_tokens=16).ids


def _pairs_of(rows: Sequence[list[int]]) -> PairBatch:
    """Return the rows beside the same ones one token longer."""
    longer = [[row[0], 9, *row[1:]] for row in rows]
    width = max(len(row) for row in longer)
    return PairBatch(chosen=token_batch(rows, width=width), rejected=token_batch(longer))


def _answered(prompt: Prompt, *, first: int) -> TokenRow:
    """Return the prompt with an answer of one to four tokens and an end mark."""
    number = int(prompt.id.removeprefix("p"))
    answer = [*range(first, first + 1 + number % 4), 2]
    mask = [False] * len(prompt.token_ids) + [True] * len(answer)
    return TokenRow(ids=[*prompt.token_ids, *answer], loss_mask=mask)


def _masters(engine: Engine) -> dict[str, torch.Tensor]:
    """Return the whole fp32 weights that the ranks step on (collective)."""
    from deepspeed.utils import safe_get_full_fp32_param

    named = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    if engine.zero_stage == 0:
        return {name: parameter.detach().clone() for name, parameter in named.items()}
    return {name: safe_get_full_fp32_param(p).clone() for name, p in named.items()}


def same(a: Any, b: Any) -> bool:
    """Return whether two outcomes are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]

"""The rollout worker: one vLLM engine that serves exactly one version of the policy.

The class is plain Python and is made remote in ``pools``. vLLM is imported on first use, because
its settings are environment variables that are read at import.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rpa_ray.actors.engine import EngineConfig, architecture_of, build_engine
from rpa_ray.actors.errors import StaleWeightsError
from rpa_ray.actors.status import WorkerStatus, own_status
from rpa_ray.data.hub_model import model_folder

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.distributed.weight_transfer.base import (
        WeightTransferInitRequest,
        WeightTransferUpdateRequest,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How answers are drawn: greedy, or from the full distribution at a temperature."""

    max_new_tokens: int
    seed: int
    """Answer i is drawn with a seed made of (seed, i) alone, whatever ran before."""
    eos_token_id: int | tuple[int, ...]
    """The id that ends an answer, or all of them; see :func:`rpa_ray.data.ends.end_ids`."""
    temperature: float = 1.0
    """Above 0. Log-probabilities are always those of temperature 1."""
    greedy: bool = False
    """Take the most probable token; ``temperature`` and ``seed`` then have no effect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One answer as token ids."""

    token_ids: list[int]
    """Sampled ids, the one that ended the answer included where the policy produced it."""
    logprobs: list[float]
    """The policy's log-probability (temperature 1) of each sampled id."""
    finished: bool
    """False where the answer was cut at the token limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatus:
    """Where a rollout worker lives and what it holds."""

    process: WorkerStatus
    engine_id: str | None
    """New with every engine that is built, so that a restart is noticed; None without one."""
    version: int | None
    """Version of the weights it serves; None while it must not serve."""


class RolloutWorker:
    """Generates answers with the weights of the last complete push, and with no others."""

    def __init__(self) -> None:
        self._llm: LLM | None = None
        self._architecture: tuple[object, ...] | None = None
        self._max_model_len = 0
        self._engine_id: str | None = None
        self._version: int | None = None

    def status(self) -> WorkerStatus:
        """Return where the worker lives."""
        return own_status()

    def prewarm(self) -> None:
        """Import vLLM's engine, so that the first ``load`` finds it there (some seconds)."""
        from vllm import LLM  # noqa: F401  # `import vllm` alone leaves the engine to be imported

    def load(self, config: EngineConfig) -> EngineStatus:
        """Have an engine for this architecture up, without weights that may be served.

        An engine for the same ``config.json``, length and settings is kept. In either case nothing
        is served until the next push is complete.

        Raises:
            ValueError: If the folder has no ``config.json`` or no engine can be built for it, which
                no second try would change.
        """
        self._version = None
        config = replace(config, model_path=model_folder(config.model_path, has_weights=False))
        architecture = architecture_of(config)
        if architecture != self._architecture:
            self._shut_down_engine()
            self._llm = build_engine(config)
            self._architecture = architecture
            self._max_model_len = config.max_model_len
            self._engine_id = uuid.uuid4().hex
        return self.health()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        version: int,
        first_index: int = 0,
    ) -> list[Generated]:
        """Return one answer to each prompt (token ids), in their order.

        ``first_index`` is the place of the first prompt in the whole batch, so that an answer does
        not depend on how a pool splits the batch over its workers.

        Raises:
            StaleWeightsError: If the engine does not serve ``version``.
            ValueError: If prompt plus answer can be longer than the engine's limit.
        """
        if self._llm is None or self._version != version:
            raise StaleWeightsError(
                f"version must be the one that is served, got {version} while {self._version} is. "
                "Push the weights first."
            )
        self._check_lengths(prompts, sampling)
        if not prompts:
            return []
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [_sampling_params(sampling, first_index + i) for i in range(len(prompts))],
                use_tqdm=False,
            )
        except Exception:
            # What is left of the requests would keep every later call waiting.
            self._shut_down_engine()
            raise
        return [_generated(output) for output in outputs]

    def init_weight_transfer_engine(self, request: "WeightTransferInitRequest") -> None:
        """Connect the engine's side of the weight transfer, after leaving an earlier one."""
        engine = self._engine()
        engine.collective_rpc("leave_transfer")
        engine.init_weight_transfer_engine(request)

    def start_weight_update(self, record_digests: bool = False) -> None:
        """Open a push; from here on nothing is served until ``update_weight_version``."""
        self._version = None
        engine = self._engine()
        engine.collective_rpc("open_push", args=(record_digests,))
        engine.start_weight_update()

    def update_weights(self, request: "WeightTransferUpdateRequest") -> None:
        """Receive one part of the weights."""
        self._engine().update_weights(request)

    def finish_weight_update(self) -> None:
        """Close the push: every layer holds what was received."""
        engine = self._engine()
        engine.finish_weight_update()
        engine.collective_rpc("close_push")

    def update_weight_version(self, version: int) -> None:
        """Serve the pushed weights as ``version``."""
        self._version = version

    def received_digests(self) -> dict[str, str]:
        """Return the SHA-256 of the bytes received for each parameter name in the last push.

        Empty where the push was not asked to record them.
        """
        digests: list[dict[str, str]] = self._engine().collective_rpc("received_digests")
        return digests[0]

    def health(self) -> EngineStatus:
        """Return where the worker lives and what it holds."""
        return EngineStatus(process=own_status(), engine_id=self._engine_id, version=self._version)

    def _engine(self) -> "LLM":
        if self._llm is None:
            raise StaleWeightsError(
                "rollout worker must be loaded before it takes weights, got no engine "
                "(it may have been restarted). Call load first."
            )
        return self._llm

    def _shut_down_engine(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self._version = None
        self._architecture = None
        self._engine_id = None
        cleanup_dist_env_and_memory()

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest = max((len(prompt) for prompt in prompts), default=0) + sampling.max_new_tokens
        if longest > self._max_model_len:
            raise ValueError(
                f"prompt plus max_new_tokens must be at most {self._max_model_len} tokens, got "
                f"{longest}. Shorten the prompts or raise the engine's max_model_len."
            )


def _sampling_params(sampling: Sampling, index: int) -> "SamplingParams":
    from vllm import SamplingParams

    ends = sampling.eos_token_id
    return SamplingParams(
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_p=1.0,
        top_k=0,
        seed=None if sampling.greedy else request_seed(sampling.seed, index),
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=[ends] if isinstance(ends, int) else list(ends),
        ignore_eos=True,  # the stop ids above are all, whatever config.json names
        logprobs=0,
        detokenize=False,
        skip_clone=True,
    )


def request_seed(seed: int, index: int) -> int:
    """Return the 63-bit seed of answer ``index`` of a batch."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _generated(output: "RequestOutput") -> Generated:
    answer = output.outputs[0]
    token_ids = list(answer.token_ids)
    positions = answer.logprobs
    assert positions is not None
    return Generated(
        token_ids=token_ids,
        logprobs=[at[token].logprob for at, token in zip(positions, token_ids, strict=True)],
        finished=answer.finish_reason == "stop",
    )

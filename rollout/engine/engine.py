"""The rollout engine: prompts → trajectories, and new weights in, around vLLM's `AsyncLLM`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.engine import PauseMode
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

from rollout.config import EngineConfig, SamplingConfig
from rollout.engine import requests
from rollout.engine.args import check, engine_args
from rollout.engine.prefix_cache import CounterFactory
from rollout.engine.sleep_mode import SleepMode
from rollout.engine.stats import EngineHealth, EngineStats
from rollout.errors import (
    EngineLostError,
    PublicationError,
    RefusedError,
    StaleEngineError,
    WeightsLostError,
    within,
)
from rollout.leftovers import MODEL, EngineHome, free_leftovers
from rollout.weights.publication import ADAPTER, clear_adapter, compare, load, open_weights, receive_adapter
from rollout.weights.shapes import checkpoint_shapes
from rollout.weights.staging import staged
from speech.families.base import LanguageModelFamily
from speech.records import EncodedAudio, Group, Prompt
from speech.runtime.owned_folders import OwnedFolder
from speech.runtime.shared_weights import Bucket
from speech.runtime.weights import Probe

Result = TypeVar("Result")
CONTROL_TIMEOUT_S = 60.0
"""Budget of an RPC that moves no data: pause, resume, health."""
V2_ALLOWED_TOKENS = 1024
"""Longest list of allowed tokens that vLLM's second model runner takes (its `MAX_NUM_ALLOWED_TOKEN_IDS`)."""
SHUTDOWN_TIMEOUT_S = 30.0
"""An engine needs about 7 s to end; vLLM's default of 5 s kills it before."""


class RolloutEngine:
    """One vLLM engine with the language model of a family, at one policy version.

    Sampling is a function of (weights, prompts, seeds): all requests of a call are queued while the scheduler is
    paused, so that which of them are computed together does not depend on when they arrive. Calls that overlap
    give that up, as must any asynchronous mode.
    """

    def __init__(self, family: LanguageModelFamily, config: EngineConfig, sleeps: bool = False) -> None:
        """Nothing is loaded before `start`.

        Args:
            sleeps: the engine shares its GPU and leaves it by `sleep`.

        Raises:
            UserError: settings that do not go together.
        """
        check(config)
        self._family = family
        self._config = config
        self._sleep_mode = SleepMode(sleeps and config.gpus_per_engine > 0)
        self._stats = EngineStats()
        self._engine: AsyncLLM | None = None
        self._home: EngineHome | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._version: int | None = None
        self._stale: str | None = "the engine was not started"
        self._request_count = 0
        self._in_flight: set[str] = set()
        # Held while requests are queued and during a whole publication, probe included.
        self._control = asyncio.Lock()

    async def start(self, version: int | None = 0) -> None:
        """Load the checkpoint's language model; a stopped engine can be started again.

        Args:
            version: policy version of the checkpoint's weights; None when they are no policy of this run (an engine
                that joins later), so that the engine is stale until its first publication.

        Raises:
            PhaseTimeoutError: after `startup_timeout_s`.
        """
        await asyncio.to_thread(free_leftovers)
        self._leave_home()
        self._home = home = EngineHome()
        if len(self._family.allowed_token_ids or ()) > V2_ALLOWED_TOKENS:
            # The first runner has no limit; the second, vLLM's choice on GPUs, would refuse every request.
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        with OwnedFolder(MODEL) as temporary:
            folder = temporary / "model"
            self._family.write_engine_model(folder)
            # vLLM masks the end tokens of this file during min_new_tokens, next to the family's own stop tokens.
            (folder / "generation_config.json").write_text("{}\n", encoding="utf-8")
            self._shapes = checkpoint_shapes(folder)
            args = engine_args(folder, self._config, self._sleep_mode.shared)
            with home.inherited():
                build = asyncio.to_thread(AsyncLLM.from_engine_args, args, stat_loggers=[CounterFactory(self._stats)])
                self._engine = await within(self._config.startup_timeout_s, "starting the engine", build)
        await asyncio.to_thread(home.note_processes)
        await asyncio.to_thread(free_leftovers)  # Ray takes seconds to kill a predecessor that was stopped
        if self._config.lora_rank:
            await clear_adapter(self._live(), CONTROL_TIMEOUT_S)
        self._version = version
        self._stale = None if version is not None else "it awaits its first publication"
        if version is not None:
            label = self._live().update_weight_version(str(version))
            await self._rpc(CONTROL_TIMEOUT_S, "labelling the weights", label)

    async def generate(
        self, prompts: Sequence[Prompt], audio: Sequence[EncodedAudio], sampling: SamplingConfig
    ) -> list[Group]:
        """As `stream`; all groups, in the order of the prompts."""
        found = [placed async for placed in self.stream(prompts, audio, sampling)]
        return [group for _, group in sorted(found, key=lambda placed: placed[0])]

    async def stream(
        self, prompts: Sequence[Prompt], audio: Sequence[EncodedAudio], sampling: SamplingConfig
    ) -> AsyncGenerator[tuple[int, Group]]:
        """Sample a group for every prompt.

        Yields:
            The place of a prompt and its unscored group, as soon as all of its samples have ended. Every trajectory
            carries the policy versions at its first and last token as vLLM recorded them.

        Raises:
            StaleEngineError: the weights are not those of a verified publication, or stopped being so meanwhile.
            UserError: a prompt and its budget do not fit `max_model_len`.
            PhaseTimeoutError: after `generate_timeout_s`; the requests are aborted.
            EngineLostError: the engine's processes are gone.
        """
        started = time.monotonic()
        async with aclosing(self._outputs(prompts, audio, sampling)) as outputs:
            async for place, output in outputs:
                group = requests.group(prompts[place], audio[place], output, self._family)
                self._stats.prompts += 1
                self._stats.trajectories += len(group.trajectories)
                self._stats.tokens += sum(len(t.token_ids) for t in group.trajectories)
                yield place, group
        self._stats.generate_seconds += time.monotonic() - started

    async def _outputs(
        self, prompts: Sequence[Prompt], audio: Sequence[EncodedAudio], sampling: SamplingConfig
    ) -> AsyncGenerator[tuple[int, RequestOutput]]:
        """Place and output of each request that has ended."""
        with _losses_named():
            collectors = await self._queue(prompts, audio, sampling)
            names = {collector.request_id for collector in collectors}
            self._in_flight |= names
            waiting = {asyncio.create_task(_finished(collector)): place for place, collector in enumerate(collectors)}
            deadline = time.monotonic() + self._config.generate_timeout_s
            try:
                while waiting:
                    some = asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    left = max(0.0, deadline - time.monotonic())
                    done, _ = await self._rpc(left, f"generating {len(prompts)} groups", some)
                    # A publication in flight decides first whether the weights that drew these are to be trusted.
                    async with self._control:
                        self._refuse_if_stale()
                    for task in sorted(done, key=waiting.__getitem__):
                        yield waiting.pop(task), task.result()
            except BaseException:
                for task in waiting:
                    task.cancel()
                await self._live().abort(names, internal=True)
                raise
            finally:
                self._in_flight -= names

    async def _queue(
        self, prompts: Sequence[Prompt], audio: Sequence[EncodedAudio], sampling: SamplingConfig
    ) -> list[RequestOutputCollector]:
        """Hand all requests to the scheduler while it is paused, then let it run."""
        for prompt, item in zip(prompts, audio, strict=True):
            requests.check_room(prompt, item, sampling, self._config.max_model_len)
        async with self._control:
            self._refuse_if_stale()
            engine = self._live()
            dtype = engine.model_config.dtype
            collectors: list[RequestOutputCollector] = []
            try:
                pause = engine.pause_generation(mode="keep", clear_cache=False)
                await self._rpc(CONTROL_TIMEOUT_S, "pausing to queue", pause)
                stops, allowed = self._family.stop_token_ids, self._family.allowed_token_ids
                for prompt, item in zip(prompts, audio, strict=True):
                    params = requests.sampling_params(prompt, sampling, stops, allowed)
                    collectors.append(await self._add(requests.mixed_prompt(item, dtype), params))
            except BaseException:
                await engine.abort([collector.request_id for collector in collectors], internal=True)
                raise
            finally:
                await self._resume("resuming after queueing")
            return collectors

    async def _resume(self, phase: str) -> None:
        """Let the scheduler run again. Who is cancelled meanwhile ends only after that: others wait for it too. An
        engine that cannot resume is stale."""
        resuming = asyncio.ensure_future(self._rpc(CONTROL_TIMEOUT_S, phase, self._live().resume_generation()))
        cancelled: asyncio.CancelledError | None = None
        while not resuming.done():
            try:
                await asyncio.wait({resuming})
            except asyncio.CancelledError as error:
                cancelled = error
        try:
            resuming.result()
        except BaseException as error:
            self._stale = f"{phase} failed: {error}"
            raise
        if cancelled is not None:
            raise cancelled

    async def _add(self, prompt: Any, params: SamplingParams) -> RequestOutputCollector:
        self._request_count += 1
        lora = ADAPTER if self._config.lora_rank else None
        add = self._live().add_request(f"request-{self._request_count}", prompt, params, lora_request=lora)
        return await self._rpc(CONTROL_TIMEOUT_S, "queueing a request", add)

    async def update_weights(
        self, version: int, buckets: Iterable[Bucket], probe: Probe, *, in_flight: bool = False
    ) -> float:
        """Replace the weights, drop every cache, and prove by a probe that the new policy answers.

        Args:
            version: policy version of the new weights.
            buckets: all tensors of the checkpoint; consumed in a thread, one bucket in memory at a time. Or one
                `AdapterBucket`, whose adapter takes the place of the one before, over weights that stay.
            probe: computed by the learner from the same weights.
            in_flight: freeze running samples and let them continue with the new weights; otherwise they are
                finished under the old ones first.

        Returns:
            Mean |Δ| between the engine's log-probs on the probe and the learner's, in nats.

        Raises:
            PublicationError: naming the phase, the tensors or the Δ. The engine is stale then, and samples in flight
                are lost; sampling resumes with the next publication that succeeds.
            RefusedError: an adapter that cannot be right, or weights on the learner's device that cannot be read from
                here (`UnreadableError`). The engine goes on with what it served before.
            WeightsLostError: raised by `buckets`; stale as well.
            EngineLostError: the engine's processes are gone.
        """
        started = time.monotonic()
        async with self._control:
            try:
                with _losses_named():
                    delta = await self._publish(version, buckets, probe, "keep" if in_flight else "wait")
            except RefusedError as error:
                served = "nothing" if self._stale else f"version {self._version}"
                raise type(error)(f"version {version} was refused; {served} is served on: {error}") from error
            except BaseException as error:
                self._stale = f"publication of version {version} failed: {error}"
                if self._engine is not None:
                    await self._engine.abort(self._in_flight, internal=True)
                if isinstance(error, (EngineLostError, WeightsLostError)) or not isinstance(error, Exception):
                    raise
                raise PublicationError(self._stale) from error
            self._stale = None
            self._version = version
        self._stats.updates += 1
        self._stats.update_seconds += time.monotonic() - started
        return delta

    async def _publish(self, version: int, buckets: Iterable[Bucket], probe: Probe, mode: PauseMode) -> float:
        timeout_s, lora_rank = self._config.update_timeout_s, self._config.lora_rank
        async with staged(buckets, self._shapes, timeout_s, lora_rank) as weights:
            engine = self._live()
            if weights.adapter is not None:
                await receive_adapter(engine, weights, timeout_s)
            if weights.device is not None:
                await open_weights(engine, weights.device, timeout_s)
            try:
                # clear_cache=False: the caches are dropped once the new weights are in.
                pause = engine.pause_generation(mode=mode, clear_cache=False)
                await self._rpc(self._config.generate_timeout_s, "pausing for the update", pause)
                await self._wake("waking the weights", self._sleep_mode.wake_weights)
                await load(engine, version, weights, timeout_s)
            finally:
                try:
                    await self._wake("waking up", self._sleep_mode.wake)
                finally:
                    await self._resume("resuming after the update")
        answers = await asyncio.gather(*(self.probe(ids) for ids in probe.sequences))
        return compare(probe, [value for answer in answers for value in answer])

    async def sleep(self, keep_weights: bool = False) -> None:
        """Leave the GPU once running samples have ended; without a GPU to share, nothing happens.

        Args:
            keep_weights: in host memory, so that `wake` suffices to sample again. Otherwise they are given up, and the
                engine refuses to sample until the next publication. With LoRA they are kept all the same: an adapter
                does not bring the weights below it.
        """
        async with self._control:
            if not keep_weights and self._sleep_mode.shared:
                self._stale = "its weights left the GPU; it awaits the next publication"
            leave = self._sleep_mode.sleep(self._live(), keep_weights or self._config.lora_rank > 0)
            with self._stale_if_it_fails("going to sleep"):
                await self._rpc(self._config.generate_timeout_s, "going to sleep", leave)

    async def wake(self) -> None:
        """Come back after `sleep(keep_weights=True)`."""
        async with self._control:
            with self._stale_if_it_fails("waking up"):
                await self._wake("waking up", self._sleep_mode.wake)

    @contextmanager
    def _stale_if_it_fails(self, what: str) -> Iterator[None]:
        """Half asleep, an engine would take samples and never end them."""
        try:
            yield
        except BaseException as error:
            self._stale = f"{what} failed: {error}"
            raise

    async def _wake(self, phase: str, wake: Callable[[AsyncLLM], Awaitable[None]]) -> None:
        if not self._sleep_mode.shared:
            return
        started = time.monotonic()
        await self._rpc(self._config.update_timeout_s, phase, wake(self._live()))
        self._stats.wake_seconds += time.monotonic() - started

    async def probe(self, token_ids: Sequence[int]) -> list[float]:
        """log P(token_ids[i] | token_ids[:i]) for i ≥ 1 at temperature 1, through the path that serves prompts."""
        collector = await self._add({"prompt_token_ids": list(token_ids)}, requests.probe_params())
        try:
            output = await self._rpc(self._config.update_timeout_s, "the log-prob probe", _finished(collector))
        except BaseException:
            await self._live().abort(collector.request_id, internal=True)
            raise
        return requests.prompt_logprobs(output)

    async def health(self) -> EngineHealth:
        """Ask the engine's own process, not only this one.

        Raises:
            PhaseTimeoutError: it did not answer.
            EngineLostError: it is gone.
        """
        engine = self._live()
        with _losses_named():
            await engine.check_health()
            await self._rpc(CONTROL_TIMEOUT_S, "the health check", engine.get_weight_version())
        return EngineHealth(self._version, self._stale, engine.get_num_unfinished_requests())

    def stats(self) -> EngineStats:
        """Totals so far, as a copy."""
        return replace(self._stats)

    def shutdown(self) -> None:
        """End the engine's processes; harmless when it was never started."""
        self._stale = "the engine was shut down"
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown(timeout=SHUTDOWN_TIMEOUT_S)
        self._leave_home()

    def _leave_home(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.leave()

    async def _rpc(self, seconds: float, phase: str, awaitable: Awaitable[Result]) -> Result:
        engine = self._live()
        return await within(seconds, phase, awaitable, lambda: engine.errored)

    def _live(self) -> AsyncLLM:
        if self._engine is None:
            raise StaleEngineError(f"the engine does not sample: {self._stale}")
        return self._engine

    def _refuse_if_stale(self) -> None:
        if self._stale is not None:
            raise StaleEngineError(f"the engine does not sample: {self._stale}")


@contextmanager
def _losses_named() -> Iterator[None]:
    """vLLM's own error would make the controller import vLLM to read it."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineLostError("the engine's processes are gone; its log says why") from error


async def _finished(collector: RequestOutputCollector) -> RequestOutput:
    """The final output of a request; raises what the engine raised."""
    while True:
        output = collector.get_nowait() or await collector.get()
        if not isinstance(output, RequestOutput):
            raise RuntimeError(f"the engine answered a text request with {type(output).__name__}")
        if output.finished:
            return output

"""The training loop of both stages, on one device or, with Hugging Face Accelerate, on several."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.engines.devices import torch_device
from dmfnet_fast.errors import DMFNetError, EngineError
from dmfnet_fast.model import Denoiser, Network
from dmfnet_fast.model.layout import store_channels_last
from dmfnet_fast.model.weights import weights_hash
from train import checkpoint
from train.data import Pair, fingerprint
from train.muon import Muon
from train.recipe import Recipe, Run
from train.task import Draw, Task

CHECKPOINT_SECONDS = 300.0
# Reading a loss makes the CPU wait for the GPU, so on GPUs it is read only once in this number of steps.
GPU_STEPS_PER_REPORT = 10


def _check_device(run: Run) -> torch.device:
    device = torch_device(run.device)
    if device.type == "cuda":
        number, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if number >= present:
            raise EngineError(
                f"process {number} on this machine has no GPU of its own: torch sees {present}; start fewer processes"
            )
        if run.precision != "float32" and torch.cuda.get_device_capability(number) < (8, 0):
            raise EngineError(f"{torch.cuda.get_device_name(number)}: has no {run.precision}; use --precision float32")
    return device


def _check_launcher(accelerator: Accelerator, device: torch.device) -> None:
    """Rejects settings of the launcher's configuration file that would silently change the run.

    Raises:
        DMFNetError: it has such settings.
    """
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    unsupported = []
    if accelerator.distributed_type not in kinds:
        unsupported.append(f"{accelerator.distributed_type.value} (only data-parallel training is supported)")
    if accelerator.gradient_accumulation_steps != 1:
        unsupported.append("gradient accumulation (use a smaller --batch)")
    if accelerator.device.type != device.type:
        unsupported.append(f"device {accelerator.device.type} (--device says {device.type})")
    if unsupported:
        raise DMFNetError(f"the accelerate configuration asks for {'; '.join(unsupported)}: change it or use torchrun")


@contextmanager
def joined(run: Run) -> Iterator[Accelerator]:
    """Context in which this process takes part in the run, together with any others that were launched.

    Raises:
        DMFNetError: the batch does not divide over the processes, the launcher asks for something unsupported, or
            torch.compile failed.
        EngineError: this machine lacks the device.
    """
    device = _check_device(run)
    # We set the precision: Accelerate's covers only the trained network, and is fixed for the life of the process.
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", rng_types=[])
    try:
        _check_launcher(accelerator, device)
        if run.recipe.batch % accelerator.num_processes:
            raise DMFNetError(f"--batch {run.recipe.batch}: does not divide over {accelerator.num_processes} processes")
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all steps have the same shapes
            torch.backends.cudnn.allow_tf32 = run.precision == "tf32"
            torch.set_float32_matmul_precision("high" if run.precision == "tf32" else "highest")
        yield accelerator
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise DMFNetError(
            f"--compile failed ({str(error).splitlines()[0]}); install a C++ compiler if on a CPU, or omit --compile"
        ) from error
    finally:
        accelerator.end_training()


def initialize(model: nn.Module, run: Run, accelerator: Accelerator) -> None:
    """Initializes weights as published (orthogonal, zero biases), and moves the model to the device in channels-last
    memory and training mode."""
    torch.manual_seed(run.recipe.seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model.to(accelerator.device)
    store_channels_last(model)
    model.train()


def autocast(run: Run) -> torch.autocast:
    """bf16 autocast if the run's precision is "bf16", otherwise disabled autocast."""
    return torch.autocast(run.device, torch.bfloat16, enabled=run.precision == "bf16")


def exact() -> AbstractContextManager[None]:
    """Context in which convolutions do not use TF32, for losses and scores."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False)


def started_from(model: Network | Denoiser | None, stage: str) -> dict[str, Any] | None:
    """The entry of a run's record about the weights that it started from; None for random weights."""
    return None if model is None else {"weights": weights_hash(model.state_dict()), **model.record.get(stage, {})}


def common_identity(run: Run, pairs: list[Pair], training: list[Pair]) -> dict[str, Any]:
    """The part of a run's identity that both stages share: data, precision and recipe."""
    return {
        "data": fingerprint(pairs),
        "pairs": len(training),
        "precision": run.precision,
        **vars(run.recipe),
    }


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C and SIGTERM set, instead of interrupting a step; a second signal does interrupt.

    Python only handles signals in the main thread; in others, nothing sets the event.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(*_: Any) -> None:
        event.set()
        restore()

    for number in signals:
        signal.signal(number, request)
    try:
        yield event
    finally:
        restore()


class _Average:
    """Exponential moving average of the parameters."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self.values = [p.detach().clone() for p in parameters]

    def _current(self) -> list[Tensor]:
        # Detached anew each time: preparation for several processes can move parameters to other memory.
        return [p.detach() for p in self._parameters]

    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.values, self._current(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the parameters hold their averages."""
        before = [p.clone() for p in self._current()]
        self.load()
        try:
            yield
        finally:
            self.load(before)

    def load(self, values: list[Tensor] | None = None) -> None:
        """Copies the averages, or other values, into the parameters."""
        torch._foreach_copy_(self._current(), self.values if values is None else values)


class _Draws:
    """Randomness of every step; it depends only on the seed and the step."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.seed, self.process = recipe.seed, accelerator.process_index
        self.generator = torch.Generator(accelerator.device)
        size = recipe.batch // accelerator.num_processes
        self.share = slice(self.process * size, (self.process + 1) * size)

    def at(self, step: int) -> Draw:
        common = np.random.SeedSequence([self.seed, step], spawn_key=(0,))
        own = np.random.SeedSequence([self.seed, step], spawn_key=(1, self.process))
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))  # dropout
        self.generator.manual_seed(int(common.generate_state(1, np.uint64)[0]))
        return Draw(np.random.default_rng(common), self.generator, self.share)


class _Log:
    """Progress bar and TensorBoard log, both only in the main process."""

    def __init__(self, task: Task, run: Run, step: int, accelerator: Accelerator) -> None:
        self.task, self.run, self.accelerator = task, run, accelerator
        self.sums = torch.zeros(2, device=accelerator.device)  # of losses and gradient norms since the last report
        self.step, self.clock, self.shown = step, time.monotonic(), math.nan
        main = accelerator.is_main_process
        # Events that an interrupted run logged after its last checkpoint are replaced.
        self.writer = SummaryWriter(str(run.out / "tensorboard" / task.name), purge_step=step + 1) if main else None
        self.bar = tqdm(
            total=run.recipe.steps,
            initial=step,
            desc=task.label,
            unit="step",
            smoothing=0.05,
            mininterval=2.0,
            disable=not main,
        )

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Adds a step, without waiting for it."""
        self.sums += torch.stack([loss.detach(), norm])
        self.bar.update()

    def report(self, step: int, rate: float, requests: list[bool]) -> list[bool]:
        """Waits for the steps since the last report and logs them; returns the requests that any process makes.

        Raises:
            DMFNetError: a loss or its gradient was not finite.
        """
        # A single reduction over all processes covers both.
        values = torch.cat([self.sums, self.sums.new_tensor(requests)])
        loss, norm, *requested = self.accelerator.reduce(values, "sum").tolist()
        if not math.isfinite(loss + norm):
            raise DMFNetError(
                f"step {step}: the loss or its gradient is not finite; start again in another --out with a lower "
                "--learning-rate"
            )
        steps, now = step - self.step, time.monotonic()
        loss, norm = (total / (steps * self.accelerator.num_processes) for total in (loss, norm))
        # A pair is two images.
        speed = steps * self.run.recipe.batch * 2 / max(now - self.clock, 1e-9)
        self.scalars(step, {"loss": loss, "gradient norm": norm, "learning rate": rate, "images per second": speed})
        weight = 0.98**steps
        self.shown = loss if math.isnan(self.shown) else weight * self.shown + (1 - weight) * loss
        self.bar.set_postfix({"loss": f"{self.shown:.4f}", "images/s": f"{speed:.0f}"}, refresh=False)
        self.sums.zero_()
        self.step, self.clock = step, now
        return [count > 0 for count in requested]

    def validate(self, average: _Average) -> dict[str, float]:
        """Validates the averaged weights; every process takes its part of the pairs."""
        training = self.task.network.training
        self.task.network.eval()
        with average.in_place():
            sums = self.task.validate(self.accelerator.process_index, self.accelerator.num_processes)
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
            if self.writer:
                self.writer.add_image("validation", self.task.images(), self.step, dataformats="HWC")
        self.task.network.train(training)
        values = {name: (row[0] / row[1]).item() for name, row in zip(self.task.scores, sums, strict=True)}
        self.scalars(self.step, values)
        self.clock = time.monotonic()
        return {"step": self.step, **values}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()


def _check_agreement(accelerator: Accelerator, step: int, identity: dict[str, Any]) -> None:
    """Checks that all processes, each of which reads the checkpoint itself, found the same one.

    Raises:
        DMFNetError: they did not.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()
    own = torch.tensor([step, int.from_bytes(digest[:6])], device=accelerator.device)
    if (accelerator.gather(own).reshape(-1, 2) != own).any():
        raise DMFNetError(
            f"process {accelerator.process_index} is at step {step}, but others are not, or have other data: "
            "--data and --out must be the same folders on all machines"
        )


def train(task: Task, run: Run, accelerator: Accelerator) -> dict[str, Any]:
    """Trains the task's network in place to the recipe's last step, or for the run's `minutes`.

    Afterwards it holds the averaged weights. Training continues from the checkpoint in the run's folder if there is
    one. Every step's random draws depend only on the seed and the step, so that an interrupted and continued run takes
    the same steps as an uninterrupted one.

    Returns:
        The record of the run: its identity, `steps_done`, and the last `validation`.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, and after writing a checkpoint.
        DMFNetError: the checkpoint is damaged or belongs to another run, or the loss is no longer finite.
        OutputError: the run's folder cannot be created or written.
    """
    make_folder(run.out)
    recipe, path = run.recipe, run.out / f"{task.name}-checkpoint.pt"
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "muon":
        optimizer = Muon(parameters, recipe.learning_rate, recipe.weight_decay)
    else:
        optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    network = torch.compile(task.network) if run.compiled else task.network
    network, optimizer = accelerator.prepare(network, optimizer)
    average = _Average(parameters)  # only after prepare() do all processes have the same weights
    step = 0
    validation: dict[str, float] | None = None
    if path.exists():
        state = checkpoint.read(path, task.identity)
        step, validation = state["step"], state["validation"]
        optimizer.load_state_dict(state["optimizer"])
        average.load(state["parameters"])
        torch._foreach_copy_(average.values, state["average"])
        del state
    _check_agreement(accelerator, step, task.identity)

    def save() -> None:
        if accelerator.is_main_process:
            checkpoint.write(
                path,
                checkpoint.Checkpoint(
                    identity=task.identity,
                    step=step,
                    optimizer=optimizer.state_dict(),
                    parameters=[p.detach() for p in parameters],
                    average=average.values,
                    validation=validation,
                ),
            )

    def to_validate() -> bool:
        due = step > 0 and (step % run.validate_every == 0 or step == recipe.steps)
        return due and bool(task.scores) and (validation is None or validation["step"] != step)

    draws = _Draws(recipe, accelerator)
    steps_per_report = 1 if accelerator.device.type == "cpu" else GPU_STEPS_PER_REPORT
    started = saved_at = time.monotonic()
    interrupted = late = False
    with _stop_requests() as stop, closing(_Log(task, run, step, accelerator)) as log:
        while not interrupted:
            if to_validate():
                validation = log.validate(average)
            if step == recipe.steps or late:
                break
            rate = recipe.rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = task.loss(network, draws.at(step))
            optimizer.zero_grad()
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            step += 1
            # The decay starts small, so that the average forgets the random initial weights.
            average.update(min(recipe.ema, (1 + step) / (10 + step)))
            log.add(loss, norm)

            if step % steps_per_report == 0 or to_validate() or step == recipe.steps:
                over = run.minutes is not None and time.monotonic() - started > 60 * run.minutes
                interrupted, late = log.report(step, rate, [stop.is_set(), over])
                if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save()
                    saved_at = time.monotonic()
        save()
    # Barrier: an early exit would make the launcher kill the process that is still writing.
    accelerator.wait_for_everyone()
    if interrupted:
        accelerator.print(
            f"{path}: holds step {step} of {recipe.steps}; run the same command to continue", file=sys.stderr
        )
        raise KeyboardInterrupt
    average.load()
    return {**task.identity, "steps_done": step, "validation": validation}

"""The training loop that both stages share, on one device or, by Hugging Face Accelerate, on several."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dmfnet_fast.devices import torch_device
from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.files import make_folder
from dmfnet_fast.model import Denoiser, DMFNet
from dmfnet_fast.model.weights import weights_hash
from train import checkpoint
from train.recipe import Recipe, Run
from train.task import Draw, Task

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 300.0
# Reading a loss makes the CPU wait for the GPU, so there it is read only now and then.
GPU_STEPS_PER_LOOK = 10


def start(run: Run) -> Accelerator:
    """Join the other processes of this run, if there are any.

    Raises:
        DMFNetError: the batch does not divide over the processes.
        EngineError: this machine has no such device.
    """
    device = torch_device(run.device)
    # Precision stays ours: Accelerate's covers only the network that is trained, and is fixed for a process's life.
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", rng_types=[])
    if run.recipe.batch % accelerator.num_processes:
        raise DMFNetError(f"--batch {run.recipe.batch}: does not divide over {accelerator.num_processes} processes")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all steps have one shape
        torch.backends.cudnn.allow_tf32 = run.precision == "tf32"
        torch.set_float32_matmul_precision("high" if run.precision == "tf32" else "highest")
    return accelerator


def prepare(model: nn.Module, run: Run, accelerator: Accelerator) -> None:
    """Start weights as published (orthogonal, zero biases), on the device, in channels-last, in training mode."""
    torch.manual_seed(run.recipe.seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()


def autocast(run: Run) -> torch.autocast:
    """bf16 autocast where asked for."""
    return torch.autocast(run.device, torch.bfloat16, enabled=run.precision == "bf16")


def started_from(model: DMFNet | Denoiser | None, stage: str) -> dict[str, Any] | None:
    """What a run's record says about the weights that it started from."""
    return None if model is None else {"weights": weights_hash(model.state_dict()), **model.record.get(stage, {})}


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event instead of breaking a step in the middle (elsewhere than in the main
    thread nothing does)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: event.set()) for number in signals]
    try:
        yield event
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class _Average:
    """The moving average of the parameters."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self.values = [p.detach().clone() for p in parameters]

    def _current(self) -> list[Tensor]:
        # Looked up anew: DistributedDataParallel gives parameters other memory.
        return [p.detach() for p in self._parameters]

    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.values, self._current(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold their averages."""
        before = [p.clone() for p in self._current()]
        self.deliver()
        try:
            yield
        finally:
            self.deliver(before)

    def deliver(self, values: list[Tensor] | None = None) -> None:
        """Put the averages, or other values, into the parameters."""
        torch._foreach_copy_(self._current(), self.values if values is None else values)


class _Draws:
    """The randomness of every step: it depends on the seed and the step alone."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.seed, self.process = recipe.seed, accelerator.process_index
        self.generator = torch.Generator(accelerator.device)
        size = recipe.batch // accelerator.num_processes
        self.share = slice(self.process * size, (self.process + 1) * size)

    def at(self, step: int) -> Draw:
        own, common = np.random.SeedSequence([self.seed, step, self.process]), np.random.SeedSequence([self.seed, step])
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))  # dropout
        self.generator.manual_seed(int(common.generate_state(1, np.uint64)[0]))
        return Draw(np.random.default_rng(common), self.generator, self.share)


class _Journal:
    """What is shown of a run: the progress bar and the TensorBoard log, both of the main process alone."""

    def __init__(self, task: Task, run: Run, step: int, accelerator: Accelerator) -> None:
        self.task, self.run, self.accelerator = task, run, accelerator
        self.sums = torch.zeros(2, device=accelerator.device)  # of losses and gradient norms since the last look
        self.step, self.clock, self.shown = step, time.monotonic(), math.nan
        main = accelerator.is_main_process
        # What an interrupted run logged after its last checkpoint is told again.
        self.writer = SummaryWriter(str(run.out / "tensorboard"), purge_step=step + 1) if main else None
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
        """Take in a step, without waiting for it."""
        self.sums += torch.stack([loss.detach(), norm])
        self.bar.update()

    def look(self, step: int, rate: float, wishes: list[bool]) -> list[bool]:
        """Wait for the steps since the last look, show them, and tell which wishes any process has.

        Raises:
            DMFNetError: a loss or gradient was not finite.
        """
        # One sum over all processes tells both.
        told = torch.cat([self.sums, self.sums.new_tensor(wishes)])
        loss, norm, *wanted = self.accelerator.reduce(told, "sum").tolist()
        if not math.isfinite(loss + norm):
            raise DMFNetError(f"step {step}: the loss or its gradient is not finite; lower --learning-rate")
        steps, now = step - self.step, time.monotonic()
        loss, norm = (total / (steps * self.accelerator.num_processes) for total in (loss, norm))
        speed = steps * self.run.recipe.batch * self.task.images_per_pair / max(now - self.clock, 1e-9)
        self.scalars(step, {"loss": loss, "gradient norm": norm, "learning rate": rate, "images per second": speed})
        weight = 0.98**steps
        self.shown = loss if math.isnan(self.shown) else weight * self.shown + (1 - weight) * loss
        self.bar.set_postfix({"loss": f"{self.shown:.4f}", "images/s": f"{speed:.0f}"}, refresh=False)
        self.sums.zero_()
        self.step, self.clock = step, now
        return [wish > 0 for wish in wanted]

    def validate(self, average: _Average) -> dict[str, float]:
        """Judge the averaged weights; every process takes its part of the pairs."""
        training = self.task.network.training
        self.task.network.eval()
        with average.in_place():
            sums = self.task.validate(self.accelerator.process_index, self.accelerator.num_processes)
            sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
            if self.writer:
                self.writer.add_image("validation", self.task.pictures(), self.step, dataformats="HWC")
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


def train(task: Task, run: Run, accelerator: Accelerator) -> dict[str, Any]:
    """Train the task's network in place to the recipe's last step, or for `minutes`.

    Afterwards it holds the averaged weights. Continues from `checkpoint.pt` in the run's folder if there is one.
    Every step's random draws depend on the seed and the step alone, so an interrupted and continued run takes
    the same steps as one that was not.

    Returns:
        The record of the run: its identity, `steps_done`, and the last `validation`.

    Raises:
        KeyboardInterrupt: asked for by Ctrl-C or SIGTERM, after a checkpoint.
        DMFNetError: the checkpoint belongs to another run, or the loss stopped being finite.
        OutputError: the run's folder cannot be created.
    """
    make_folder(run.out)
    recipe, path = run.recipe, run.out / CHECKPOINT
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    network = torch.compile(task.network) if run.compiled else task.network
    network, optimiser = accelerator.prepare(network, optimiser)
    average = _Average(parameters)  # only now have all processes the same weights
    step = 0
    validation: dict[str, float] | None = None
    if path.exists():
        state = checkpoint.read(path, task.identity, accelerator.device)
        step, validation = state["step"], state["validation"]
        optimiser.load_state_dict(state["optimiser"])
        average.deliver(state["parameters"])
        torch._foreach_copy_(average.values, state["average"])

    def save() -> None:
        if accelerator.is_main_process:
            checkpoint.write(
                path,
                checkpoint.Checkpoint(
                    identity=task.identity,
                    step=step,
                    optimiser=optimiser.state_dict(),
                    parameters=[p.detach() for p in parameters],
                    average=average.values,
                    validation=validation,
                ),
            )

    draws = _Draws(recipe, accelerator)
    steps_per_look = 1 if accelerator.device.type == "cpu" else GPU_STEPS_PER_LOOK
    started = saved_at = time.monotonic()
    interrupted = late = False
    with _asked_to_stop() as asked, closing(_Journal(task, run, step, accelerator)) as journal:
        while step < recipe.steps and not (interrupted or late):
            rate = recipe.rate_at(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = task.loss(network, draws.at(step))
            optimiser.zero_grad()
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            step += 1
            # A short memory at first, or the average would remember the random start.
            average.update(min(recipe.ema, (1 + step) / (10 + step)))
            journal.add(loss, norm)

            to_validate = bool(task.scores) and (step % run.validate_every == 0 or step == recipe.steps)
            if step % steps_per_look == 0 or to_validate or step == recipe.steps:
                over = run.minutes is not None and time.monotonic() - started > 60 * run.minutes
                interrupted, late = journal.look(step, rate, [asked.is_set(), over])
            if to_validate:
                validation = journal.validate(average)
            # Only what was looked at is known to be finite.
            if step == journal.step and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save()
                saved_at = time.monotonic()
        save()
    if interrupted:
        raise KeyboardInterrupt
    average.deliver()
    accelerator.wait_for_everyone()
    return {**task.identity, "steps_done": step, "validation": validation}

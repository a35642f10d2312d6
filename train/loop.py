"""The training loop that both stages share: optimiser, schedule, EMA, checkpoints, progress."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dmfnet_fast.devices import torch_device
from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.files import make_folder, replacing
from train.recipe import Run

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_KEYS = {"identity", "step", "optimiser", "parameters", "average"}
CHECKPOINT_SECONDS = 300.0


def prepare(model: nn.Module, settings: Run) -> None:
    """Start weights as published (orthogonal, zero biases), on the device, in channels-last, in training mode.

    Also creates the run's folder.

    Raises:
        EngineError: this machine has no such device.
        OutputError: the folder cannot be created.
    """
    device = torch_device(settings.device)
    make_folder(settings.out)
    torch.manual_seed(settings.recipe.seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()


def autocast(settings: Run) -> torch.autocast:
    """bf16 autocast where asked for."""
    return torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=settings.bf16)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking a step in the middle (in the main thread; elsewhere never)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= CHECKPOINT_KEYS:
            raise ValueError("it is no training checkpoint")
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise DMFNetError(f"{path}: the checkpoint is damaged; delete it or use another --out") from error
    return state


def train(
    model: nn.Module,
    settings: Run,
    loss_of: Callable[[np.random.Generator], Tensor],
    label: str,
    identity: dict[str, Any],
) -> int:
    """Train `model` in place to the recipe's last step, or for `minutes`; afterwards it holds the averaged weights.

    Continues from `checkpoint.pt` in the run's folder if there is one. Every step's random draws depend on the
    seed and the step alone, so an interrupted and continued run takes the same steps as one that was not.

    Args:
        loss_of: the loss of a new random batch, drawn from the generator that it is given.
        label: of the progress bar.
        identity: all that the result depends on, in plain types; a checkpoint of another one is not continued.

    Returns:
        How many of the recipe's steps are done.

    Raises:
        KeyboardInterrupt: asked for by Ctrl-C, after a checkpoint.
        DMFNetError: the checkpoint belongs to another recipe, or the loss stopped being finite.
    """
    recipe, minutes = settings.recipe, settings.minutes
    parameters = [p for p in model.parameters() if p.requires_grad]
    average: list[Tensor] = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    path = settings.out / CHECKPOINT
    step = 0
    if path.exists():
        state = _read_checkpoint(path, parameters[0].device)
        if state["identity"] != identity:
            keys = sorted(identity.keys() | state["identity"].keys())
            other = [key for key in keys if identity.get(key) != state["identity"].get(key)]
            raise DMFNetError(f"{path}: belongs to a run with other settings ({', '.join(other)}); use another --out")
        step = state["step"]
        optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for current, saved in zip([*parameters, *average], [*state["parameters"], *state["average"]], strict=True):
                current.copy_(saved)

    started = saved_at = time.monotonic()

    def save() -> None:
        with replacing(path) as temporary:
            torch.save(
                {
                    "identity": identity,
                    "step": step,
                    "optimiser": optimiser.state_dict(),
                    "parameters": [p.detach() for p in parameters],
                    "average": average,
                },
                temporary,
            )

    bar = tqdm(total=recipe.steps, initial=step, desc=label, unit="step", smoothing=0.05, mininterval=2.0)
    shown = 0.0
    with _asked_to_stop() as stop:
        while step < recipe.steps:
            torch.manual_seed((recipe.seed << 32) + step)
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate_at(step)
            loss = loss_of(np.random.default_rng([recipe.seed, step]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
            if not torch.isfinite(norm):
                raise DMFNetError(f"step {step}: the loss or its gradient is not finite; lower --learning-rate")
            optimiser.step()
            step += 1
            # A short memory at first, or the average would remember the random start.
            decay = min(recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)

            shown = loss.item() if shown == 0.0 else 0.98 * shown + 0.02 * loss.item()
            bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
            bar.update()
            now = time.monotonic()
            if now - saved_at > CHECKPOINT_SECONDS:
                save()
                saved_at = now
            if stop.is_set() or (minutes is not None and now - started > 60 * minutes):
                break
    bar.close()
    save()
    if stop.is_set():
        raise KeyboardInterrupt
    with torch.no_grad():
        for p, averaged in zip(parameters, average, strict=True):
            p.copy_(averaged)
    return step

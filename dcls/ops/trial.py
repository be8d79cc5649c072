"""Which backend a GPU runs fastest: measured once a case before training, never inside the operator.

    cases = trial.cases(model, images)              # of each depthwise convolution, at this batch
    dispatch.set_choices(trial.choose(cases))       # plain types: a checkpoint can hold them

Timing inside the operator would synchronise with the device and break graph capture; and a choice that is stored makes
a continued run the same run.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dcls.ops import dispatch, reference
from dcls.ops.case import Case
from dcls.ops.operator import depthwise

_log = logging.getLogger(__name__)

Run = Callable[[], Sequence[Tensor]]
# Given several runs, the typical time of each: they take turns.
Timer = Callable[[Sequence[Run]], Sequence[float]]

# A candidate must take less than this share of F.conv2d's time: a tie stays with what everybody runs.
SHARE = 0.95
# Of a result's difference from float32, over the largest value: sums in float32, then one rounding.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
WARM_UPS, ROUNDS, CALLS = 2, 7, 2


def cases(model: nn.Module, *inputs: Any) -> list[Case]:
    """Of every convolution that one forward of the model, in evaluation, gives to the operator; each once."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), dispatch.recording() as seen:
            model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return list(seen)


def choose(
    cases: Iterable[Case],
    timer: Timer | None = None,
    candidates: Sequence[str] = dispatch.UNPROVEN,
    channels_last: bool = True,
) -> dict[str, str]:
    """By the text of each case: the candidate that is fastest, forward and backward, or 'reference' for F.conv2d.

    A candidate whose output or gradients are wrong, or that fails, is left out with a warning. timer: None for
    `on_cuda`. Takes some seconds a case, half of them compilation, and leaves the random state alone.
    """
    return {str(case): _fastest(case, timer or on_cuda, candidates, channels_last) for case in dict.fromkeys(cases)}


def on_cuda(runs: Sequence[Run]) -> list[float]:
    """Milliseconds of one call of each run on the current CUDA device: medians of rounds in which they take turns."""
    for _ in range(WARM_UPS):
        for run in runs:
            run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, own in zip(runs, times, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            own.append(start.elapsed_time(end) / CALLS)
    return [median(own) for own in times]


def _fastest(case: Case, timer: Timer, candidates: Sequence[str], channels_last: bool) -> str:
    try:
        tensors = _tensors(case, channels_last)
        right = _right(case, tensors, candidates)
        if not right:
            return dispatch.REFERENCE
        names = [dispatch.REFERENCE, *right]
        times = dict(zip(names, timer([_run(case, name, tensors) for name in names]), strict=True))
    except Exception as failure:
        _log.warning("depthwise convolution %s: not measured, F.conv2d runs it: %s", case, failure)
        return dispatch.REFERENCE
    best = min(right, key=times.__getitem__)
    chosen = best if times[best] < SHARE * times[dispatch.REFERENCE] else dispatch.REFERENCE
    _log.info("depthwise convolution %s: %s, of %s", case, chosen, {name: f"{ms:.3g} ms" for name, ms in times.items()})
    return chosen


def _right(case: Case, tensors: Sequence[Tensor], candidates: Sequence[str]) -> list[str]:
    """The candidates that can run the case and give what F.conv2d gives in float32."""
    able = [name for name in candidates if dispatch.reasons(case)[name] is None]
    if not able:
        return []
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = _run(case, dispatch.REFERENCE, [each.float() for each in tensors])()
    return [name for name in able if _agrees(case, name, tensors, expected)]


def _agrees(case: Case, name: str, tensors: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    try:
        found = _run(case, name, tensors)()
        errors = [((one - other).abs().max() / other.abs().max()).item() for one, other in zip(found, expected)]
    except Exception as failure:
        _log.warning("depthwise convolution %s: backend %s fails: %s", case, name, failure)
        return False
    if all(error <= TOLERANCES[case.dtype] for error in errors):
        return True
    _log.warning("depthwise convolution %s: backend %s is wrong by %s of the largest value", case, name, errors)
    return False


def _tensors(case: Case, channels_last: bool) -> list[Tensor]:
    """x, kernel, bias and the output's gradient."""
    generator = torch.Generator(case.device).manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, channels = (case.batch, case.channels), case.channels
    shapes = (*images, *case.image), (channels, 1, *case.size), (channels,), (*images, *case.output)
    made = [torch.randn(shape, generator=generator, device=case.device).to(case.dtype) for shape in shapes]
    return [each.contiguous(memory_format=layout) if i in (0, 3) else each for i, each in enumerate(made)]


def _run(case: Case, name: str, tensors: Sequence[Tensor]) -> Run:
    """The output and the gradients of input, kernel and bias."""
    *inputs, grad = tensors
    x, kernel, bias = leaves = [each.detach().requires_grad_() for each in inputs]

    def run() -> Sequence[Tensor]:
        if name == dispatch.REFERENCE:
            output = reference.convolve(x, kernel, bias, case.stride, case.padding, case.channels)
        else:
            output = depthwise(x, kernel, bias, case.stride, case.padding, name)
        return [output.detach(), *torch.autograd.grad(output, leaves, grad)]

    return run

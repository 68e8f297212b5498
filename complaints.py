"""What is wrong with a student's network or recipe, in plain words, before anything is trained (notebook 11).

A complaint is a pair: what it is about, and a sentence. It is about ``"runs"`` if nothing can be trained as it is;
about ``"parameters"`` or ``"epochs"`` if that condition of the task is not met; else it is ``"advice"``: a training is
possible, but what it gives is hardly what was meant.
"""

import contextlib
import inspect
import math
import re
import site
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mnist import Data
from plots import parameters_by_layer
from utils import fit, normalize, predict

Complaints = list[tuple[str, str]]

OURS = ("model", "data", "name", "seed", "checkpoint")  # the arguments of fit about which the grader decides

SEEDED = (
    "{} sets the seed of the random numbers (torch.manual_seed, perhaps), so that another seed changes nothing. Leave "
    "it out: the grader sets the seed."
)
# Whose lines are not the student's: the course's, Python's, and those of packages, wherever these are installed.
NAMES = ["checkpoint", "checks", "complaints", "fast", "files", "grade", "hand_in", "mnist", "model", "plots", "utils"]
COURSE = {Path(__file__).resolve().with_name(f"{name}.py") for name in NAMES}
PLACES = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
PLACES += [*site.getsitepackages(), site.getusersitepackages(), Path(torch.__file__).parent]
PLACES = {Path(place).resolve() for place in PLACES}

MATRICES = {"addmm", "baddbmm", "bilinear", "bmm", "einsum", "linear", "matmul", "mm", "mv", "tensordot"}
TURNING = {"permute", "transpose", "movedim", "swapaxes", "swapdims", "mT", "T"}  # no place becomes a channel
# Of the steps in PyTorch's graph: those that squeeze the scores, and those that only change their shape
SQUEEZING = {
    "Sigmoid": "a sigmoid, which leaves only scores from 0 to 1",
    "Tanh": "a tanh, which leaves only scores from -1 to 1",
    "Relu": "a ReLU, which leaves no score below 0",
}
SHAPING = {"Alias", "Clone", "Reshape", "ReshapeAlias", "Select", "Slice", "Squeeze", "UnsafeView", "Unsqueeze", "View"}


def described(error: BaseException) -> str:
    """Return what an error says, and the line of the student's own code that it comes from."""
    own = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.line and _is_own(frame.filename)]
    return f"{type(error).__name__}: {error}" + (f" (in your line: {own[-1]})" if own else "")


def _is_own(filename: str) -> bool:
    """Return whether a file is the student's: not one of the course, of Python or of a package."""
    if (filename.startswith("<") and not filename.startswith("<ipython")) or "torchinductor" in filename:
        return False  # code that a library has written
    path = Path(filename).resolve()
    return path not in COURSE and not any(path.is_relative_to(place) for place in PLACES)


def stopped(what: str, error: BaseException) -> str:
    """Return a sentence on why a student's code, ``what``, did not come to its end."""
    if isinstance(error, SystemExit):
        return f"{what} calls sys.exit, exit or quit, which would end the whole notebook. Leave that out."
    if isinstance(error, KeyboardInterrupt):
        _, where, line = described(error).partition(" (in your line: ")
        return (
            f"{what} was not finished in time{where}{line}. Is there a loop without an end? If not, train fewer "
            "epochs, or a smaller network."
        )
    if isinstance(error, NotImplementedError) and not str(error):
        return f"{what} is not written yet: put your own lines in the place of raise NotImplementedError()."
    inside = " Make the optimizer and the scheduler inside recipe, for the network that it is given."
    from_outside = isinstance(error, ValueError) and "make" in str(error) and "optimizer" in str(error)
    return f"{what} stops with {described(error)}" + inside * from_outside


# ------------------------------------------------------------- network ----


def about_network(model: nn.Module, data: Data, max_parameters: int, fully_connected: bool) -> tuple[Complaints, int]:
    """Return what is wrong with a network that is not trained yet, and the number of its parameters.

    It is moved to the data's device. Parameters that it uses without owning them are counted with its own.

    Args:
        model: what the student's class made.
        data: the network is tried on its ``test_images``.
        max_parameters: the most parameters that are allowed.
        fully_connected: whether fully connected layers are allowed.
    """
    complaints = _of_containers(model)
    model.to(data.test_images.device)
    images = data.test_images[:250]
    model.eval()  # fit turns the training mode on again
    try:
        with torch.no_grad():
            logits = model(normalize(images[:8]))
    except (Exception, SystemExit) as error:  # whatever a layer raises on images that do not fit it
        complaint = stopped(f"Given images of shape {(8, *images.shape[1:])}, MyNetwork", error)
        if re.search("shape|size|channel|dimension", str(error)):
            complaint += ". Follow the shape from layer to layer: each must take what the one before it returns."
        complaints.append(("runs", complaint))
        looks = []
    else:
        looks = _looks(model, normalize(images[:8])) if isinstance(logits, torch.Tensor) else []
        kept, anew = _strange_parts(model, looks)
        # What stands in a list has been named already.
        complaints += _of_looks(model, looks, [] if complaints else kept, anew)
        complaints += _of_logits(model, logits, images, bool(anew))
    total = 0 if _is_lazy(model) else sum(p.numel() for p in _parameters(model, looks))
    return complaints + _of_parameters(model, looks, total, max_parameters, fully_connected), total


def _of_containers(model: nn.Module) -> Complaints:
    """Complain about layers and parameters in a list or the like, where PyTorch does not see them."""

    owned = {id(part) for part in (*model.parameters(), *model.buffers())}
    layers = set(model.modules())

    def hides(value, kind: type) -> bool:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        return any(
            hides(part, kind) or (isinstance(part, kind) and part not in layers and _is_strange(part, owned))
            for part in parts
        )

    complaints, own = [], vars(nn.Module())  # where PyTorch itself keeps the layers, among other things
    for module in model.modules():
        for name, value in vars(module).items():
            where = f"in a plain {type(value).__name__}, where PyTorch does not see"
            if name not in own and hides(value, nn.Module):
                complaint = (
                    f"self.{name} keeps layers {where} their parameters: they are not trained, though counted here."
                )
                complaints.append(("advice", f"{complaint} Put them into nn.Sequential or nn.ModuleList."))
            elif name not in own and hides(value, nn.Parameter):
                complaint = f"self.{name} keeps parameters {where} them: not trained, though counted here."
                complaints.append(("advice", f"{complaint} Put them into nn.ParameterList or nn.ParameterDict."))
    return complaints


def _of_logits(model: nn.Module, logits: torch.Tensor, images: torch.Tensor, anew: bool) -> Complaints:
    """Complain about what the network returns; ``anew``: it is known to be made anew at each call."""
    if not isinstance(logits, torch.Tensor):
        question = ": is there a return?" if logits is None else "."
        return [("runs", f"forward returns {type(logits).__name__}, and should return the scores{question}")]
    if logits.shape != (8, 10):
        missing = " Average over the places (nn.AdaptiveAvgPool2d(1)), then nn.Flatten()." if logits.dim() == 4 else ""
        if logits.shape == (8, 10, 1, 1):
            missing = " nn.Flatten() at the end is missing."
        complaint = (
            f"For 8 images it returns shape {tuple(logits.shape)}, and should return (8, 10): one score per digit."
        )
        return [("runs", complaint + missing)]
    if not logits.isfinite().all():
        complaint = "Before any training it returns NaN or infinity: is there a division, a root or a logarithm?"
        return [("advice", complaint)]
    complaints = []
    if (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-3:
        complaint = (
            "It returns probabilities (they add up to 1). Leave the softmax out: the loss, cross_entropy, has its own, "
            "and with two of them it learns slowly."
        )
        complaints.append(("advice", complaint))
    try:
        logits, again, alone = predict(model, images), predict(model, images), predict(model, images[:1])
    except Exception as error:
        return [*complaints, ("runs", stopped(f"For {len(images)} images, or for a single one, MyNetwork", error))]
    complaint = ""
    if alone.shape != (1, 10):
        complaint = f"For a single image it returns shape {tuple(alone.shape)} instead of (1, 10): squeeze, perhaps?"
    elif anew:
        pass  # so that the same images give other scores is explained already
    elif not torch.equal(logits, again):
        complaint = (
            "In evaluation mode the same images give other scores the second time. F.dropout needs "
            "training=self.training; nn.Dropout knows by itself. Or does forward draw random numbers?"
        )
    elif not torch.allclose(logits[:1], alone, rtol=1e-3, atol=1e-3):
        complaint = (
            "In evaluation mode the scores of an image depend on the other images of the batch. Is there a BatchNorm "
            "without running statistics, or a mean over the first dimension?"
        )
    return complaints + [("advice", complaint)] * bool(complaint)


def _of_parameters(
    model: nn.Module, looks: list["_Look"], total: int, max_parameters: int, fully_connected: bool
) -> Complaints:
    """Complain about too many parameters, or layers that the task does not allow, or numbers beside the parameters."""
    complaints = []
    if total == 0 and not _is_lazy(model):
        complaints.append(("runs", "The network has no parameters: there is nothing to train."))
    if total > max_parameters:
        complaint = (
            f"{total:,} parameters, {total - max_parameters:,} more than the {max_parameters:,} that are allowed."
        )
        layers = {} if _is_lazy(model) else parameters_by_layer(model)
        if layers and sum(layers.values()) == total:
            largest = max(layers, key=layers.get)
            complaint += f" Most of them, {layers[largest]:,}, are in {largest}."
        complaints.append(("parameters", complaint))
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Bilinear))]
    if linear and not fully_connected:
        complaint = (
            f"This task allows no fully connected layers, and there is one: {', '.join(linear)}. A 1 x 1 convolution "
            "and an average over the places (notebook 2) do its work."
        )
        complaints.append(("parameters", complaint))
    elif looks and looks[0].dense and not fully_connected:
        complaint = (
            f"This task allows no fully connected layers, and {looks[0].dense[0]} does the same: it joins all that it "
            "gets with every output. A 1 x 1 convolution and an average over the places (notebook 2) do its work."
        )
        complaints.append(("parameters", complaint))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        complaint = (
            f"{_some(frozen)}: frozen (requires_grad is False), and so never trained, but counted. Leave out the line "
            "that freezes them."
        )
        complaints.append(("advice", complaint))
    fixed = _fixed_numbers(model)
    if sum(fixed.values()) > max(1000, max_parameters // 10):
        complaint = (
            f"Beside its parameters it keeps {sum(fixed.values()):,} fixed numbers ({_some(list(fixed))}), which are "
            "neither counted nor trained. If they are weights, make them an nn.Parameter; if not, do without."
        )
        complaints.append(("advice", complaint))
    return complaints


def _is_lazy(model: nn.Module) -> bool:
    """Return whether some layers wait for their first images to know their size."""
    return any(nn.parameter.is_lazy(p) for p in model.parameters())


def _some(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fixed_numbers(model: nn.Module) -> dict[str, int]:
    """Return the sizes of the tensors that a network keeps and that are no parameters; not BatchNorm's statistics."""
    sizes = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            kept = dict(module.named_buffers(recurse=False))
            kept |= {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
            sizes |= {f"{path}.{name}".strip("."): value.numel() for name, value in kept.items()}
    return sizes


# --------------------------------------------------- what happens inside ----


class _Look(NamedTuple):
    """What was seen while a network read a few images."""

    modules: list[nn.Module]  # that were called
    leaves: list[torch.Tensor]  # that could be trained, and on which the scores depend
    end: str  # the last step that changes the scores, by its name in PyTorch's graph
    dense: list[str]  # steps that are fully connected layers, whatever they are called
    random_state: torch.Tensor


class _Watch(TorchFunctionMode):
    """Notes which steps are fully connected: where weights meet all places of the images at once."""

    def __init__(self, model: nn.Module, images: torch.Tensor):
        super().__init__()
        self.count, self.dense, self.at_end, self.folded = len(images), [], None, set()
        self.names = {id(p): f"{name}, of shape {tuple(p.shape)}," for name, p in model.named_parameters()}
        self.from_images = {id(images): images}  # kept, so that no other tensor gets their numbers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = list(_tensors((args, kwargs)))
        maps = [tensor for tensor in tensors if id(tensor) in self.from_images]
        if maps:
            self.from_images |= {id(tensor): tensor for tensor in _tensors(result)}
            name = getattr(func, "__name__", "").strip("_")
            if isinstance(result, torch.Tensor) and name not in TURNING and self._folds(maps[0], result):
                self.folded.add(id(result))
            weights = [tensor for tensor in tensors if tensor.requires_grad and id(tensor) not in self.from_images]
            if weights and isinstance(result, torch.Tensor):
                self._note(name, maps[0], weights[0], result)
        return result

    def _folds(self, maps: torch.Tensor, result: torch.Tensor) -> bool:
        """Return whether a step makes channels of the places of a map, or keeps a tensor where that was done."""
        before, after = (math.prod(tensor.shape[2:]) for tensor in (maps, result))
        return result.numel() == maps.numel() and (id(maps) in self.folded or after < before)

    def _note(self, name: str, maps: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> None:
        said = self.names.get(id(weight), f"the product with a tensor of shape {tuple(weight.shape)}")
        places, kernel = maps.shape[2:], weight.shape[2:]
        inputs, outputs = maps.numel() // self.count, result.numel() // self.count  # of each image
        if name in MATRICES:
            self.at_end = None
            if weight.numel() >= inputs * outputs:  # a weight for each pair
                self.dense.append(said)
        elif name.startswith("conv"):
            self.at_end = None
            one_place = max(result.shape[2:], default=0) == 1
            depthwise = weight.shape[1] == 1 < maps.shape[1]
            covered = max(places, default=0) > 1 and all(side >= place for side, place in zip(kernel, places))
            if one_place and id(maps) in self.folded:
                self.dense.append(said)
            elif one_place and covered and not depthwise:
                said = f"{said} over a whole map of {' x '.join(map(str, places))},"
                if max(kernel) > 3:
                    self.dense.append(said)
                else:  # a filter of the usual size on a map that is just as small: only if it gives the scores
                    self.at_end = said

    def fully_connected(self) -> list[str]:
        return [*self.dense, self.at_end] if self.at_end else self.dense


def _tensors(value) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _looks(model: nn.Module, images: torch.Tensor) -> list[_Look]:
    """Return what is seen when a network in evaluation mode reads these normalised images twice, with two seeds.

    The list is empty if that fails, as it may with a network that was compiled.
    """
    looks = []
    with contextlib.suppress(Exception):
        for seed in (1, 2):
            called, watch = [], _Watch(model, images)
            hook = nn.modules.module.register_module_forward_pre_hook(lambda module, _, to=called: to.append(module))
            try:
                torch.manual_seed(seed)
                with torch.enable_grad(), watch:
                    logits = model(images)
            finally:
                hook.remove()
            looks.append(_Look(called, *_graph(logits), watch.fully_connected(), torch.get_rng_state()))
    return looks if len(looks) == 2 else []


def _graph(logits: torch.Tensor) -> tuple[list[torch.Tensor], str]:
    """Return the tensors that the logits depend on and that could be trained, and the name of the last step."""
    if not isinstance(logits, torch.Tensor) or logits.grad_fn is None:
        return [], ""
    end = logits.grad_fn
    while (name := re.sub(r"Backward\d*$", "", end.name())) in SHAPING:
        end = end.next_functions[0][0]
        if end is None:
            break
    leaves, seen, waiting = [], set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                leaves.append(node.variable)
            waiting += [following for following, _ in node.next_functions]
    return leaves, name


def _parameters(model: nn.Module, looks: list[_Look]) -> list[torch.Tensor]:
    """Return the parameters of a network whose size is known, and those that it uses without owning them."""
    used = [*(looks[0].leaves if looks else ()), *(p for of in looks[:1] for m in of.modules for p in m.parameters())]
    every = {id(p): p for p in (*model.parameters(), *used) if not nn.parameter.is_lazy(p)}
    return list(every.values())


def _strange_parts(model: nn.Module, looks: list[_Look]) -> tuple[list, list]:
    """Return the layers and tensors that a network uses without owning them: those kept elsewhere, those made anew."""
    if not looks:
        return [], []
    first, second = looks
    layers = set(model.modules())
    owned = {id(part) for part in (*model.parameters(), *model.buffers())}
    strange = [module for module in first.modules if module not in layers and _is_strange(module, owned)]
    strange += [leaf for leaf in first.leaves if id(leaf) not in owned]
    later = {id(part) for part in (*second.modules, *second.leaves)}
    return [part for part in strange if id(part) in later], [part for part in strange if id(part) not in later]


def _of_looks(model: nn.Module, looks: list[_Look], kept: list, anew: list) -> Complaints:
    """Complain about what a network uses without owning it, and owns without using it, and about its last step.

    ``kept`` and ``anew`` are what ``_strange_parts`` returns.
    """
    if not looks:
        return []
    complaints = []
    first, second = looks
    if anew:
        complaint = (
            f"forward makes {_kind(anew[0])} anew at every call: it learns nothing, and does not know whether the "
            "network is being trained. Make it once, in __init__, as self.something, and use that in forward."
        )
        complaints.append(("advice", complaint))
    elif kept:
        complaint = (
            f"forward uses {_kind(kept[0])} that is not a part of the network: {_place(model, kept[0])}. It is "
            "not trained, though counted here. Make it in __init__, as self.something."
        )
        complaints.append(("advice", complaint))
    used = {id(leaf) for leaf in first.leaves}
    if unused := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in used]:
        complaint = (
            f"{_some(unused)}: counted, but no score depends on it, or not so that it could be trained (detach, "
            "no_grad). Use it in forward, or leave it out."
        )
        complaints.append(("advice", complaint))
    if first.end in SQUEEZING:
        leave = "Leave it out: cross_entropy wants scores of any size, negative ones, too."
        complaints.append(("advice", f"It ends with {SQUEEZING[first.end]}. {leave}"))
    if torch.equal(first.random_state, second.random_state):
        complaints.append(("advice", SEEDED.format("forward")))
    return complaints


def _is_strange(part: nn.Module | torch.Tensor, owned: set[int]) -> bool:
    """Return whether a part has numbers that the network does not own, or has to know whether it is being trained."""
    if isinstance(part, torch.Tensor):
        return id(part) not in owned
    numbers = (*part.parameters(), *part.buffers())
    return any(id(number) not in owned for number in numbers) or isinstance(part, nn.modules.dropout._DropoutNd)


def _kind(part: nn.Module | torch.Tensor) -> str:
    if isinstance(part, nn.Module):
        return f"a layer ({type(part).__name__})"
    return "an nn.Parameter" if isinstance(part, nn.Parameter) else "a tensor with requires_grad=True"


def _place(model: nn.Module, part: nn.Module | torch.Tensor) -> str:
    """Return where a layer or a parameter is kept that a network uses without owning it, as far as it can be told."""
    for kind in {type(module) for module in model.modules()}:
        if any(value is part for value in vars(kind).values()):
            return "it stands in the class, outside of __init__"
        names = getattr(getattr(kind.forward, "__code__", None), "co_names", ())
        for name in names:
            if kind.forward.__globals__.get(name) is part:
                return f"it is the global variable {name}"
    return "it is kept somewhere else, perhaps in a global variable"


def about_seed(model: nn.Module, other: nn.Module, same_state: bool) -> Complaints:
    """Complain if two networks that were made with two seeds have the same weights.

    Args:
        model, other: the two networks.
        same_state: whether PyTorch's random numbers stood at the same place after both.
    """
    if other is model or not isinstance(other, nn.Module):
        return []
    pairs = [pair for pair in zip(model.parameters(), other.parameters()) if not nn.parameter.is_lazy(pair[0])]
    varied = [(a, b) for a, b in pairs if a.numel() > 1 and a.min() < a.max()]
    same = varied and all(torch.equal(a.cpu(), b.cpu()) for a, b in varied)
    return [("advice", SEEDED.format("__init__"))] if same_state or same else []


# -------------------------------------------------------------- recipe ----


def planned_steps(settings: dict) -> int | None:
    """Return for how many steps the scheduler of a recipe is made, if it tells."""
    scheduler = settings.get("scheduler")
    return getattr(scheduler, "total_steps", getattr(scheduler, "T_max", None))


def about_recipe(settings: dict, data: Data, max_epochs: int) -> Complaints:
    """Return what is wrong with the arguments for ``fit``, as far as ``fit`` does not say it."""
    if not isinstance(settings, dict):
        question = ": is there a return?" if settings is None else "."
        complaint = f"recipe returns {type(settings).__name__}, and should return a dict of arguments for fit{question}"
        return [("runs", complaint)]
    complaints = []
    epochs, batch_size = settings.get("epochs", 1), settings.get("batch_size", 1)
    if missing := [key for key in ("optimizer", "epochs", "batch_size") if key not in settings]:
        complaints.append(("runs", f"The dict that recipe returns lacks {', '.join(missing)}."))
    elif given := [key for key in OURS if key in settings]:
        complaint = f"Leave {', '.join(given)} out of the dict that recipe returns: the grader decides about it."
        complaints.append(("runs", complaint))
    elif unknown := [repr(key) for key in settings if key not in inspect.signature(fit).parameters]:
        taken = [key for key in inspect.signature(fit).parameters if key not in OURS]
        complaint = f"The dict that recipe returns has {', '.join(unknown)}. Expected are {', '.join(taken)}."
        complaints.append(("runs", complaint))
    for key, value in {"epochs": epochs, "batch_size": batch_size}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            complaint = f"{key} is {value!r}, and should be a whole number, 1 or more; int(...) makes one."
            return [*complaints, ("runs", complaint)]
    if epochs > max_epochs:
        complaints.append(("epochs", f"{epochs} epochs; at most {max_epochs} are allowed."))
    steps = epochs * math.ceil(len(data.train_labels) / batch_size)
    planned = planned_steps(settings)
    if planned not in (None, steps):
        complaint = (
            f"The scheduler is made for {planned:,} steps, but it is stepped after every batch, {steps:,} times: "
            "epochs * math.ceil(train_count / batch_size)."
        )
        complaints.append(("advice", complaint))
    return complaints

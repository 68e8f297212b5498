"""Measure the course's speed against the yardsticks of notebook 8, and write notebooks/results/speed.json.

    python scripts/benchmark.py             every part: about two and a half hours on two processor cores
    python scripts/benchmark.py time_to_99  some parts (see PARTS); the other figures in the file stay
    python scripts/benchmark.py busy        beside other programs, which it starts and ends: about five minutes

What is compared is measured in turn in one process, a new one for each part, on a machine that does nothing else
(`busy` gives it something to do, in processes of its own, because settings of threads are read once);
figures are medians, and ``spread`` has the smallest and the largest. The usual loop is that of ``speed.py``.
Afterwards, write README's tables again (python scripts/readme.py) and execute notebook 8 again.
"""

import contextlib
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import joblib
import psutil
import torch
import torch.nn.functional as F
from address import NOTEBOOKS
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from fast import has_bfloat16, processor
from files import write_whole
from mnist import Data, torchvision_root
from model import Net8k, Net20k
from speed import train_to_99, train_to_99_4, usual_epoch, usual_loaders, usual_sets
from study import run_study
from utils import RESULTS, augment, evaluate, fit, load_mnist, normalize, predict

FILE = RESULTS / "speed.json"
REPETITIONS = 3
SEEDS = range(3)  # wherever a full training is repeated
SHORT_SEEDS = range(10)  # of the trainings that take seconds
DASK = {"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}}  # without MALLOC_TRIM_THRESHOLD_: see run_study


def timed(function, *args, **kwargs):
    """Call the function without what it prints, and return its result and the seconds that it took."""
    with contextlib.redirect_stdout(io.StringIO()):
        started = time.perf_counter()
        result = function(*args, **kwargs)
    return result, time.perf_counter() - started


def summary(values: list[float]) -> dict:
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values), "n": len(values)}


# -------------------------------------------------------------- epochs ----


def epoch_in_memory(model: nn.Module, optimizer, batch_size: int, *, read_loss: bool, bfloat16: bool) -> float:
    """Train for an epoch on images that are kept as one tensor, and return the test accuracy, in percent.

    ``read_loss``: read the loss and the number of correct answers after every batch, as the usual loop does.
    """
    model.train()
    seen = correct = loss_sum = 0
    bar = tqdm(torch.randperm(len(data.train_labels)).to(device).split(batch_size), file=io.StringIO(), disable=False)
    for batch in bar:
        images, labels = augment(data.train_images[batch], degrees=7), data.train_labels[batch]
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(normalize(images))
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        right = (logits.argmax(1) == labels).sum()
        correct = correct + (right.item() if read_loss else right)
        loss_sum = loss_sum + loss.detach()
        if read_loss:
            bar.set_description(f"Loss={loss.item():.4f} Accuracy={100 * correct / seen:.2f}")
    return 100 * evaluate(model, data.test_images, data.test_labels)[1] / len(data.test_labels)


def new_model(network, order=torch.contiguous_format, **options) -> tuple:
    """Return a network, with its weights in the given order in memory, and its optimizer."""
    torch.manual_seed(0)
    model = network().to(device, memory_format=order)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, **options)


def usual(network, batch_size: int):
    """Return a function that trains a new network for one more epoch by the usual loop."""
    model, optimizer = new_model(network)
    loaders = usual_loaders(batch_size, *usual_sets(torchvision_root()))
    return lambda: usual_epoch(model, optimizer, *loaders, device)


def in_memory(network, batch_size: int, *, read_loss=False, bfloat16=True, compiled=False, **options):
    """Return a function that trains a new network for one more epoch on images in memory; options: see new_model."""
    model, optimizer = new_model(network, **options)
    used = torch.compile(model) if compiled else model
    return lambda: epoch_in_memory(used, optimizer, batch_size, read_loss=read_loss, bfloat16=bfloat16)


def by_fit(network, batch_size: int, images: Data | None = None, **options):
    """Return a function that trains a new network for an epoch by the course's fit, on MNIST or on these images."""
    settings = {"epochs": 1, "batch_size": batch_size, "seed": 0, "augmentation": {"degrees": 7}} | options

    def train():
        model, optimizer = new_model(network)
        fit(model, images or data, name="epoch", optimizer=optimizer, **settings)

    return train


def in_turn(trainings: dict) -> dict:
    """Return the seconds of every training, a function that trains one more epoch, over the repetitions."""
    seconds = {name: [] for name in trainings}
    for _ in range(REPETITIONS):
        for name, train in trainings.items():
            seconds[name].append(timed(train)[1])
            print(f"{name:40} {seconds[name][-1]:7.2f} s", flush=True)
    return seconds


def epochs() -> dict:
    """Time one epoch, test included, rung by rung: same network, batch size and augmentation (rotation by up to 7°)."""
    results = {"epoch_ratio": {}, "spread": {"epoch_ratio": {}}, "ladder": {}, "not_kept": {}, "test": {}}
    for network, batch_size in ((Net8k, 256), (Net20k, 64)):
        name = network.__name__
        print(f"{name}, batches of {batch_size}", flush=True)
        ladder = in_turn(
            {
                "the usual loop": usual(network, batch_size),
                "1 images in memory": in_memory(network, batch_size, read_loss=True, bfloat16=False),
                "2 loss not shown": in_memory(network, batch_size, bfloat16=False),
                "3 bfloat16": in_memory(network, batch_size),
                "4 fit": by_fit(network, batch_size),
            }
        )
        not_kept = in_turn(
            {
                "3 bfloat16, as above": in_memory(network, batch_size),
                "fused optimizer": in_memory(network, batch_size, fused=True),
                "channels_last everywhere": in_memory(network, batch_size, order=torch.channels_last),
            }
        )
        ratios = [a / b for a, b in zip(ladder["the usual loop"], ladder["4 fit"])]
        results["epoch_ratio"][name] = statistics.median(ratios)
        results["spread"]["epoch_ratio"][name] = summary(ratios)
        results["ladder"][name] = {rung: summary(seconds) for rung, seconds in ladder.items()}
        results["not_kept"][name] = {idea: summary(seconds) for idea, seconds in not_kept.items()}
        model, _ = new_model(network)
        test_seconds = in_turn(
            {
                f"{size} images at a time": lambda model=model, size=size: predict(model, data.test_images, size).cpu()
                for size in (50, 250, 1000)
            }
        )
        results["test"][name] = {size: summary(seconds) for size, seconds in test_seconds.items()}
    return results


def compilation() -> dict:
    """Time epochs of a compiled network, and the compilation before the first one, with nothing left from earlier."""
    torch.compiler.config.force_disable_caches = True
    results = {}
    for network, batch_size in ((Net8k, 256), (Net20k, 64)):
        plain, compiled = in_memory(network, batch_size), in_memory(network, batch_size, compiled=True)
        first = timed(compiled)[1]  # compilation happens in the first epoch
        seconds = in_turn({"3 bfloat16, as above": plain, "torch.compile": compiled})
        results[network.__name__] = {way: summary(each) for way, each in seconds.items()}
        results[network.__name__]["once"] = first - statistics.median(seconds["torch.compile"])
    return {"compilation": results}


# ------------------------------------------------- processors and formats ----


def formats() -> dict:
    """Time an epoch, test included, by the usual loop and by fit in both formats, on this processor: a row of its own.

    The rows of other processors stay. ONEDNN_MAX_CPU_ISA=AVX2 with ATEN_CPU_CAPABILITY=avx2 makes this processor one
    that knows neither AVX-512 nor bfloat16, as those of many laptops.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    shortened = [False, True] if has_bfloat16(device) and not limit else [False]
    row = {"device": f"{processor().get('cpu_name') or platform.machine()}{limit and f', only {limit}'}"}
    for network, batch_size in ((Net8k, 256), (Net20k, 64)):
        trainings = {"the usual loop": usual(network, batch_size)}
        for bfloat16 in shortened:
            trainings["bfloat16" if bfloat16 else "float32"] = by_fit(network, batch_size, bfloat16=bfloat16)
        seconds = in_turn(trainings)
        first = seconds.pop("the usual loop")
        row[network.__name__] = {
            name: summary([a / b for a, b in zip(first, each)]) | {"seconds": statistics.median(each)}
            for name, each in seconds.items()
        }
        row[network.__name__]["the usual loop"] = {"seconds": statistics.median(first)}
    rows = json.loads(FILE.read_text(encoding="utf-8")).get("formats", [])
    return {"formats": [*(other for other in rows if other["device"] != row["device"]), row]}


# ------------------------------------------------------- a busy machine ----


def short(network=Net8k, batch_size=64, train_count=6000, test_count=1000) -> dict:
    """Train by fit, three times, for an epoch of so many images; return the seconds of the last two, and megabytes."""
    import resource  # not on Windows

    times = -(-train_count // len(data.train_labels))  # more images than there are: the same ones again
    part = replace(
        data,
        train_images=data.train_images.repeat(times, 1, 1, 1)[:train_count].clone(),
        train_labels=data.train_labels.repeat(times)[:train_count],
        test_images=data.test_images[:test_count],
        test_labels=data.test_labels[:test_count],
    )
    train = by_fit(network, batch_size, part)
    seconds = [timed(train)[1] for _ in range(3)]  # the first one is slower: much is set up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"parameters": sum(p.numel() for p in network().parameters()), "seconds": seconds[1:], "megabytes": peak}


def in_a_process(*arguments, **environment) -> dict:
    """Call ``short`` in a process of its own: settings of threads are read once, and a peak of memory stays."""
    asked = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, __file__, "short", *map(str, arguments)]
    done = subprocess.run(command, env=asked | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def busy() -> dict:
    """Time a tenth of an epoch of Net8k beside 0, 1 and 3 programs that only compute, by how the threads wait."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    ways = {
        "PyTorch's default": threads,
        "OMP_WAIT_POLICY=PASSIVE": threads | {"OMP_WAIT_POLICY": "PASSIVE"},
        "GOMP_SPINCOUNT=1000": threads | {"GOMP_SPINCOUNT": "1000"},
        "one thread": {"OMP_NUM_THREADS": "1"},
        "fit chooses": {},
    }
    table = {}
    for programs in (0, 1, 3):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
        try:
            seconds = {way: [] for way in ways}
            for _ in range(2):
                for way, environment in ways.items():
                    seconds[way] += in_a_process(**environment)["seconds"]
                    print(f"{programs} other programs, {way:24} {seconds[way][-1]:6.2f} s", flush=True)
        finally:
            for other in others:
                other.kill()
                other.wait()
        table[str(programs)] = {way: summary(each) for way, each in seconds.items()}
    medians = {load: {way: of["median"] for way, of in ways.items()} for load, ways in table.items()}
    ratios = {load: of["fit chooses"] / of["one thread"] for load, of in medians.items()}
    idle = medians["0"]["fit chooses"] / medians["0"]["PyTorch's default"]
    return {"busy": table, "busy_ratio": ratios, "idle_ratio": idle}


# ----------------------------------------------------------- what it costs ----


def cost() -> dict:
    """Time and memory by network, batch size and number of images."""
    results = {"networks": {}, "batch_sizes": {}, "images": {}}
    for name in ("NetTiny", "Net8k", "Best8k", "Net20k", "Best20k", "NetFast", "LeNet5"):
        results["networks"][name] = in_a_process(name)
    for batch_size in (16, 64, 256, 1024):
        results["batch_sizes"][str(batch_size)] = in_a_process("Net8k", batch_size)
    for count in (7_500, 15_000, 30_000, 60_000, 120_000):
        results["images"][str(count)] = in_a_process("Net8k", 256, count)
    for rows in results.values():
        for row in rows.values():
            row["seconds"] = statistics.mean(row["seconds"])
    print(json.dumps(results, indent=1), flush=True)
    return {"cost": results}


def run_of_an_epoch(name: str, seed: int) -> tuple[dict, nn.Module]:
    """One run of a study: an epoch of Net8k on all images, one thread."""
    images = load_mnist()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Net8k()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return fit(model, images, name=name, optimizer=optimizer, epochs=1, batch_size=64, seed=seed), model


def study(count: int = 4) -> dict:
    """Time so many runs one after the other, two at a time, and on Dask clusters of two workers, which stand ready."""
    import dask
    from dask.distributed import Client

    def seconds_of(label: str, n_jobs: int, warm_up: int) -> float:
        for part, number in (("ready", warm_up), ("timed", count)):  # first a run on each worker, which imports PyTorch
            folder = f"{part}-{label.replace(' ', '-')}"
            runs = [{"name": f"{folder}/run{seed}", "seed": seed} for seed in range(number)]
            _, seconds = timed(run_study, folder, run_of_an_epoch, runs, n_jobs)
        print(f"{count} runs, {label}: {seconds:.1f} s", flush=True)
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MNIST_RESULTS"] = folder
        measured = {"one at a time": seconds_of("one", 1, 1), "two at a time": seconds_of("two", 2, 2)}
        for label, settings in {"Dask, its settings": {}, "Dask, our setting": DASK}.items():
            dask.config.set(settings)
            os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # which an earlier cluster sets for all later processes
            client = Client(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
            with client, joblib.parallel_config(backend="dask"):
                measured[label] = seconds_of(label, -1, 2)
    return {"study": {"runs": count, "epochs": 1, "seconds": measured}}


# --------------------------------------------------------- time to 99.4 ----


def assigned(model: nn.Module, steps: int = 1) -> tuple:
    """Return the optimizer and the scheduler, stepped ``steps`` times an epoch, of the 8,000-parameter assignment."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.015, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=6 * steps, gamma=0.1)


def seconds_to(elapsed: list[float], accuracies: list[float], accuracy: float) -> float | None:
    """Return the seconds until the first epoch from which every accuracy is at least ``accuracy``; None if never."""
    seconds = None
    for at, reached in zip(reversed(elapsed), reversed(accuracies)):
        if reached < accuracy:
            break
        seconds = at
    return seconds


def usual_training(network, batch_size: int, epochs: int, seed: int) -> tuple[list[float], list[float]]:
    """Train by the usual loop, see by_epochs; return elapsed seconds and test accuracies, epoch by epoch."""
    loaders = usual_loaders(batch_size, *usual_sets(torchvision_root()))
    return by_epochs(network, epochs, seed, lambda *trained: usual_epoch(*trained, *loaders, device)[1])


def by_epochs(network, epochs: int, seed: int, train_epoch) -> tuple[list[float], list[float]]:
    """Train with the optimizer and the schedule of the 8,000-parameter assignment; return as usual_training.

    ``train_epoch(model, optimizer)`` trains for an epoch and returns the test accuracy.
    """
    torch.manual_seed(seed)
    model = network().to(device)
    optimizer, scheduler = assigned(model)
    elapsed, accuracies = [], []
    started = time.perf_counter()
    for _ in range(epochs):
        accuracies.append(train_epoch(model, optimizer))
        scheduler.step()
        elapsed.append(time.perf_counter() - started)
    return elapsed, accuracies


def time_to_99_4() -> dict:
    """Time Net8k to 99.4 %, held to the end: the usual loop with the assignment's recipe, and the course's fast one."""
    runs = {"usual": [], "course": []}
    for seed in SEEDS:
        course = timed(train_to_99_4, data, seed)[0]
        histories = {
            "usual": timed(usual_training, Net8k, 256, 15, seed)[0],
            "course": (course["elapsed"], course["history"]["test_accuracy"]),
        }
        for kind, (elapsed, accuracies) in histories.items():
            seconds = seconds_to(elapsed, accuracies, 99.4)
            runs[kind].append({"seed": seed, "seconds": seconds, "elapsed": elapsed, "accuracy": accuracies})
            print(f"{kind:7} seed {seed}: 99.4 % after {seconds} s, {accuracies[-1]:.2f} % in the end", flush=True)
    ratios = ratios_to_99_4(runs)
    return {
        "time_to_99_4_ratio": statistics.median(ratios),
        "spread": {"time_to_99_4_ratio": summary(ratios)},
        "time_to_99_4": runs,
    }


def ratios_to_99_4(runs: dict) -> list[float]:
    """Return how many times faster the course's runs were; 0 for one that never holds the target.

    A usual run that never holds it counts with its whole time, which is too little: the ratio is then a lower bound.
    """
    usual = [run["seconds"] or run["elapsed"][-1] for run in runs["usual"]]
    course = [run["seconds"] or math.inf for run in runs["course"]]
    return [a / b for a, b in zip(usual, course)]


# ---------------------------------------------------------- time to 99 ----


class TrainMnistFast(nn.Module):
    """The network of the last notebook of tuomaso/train_mnist_fast: 215,194 parameters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
        )

    def forward(self, images):
        return self.layers(images)


def train_mnist_fast(images: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
    """Train as that notebook does, one epoch, and return the test accuracy, in percent. Images are normalised."""
    torch.manual_seed(seed)
    model = TrainMnistFast().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
    batches = list(zip(images.split(256), labels.split(256)))
    scheduler = OneCycleLR(optimizer, max_lr=0.01, total_steps=len(batches), cycle_momentum=False)
    for batch_images, batch_labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(batch_images), batch_labels).backward()
        optimizer.step()
        scheduler.step()
    return 100 * evaluate(model, data.test_images, data.test_labels)[1] / len(data.test_labels)


def time_to_99() -> dict:
    """Time a training that reaches 99 % on average, tests included: train_mnist_fast and NetFast, ten seeds each."""
    shuffled = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0)).to(device)
    images, labels = normalize(data.train_images[shuffled]), data.train_labels[shuffled]
    runs = {"train_mnist_fast": [], "course": []}
    timed(train_mnist_fast, images[:2560], labels[:2560], 0)  # the first call of everything is slower
    for seed in SHORT_SEEDS:
        accuracy, seconds = timed(train_mnist_fast, images, labels, seed)
        runs["train_mnist_fast"].append({"seed": seed, "seconds": seconds, "accuracy": accuracy})
        run, seconds = timed(train_to_99, data, seed)
        accuracy = run["history"]["test_accuracy"][-1]
        runs["course"].append({"seed": seed, "seconds": seconds, "accuracy": accuracy, "parameters": run["parameters"]})
        print(f"seed {seed}:", *(f"{k} {v[-1]['seconds']:.1f} s {v[-1]['accuracy']:.2f} %" for k, v in runs.items()))
    shares = [b["seconds"] / a["seconds"] for a, b in zip(*runs.values())]
    return {
        "time_to_99_share": statistics.median(shares),
        "spread": {"time_to_99_share": summary(shares)},
        "time_to_99": {
            name: {
                "mean_accuracy": statistics.mean(run["accuracy"] for run in of),
                "sd_accuracy": statistics.stdev(run["accuracy"] for run in of),
                "reached": sum(run["accuracy"] >= 99 for run in of),
                "seconds": summary([run["seconds"] for run in of]),
                "runs": of,
            }
            for name, of in runs.items()
        },
    }


# ------------------------------------------------------------ accuracy ----


def accuracies_in_memory(network, batch_size: int, epochs: int, seed: int, *, bfloat16: bool) -> list[float]:
    """Train on images in memory with the recipe of by_epochs; return the test accuracies, epoch by epoch."""
    how = {"batch_size": batch_size, "read_loss": False, "bfloat16": bfloat16}
    return by_epochs(network, epochs, seed, partial(epoch_in_memory, **how))[1]


def accuracies_by_fit(network, batch_size: int, epochs: int, seed: int) -> list[float]:
    """Train by fit with the recipe of by_epochs; return the test accuracies, epoch by epoch."""
    torch.manual_seed(seed)
    model = network()
    optimizer, scheduler = assigned(model, math.ceil(len(data.train_labels) / batch_size))
    settings = {"epochs": epochs, "batch_size": batch_size, "augmentation": {"degrees": 7}}
    run = fit(model, data, name="fit", optimizer=optimizer, scheduler=scheduler, seed=seed, **settings)
    return run["history"]["test_accuracy"]


def accuracy() -> dict:
    """Train with what could cost accuracy: Net8k rung by rung, Net20k first and last rung, NetFast in both formats.

    Rung 2 gives the weights of rung 1, because reading the loss changes none; so rung 1 is trained without reading it.
    How Net8k does in the usual loop, ``time_to_99_4`` finds. The 11 epochs of Net20k are those of its assignment's log.
    """
    ways = {
        "the usual loop": lambda *setting: usual_training(*setting)[1],
        "1 images in memory": partial(accuracies_in_memory, bfloat16=False),
        "3 bfloat16": partial(accuracies_in_memory, bfloat16=True),
        "4 fit": accuracies_by_fit,
    }
    runs = {"Net8k": {}, "Net20k": {}, "NetFast": {}}
    for seed in SEEDS:
        for network, batch_size, count, names in (
            (Net8k, 256, 15, ("1 images in memory", "3 bfloat16", "4 fit")),
            (Net20k, 64, 11, ("the usual loop", "4 fit")),
        ):
            for way in names:
                history, _ = timed(ways[way], network, batch_size, count, seed)
                runs[network.__name__].setdefault(way, []).append({"seed": seed, "accuracy": history})
                print(f"{network.__name__}, {way}, seed {seed}: {history[-1]:.2f} %", flush=True)
    for label, bfloat16 in (("float32", False), ("bfloat16", True)):
        of = runs["NetFast"][label] = []
        for seed in SHORT_SEEDS:
            run, _ = timed(train_to_99, data, seed, bfloat16=bfloat16)
            of.append({"seed": seed, "accuracy": run["history"]["test_accuracy"]})
        print(f"NetFast in {label}: {statistics.mean(run['accuracy'][-1] for run in of):.2f} %", flush=True)
    return {"accuracy": runs}


def choices() -> dict:
    """Compare settings of the two fast recipes on the validation set: trained on 50,000 images, tested on 10,000."""
    validation = load_mnist(validation=True)
    found = {"train_to_99": [], "train_to_99_4": []}
    for epochs, batch_size, peak in ((1, 64, 0.2), (2, 64, 0.2), (2, 128, 0.3), (2, 256, 0.4), (3, 256, 0.4)):
        settings = {"epochs": epochs, "batch_size": batch_size, "peak": peak}
        runs = [timed(train_to_99, validation, seed, **settings)[0] for seed in SEEDS]
        found["train_to_99"].append(settings | {"accuracy": [run["history"]["test_accuracy"] for run in runs]})
        print(found["train_to_99"][-1], flush=True)
    for epochs in (6, 8):
        runs = [timed(train_to_99_4, validation, seed, epochs)[0] for seed in SEEDS]
        accuracies = [run["history"]["test_accuracy"] for run in runs]
        found["train_to_99_4"].append({"epochs": epochs, "accuracy": accuracies})
        print(found["train_to_99_4"][-1], flush=True)
    return {"choices": found}


# --------------------------------------------------------------- tests ----


def suite(*options: str) -> subprocess.Popen:
    """Start the whole test suite, every notebook with it."""
    return subprocess.Popen([sys.executable, "-m", "pytest", "--nbval", "-q", *options], cwd=ROOT)


def tests() -> dict:
    """Time the whole test suite, and each notebook in it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        started = time.perf_counter()
        if suite(f"--junitxml={report}").wait():
            raise SystemExit("Tests failed: their time is not written.")
        minutes = (time.perf_counter() - started) / 60
        by_notebook = dict.fromkeys([path.stem for path in NOTEBOOKS], 0.0)
        for case in ElementTree.parse(report).iter("testcase"):
            for name in by_notebook:
                if f"{name}.ipynb" in case.get("classname"):
                    by_notebook[name] += float(case.get("time")) / 60
    return {"nbval_minutes": minutes, "notebook_minutes": by_notebook}


def memory() -> dict:
    """Run the whole test suite once more, and watch the memory of all its processes together.

    Not while its time is taken, because looking slows the processes. It looks twice a second: a need that is over
    sooner may be missed. What processes share counts once (PSS, where the system can tell; elsewhere not at all). What
    this process and the one that started it (which may run all parts, and then holds PyTorch, too) share with others is
    counted as theirs.
    """

    def proportional(used) -> int:
        return getattr(used, "pss", used.uss)

    running = suite()
    looking = [process for process in (psutil.Process(), psutil.Process().parent()) if process]
    peak = 0
    try:
        while running.poll() is None:
            total = 0
            for process in looking:
                with contextlib.suppress(psutil.Error):  # the parent has ended, or is another user's
                    used = process.memory_full_info()
                    total += proportional(used) - used.uss
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(running.pid)
                for process in (first, *first.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += proportional(process.memory_full_info())
            peak = max(peak, total)
            time.sleep(0.5)
    finally:
        running.kill()  # if looking failed; otherwise it has ended
    if running.returncode:
        raise SystemExit("Tests failed: their memory is not written.")
    return {"peak_memory_mb": peak / 1e6}


PARTS = {
    "epochs": epochs,
    "compilation": compilation,
    "formats": formats,
    "busy": busy,
    "cost": cost,
    "study": study,
    "time_to_99_4": time_to_99_4,
    "time_to_99": time_to_99,
    "accuracy": accuracy,
    "choices": choices,
    "tests": tests,
    "memory": memory,
}


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def table(speed: dict) -> str:
    """Return the main figures, a line each, with what they should be."""
    epoch, to_99 = speed.get("epoch_ratio", {}), speed.get("time_to_99", {}).get("course", {})
    lines = (
        ("an epoch of Net8k: times faster", epoch.get("Net8k"), "at least 2.0"),
        ("an epoch of Net20k: times faster", epoch.get("Net20k"), "at least 1.7"),
        ("beside 1 program: times one thread's time", speed.get("busy_ratio", {}).get("1"), "at most 1.5"),
        ("beside 3 programs", speed.get("busy_ratio", {}).get("3"), "at most 1.5"),
        ("alone: times the time of all threads", speed.get("idle_ratio"), "at most 1.1"),
        ("Net8k to 99.4 %: times faster", speed.get("time_to_99_4_ratio"), "at least 4"),
        ("to 99 %: share of train_mnist_fast's time", speed.get("time_to_99_share"), "at most 0.6"),
        ("    mean accuracy there, ten seeds, %", to_99.get("mean_accuracy"), "at least 99.0"),
        ("pytest --nbval, minutes", speed.get("nbval_minutes"), "at most 20"),
        ("    peak memory, MB", speed.get("peak_memory_mb"), "at most 2,000"),
    )
    return "\n".join(f"{name:44} {'not measured' if v is None else f'{v:.2f}':>12}   {aim}" for name, v, aim in lines)


if __name__ == "__main__":
    parts = sys.argv[1:] or list(PARTS)
    if parts[0] == "short":
        import model as models

        data, device = load_mnist(), torch.device("cpu")
        os.environ["MNIST_RESULTS"] = tempfile.gettempdir()
        _, *arguments = parts
        network = [getattr(models, name) for name in arguments[:1]]
        print(json.dumps(short(*network, *map(int, arguments[1:]))))
        raise SystemExit
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"No such part: {', '.join(unknown)}; there are: {', '.join(PARTS)}.")
    if len(parts) > 1:  # each in a process of its own, so that none finds the memory that another one left behind
        raise SystemExit(any([subprocess.run([sys.executable, __file__, part]).returncode for part in parts]))
    # Here and not above, because on some systems every worker of a DataLoader imports this file again.
    data = load_mnist()
    if data.name != "MNIST":
        raise SystemExit("The benchmark needs MNIST: let MNIST_ROOT name the folder that has MNIST/raw/ inside.")
    device = data.train_images.device
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "processor": processor().get("cpu_name") or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    [part] = parts
    print(f"-- {part}", flush=True)
    measured = rounded(PARTS[part]())
    speed = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    spread = speed.get("spread", {}) | measured.pop("spread", {})
    speed |= measured | {"spread": spread, "machine": speed.get("machine", {}) | {part: machine}}
    write_whole({FILE: (json.dumps(speed, indent=1, allow_nan=False) + "\n").encode()})
    print(table(speed), flush=True)

"""What notebook 8 and the benchmark compare."""

import pytest
import torch
from torch.utils.data import Subset

import speed
from mnist import torchvision_root
from model import LeNet5, Net8k, NetFast
from utils import evaluate, normalize


def test_the_usual_loop_learns_and_tests_as_the_course_does(mnist):
    sets = speed.usual_sets(torchvision_root())
    train_set, test_set = (Subset(of, range(count)) for of, count in zip(sets, (640, 50)))
    loaders = speed.usual_loaders(64, train_set, test_set, num_workers=0)
    torch.manual_seed(0)
    model = Net8k()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = evaluate(model, mnist.test_images[:50].cpu(), mnist.test_labels[:50].cpu())[0]
    loss, accuracy = speed.usual_epoch(model, optimizer, *loaders, torch.device("cpu"))
    again, correct = evaluate(model, mnist.test_images[:50].cpu(), mnist.test_labels[:50].cpu())
    assert loss == pytest.approx(again, rel=1e-4) and accuracy == 100 * correct / 50 and loss < before
    image, label = test_set[3]  # the same normalisation as ours
    assert torch.allclose(image, normalize(mnist.test_images[3].cpu()), atol=1e-5) and label == mnist.test_labels[3]
    turned = [train_set[0][0] for _ in range(2)]
    assert not torch.equal(*turned)
    few, more = (speed.usual_part(sets, (count, 100), torch.device("cpu"))[0] for count in (64, 1280))
    assert more < few


def test_the_short_trainings_have_the_settings_that_the_notebook_tells(few, digits):
    run = speed.train_to_99_4(digits, seed=1, epochs=1)
    settings = run["settings"]
    assert run["parameters"] == 7_568 and settings["batch_size"] == 64 and settings["scheduler"]["max_lr"] == 0.2
    quarter = len(digits.train_labels) / 64 / 4  # of an epoch, in batches
    assert settings["ema_decay"] == pytest.approx(1 - 1 / quarter) and settings["augmentation"]["translate"] == 0.07
    run = speed.train_to_99(few, seed=1, batch_size=50, bfloat16=False)
    assert run["parameters"] == 18_010 and run["epochs"] == 2 and run["precision"] == "float32"
    assert run["settings"]["optimizer"]["lr"] == 0.4 and run["settings"]["scheduler"]["total_steps"] == 10


def test_every_operation_has_a_kind(few):
    model = Net8k()
    milliseconds = speed.kinds_of_time(lambda: evaluate(model, few.test_images, few.test_labels), batches=1)
    assert set(milliseconds) == set(speed.KINDS) and milliseconds["loading images"] == 0
    assert all(milliseconds[kind] > 0 for kind in ("convolution", "BatchNorm", "pooling", "everything else"))


def test_multiply_adds_are_weights_times_places():
    assert (
        speed.multiply_adds(Net8k()) == 26**2 * 72 + 24**2 * 648 + 22**2 * 810 + 9**2 * 1080 + 7**2 * 1728 + 5**2 * 3080
    )
    assert speed.multiply_adds(LeNet5()) == 28**2 * 6 * 25 + 10**2 * 16 * 150  # its fully connected layers do not count
    assert speed.multiply_adds(NetFast()) == 399_872

"""The published training and attack loop, written out plainly: what the benchmark compares with.

As in the code of "Adversarial Training for Free!" (arXiv:1904.12843) and of "Boosting Adversarial
Training with Hypersphere Embedding" (arXiv:2002.08619): NCHW, float32, eager; mean and standard
deviation created every time and applied by hand; loss and accuracies read from the device at each
replay; a loader that gives normalised floats, a new one for every folder. Nothing else uses this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def accuracy(
    output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]
) -> list[torch.Tensor]:
    """Precision at each k, in percent, as tensors of one element."""
    _, predicted = output.topk(min(max(topk), output.shape[1]), 1, True, True)
    correct = predicted.t().eq(target.view(1, -1).expand_as(predicted.t()))
    return [
        correct[:k].reshape(-1).float().sum(0, keepdim=True) * (100 / len(target)) for k in topk
    ]


def mean_and_std(device: torch.device, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, size, size) each."""
    mean = torch.Tensor(np.array(MEAN)[:, np.newaxis, np.newaxis]).expand(3, size, size).to(device)
    std = torch.Tensor(np.array(STD)[:, np.newaxis, np.newaxis]).expand(3, size, size).to(device)
    return mean, std


def free_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, step_size: float
) -> Callable[[], None]:
    """One replay of a minibatch.

    Args:
        model: takes normalised images.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,).
        eps, step_size: in units of [0, 1].
    """
    criterion = nn.CrossEntropyLoss().to(images.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    global_noise = torch.zeros_like(images, memory_format=torch.contiguous_format)

    def step() -> None:
        mean, std = mean_and_std(images.device, images.shape[-1])
        noise = global_noise[0 : len(images)].clone().requires_grad_(True)
        adversarial = images + noise
        adversarial.clamp_(0, 1.0)
        adversarial.sub_(mean).div_(std)
        output = model(adversarial)
        loss = criterion(output, labels)
        for value in (loss, *accuracy(output, labels, topk=(1, 5))):
            value.item()
        optimizer.zero_grad()
        loss.backward()
        assert noise.grad is not None
        global_noise[0 : len(images)] += step_size * noise.grad.sign()
        global_noise.clamp_(-eps, eps)
        optimizer.step()

    return step


def pgd(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, step_size: float
) -> Iterator[torch.Tensor]:
    """The images after each step, for ever.

    Args:
        model: takes normalised images.
        images: (B, 3, H, W) in [0, 1].
        labels: (B,).
        eps, step_size: in units of [0, 1].
    """
    mean, std = mean_and_std(images.device, images.shape[-1])
    criterion = nn.CrossEntropyLoss().to(images.device)
    original = images.clone()
    images = images + torch.from_numpy(np.random.uniform(-eps, eps, images.shape)).to(images)
    images.clamp_(0, 1.0)
    while True:
        adversarial = images.detach().clone().requires_grad_(True)
        loss = criterion(model(adversarial.sub(mean).div_(std)), labels)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        images = images + step_size * torch.sign(gradient)
        images = torch.max(original - eps, images)
        images = torch.min(original + eps, images)
        images.clamp_(0, 1.0)
        yield images


def read_folders(
    root: str, resize: int | None, crop: int, batch: int, workers: int, device: str
) -> int:
    """Read an ImageNet-C tree, image by image, into normalised floats; the number of images.

    Args:
        resize: shorter side before the crop, pixels; None crops alone.
    """
    steps = [transforms.Resize(resize)] if resize else []
    steps += [transforms.CenterCrop(crop), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    seen = 0
    for folder in sorted(Path(root).glob("*/*")):
        data = ImageFolder(str(folder), transforms.Compose(steps))
        for images, labels in DataLoader(data, batch_size=batch, num_workers=workers):
            images, labels = images.to(device), labels.to(device)
            seen += len(labels)
    return seen


def evaluate_pgd(
    model: nn.Module,
    root: str,
    crop: int,
    batch: int,
    workers: int,
    device: torch.device,
    eps: float,
    step_size: float,
    steps: int,
) -> tuple[int, int]:
    """Clean pass and PGD over `root`/val, all steps for every image; (robust, all)."""
    pixels = transforms.Compose([transforms.CenterCrop(crop), transforms.ToTensor()])
    data = ImageFolder(os.path.join(root, "val"), pixels)
    mean, std = mean_and_std(device, crop)
    model.eval()
    for attacked in (False, True):
        right = 0
        for images, labels in DataLoader(data, batch, num_workers=workers):
            images, labels = images.to(device), labels.to(device)
            if attacked:
                iterates = pgd(model, images, labels, eps, step_size)
                for _ in range(steps):
                    images = next(iterates)
            with torch.no_grad():
                output = model((images - mean) / std)
            right += round(accuracy(output, labels, (1,))[0].item() * len(labels) / 100)
    return right, len(data)

"""The published training and attack loop, written out plainly: what the benchmark compares with.

As in the code of "Adversarial Training for Free!" (arXiv:1904.12843) and of "Boosting Adversarial
Training with Hypersphere Embedding" (arXiv:2002.08619): NCHW, float32, eager; mean and standard
deviation created every time and applied by hand; loss and accuracies read from the device at each
replay; a loader that gives floats. Nothing else uses this.

Models take normalised images; images are (B, 3, H, W) in [0, 1], labels (B,).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
EPS, STEP_SIZE = 4 / 255, 1 / 255  # of PGD; a free step is as large as eps


def accuracy(
    output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]
) -> list[torch.Tensor]:
    """Precision at each k, in percent, as tensors of one element."""
    _, predicted = output.topk(min(max(topk), output.shape[1]), 1, True, True)
    correct = predicted.t().eq(target.view(1, -1).expand_as(predicted.t()))
    return [
        correct[:k].reshape(-1).float().sum(0, keepdim=True) * (100 / len(target)) for k in topk
    ]


def mean_and_std(device: torch.device, size: int) -> list[torch.Tensor]:
    """(3, size, size) each."""
    arrays = (np.array(values)[:, np.newaxis, np.newaxis] for values in (MEAN, STD))
    return [torch.Tensor(array).expand(3, size, size).to(device) for array in arrays]


def free_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """What does one replay of a minibatch."""
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
        global_noise[0 : len(images)] += EPS * noise.grad.sign()
        global_noise.clamp_(-EPS, EPS)
        optimizer.step()

    return step


def pgd(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The images after each step, for ever."""
    mean, std = mean_and_std(images.device, images.shape[-1])
    criterion = nn.CrossEntropyLoss().to(images.device)
    original = images.clone()
    images = images + torch.from_numpy(np.random.uniform(-EPS, EPS, images.shape)).to(images)
    images.clamp_(0, 1.0)
    while True:
        adversarial = images.detach().clone().requires_grad_(True)
        loss = criterion(model(adversarial.sub(mean).div_(std)), labels)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        images = images + STEP_SIZE * torch.sign(gradient)
        images = torch.max(original - EPS, images)
        images = torch.min(original + EPS, images)
        images.clamp_(0, 1.0)
        yield images


def loader(folder: str, crop: int, batch: int, workers: int) -> DataLoader:
    """Images of a folder of class folders, (B, 3, crop, crop) in [0, 1]."""
    transform = transforms.Compose([transforms.CenterCrop(crop), transforms.ToTensor()])
    data = ImageFolder(folder, transform)
    return DataLoader(data, batch_size=batch, num_workers=workers)


def evaluate_pgd(model: nn.Module, batches: DataLoader, device: str, steps: int) -> float:
    """Clean pass and PGD, all steps for every image; robust accuracy in percent."""
    model.eval()
    for attacked in (False, True):
        right = count = 0
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            mean, std = mean_and_std(images.device, images.shape[-1])
            if attacked:
                iterates = pgd(model, images, labels)
                for _ in range(steps):
                    images = next(iterates)
            with torch.no_grad():
                output = model((images - mean) / std)
            right += round(accuracy(output, labels, (1,))[0].item() * len(labels) / 100)
            count += len(labels)
    return 100 * right / count

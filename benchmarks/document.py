"""The document's own PyTorch code, to measure and to compare with.

Source: the document's sections "Exemple de code CNN" and "Exemple de code d'entraînement CNN", with
its comments left out and its indentation restored.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim


class MY_NET(nn.Module):
    """Images (B, 3, 48, 48) to logits (B, num_classes)."""

    def __init__(self, num_classes: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels=3, out_channels=32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(in_channels=32, out_channels=64, kernel_size=3, padding=1)
        self.pool1 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.conv3 = nn.Conv2d(in_channels=64, out_channels=128, kernel_size=3, padding=1)
        self.pool2 = nn.MaxPool2d(kernel_size=2, stride=2)
        self._feature_size = 128 * 12 * 12
        self.fc1 = nn.Linear(self._feature_size, 512)
        self.fc2 = nn.Linear(512, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        x = F.relu(x)
        x = self.conv2(x)
        x = F.relu(x)
        x = self.pool1(x)
        x = self.conv3(x)
        x = F.relu(x)
        x = self.pool2(x)
        x = torch.flatten(x, 1)
        x = self.dropout(x)
        x = F.relu(self.fc1(x))
        x = self.dropout(x)
        return self.fc2(x)


def make_step(model: nn.Module, learning_rate: float = 1e-3, weight_decay: float = 1e-4) -> Any:
    """The body of the document's training loop, as a function of a batch."""
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    model.train()

    def step(x: torch.Tensor, y: torch.Tensor) -> float:
        logits = model(x)
        loss = criterion(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logits.argmax(dim=1).eq(y).sum().item()
        return float(loss.item())

    return step

"""For the server that forks processes of tests: a first export and a first page, so that no fork makes its own.

The exporter's tables of operators and matplotlib's of fonts take longer than all else that most of these processes do.
"""

import gc
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from services.trainer.evaluation.card import make_card
from services.trainer.evaluation.card_page import render_card
from services.trainer.evaluation.figures import evaluate_predictions
from services.trainer.export.graph import export_graph
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.residual import ResidualNetwork

# Threads do not live on in a fork, which may wait for them.
torch.set_num_threads(1)
tqdm.monitor_interval = 0
with tempfile.TemporaryDirectory() as folder:
    network = ResidualNetwork(3, widths=(8, 8, 8), depths=(0, 0, 1))
    export_graph(Classifier(network, torch.zeros(3), torch.ones(3)), Path(folder) / "model.onnx", (16, 16, 3), {})
history = {epoch: {"train_loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 1.0} for epoch in (1, 2)}
render_card(make_card(evaluate_predictions(np.eye(3), np.array([0, 1, 1]), ("a", "b", "c")), history=history))
gc.freeze()  # what is here stays; forks need not look through it again and again

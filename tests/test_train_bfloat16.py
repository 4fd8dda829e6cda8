"""Recipes in bfloat16, as on a GPU: a step has nearly the loss and the gradients of float32."""

import numpy as np
import pytest
import torch

import test_train_edge_sam
import test_train_efficient_sam
import test_train_fast_sam
import test_train_mobile_sam
import test_train_mobile_sam_v2
import test_train_sam_lightening
import test_train_slim_sam
from anysam.train.configs.loop import LoopConfig
from anysam.train.loop import train
from anysam.train.task import Step
from test_train_promptable import photographs, small_sam


def sam():
    return small_sam()


# Fine-tuning has such a test among its own.
TASKS = {
    "mobile_sam": lambda entries: test_train_mobile_sam.task_of(entries, sam()),
    "edge_sam": lambda entries: test_train_edge_sam.task_of(entries, "2"),
    "sam_lightening": lambda entries: test_train_sam_lightening.task_of(entries, sam()),
    "mobile_sam_v2": lambda entries: test_train_mobile_sam_v2.decoder_task(entries, entries),
    "slim_sam": lambda entries: test_train_slim_sam.make("1", entries),
    "fast_sam": lambda entries: test_train_fast_sam.task_of(test_train_fast_sam.tiny_network(), entries, entries),
    "efficient_sam sami": lambda entries: test_train_efficient_sam.sami_task(entries, sam()),
    "efficient_sam finetune": lambda entries: test_train_efficient_sam.masks_task(
        entries, test_train_efficient_sam.tiny_student()
    ),
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("photographs"), 2)


def gradients_of(task, half):
    """The loss of two images, and all gradients in a row."""
    step = Step(0, 0.0, 0, torch.device("cpu"), torch.Generator().manual_seed(0))
    task.prepare(step)
    batch = task.collate([task.read(i, np.random.default_rng(i)) for i in range(2)])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = task.loss(batch, step)
    loss.total.float().backward()
    found = [parameter.grad.flatten().float() for parameter in task.network.parameters() if parameter.grad is not None]
    return float(loss.total.detach()), torch.cat(found)


@pytest.mark.parametrize("recipe", TASKS)
def test_half_precision_has_nearly_the_same_loss_and_gradients(recipe, entries):
    full, wanted = gradients_of(TASKS[recipe](entries), False)
    half, found = gradients_of(TASKS[recipe](entries), True)
    assert half == pytest.approx(full, rel=0.02) and half != full
    assert float(torch.cosine_similarity(wanted, found, dim=0)) > 0.85


def test_the_loop_computes_in_half_precision_and_keeps_full_weights(entries, tmp_path):
    task, seen = TASKS["mobile_sam"](entries), []
    task.network.image_encoder.neck.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loop = LoopConfig(steps=1, batch_size=2, precision="bfloat16", device="cpu", tensorboard=False)
    outcome = train(task, loop, tmp_path)
    assert seen == [torch.bfloat16] and outcome.skipped == 0
    assert {value.dtype for value in task.network.state_dict().values()} <= {torch.float32, torch.int64}

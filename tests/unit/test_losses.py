"""The contrastive losses against plain loops, and their gradients over several processes against one."""

import math
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import nn

from trainer.losses import LossConfig, batch_recall, contrastive_loss, gather, global_mean
from trainer.models.iam import IAM

DIM, BATCH = 12, 8


def rows(seed=0, batch=BATCH):
    torch.manual_seed(seed)
    video, text = (F.normalize(torch.randn(batch, DIM, dtype=torch.float64), dim=-1) for _ in range(2))
    text_id = torch.tensor([0, 1, 2, 1, 4, 5, 0, 1])[:batch]
    valid = torch.tensor([True, True, False, True, True, False, True, True])[:batch]
    return video, text, text_id, valid


def plain_info_nce(video, text, text_id, valid, scale, bias):
    n, terms = len(video), []
    for i in range(n):
        if not valid[i]:
            continue
        columns = [j for j in range(n) if j == i or (valid[j] and text_id[j] != text_id[i])]
        for queries, keys in ((video, text), (text, video)):
            scores = torch.stack([scale * queries[i] @ keys[j] for j in columns])
            terms.append(torch.logsumexp(scores, 0) - scores[columns.index(i)])
    return sum(terms) / len(terms)


def plain_sigmoid(video, text, text_id, valid, scale, bias):
    n, total = len(video), 0.0
    for i in range(n):
        for j in range(n):
            if valid[i] and valid[j] and (i == j or text_id[i] != text_id[j]):
                sign = 1 if i == j else -1
                total = total - F.logsigmoid(sign * (scale * video[i] @ text[j] + bias))
    return total / valid.sum()


PLAIN = {"infonce": plain_info_nce, "sigmoid": plain_sigmoid}


def value_and_gradients(loss, *inputs):
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    value = loss(*leaves)
    value.backward()
    return value, [x.grad for x in leaves if x.is_floating_point()]


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 8])
def test_loss_and_gradients_are_those_of_the_plain_loops(kind, chunk):
    scale = torch.tensor(4.5, dtype=torch.float64)
    bias = torch.tensor(-2.0, dtype=torch.float64) if kind == "sigmoid" else torch.tensor(0)
    inputs = (*rows(), scale, bias)
    config = LossConfig(kind=kind, chunk=chunk)
    value, gradients = value_and_gradients(lambda *x: contrastive_loss(*x, config), *inputs)
    expected, expected_gradients = value_and_gradients(PLAIN[kind], *inputs)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 3])
def test_recall_within_the_batch_counts_who_beats_all_others(chunk):
    video, text, text_id, valid = rows()
    text = F.normalize(text + 0.2 * video, dim=-1)
    wins = []
    for i in valid.nonzero()[:, 0].tolist():
        others = [j for j in range(len(video)) if valid[j] and text_id[j] != text_id[i]]
        for queries, keys in ((video, text), (text, video)):
            wins.append(all(queries[i] @ keys[i] > queries[i] @ keys[j] for j in others))
    assert 0 < sum(wins) < len(wins)
    found = batch_recall(video, text, text_id, valid, LossConfig(chunk=chunk))
    assert found.item() == pytest.approx(sum(wins) / len(wins))
    same = torch.ones_like(video)
    assert batch_recall(same, same, text_id, valid, LossConfig()).item() == 0  # tells nothing apart


def test_a_scale_at_its_bound_learns_and_never_passes_it():
    """CLIP's weights come with ln 100, whose exponential is over 100 in float32."""
    video, text, text_id, valid = rows()
    config, logit_scale = LossConfig(), torch.nn.Parameter(torch.tensor(math.log(100)))
    optimizer, seen = torch.optim.SGD([logit_scale], lr=0.05), []
    for pairs in [text.roll(1, 0)] * 3 + [video] * 9:  # wrong pairs want a smaller scale, right ones a larger
        contrastive_loss(video, pairs, text_id, valid, logit_scale.exp(), None, config).backward()
        assert logit_scale.grad.abs() > 1e-4 or pairs is video
        optimizer.step(), config.clamp(logit_scale), optimizer.zero_grad()
        seen.append(logit_scale.exp().item())
    assert seen[0] > seen[1] > seen[2] < 90 and max(seen) <= 100.001


@pytest.mark.parametrize(
    "kind, given, most", [("infonce", None, 100), ("infonce", 20.0, 20), ("sigmoid", None, 117), ("sigmoid", 50.0, 50)]
)
def test_the_bound_of_the_scale_is_clips_unless_the_loss_is_siglips(kind, given, most):
    logit_scale = torch.tensor(math.log(117))
    LossConfig(kind=kind, max_scale=given).clamp(logit_scale)
    assert logit_scale.exp().item() == pytest.approx(most, rel=1e-4)


def test_no_valid_row_gives_zero_and_no_gradient():
    video, text, text_id, valid = rows()
    video.requires_grad_()
    loss = contrastive_loss(video, text, text_id, valid & False, torch.tensor(1.0), None, LossConfig())
    loss.backward()
    assert loss.item() == 0 and not video.grad.any()


class Branches(nn.Module):
    """Two small towers, two IAMs, a scale and a bias: what the gradients have to reach."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.towers = nn.ModuleList([nn.Linear(5, DIM), nn.Linear(5, DIM)])
        self.iams = nn.ModuleList([IAM(DIM, heads=2, positions=4), IAM(DIM, heads=2, positions=4)])
        self.scale, self.bias = nn.Parameter(torch.tensor(1.2)), nn.Parameter(torch.tensor(-1.0))
        for parameter in self.iams.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.double()

    def forward(self, inputs, masks, iterations, kind):
        out = []
        for tower, iam, x, mask in zip(self.towers, self.iams, inputs, masks, strict=True):
            tokens = tower(x)
            out.append(iam(tokens, mask, tokens[:, :, None], mask[:, :, None], iterations))
        return *out, self.scale.exp(), self.bias + 0 if kind == "sigmoid" else None


def global_batch(step: int):
    """One step's whole batch: two inputs [8, 4, 5] with masks, text ids with repetitions, unevenly many valid rows."""
    generator = torch.Generator().manual_seed(step)
    inputs = [torch.randn(BATCH, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    masks = [torch.rand(BATCH, 4, generator=generator) < 0.6 for _ in range(2)]
    masks[0][0] = False  # a sample without any frame
    valid = torch.tensor([False, True, True, True, True, True, False, True]) & masks[0].any(1) & masks[1].any(1)
    return inputs, masks, torch.tensor([0, 1, 1, 3, 4, 1, 6, 7]), valid


def train_steps(model, rank: int, world_size: int) -> dict:
    """Gradients and losses of three steps, as different streams make them: #iter 2, 0 (image) and 1."""
    part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    found = {}
    for kind in ("infonce", "sigmoid"):
        for step, (iterations, chunk) in enumerate([(2, None), (0, 1), (1, 2)]):
            model.zero_grad(set_to_none=True)
            inputs, masks, text_id, valid = global_batch(step)
            local = [x[part] for x in inputs], [m[part] for m in masks]
            video, text, scale, bias = model(*local, iterations, kind)
            config = LossConfig(kind=kind, chunk=chunk)
            loss = contrastive_loss(video, text, text_id[part], valid[part], scale, bias, config)
            loss.backward()
            grads = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
            found[kind, step] = {"loss": global_mean(loss), **grads}
    return found


def run_rank(rank: int, world_size: int, port: int, path: str):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    model = nn.parallel.DistributedDataParallel(Branches(), find_unused_parameters=True)
    torch.save(train_steps(model, rank, world_size), f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
def test_gradients_over_ranks_are_those_of_one_process_with_the_whole_batch(world_size, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["trainer.losses", "trainer.models.iam"])  # torch is imported once
    arguments = (world_size, port, str(tmp_path))
    multiprocessing.start_processes(run_rank, arguments, nprocs=world_size, start_method="forkserver")
    expected = train_steps(Branches(), 0, 1)
    for rank in range(world_size):
        found = torch.load(tmp_path / f"{rank}.pt")
        for step, values in expected.items():
            for name, value in values.items():
                torch.testing.assert_close(found[step][name], value, rtol=0, atol=1e-6, msg=f"{rank} {step} {name}")
            # DDP leaves a parameter that no rank used without a gradient, as one process does.
            assert found[step].keys() == values.keys()


def test_gather_of_one_process_is_the_identity():
    x = torch.ones(3)
    assert gather(x) is x

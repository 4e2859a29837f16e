import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from memory_builder.errors import UsageError
from trainer.reco.config import FusionConfig
from trainer.reco.fusion import Fusion, Reco, at_query

D, K = 64, 10


def batch(n=7, k=K, d=D, dtype=torch.float64):
    torch.manual_seed(1)
    query, neighbours = (normalize(torch.randn(*shape, dtype=dtype), dim=-1) for shape in ((n, d), (n, k, d)))
    missing = torch.zeros(n, k, dtype=torch.bool)
    missing[0, 4:] = True
    return query, neighbours, missing


def fusion(**config):
    torch.manual_seed(0)
    made = Fusion(FusionConfig(**config), D).double()
    for parameter in made.parameters():  # biases and ranks start at zero, where mistakes would not show
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_query_position_is_what_torch_computes(norm):
    query, neighbours, missing = batch()
    layer = fusion(norm=norm).layer
    sequence = torch.cat([query[:, None], neighbours], 1)
    padding = torch.cat([torch.zeros(len(query), 1, dtype=torch.bool), missing], 1)
    expected = layer.train()(sequence, src_key_padding_mask=padding)[:, 0]
    found = at_query(layer, query, neighbours, missing)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(expected.square().sum(), layer.parameters())
    for grad, other in zip(grads, torch.autograd.grad(found.square().sum(), layer.parameters()), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-9, atol=1e-12)


def test_in_float32_the_same_function_within_1e_6():
    query, neighbours, missing = batch(d=512, dtype=torch.float32)
    torch.manual_seed(0)
    layer = Fusion(FusionConfig(), 512).layer
    padding = torch.cat([torch.zeros(len(query), 1, dtype=torch.bool), missing], 1)
    expected = layer.train()(torch.cat([query[:, None], neighbours], 1), src_key_padding_mask=padding)[:, 0]
    found = at_query(layer, query, neighbours, missing)
    torch.testing.assert_close(normalize(found, dim=1), normalize(expected, dim=1), rtol=0, atol=1e-6)


def test_parameters_are_the_papers():
    """3.16 M of both fusions, without the temperature."""
    with torch.device("meta"):
        reco = Reco(FusionConfig(), 512)
    assert sum(weight.numel() for side in (reco.image, reco.text) for weight in side.parameters()) == 3_155_968


@pytest.mark.parametrize("config", [{}, {"fusion": "cross-attention"}, {"fusion": "mean"}, {"residual": True}])
def test_neighbours_are_a_set(config):
    query, neighbours, missing = batch()
    order = torch.randperm(K)
    made = fusion(**config)
    one, other = made(query, neighbours, missing), made(query, neighbours[:, order], missing[:, order])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(len(one), dtype=torch.float64))


def test_rank_embeddings_tell_neighbours_apart():
    query, neighbours, missing = batch()
    made = fusion(rank_embeddings=True)
    assert not torch.allclose(made(query, neighbours, missing), made(query, neighbours.flip(1), missing.flip(1)))


@pytest.mark.parametrize("fusion_name", ["transformer", "cross-attention", "mean"])
def test_padding_is_never_seen_and_a_query_without_neighbours_stays_itself(fusion_name):
    query, neighbours, missing = batch()
    made = fusion(fusion=fusion_name)
    some = missing.clone()
    some[:, 3:] = True
    few = made(query, neighbours[:, :3], some[:, :3])
    rubbish = torch.where(some[..., None], torch.full_like(neighbours, 9.0), neighbours)
    torch.testing.assert_close(made(query, rubbish, some), few, rtol=0, atol=1e-12)
    alone = made(query, neighbours, torch.ones_like(missing))
    assert torch.equal(alone, query)
    loss = made(query, neighbours, torch.ones_like(missing)).sum()
    grads = torch.autograd.grad(loss, made.parameters(), allow_unused=True)
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)


def test_without_retrieval_the_same_weights_still_learn():
    query, neighbours, missing = batch(k=0)
    made = fusion(k=0)
    assert not torch.allclose(made(query, neighbours, missing), query)
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in fusion().parameters())


@pytest.mark.parametrize(
    ("config", "named"), [({"k": -1}, "-k"), ({"fusion": "mean", "k": 0}, "-k"), ({"heads": 7}, "--heads 7")]
)
def test_what_cannot_be_is_refused(config, named):
    with pytest.raises(UsageError, match=named):
        Fusion(FusionConfig(**config), D)

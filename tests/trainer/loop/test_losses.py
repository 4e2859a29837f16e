import torch
from torch.nn.functional import cross_entropy, normalize

from trainer.loop.config import NO_GROUP
from trainer.loop.losses import gather_all, info_nce


def embeddings(n=6, d=8):
    generator = torch.Generator().manual_seed(0)
    return tuple(normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))


def test_the_loss_is_the_mean_of_both_cross_entropies():
    images, texts = embeddings()
    scale = torch.tensor(10.0, dtype=torch.float64)
    logits, own = 10 * images @ texts.T, torch.arange(6)
    expected = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    assert torch.allclose(info_nce(gather_all((images, texts)), 0, 1, scale), expected, rtol=1e-12)


def test_pairs_of_a_group_share_the_right_answers():
    images, texts = embeddings()
    scale = torch.tensor(10.0, dtype=torch.float64)
    group = torch.tensor([0, 0, 1, NO_GROUP, NO_GROUP, 1])
    share = torch.tensor(
        [
            [0.5, 0.5, 0, 0, 0, 0],
            [0.5, 0.5, 0, 0, 0, 0],
            [0, 0, 0.5, 0, 0, 0.5],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 1, 0],
            [0, 0, 0.5, 0, 0, 0.5],
        ],
        dtype=torch.float64,
    )
    logits = 10 * images @ texts.T
    expected = (cross_entropy(logits, share) + cross_entropy(logits.T, share)) / 2
    assert torch.allclose(info_nce(gather_all((images, texts), group), 0, 1, scale), expected, rtol=1e-12)
    alone = torch.full((6,), NO_GROUP)
    plain = info_nce(gather_all((images, texts)), 0, 1, scale)
    assert torch.allclose(info_nce(gather_all((images, texts), alone), 0, 1, scale), plain, rtol=1e-12)

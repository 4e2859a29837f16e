import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from memory_builder.errors import EncoderError, UsageError
from trainer.react.config import GatedConfig
from trainer.react.export import deepen
from trainer.react.gated import NAME, insert_gated_blocks, mlp_ratio_of
from trainer.react.towers import frozen_digest, geometry, open_tower

# Shapes of their own kind: open_clip's ViT, also with QuickGELU, SigLIP, and the perception encoder (rotary).
MODELS = ("ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP", "PE-Core-T-16-384")


class Vision(torch.nn.Module):
    """What open_clip's model looks like from here: an image tower without weights, or with random ones."""

    def __init__(self, name, device="meta"):
        super().__init__()
        config = open_clip.get_model_config(name)
        is_plain = "vit_pe" not in str(config)  # which keeps constants in buffers
        with torch.device("meta" if is_plain else device):
            visual = open_clip.model._build_vision_tower(
                config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
            )
        if is_plain and device != "meta":
            visual.to_empty(device=device)
            for parameter in visual.parameters():
                torch.nn.init.uniform_(parameter, -0.05, 0.05)
        self.visual = visual.eval().requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_closed_gates_leave_every_bit_as_it_was_and_halves_make_the_whole(name):
    torch.manual_seed(0)
    model = Vision(name, "cpu")
    size = model.visual.image_size
    pixels = torch.randn(1, 3, *(size if isinstance(size, tuple) else (size, size)))
    with torch.no_grad():
        before = model.visual(pixels)
        tower = insert_gated_blocks(model, GatedConfig(last_k=6))
        assert torch.equal(model.visual(pixels), before)
        first = len(tower.blocks) - 6
        assert torch.equal(tower.upper(tower.lower(pixels, first), first), before)


def test_six_gated_blocks_of_a_vit_b_32_are_as_many_plain_ones():
    torch.manual_seed(0)
    model, pixels = Vision("ViT-B-32", "cpu"), torch.randn(2, 3, 224, 224)
    insert_gated_blocks(model, GatedConfig(last_k=6))
    with torch.no_grad():
        for name, some in model.named_parameters():
            if "alpha" in name:
                some.fill_(0.5)
        expected = normalize(model.visual(pixels), dim=-1)
        deeper, ratio = deepen(list(model.visual.transformer.resblocks))
        model.visual.transformer.resblocks = torch.nn.ModuleList(deeper)
        assert (len(deeper), ratio) == (18, 4)
        assert (normalize(model.visual(pixels), dim=-1) - expected).abs().max() < 2e-7


@pytest.mark.parametrize("width", [64, 192, 448, 768, 896, 1408, 1664, 1792])
def test_a_ratio_gives_back_the_width_that_it_was_made_of(width):
    assert all(int(mlp_ratio_of(mlp, width) * width) == mlp for mlp in range(1, 6 * width))
    assert mlp_ratio_of(4 * width, width) == 4


def test_closed_gates_change_no_bit_where_a_graph_is_kept_either(small_model):
    x = torch.randn(2, 65, 192, requires_grad=True)
    tower = open_tower(small_model.visual)
    before = tower.upper(x, 3)
    insert_gated_blocks(small_model, GatedConfig(last_k=3))
    assert torch.equal(tower.upper(x, 3), before)
    with torch.no_grad():
        small_model.visual.transformer.resblocks[4].gated_attn_block.alpha_attn.fill_(0.1)
    assert not torch.equal(tower.upper(x, 3), before)


@pytest.mark.parametrize(("name", "millions"), [("ViT-B-32", 42.53), ("ViT-B-16", 42.53), ("ViT-L-14", 75.58)])
def test_added_parameters_are_as_many_as_published(name, millions):
    model = Vision(name)
    n_before = sum(parameter.numel() for parameter in model.parameters())
    insert_gated_blocks(model, GatedConfig(last_k=6))
    n_added = sum(parameter.numel() for parameter in model.parameters()) - n_before
    assert round(n_added / 1e6, 2) == millions


@pytest.mark.parametrize(("last_k", "n"), [(1, 1), (6, 6), (12, 12), (0, 12)])
def test_last_k_counts_from_the_end_and_zero_means_all(last_k, n):
    model = Vision("ViT-B-32")
    insert_gated_blocks(model, GatedConfig(last_k=last_k))
    held = [i for i, block in enumerate(model.visual.transformer.resblocks) if hasattr(block, NAME)]
    assert held == list(range(12 - n, 12))


def test_a_block_takes_activation_width_and_eps_from_the_block_it_precedes():
    block = Vision("ViT-B-32-quickgelu").visual.transformer.resblocks[0]
    assert type(geometry(block).activation).__name__ == "QuickGELU"
    big = geometry(Vision("ViT-bigG-14").visual.transformer.resblocks[0])
    assert (big.width, big.mlp_width) == (1664, 8192)
    siglip = Vision("ViT-B-16-SigLIP")
    assert geometry(open_tower(siglip.visual).blocks[0]).eps == 1e-6
    insert_gated_blocks(siglip, GatedConfig(last_k=1))
    gated = getattr(siglip.visual.trunk.blocks[-1], NAME)
    assert (gated.ln_1.eps, gated.mlp.c_fc.out_features) == (1e-6, 3072)


def test_bottleneck_and_branches_make_smaller_blocks(small_model):
    insert_gated_blocks(small_model, GatedConfig(last_k=1, bottleneck=64, branches="attention"))
    names = {name.split(f"{NAME}.")[1]: p.shape for name, p in small_model.named_parameters() if NAME in name}
    assert names["attn.in_proj_weight"] == (192, 192)
    assert names["attn.out_proj.weight"] == (192, 64)
    assert not any("mlp" in name or "dense" in name for name in names)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"last_k": 7}, r"--last-k 7: the image tower has 6 blocks; 0 takes all"),
        ({"last_k": 6, "bottleneck": 50}, r"--bottleneck 50: a multiple of the head width 32, up to 192"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(small_model, config, message):
    with pytest.raises(UsageError, match=message):
        insert_gated_blocks(small_model, GatedConfig(**config))


@pytest.mark.parametrize("name", ["RN50", "convnext_base"])
def test_towers_without_blocks_are_refused_by_name(name):
    with pytest.raises(EncoderError, match=rf"the image tower of {name} is a \w+: gated blocks go into ViTs"):
        insert_gated_blocks(Vision(name), GatedConfig(), name)


def test_the_digest_of_frozen_tensors_sees_one_changed_bit(small_model):
    small_model.requires_grad_(False)
    before = frozen_digest(small_model)
    weight = small_model.visual.conv1.weight
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(1.0))
    assert frozen_digest(small_model) != before
    weight.requires_grad_(True)
    assert frozen_digest(small_model) != before

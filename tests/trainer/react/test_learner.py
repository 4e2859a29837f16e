from contextlib import nullcontext
from functools import partial

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from helpers.tiny_runs import react_config
from memory_builder.errors import EncoderError, UsageError
from trainer.loop.config import OptimizerConfig
from trainer.loop.gradient_cache import compute_gradients
from trainer.loop.losses import MAX_LOGIT_SCALE
from trainer.loop.train_state import make_optimizer, take_step
from trainer.react.config import ReactConfig
from trainer.react.gated import NAME, gates
from trainer.react.learner import ReactLearner
from trainer.react.towers import frozen_digest

pytestmark = pytest.mark.usefixtures("one_thread")
LR, DECAY = 1e-2, 0.1


def learner_of(encoder, **config):
    torch.manual_seed(0)
    return ReactLearner(encoder.model, react_config(**config))


def batch(text_tokens=None, n=8):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    embeddings = normalize(torch.randn(n, 16, generator=generator), dim=-1)
    texts = {"text_embeddings": embeddings} if text_tokens is None else {"text_tokens": text_tokens}
    return {"pixels": pixels} | texts


def captions(n=8):
    """Token ids of one to six words behind which there is only padding."""
    return open_clip.get_tokenizer("ViT-B-32")([" ".join(["cat"] * (i % 6 + 1)) for i in range(n)], context_length=16)


def open_gates(learner, alpha=0.3):
    with torch.no_grad():
        for name, some in learner.parameters.items():
            if "alpha" in name:
                some.fill_(alpha)


def steps(learner, n):
    config = OptimizerConfig(weight_decay=DECAY)
    optimizer = make_optimizer(learner.parameters, config)
    for _ in range(n):
        loss = compute_gradients(learner, batch(), None, nullcontext)
        take_step(optimizer, learner.parameters, config, LR)
        learner.after_step()
    return float(loss)


def copies(learner):
    return {name: some.detach().clone() for name, some in learner.parameters.items()}


def test_the_first_step_opens_the_gates_and_decays_matrices_alone_and_the_second_teaches_the_blocks(tiny_encoder):
    learner = learner_of(tiny_encoder())
    before = copies(learner)
    steps(learner, 1)
    for name, now in learner.parameters.items():
        if name.endswith(("alpha_attn", "alpha_dense")) or name == "logit_scale":
            assert now != before[name], name
        elif now.ndim >= 2:
            assert torch.equal(now, before[name] * (1 - LR * DECAY)), name
        else:
            assert torch.equal(now, before[name]), name
    learner = learner_of(tiny_encoder())
    steps(learner, 2)
    for name, now in learner.parameters.items():
        if now.ndim >= 2:
            assert not torch.allclose(now, before[name] * (1 - LR * DECAY) ** 2, rtol=0, atol=1e-5), name


@pytest.mark.parametrize(
    ("mode", "n_steps"), [("gated-image", 100), ("locked-text", 4), ("locked-image", 4), ("full", 4)]
)
def test_what_is_frozen_keeps_every_byte_and_what_is_not_learns(tiny_encoder, mode, n_steps):
    encoder = tiny_encoder()
    model = encoder.model
    learner = learner_of(encoder, mode=mode)
    frozen, before = frozen_digest(model), copies(learner)
    data = batch(torch.randint(1, 400, (8, 16)) if learner.config.trains_texts else None)
    config = OptimizerConfig()
    optimizer = make_optimizer(learner.parameters, config)
    for _ in range(n_steps):
        compute_gradients(learner, data, None, nullcontext)
        take_step(optimizer, learner.parameters, config, 1e-3)
        learner.after_step()
    assert frozen_digest(model) == frozen
    assert not any(module.training for module in model.modules())
    moved = {name for name, now in learner.parameters.items() if not torch.equal(now, before[name])}
    assert moved == set(before)
    towers = {name.split(".")[0] == "visual" for name in before if name != "logit_scale"}
    assert towers == {"gated-image": {True}, "locked-text": {True}, "locked-image": {False}}.get(mode, {True, False})
    assert (mode == "gated-image") == all(NAME in name for name in before if name != "logit_scale")


def test_the_logit_scale_may_be_frozen_and_never_leaves_its_bounds(tiny_encoder):
    assert "logit_scale" not in learner_of(tiny_encoder(), logit_scale="frozen").parameters
    learner = learner_of(tiny_encoder())
    with torch.no_grad():
        learner.model.logit_scale.fill_(9.0)
    learner.after_step()
    assert float(learner.model.logit_scale.detach()) == pytest.approx(MAX_LOGIT_SCALE)


def test_cached_layers_and_checkpointing_give_the_same_gradients(tiny_encoder):
    whole = learner_of(tiny_encoder())
    open_gates(whole)
    losses, gradients = [], []
    for cached, checkpointing in ((False, False), (True, False), (False, True)):
        learner = learner_of(tiny_encoder(), activation_checkpointing=checkpointing)
        for name, some in whole.parameters.items():
            with torch.no_grad():
                learner.parameters[name].copy_(some)
        data = batch()
        if cached:
            data["image_tokens"] = learner.frozen_outputs(data.pop("pixels"))
        losses.append(compute_gradients(learner, data, None, nullcontext))
        gradients.append([some.grad for some in learner.parameters.values()])
    assert losses[0] == losses[1] == losses[2]
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("mode", ["locked-image", "full"])
def test_a_text_tower_that_learns_is_checkpointed_with_the_same_gradients(tiny_encoder, monkeypatch, mode):
    calls, losses, gradients = [], [], []
    plain = open_clip.transformer.checkpoint
    monkeypatch.setattr(open_clip.transformer, "checkpoint", lambda *a, **k: calls.append(a[0]) or plain(*a, **k))
    for checkpointing in (False, True):
        learner = learner_of(tiny_encoder(), mode=mode, activation_checkpointing=checkpointing)
        assert not calls
        losses.append(compute_gradients(learner, batch(captions()), None, nullcontext))
        gradients.append([some.grad for some in learner.parameters.values()])
    assert calls == list(learner.model.transformer.resblocks)
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_text_tower_that_cannot_be_checkpointed_is_refused(tiny_encoder):
    encoder = tiny_encoder()
    encoder.model.transformer = open_clip.transformer.Transformer(16, 1, 2, qk_norm=True)
    with pytest.raises(EncoderError, match=r"the text tower of the model cannot be checkpointed: leave out --activ"):
        learner_of(encoder, mode="locked-image", activation_checkpointing=True)


def test_captions_are_read_without_their_padding_for_the_same_gradients(tiny_encoder):
    lengths, found = [], []
    for trims in (True, False):
        encoder = tiny_encoder()
        encoder.model.double()
        learner = learner_of(encoder, mode="full")
        learner._from_text = learner._from_text if trims else learner.model.encode_text
        learner.model.transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
        loss = compute_gradients(learner, batch(captions()), None, nullcontext)
        found.append([loss, *(some.grad for some in learner.parameters.values())])
    assert lengths == [8, 16]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-15)


def test_only_gates_learn_if_asked_and_their_blocks_are_kept_beside_them(tiny_encoder):
    learner = learner_of(tiny_encoder(), gates_only=True)
    learns = {name for name, some in learner.parameters.items() if some.requires_grad}
    assert learns == set(gates(learner.model)) | {"logit_scale"}
    assert learner.parameters.keys() == learner_of(tiny_encoder()).parameters.keys()
    with pytest.raises(UsageError, match="--gates-only is for --mode gated-image, not full"):
        ReactConfig(mode="full", gates_only=True)


def test_pieces_give_the_gradients_of_the_whole_batch(tiny_encoder):
    found = []
    for size in (None, 3):
        encoder = tiny_encoder()
        encoder.model.double()
        learner = learner_of(encoder)
        open_gates(learner, 0.5)
        loss = compute_gradients(learner, batch(), size, nullcontext)
        found.append([loss, *(some.grad for some in learner.parameters.values())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-15)


def test_it_can_be_compiled_through_gates_and_all(tiny_encoder, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))  # no compiler's wait
    plain, compiled = learner_of(tiny_encoder()), learner_of(tiny_encoder(), compile=True)
    closed = plain.embed(batch())[0]
    for learner in (plain, compiled):
        open_gates(learner)
    assert not torch.allclose(plain.embed(batch())[0], closed, atol=1e-3)
    assert torch.allclose(plain.embed(batch())[0], compiled.embed(batch())[0], atol=1e-6)
    cached = batch()
    cached["image_tokens"] = plain.frozen_outputs(cached.pop("pixels"))
    assert torch.allclose(plain.embed(cached)[0], compiled.embed(cached)[0], atol=1e-6)


def test_a_text_tower_that_learns_is_compiled(tiny_encoder, monkeypatch):
    graphs = []
    backend = lambda graph, _: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = (learner_of(tiny_encoder(), mode="locked-image", compile=some) for some in (False, True))
    data = {"image_embeddings": batch()["text_embeddings"], "text_tokens": captions()}
    assert torch.allclose(plain.embed(data)[1], compiled.embed(data)[1], atol=1e-6)
    assert graphs

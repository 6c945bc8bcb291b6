"""The measured tangent kernel is the Gram matrix of the gradients, whatever the module, the blocks and the formula."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sims.kernel import additive_mask, empirical_ntk, ntk_product, projected_gradients
from sims.tangent import Tangent

EPS = np.finfo(float).eps


def network(seed, inputs=3, width=5, outputs=1, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers).to(dtype).eval()


def drawn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rows(net, batch, forward=lambda net, x: net(x)):
    """The oracle: one backward pass per example and output, all gradients side by side, as (n, C, P)."""
    trained = [p for p in net.parameters() if p.requires_grad]
    found = []
    for i in range(len(next(iter(batch.values())) if isinstance(batch, dict) else batch)):
        example = {k: x[i : i + 1] for k, x in batch.items()} if isinstance(batch, dict) else batch[i : i + 1]
        outputs = forward(net, example).reshape(-1)
        grads = [torch.autograd.grad(y, trained, retain_graph=True, allow_unused=True) for y in outputs]
        flat = [[torch.zeros_like(p) if g is None else g for g, p in zip(gs, trained, strict=True)] for gs in grads]
        found.append(torch.stack([torch.cat([g.reshape(-1) for g in gs]) for gs in flat]))
    return torch.stack(found).double()


def gram(left, right):
    return torch.einsum("icp,jep->icje", left, right)


def close(found, expected, rtol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


seeds = st.integers(0, 2**20)
small = st.integers(1, 4)


@settings(max_examples=30)
@given(seeds, st.integers(1, 5), st.integers(1, 5), small)
def test_kernel_is_the_gram_matrix_of_the_gradients(seed, n, m, outputs):
    net, left, right = network(seed, outputs=outputs), drawn(seed, n, 3), drawn(seed + 1, m, 3)
    close(empirical_ntk(net, left, right), gram(rows(net, left), rows(net, right)))
    close(empirical_ntk(net, left), gram(rows(net, left), rows(net, left)))


@settings(max_examples=20)
@given(seeds, st.integers(1, 40), st.integers(4, 60), st.sampled_from(["sgd", "signgd", "asymmetric"]))
def test_blocks_do_not_change_the_kernel(seed, n, fitting, formula):
    net, left, right = network(seed), drawn(seed, n, 3), drawn(seed + 1, 7, 3)
    one = 8 * sum(p.numel() for p in net.parameters())
    for others in (right, None):
        whole = empirical_ntk(net, left, others, formula=formula)
        close(empirical_ntk(net, left, others, formula=formula, block_bytes=fitting * one), whole)


def counted(name, honest, taken):
    def method(self, batch, *rest):
        taken[name] = max(taken[name], len(batch))
        return honest(self, batch, *rest)

    return method


@settings(max_examples=15)
@given(seeds, st.integers(1, 8), st.integers(2, 12))
def test_no_more_gradients_are_held_than_block_bytes_allow(seed, n, fitting):
    net, one = network(seed), 8 * sum(p.numel() for p in network(seed).parameters())
    taken = {"held": 0, "gradients": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name in taken:
            patch.setattr(Tangent, name, counted(name, getattr(Tangent, name), taken))
        empirical_ntk(net, drawn(seed, n, 3), drawn(seed, 8, 3), block_bytes=fitting * one)
    assert taken["held"] + taken["gradients"] <= fitting
    assert taken["held"] == min(n, fitting - min(16, fitting // 2))  # and no fewer than fit


@pytest.mark.parametrize("fitting", [4, 8, 20])
def test_gradients_alive_at_once_stay_within_block_bytes(fitting, monkeypatch):
    net, alive, most = network(0, width=40), [], []
    one = 8 * sum(p.numel() for p in net.parameters())

    def watched(honest):
        def method(self, batch, *rest):
            found = honest(self, batch, *rest)
            alive.extend(weakref.ref(g) for g in found.values())
            most.append(sum(g.nbytes for g in (ref() for ref in alive) if g is not None))
            return found

        return method

    for name in ("gradients", "held"):
        monkeypatch.setattr(Tangent, name, watched(getattr(Tangent, name)))
    for others in (drawn(1, 30, 3), None):
        empirical_ntk(net, drawn(0, 40, 3), others, block_bytes=fitting * one)
    assert max(most) <= fitting * one


@pytest.mark.parametrize("outputs", [1, 3])
def test_gradients_run_the_network_once_for_each_chunk(outputs):
    net, calls = network(0, outputs=outputs), []
    tangent = Tangent(net, lambda net, x: calls.append(None) or net(x))
    tangent.held(drawn(0, 12, 3), 4)
    assert len(calls) == 3


def test_blocks_too_small_for_two_examples_are_refused():
    net = network(0)
    one = 8 * sum(p.numel() for p in net.parameters())
    with pytest.raises(ValueError, match=f"block_bytes = {2 * one - 1}.*take at least {2 * one}, freeze what need not"):
        empirical_ntk(net, drawn(0, 4, 3), block_bytes=2 * one - 1)


@settings(max_examples=20)
@given(seeds, small)
def test_kernel_is_positive_semidefinite(seed, outputs):
    kernel = empirical_ntk(network(seed, outputs=outputs), drawn(seed, 6, 3)).reshape(6 * outputs, -1)
    values = torch.linalg.eigvalsh(kernel)
    assert values[0] >= -1e3 * EPS * values[-1]  # the error of a sum of some hundred products
    close(kernel, kernel.mT)


@settings(max_examples=20)
@given(seeds)
def test_sign_kernels_have_the_diagonals_and_bounds_of_their_definition(seed):
    net, x = network(seed), drawn(seed, 5, 3)
    with torch.no_grad():
        net[4].weight[0, :2] = 0  # what feeds them gets no gradient: sign 0 = 0
    g = rows(net, x)[:, 0]
    sgd, sign, mixed = (empirical_ntk(net, x, formula=f)[:, 0, :, 0] for f in ("sgd", "signgd", "asymmetric"))
    close(sign, g.sign() @ g.sign().mT)
    close(mixed, g @ g.sign().mT)
    torch.testing.assert_close(sign.diag(), (g != 0).sum(1).double())
    assert (sign.diag() < g.shape[1]).all()
    close(mixed.diag(), g.abs().sum(1))
    assert (mixed <= g.abs().sum(1)[:, None] * (1 + 1e-12)).all()
    assert (mixed.diag() ** 2 <= sgd.diag() * sign.diag() * (1 + 1e-12)).all()  # Cauchy and Schwarz
    assert (mixed - mixed.mT).abs().max() > 1e-3


@settings(max_examples=20)
@given(seeds)
def test_one_sign_step_moves_the_output_by_the_asymmetric_kernel(seed):
    """f changes by -eta sign(chi) K(x, x_t) up to O(eta^2): the rest falls by 4 as eta halves."""
    net, x = network(seed), drawn(seed, 4, 3)
    tangent = Tangent(net)
    parameters, chi = tangent.parameters, -0.7
    gradient = {name: g[0, 0] for name, g in tangent.gradients(x[:1]).items()}
    predicted = empirical_ntk(net, x, x[:1], formula="asymmetric")[:, 0, 0, 0]
    rests = []
    for lr in (1e-3, 5e-4):
        stepped = {name: p - lr * (chi * gradient[name]).sign() for name, p in parameters.items()}
        change = (tangent.at(x)(stepped) - tangent.at(x)(parameters))[:, 0]
        rests.append((change + lr * np.sign(chi) * predicted).norm())
    assert rests[0] / rests[1] == pytest.approx(4, abs=0.1)


@settings(max_examples=20)
@given(seeds, st.integers(1, 20), st.integers(1, 20), small, st.integers(4, 20))
def test_products_with_vectors_need_no_kernel(seed, n, m, outputs, chunk):
    net, left, right = network(seed, outputs=outputs), drawn(seed, n, 3), drawn(seed + 1, m, 3)
    vectors = drawn(seed + 2, m, outputs)
    expected = torch.einsum("icje,je->ic", gram(rows(net, left), rows(net, right)), vectors)
    torch.testing.assert_close(
        ntk_product(net, left, right, vectors, chunk=chunk), expected, rtol=1e-11, atol=1e-11 * float(expected.norm())
    )


@settings(max_examples=10)
@given(seeds)
def test_frozen_parameters_leave_the_kernel_and_layers_add_up(seed):
    net, x = network(seed), drawn(seed, 4, 3)
    total, whole = 0, empirical_ntk(net, x)
    for chosen in net.parameters():
        for p in net.parameters():
            p.requires_grad_(p is chosen)
        total = total + empirical_ntk(net, x)
    close(total, whole)


class Tied(nn.Module):
    """Scores of tokens by the embedding that read them."""

    def __init__(self):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(torch.tanh(self.embedding(tokens)).sum(1))[:, 3]


def test_tied_weights_have_one_gradient():
    torch.manual_seed(0)
    net, tokens = Tied().double().eval(), torch.tensor([[3, 1], [3, 3], [2, 5]])
    kernel = empirical_ntk(net, tokens)
    close(kernel, gram(rows(net, tokens), rows(net, tokens)))
    untied = Tied().double().eval()
    untied.decoder.weight = nn.Parameter(net.embedding.weight.detach().clone())
    untied.embedding.weight = nn.Parameter(net.embedding.weight.detach().clone())
    assert (empirical_ntk(untied, tokens) / kernel - 1).abs().max() > 0.1  # the layers' sum: wrong for tied ones


@settings(max_examples=15)
@given(seeds)
def test_float32_gradients_keep_seven_digits(seed):
    """Plain float32 products of few long rows lose four (spec, trap 2); the oracle adds up in float64."""
    net, x = network(seed, width=400, dtype=torch.float32), drawn(seed, 3, 3, dtype=torch.float32)
    close(empirical_ntk(net, x), gram(rows(net, x), rows(net, x)), 1e-6)


def test_bfloat16_networks_are_measured_in_float32():
    net, x = network(0, dtype=torch.bfloat16), drawn(0, 4, 3).bfloat16()
    close(
        empirical_ntk(net, x), gram(rows(net, x), rows(net, x)), 0.05
    )  # bfloat16 has 3 digits, and vmap rounds its way


@pytest.mark.parametrize("sketch", ["gaussian", "countsketch"])
def test_random_projections_are_unbiased_with_the_variance_of_their_docstring(sketch, monkeypatch):
    net, x, size, draws = network(0, width=3), drawn(0, 2, 3), 8, 700
    g, held = rows(net, x)[:, 0], Tangent(net).held(x, 2)
    monkeypatch.setattr(Tangent, "held", lambda *_: held)  # the same for all draws
    products = []
    for seed in range(draws):
        found = projected_gradients(net, x, size, seed=seed, sketch=sketch)[:, 0]
        products.append(found @ found.mT)
    squares, dot = (g**2) @ (g**2).mT, g @ g.mT
    expected = (torch.outer(dot.diag(), dot.diag()) + dot**2 - (2 * squares if sketch == "countsketch" else 0)) / size
    found = torch.stack(products)
    z = (found.mean(0) - dot) / (expected / draws).sqrt()
    assert z.abs().max() < 4
    ratio = found.var(0) / expected
    assert (ratio - 1).abs().max() < 0.3  # some kurtosis: sd of a variance is about sqrt(5 / draws) = .08


@settings(max_examples=15)
@given(seeds, st.integers(2, 12), st.sampled_from(["gaussian", "countsketch"]))
def test_projections_are_the_same_for_equal_seeds_whatever_the_blocks(seed, fitting, sketch):
    net, x = network(0), drawn(1, 7, 3)
    one = 8 * sum(p.numel() for p in net.parameters())
    whole = projected_gradients(net, x, 5, seed=seed, sketch=sketch)
    close(projected_gradients(net, x, 5, seed=seed, sketch=sketch, block_bytes=fitting * one), whole)
    assert (projected_gradients(net, x, 5, seed=seed + 1, sketch=sketch) - whole).abs().max() > 1e-3


@settings(max_examples=10)
@given(seeds, st.sampled_from(["gaussian", "countsketch"]))
def test_projections_are_the_same_in_float32_and_in_float64(seed, sketch):
    """As far as gradients and their sums are, which keep six digits."""
    single, double = network(seed, dtype=torch.float32), network(seed, dtype=torch.float32).double()
    x = drawn(1, 4, 3, dtype=torch.float32)
    found = projected_gradients(single, x, 6, seed=seed, sketch=sketch)
    close(found, projected_gradients(double, x.double(), 6, seed=seed, sketch=sketch), 1e-5)


def test_networks_without_a_function_or_without_parameters_are_refused():
    with pytest.raises(ValueError, match=r"training mode.*call network.eval\(\) first"):
        empirical_ntk(network(0).train(), drawn(0, 2, 3))
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        empirical_ntk(network(0).requires_grad_(False), drawn(0, 2, 3))
    uncounted = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).double().eval()
    with pytest.raises(ValueError, match="keeps no running statistics"):
        ntk_product(uncounted, drawn(0, 2, 3), drawn(0, 2, 3), drawn(0, 2, 4))
    with pytest.raises(ValueError, match=r"vectors of shape \(3, 1\): give \(m, C\) = \(2, 1\)"):
        ntk_product(network(0), drawn(0, 4, 3), drawn(0, 2, 3), drawn(0, 3, 1))
    for batch in ({"x": drawn(0, 2, 3), "y": drawn(0, 3, 3)}, {}):
        with pytest.raises(ValueError, match="a batch is a tensor, or a mapping"):
            Tangent(network(0)).count(batch)
    with pytest.raises(ValueError, match="the batch is empty"):
        empirical_ntk(network(0), drawn(0, 0, 3))
    with pytest.raises(ValueError, match="size = 0: take at least one direction"):
        projected_gradients(network(0), drawn(0, 2, 3), 0, seed=0)


def test_products_go_through_fused_attention():
    tokens, _ = sentences()
    net = bert(attention="sdpa")
    v = drawn(0, 5, 1)
    found = ntk_product(
        net, {"input_ids": tokens}, {"input_ids": tokens}, v, forward=lambda n, b: n(**b).logits[:, 0, 3]
    )
    g = rows(net, {"input_ids": tokens}, lambda n, b: n(**b).logits[:, 0, 3])[:, 0]
    torch.testing.assert_close(found, g @ (g.mT @ v), rtol=0, atol=1e-5 * float((g @ (g.mT @ v)).norm()))


def bert(seed=0, attention="eager"):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        attn_implementation=attention,
        tie_word_embeddings=True,
    )
    return transformers.BertForMaskedLM(config).eval()


def sentences(seed=1, n=5, tokens=8):
    generator = torch.Generator().manual_seed(seed)
    seen = torch.ones(n, tokens, dtype=torch.long)
    for i in range(n):
        seen[i, tokens - i :] = 0
    return torch.randint(50, (n, tokens), generator=generator), seen


def label_words(net, batch):
    scores = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    at_mask = scores.gather(1, batch["position"][:, None, None].expand(-1, 1, scores.shape[2]))[:, 0]
    return at_mask[:, 7] - at_mask[:, 9]


def test_a_masked_language_model_has_the_kernel_of_its_gradients():
    net = bert()
    tokens, seen = sentences()
    batch = {"input_ids": tokens, "attention_mask": additive_mask(seen, torch.float32), "position": torch.arange(5) % 3}
    found = empirical_ntk(net, batch, forward=label_words)
    g = rows(net, {**batch, "attention_mask": seen}, label_words)  # the model's own 2-D mask
    close(found, gram(g, g), 1e-5)
    v = drawn(0, 5, 1)
    expected = torch.einsum("icje,je->ic", found, v)
    torch.testing.assert_close(
        ntk_product(net, batch, batch, v, forward=label_words).double(), expected, rtol=0, atol=1e-5 * expected.norm()
    )
    padded = tokens.masked_fill(seen == 0, 4)
    assert (padded != tokens).any()
    close(empirical_ntk(net, {**batch, "input_ids": padded}, forward=label_words), found, 1e-5)


def test_flat_masks_are_refused_with_the_remedy():
    tokens, seen = sentences()
    with pytest.raises(ValueError, match=r"attention_mask is 2-D.*additive_mask\(attention_mask, dtype\)"):
        empirical_ntk(bert(), {"input_ids": tokens, "attention_mask": seen})


def test_additive_masks_leave_outputs_as_they_are_for_encoders_and_decoders():
    transformers = pytest.importorskip("transformers")
    tokens, seen = sentences()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    for net, causal in ((bert(), False), (transformers.LlamaForCausalLM(config).eval(), True)):
        own = net(input_ids=tokens, attention_mask=seen).logits
        ready = net(input_ids=tokens, attention_mask=additive_mask(seen, torch.float32, causal)).logits
        assert (own - ready)[seen.bool()].abs().max() < 1e-6
        wrong = net(input_ids=tokens, attention_mask=additive_mask(seen, torch.float32, not causal)).logits
        assert (own - wrong)[seen.bool()].abs().max() > 1e-3


def test_a_decoder_has_the_kernel_of_its_gradients():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
        tie_word_embeddings=True,
    )
    net = transformers.LlamaForCausalLM(config).eval()
    tokens, seen = sentences()

    def loss(net, batch):
        scores = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return -F.log_softmax(scores[:, 1], -1)[:, 5]

    found = empirical_ntk(
        net, {"input_ids": tokens, "attention_mask": additive_mask(seen, torch.float32, causal=True)}, forward=loss
    )
    g = rows(net, {"input_ids": tokens, "attention_mask": seen}, loss)
    close(found, gram(g, g), 1e-5)

"""A small transformer with random weights, with LoRA at its start, and sequences of two classes to learn.

Pre-LayerNorm blocks, x <- x + attention(norm x), x <- x + W_down gelu(W_up norm x); f = <u, mean norm x over tokens>.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import Buffer, Module, ParameterList
from torch.nn.functional import gelu, layer_norm


class Transformer(Module):
    """One output; the weights of the blocks train, embeddings and u are fixed. In float64, in eval mode."""

    def __init__(
        self,
        width: int,
        blocks: int,
        tokens: int,
        vocabulary: int,
        generator: torch.Generator,
        *,
        heads: int = 4,
    ) -> None:
        """width: d; weights are d x d (query, key, value, out), 2d x d and d x 2d (up, down), entries N(0, 1 / inputs).

        tokens: of a sequence. Raises ValueError for a width that heads do not divide, and for sizes below one.
        """
        super().__init__()
        if min(width, blocks, tokens, vocabulary, heads) < 1 or width % heads:
            raise ValueError(f"width = {width}, heads = {heads}: take all sizes >= 1, and a multiple of the heads")
        shapes = (((width, width),) * 4 + ((2 * width, width), (width, 2 * width))) * blocks
        normal = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.weights = ParameterList(normal(shape) / shape[1] ** 0.5 for shape in shapes)
        self.lora, self.scale, self.heads = ParameterList(), 1.0, heads
        self.embedding, self.position = Buffer(normal(vocabulary, width)), Buffer(normal(tokens, width))
        self.readout = Buffer(normal(width) / width**0.5)
        self.eval()

    def adapted(self, drawn: Sequence[Float[Tensor, "rank _"]], alpha: float) -> "Transformer":
        """A copy with LoRA (Hu et al. 2021), W_0 + (alpha / k) B A at B = 0: B and A train in place of every weight.

        drawn: for each weight its A, k x inputs. Raises ValueError unless k is one number.
        """
        found = deepcopy(self).requires_grad_(False)
        if len({len(a) for a in drawn}) != 1:
            raise ValueError(
                f"ranks {[len(a) for a in drawn]}: alpha / k is one scale; draw every A with the same rank"
            )
        pairs = [(a.new_zeros(len(weight), len(a)), a.clone()) for weight, a in zip(self.weights, drawn, strict=True)]
        found.lora = ParameterList(matrix for pair in pairs for matrix in pair)
        found.scale = alpha / len(drawn[0])
        return found.eval()

    def forward(self, tokens: Int[Tensor, "b tokens"]) -> Float[Tensor, " b"]:
        """f of each sequence."""
        weights, lora, norm = list(self.weights), list(self.lora), self.readout.shape
        for index, (b, a) in enumerate(zip(lora[::2], lora[1::2], strict=True)):
            weights[index] = weights[index] + self.scale * b @ a
        x = self.embedding[tokens] + self.position
        for query, key, value, out, up, down in zip(*[iter(weights)] * 6, strict=True):
            seen = layer_norm(x, norm)
            q, k, v = ((seen @ w.mT).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (query, key, value))
            mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
            x = x + mixed.transpose(1, 2).flatten(2) @ out.mT
            x = x + gelu(layer_norm(x, norm) @ up.mT) @ down.mT
        return layer_norm(x, norm).mean(1) @ self.readout


def two_chains(
    count: int, tokens: int, vocabulary: int, generator: torch.Generator, *, sharpness: float = 2.0
) -> tuple[Int[Tensor, "count tokens"], Float[Tensor, " count"]]:
    """Sequences of two random Markov chains in turn, and their classes -1 and 1.

    sharpness: s; the chance of a token after another is softmax(s times normal numbers).
    """
    classes = torch.arange(count) % 2
    logits = torch.randn(2, vocabulary, vocabulary, generator=generator, dtype=torch.float64)
    chains, found = (sharpness * logits).softmax(-1), [torch.randint(vocabulary, (count,), generator=generator)]
    for _ in range(tokens - 1):
        found.append(torch.multinomial(chains[classes, found[-1]], 1, generator=generator)[:, 0])
    return torch.stack(found, 1), 2.0 * classes.double() - 1


def rank_one_kernels(
    gradients: Sequence[Float64[np.ndarray, "n _ _"]], drawn: Sequence[Float64[np.ndarray, "rows _"]]
) -> Float64[np.ndarray, "rows n n"]:
    """<G a^T, G' a^T> summed over layers, for each of the rows a; their mean over k rows is the kernel of LoRA's B.

    gradients, drawn: for each layer G of n examples, d_out x d_in, and rows with entries N(0, 1).
    """
    n, found = len(gradients[0]), np.zeros((1, 1, 1))
    for layer, rows in zip(gradients, drawn, strict=True):
        images = (rows @ layer.reshape(-1, layer.shape[2]).T).reshape(len(rows), n, -1)
        found = found + images @ images.mT
    return found

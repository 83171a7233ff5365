"""A network of a genome: variants feed their genes, genes feed their pathways, and pathways the trait.

The data are made up: 1,000 variants in 100 genes of different lengths, 20 pathways of genes, and a trait that two genes
cause, by an excess of variants. The network sees which variant lies in which gene, and finds the two genes; a
perceptron with as many parameters sees variants only.

    python examples/genome.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lc_triton

VARIANTS, GENES, PATHWAYS, CAUSAL = 1_000, 100, 20, (17, 93)


def genome(generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The variants of each gene as rows of different lengths, and the genes of each pathway, -1 for none."""
    ends = torch.randperm(VARIANTS - 1, generator=generator)[: GENES - 1].sort().values + 1
    indptr = torch.cat([torch.tensor([0]), ends, torch.tensor([VARIANTS])])
    pathways = torch.stack([torch.randperm(GENES, generator=generator)[:12] for _ in range(PATHWAYS)])
    pathways[::2, 9:] = -1  # every other one has nine genes
    pathways[0, 0], pathways[1, 0] = CAUSAL
    return (indptr, torch.arange(VARIANTS)), pathways


class GenomeNetwork(nn.Module):
    """A network in which genes read their variants only, and pathways their genes only."""

    def __init__(self, genes: tuple[Tensor, Tensor], pathways: Tensor) -> None:
        super().__init__()
        self.genes = lc_triton.LocalGather(VARIANTS, genes, in_channels=1, out_channels=1, activation="tanh")
        self.pathways = lc_triton.LocalGather(GENES, pathways, in_channels=1, out_channels=4, activation="tanh")
        self.trait = nn.Linear(PATHWAYS * 4, 1)

    def forward(self, genotypes: Tensor) -> Tensor:
        """The trait's logit of genotypes `(B, VARIANTS)`."""
        return self.trait(self.pathways(self.genes(genotypes.unsqueeze(-1))).flatten(1)).squeeze(-1)


def people(number: int, genes: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Genotypes 0, 1 or 2 of rare variants, centred, and who has the trait."""
    genotypes = torch.rand(number, VARIANTS, 2, generator=generator).lt(0.1).sum(-1).float() - 0.2
    indptr, _ = genes
    burdens = [genotypes[:, indptr[g] : indptr[g + 1]].mean(1) for g in CAUSAL]
    liability = torch.stack([burden / burden.std() for burden in burdens]).sum(0)
    return genotypes, (liability > 0).float()


def train(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """Train by AdamW, with random batches of 256."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(x[chosen]).view(-1), y[chosen]).backward()
        optimizer.step()


def main(steps: int = 200) -> dict[str, float]:
    """Train both networks, name the genes that matter, and return the accuracies on other people."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    genes, pathways = genome(generator)
    (x, y), (other_x, other_y) = people(2_000, genes, generator), people(2_000, genes, generator)
    network = GenomeNetwork(genes, pathways)
    parameters = sum(p.numel() for p in network.parameters())
    hidden = max(1, round(parameters / VARIANTS))
    networks = {
        "genome": network,
        "perceptron": nn.Sequential(nn.Linear(VARIANTS, hidden), nn.Tanh(), nn.Linear(hidden, 1)),
    }
    found = {}
    for name, model in networks.items():
        train(model, x, y, steps)
        with torch.no_grad():
            right = (model(other_x).view(-1) > 0) == other_y.bool()
        found[name] = float(right.double().mean())
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, accuracy {found[name]:.1%}")
    values = network.genes(other_x.unsqueeze(-1))
    logits = network.trait(network.pathways(values).flatten(1))
    (effects,) = torch.autograd.grad(logits.sum(), values)
    order = (effects.squeeze(-1).mean(0).abs() * values.squeeze(-1).std(0)).argsort(descending=True)
    print(f"the genes that matter most: {order[:2].tolist()}; the trait's: {list(CAUSAL)}")
    found["causal genes found"] = len(set(order[:2].tolist()) & set(CAUSAL))
    return found


if __name__ == "__main__":
    main()

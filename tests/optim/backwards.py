"""Functions that run a backward: a plain one, and those for which the gradient of a weight must be stored."""

import warnings

import torch

from tests.optim.networks import weights


def loss_of(net, x):
    return (net(x) - 1).square().mean()


def plainly(net, x):
    loss_of(net, x).backward()


def with_penalty(net, x):
    """Operations of torch use each weight as well."""
    (loss_of(net, x) + 0.1 * sum(w.square().sum() for w in weights(net))).backward()


def with_linear_penalty(net, x):
    """The other use of a weight does not save it, so autograd compares no version."""
    (loss_of(net, x) + 0.01 * sum(w.sum() for w in weights(net))).backward()


def used_twice(net, x):
    (loss_of(net, x) + loss_of(net, x.flip(0, 2))).backward()


def of_two_graphs(net, x):
    """Two graphs that are both built before the first backward."""
    first, second = loss_of(net, x), loss_of(net, 2 * x)
    first.backward()
    second.backward()


def retained(net, x):
    loss = loss_of(net, x)
    loss.backward(retain_graph=True)
    loss.backward()


def create_graph(net, x):
    x = x.requires_grad_()
    loss = loss_of(net, x)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()


def create_graph_of_weights(net, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a reference cycle
        loss_of(net, x).backward(create_graph=True)
    for p in net.parameters():
        p.grad = p.grad.detach()


def hooked(net, x):
    handles = [w.register_hook(lambda g: 2 * g) for w in weights(net)]
    loss_of(net, x).backward()
    for handle in handles:
        handle.remove()


def triple(p):
    p.grad.mul_(3)


def with_hooks_after(net, x):
    handles = [w.register_post_accumulate_grad_hook(triple) for w in weights(net)]
    loss_of(net, x).backward()
    for handle in handles:
        handle.remove()


def hooks_of_the_node(net, x):
    """Older libraries for data-parallel training hook gradients like this."""
    nodes = [torch.autograd.graph.get_gradient_edge(w).node for w in weights(net)]
    hooks = [lambda *_, w=w: triple(w) for w in weights(net)]
    handles = [node.register_hook(hook) for node, hook in zip(nodes, hooks, strict=True)]
    loss_of(net, x).backward()
    for handle in handles:
        handle.remove()


def checkpointed(net, x):
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).square().mean().backward()


def checkpointed_by_a_node(net, x):
    torch.utils.checkpoint.checkpoint(net, x.requires_grad_(), use_reentrant=True).square().mean().backward()


def checkpointed_by_two_nodes(net, x):
    """Each node runs a backward of its own, and both recompute with the same weights."""
    parts = [torch.utils.checkpoint.checkpoint(net, part, use_reentrant=True) for part in (x.requires_grad_(), 2 * x)]
    sum(part.square().mean() for part in parts).backward()


def with_saved_tensor_hooks(net, x):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        loss = loss_of(net, x)
    loss.backward()


class FailingBackward(torch.autograd.Function):
    """The identity, whose backward raises an error."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("no gradient")


# For each function, the reason for which the optimizer stores gradients; None if the last backward updates by the sum.
STORED = {
    with_penalty: "used more than once",
    with_linear_penalty: "used more than once",
    used_twice: "used more than once",
    of_two_graphs: None,
    retained: None,
    create_graph: "by another way|used more than once|differentiated again",
    create_graph_of_weights: "differentiated again",
    hooked: "it has hooks",
    with_hooks_after: "it has hooks",
    hooks_of_the_node: "it has hooks",
    with_saved_tensor_hooks: "by another way",
    checkpointed: "by another way",
    checkpointed_by_a_node: "run by a backward",
    checkpointed_by_two_nodes: "run by a backward",
}

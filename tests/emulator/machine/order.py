"""The order in which diverged threads run: the lowest block first, so that they meet again after every branch."""

from __future__ import annotations

Graph = list[list[int]]  # the successors of each block


def order_of(successors: Graph) -> list[int]:
    """A rank of each block: a block comes after those that lead to it, and a whole loop before the blocks after it.

    This is a weak topological order (Bourdoncle 1993).
    """
    rank = [0] * len(successors)
    placed = 0

    def place(block: int) -> None:
        nonlocal placed
        rank[block] = placed
        placed += 1

    def entry_of(component: list[int], outside: set[int]) -> int | None:
        """The first block of a component that a block outside leads to."""
        return next((b for b in component if any(b in successors[a] for a in outside)), None)

    def visit(nodes: set[int], root: int) -> None:
        for component in components(successors, nodes, root, banned=-1):
            inside = set(component)
            entry = entry_of(component, nodes - inside)
            head = root if root in inside else component[-1] if entry is None else entry
            place(head)
            if len(component) > 1:
                body(inside - {head}, head)

    def body(rest: set[int], head: int) -> None:
        """The blocks of a loop after its head, in order."""
        nodes = {head} | rest
        for component in components(successors, nodes, head, banned=head):
            if component == [head]:
                continue
            inside = set(component)
            entry = entry_of(component, nodes - inside)
            first = component[-1] if entry is None else entry
            place(first)
            if len(component) > 1:
                body(inside - {first}, first)

    if successors:
        visit(set(range(len(successors))), 0)
    return rank


def components(successors: Graph, nodes: set[int], root: int, banned: int) -> list[list[int]]:
    """Strongly connected components of what root reaches, in topological order; edges to `banned` do not count.

    Tarjan's algorithm, without recursion.
    """
    index, low = {root: 0}, {root: 0}
    stack, on_stack = [root], {root}
    work = [(root, iter(successors[root]))]
    found: list[list[int]] = []
    while work:
        node, following = work[-1]
        for successor in following:
            if successor not in nodes or successor == banned:
                continue
            if successor not in index:
                index[successor] = low[successor] = len(index)
                stack.append(successor)
                on_stack.add(successor)
                work.append((successor, iter(successors[successor])))
                break
            if successor in on_stack:
                low[node] = min(low[node], index[successor])
        else:
            work.pop()
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[node])
            if low[node] == index[node]:
                start = stack.index(node)
                found.append(stack[start:][::-1])
                on_stack -= set(stack[start:])
                del stack[start:]
    return found[::-1]

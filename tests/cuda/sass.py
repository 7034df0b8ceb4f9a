"""Reading disassembled kernels: instructions, loops, and what a turn of the walk over encoded tiles costs."""

import re
from dataclasses import dataclass

TILE = 64


@dataclass(frozen=True)
class Loop:
    """From the target of a backward branch to the branch; indices of instructions, the last included."""

    first: int
    last: int

    def __contains__(self, other: "Loop") -> bool:
        return self != other and self.first <= other.first and other.last <= self.last

    def crosses(self, other: "Loop") -> bool:
        return other.first < self.first <= other.last < self.last


class Kernel:
    """A function of the output of cuobjdump --dump-sass."""

    def __init__(self, text: str) -> None:
        self.name = text.split(maxsplit=1)[0]
        found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?(.*?);", text)
        self.instructions = [instruction for _, instruction in found]
        self._index = {int(address, 16): i for i, (address, _) in enumerate(found)}

    def template_arguments(self) -> tuple[int, ...]:
        return tuple(int(n) for n in re.findall(r"Li(\d+)E", self.name))

    def count(self, pattern: str, first: int = 0, last: int | None = None) -> int:
        """How many instructions begin with the regular expression."""
        body = self.instructions[first : None if last is None else last + 1]
        return sum(re.match(pattern, instruction) is not None for instruction in body)

    def n_products(self, loop: Loop) -> int:
        return self.count("HMMA", loop.first, loop.last)

    def loops(self, product: str = "HMMA") -> list[Loop]:
        """Loops with tensor-core products, in order.

        Rare code at the end of a function, which jumps back into the middle of loops, makes no loop.
        """
        found: list[Loop] = []
        for i, instruction in enumerate(self.instructions):
            branch = re.match(r"BRA.*?0x([0-9a-f]+)", instruction)
            target = self._index.get(int(branch[1], 16), i + 1) if branch else i + 1
            if target <= i and self.count(product, target, i) > 0:
                found.append(Loop(target, i))
        return sorted((a for a in found if not any(a.crosses(b) for b in found)), key=lambda loop: loop.first)

    def instructions_per_element(self, head_dim: int, n_columns: int) -> float:
        """Of the walk over encoded tiles, each lane's, every branch taken.

        The walk over f16 tiles comes first; that over encoded ones is the largest loop that does not hold it. If it has
        loops inside, these go over the channel blocks of K. How many tokens a turn takes follows from its products.
        """
        loops = self.loops()
        walk = max((a for a in loops[1:] if not any(b in a for b in self._f16(loops))), key=lambda a: a.last - a.first)
        inner = [loop for loop in loops if loop in walk]
        n_instructions, n_products = walk.last - walk.first + 1, self.n_products(walk)
        blocks = head_dim // 16  # of channels; a block of K is 4 products for each 8 columns
        per_block = 4 * n_columns // 8
        if inner:
            n_turns = blocks / sum(self.n_products(loop) // per_block for loop in inner)
            n_instructions += round((n_turns - 1) * sum(loop.last - loop.first + 1 for loop in inner))
            n_products += round((n_turns - 1) * sum(self.n_products(loop) for loop in inner))
        n_tokens = min(TILE, 16 * (n_products // (2 * blocks * n_columns // 8)))
        return n_instructions / (2 * n_tokens * head_dim / 32)

    def _f16(self, loops: list[Loop]) -> list[Loop]:
        """The walk over f16 tiles: the first loop that holds no other."""
        return [a for a in loops if not any(b in a for b in loops)][:1]


def kernels(sass: str) -> list[Kernel]:
    return [Kernel(text) for text in sass.split("Function :")[1:]]

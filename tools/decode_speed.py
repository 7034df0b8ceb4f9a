"""What guessing tokens gains, and what a schema costs, on one model: greedy answers to a few tasks, timed in turns.

    pip install ".[grammar]"
    python tools/decode_speed.py MODEL.gguf --threads 2 --repeats 3 --save tools/bench/cpu_decode_options.jsonl
    python tools/decode_speed.py MODEL.gguf --draft SMALL.gguf

Tasks: `edit` asks for a file again with one name changed (its prompt holds what the answer repeats), `list` for a
regular list, `story` for prose. `person` asks for JSON that meets a schema. Each is answered without and with guesses;
the tokens must be the same, or the tool fails. Times are those of `GenerationResult`, medians of the repeats. Measure
on an idle machine.
"""

import argparse
import json
import statistics
from pathlib import Path

import pykvq
from pykvq.results import ResultFile, origin

FILE = '''class Stack:
    """Last in, first out."""

    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        """Put an item on top."""
        self._items.append(item)

    def pop(self):
        """Take the item on top."""
        if not self._items:
            raise IndexError("pop from an empty stack")
        return self._items.pop()

    def peek(self):
        """The item on top, which stays."""
        if not self._items:
            raise IndexError("peek at an empty stack")
        return self._items[-1]

    def __len__(self):
        return len(self._items)

    def __iter__(self):
        return reversed(self._items)

    def __repr__(self):
        return f"Stack({self._items!r})"
'''
EDIT = f"Rename the class Stack to Pile in this file. Give the whole file.\n\n```python\n{FILE}```"
TASKS = {
    "edit": EDIT,
    "list": "Write the numbers from 1 to 40, each with its square, one per line.",
    "story": "Write a short story about a fox who learns to sail.",
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2020},
        "works": {"type": "array", "items": {"type": "string", "maxLength": 60}, "maxItems": 5},
        "known_for": {"type": "string", "maxLength": 200},
    },
    "required": ["name", "born", "works", "known_for"],
    "additionalProperties": False,
}


def measure(model, tokens, ways, args):
    """A row for each way to answer: {name: options of generate}."""
    speeds = {name: [] for name in ways}
    results = {}
    for _ in range(args.repeats):
        for name, options in ways.items():
            with pykvq.generate(
                model,
                tokens,
                max_tokens=args.max_tokens,
                sampler=pykvq.Sampler(temp=0),
                ctx=2048,
                threads=args.threads,
                kv=args.kv,
                **options,
            ) as generation:
                for _ in generation:
                    pass
            results[name] = generation.result
            speeds[name].append(generation.result.decode_tokens_per_second)
    plain = next(iter(ways))
    for name, result in results.items():
        if result.tokens != results[plain].tokens:
            raise SystemExit(f"{name}: other tokens than {plain}")
        yield {
            "way": name,
            "n_tokens": len(result.tokens),
            "tokens_per_second": round(statistics.median(speeds[name]), 2),
            "speedup": round(statistics.median(speeds[name]) / statistics.median(speeds[plain]), 3),
            "n_drafted": result.n_drafted,
            "n_accepted": result.n_accepted,
            "mask_ms_per_token": round(1e3 * result.mask_seconds / len(result.tokens), 4),
        }


def main():
    """Measure and print, a line a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft", help="a smaller model of the same vocabulary")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--tasks", default=",".join([*TASKS, "person"]))
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    file = ResultFile(args.save)
    with pykvq.Model.open(args.model) as model:
        made_with = origin(args.model)
        ways = {"plain": {}, "lookup": {"lookup": True}}
        if args.draft:
            ways["draft"] = {"draft": pykvq.Model.open(args.draft)}
        for task in args.tasks.split(","):
            if task == "person":
                prompt, to_measure = "Describe Ada Lovelace as JSON.", {"schema": {"json_schema": SCHEMA}}
            else:
                prompt, to_measure = TASKS[task], ways
            tokens = model.chat_tokens([{"role": "user", "content": prompt}])
            for row in measure(model, tokens, to_measure, args):
                file.append({"task": task, "kv": args.kv, "threads": args.threads, **row, "origin": made_with})
                print(json.dumps({"task": task, **row}), flush=True)


if __name__ == "__main__":
    main()

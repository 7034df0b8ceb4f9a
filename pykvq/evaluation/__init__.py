"""What a KV type costs in quality: divergence from an f16 cache, and tasks that need the whole context."""

from .divergence import Windows, diverge
from .retrieval import TASKS, Case, make_cases, retrieve
from .sweep import Sweep

__all__ = ["TASKS", "Case", "Sweep", "Windows", "diverge", "make_cases", "retrieve"]

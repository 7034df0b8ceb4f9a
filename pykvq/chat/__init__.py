"""Conversations: the turns, their cache, and the terminal that `pykvq chat` shows them in."""

from .conversation import Conversation, Overflow, Piece

__all__ = ["Conversation", "Overflow", "Piece"]

"""The agent: what runs on a protected server. It streams verified block deltas to a receiver."""

__version__ = "0.1.0"

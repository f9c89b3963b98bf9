"""Virtio devices in their own process that cannot touch guest memory."""

__version__ = "0.1.0"

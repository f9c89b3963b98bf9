"""A PCI function from outside: its configuration space decoded, and held against the clauses.

Pure functions of bytes, whoever read them: a driver that probes, or a tool that inspects.
"""

from nodma.pci.audit import Finding, audit
from nodma.pci.config import Bar, CapabilityView, ConfigSpace, VirtioCapability

__all__ = ["Bar", "CapabilityView", "ConfigSpace", "Finding", "VirtioCapability", "audit"]

"""A PCI function from outside: its configuration space read, decoded, printed, and held against the clauses.

Functions of bytes, whoever read them: a driver that probes, or a tool that inspects. Only ``sysfs`` reads them itself.
"""

from nodma.pci.audit import Finding, audit
from nodma.pci.config import Bar, CapabilityView, ConfigSpace, VirtioCapability

__all__ = ["Bar", "CapabilityView", "ConfigSpace", "Finding", "VirtioCapability", "audit"]

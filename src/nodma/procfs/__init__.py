"""What a process holds, seen from outside through ``/proc``: mappings, descriptors, contents of memory.

Nothing here asks the process itself. Inspecting another process takes the right to trace it: its user has it as long
as the process is dumpable (``nodma serve --auditable``), root always. What ``/proc`` cannot show is listed in
docs/confinement.md.

Files are compared by :class:`FileIdentity`, never by inode number alone or by name: each file system counts its inodes
for itself, and anybody may name a memfd as they like.
"""

from nodma.procfs.memory import PAGE, Search, Unread
from nodma.procfs.process import ProcessView, holders, stopped
from nodma.procfs.records import RING, Descriptor, FileIdentity, MappedRange, Ring

__all__ = [
    "PAGE",
    "RING",
    "Descriptor",
    "FileIdentity",
    "MappedRange",
    "ProcessView",
    "Ring",
    "Search",
    "Unread",
    "holders",
    "stopped",
]

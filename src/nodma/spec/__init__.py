"""What the specifications say, each number once: registers, structures, bits, profiles, clauses.

Nothing here acts. The modules:

- :mod:`~nodma.spec.layout` the way structures are declared;
- :mod:`~nodma.spec.pci` configuration space (PCI Local Bus 3.0, PCI Express 6.0);
- :mod:`~nodma.spec.virtio` features, status, split virtqueues (virtio 1.4, chapters 2, 3 and 6);
- :mod:`~nodma.spec.virtio_pci` virtio over PCI (virtio 1.4, 4.1);
- :mod:`~nodma.spec.virtio_blk` the block device (virtio 1.4, 5.2);
- :mod:`~nodma.spec.vfio_user` the messages between a VMM and a device process;
- :mod:`~nodma.spec.profiles` restricted DMA: the wire profiles and their clauses.
"""

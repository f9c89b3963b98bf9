"""Several functions of one PCI slot: what they are to be, and who runs them."""

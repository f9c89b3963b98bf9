"""Device models as processes: assembled, served, signalled, ended; one function or several of one PCI slot."""

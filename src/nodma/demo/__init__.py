"""The main job on real input, as one story: a file system read and written through a disk without DMA."""

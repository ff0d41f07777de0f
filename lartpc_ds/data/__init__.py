"""Events: files, truth, splits, dense tiles. The only package that imports h5py."""

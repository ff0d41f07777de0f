"""The grid of ranks says which pixels each rank has, and what the ranks may say to each other."""

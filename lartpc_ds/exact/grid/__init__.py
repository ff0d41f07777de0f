"""The grid of ranks: which pixels each rank has, and what ranks may say to each other."""

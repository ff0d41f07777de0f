"""This folder says which pixels each rank of a grid has, and what the ranks may say to each other."""

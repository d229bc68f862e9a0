"""Matrices of vectors in files."""
